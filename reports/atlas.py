"""The feature atlas: `atlas.html`, every SAE feature of a study in one file that opens from disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from reports.adequacy import atlas_adequacy
from reports.atlas_data import encode_atlas
from reports.bundle import pack, pack_json, render_page
from reports.contract import declared
from reports.figures import ablation_strip
from reports.figures.style import PALETTE
from reports.heads import HEADS, has_heads
from reports.page import figure_json
from reports.study import leave_out_infinite, read_record, read_study, short_names
from reports.table_cells import count_range
from reports.tables import find_tables, missing_columns, read_contracts, read_csv, unplaced

SCRIPTS = (
    "unpack.js",
    "theme.js",
    "plots.js",
    "atlas_data.js",
    "atlas_search.js",
    "characters.js",
    "elements.js",
    "head_address.js",
    "atlas_view.js",
    "atlas_sheet.js",
    "atlas_plots.js",
    "atlas.js",
)
STYLES = ("base.css", "atlas.css")

ABLATION_COLUMNS = ("model", "layer", "head", "kind", "impact_pct")
# column of feature_effects -> its name among a feature's numbers
EFFECTS = {"estimate": "effect_estimate", "delta_loss": "effect", "ci_low": "effect_low", "ci_high": "effect_high"}


def write_atlas(source: str | Path | Mapping[str, pd.DataFrame], out: str | Path) -> Path:
    """Return `out`, the page of the feature atlas: every row of `feature_atlas`, and what `ablation_results` and
    `feature_effects` say of heads and features and `sae_training_results` of whether their SAEs are adequate, if they
    are there.

    `source` is a study directory, or the tables by name. Strings of tokens reach the page as text only.

    Raises:
        ValueError: if there is no feature_atlas, it lacks columns, a feature stands in two rows, a JSON cell is not
            what the contract says, or a layer, head or feature is no whole number.
    """
    out = Path(out)
    tables, record = read_tables(source)
    tables, notes = leave_out_infinite(tables)
    if "feature_atlas" not in tables:
        raise ValueError(
            f"atlas: no feature_atlas among {', '.join(tables) or 'the tables'}; expected feature_atlas.csv"
        )
    table = tables["feature_atlas"]
    contract = (declared() if isinstance(source, Mapping) else read_contracts(source)).get("feature_atlas")
    if contract is None:  # of tables without a directory that describes them, where workbench is not imported
        raise ValueError("atlas: the columns of feature_atlas are not declared; expected a study's directory")
    missing = missing_columns(table.columns, contract.leading)
    if missing:
        raise ValueError(f"feature_atlas: the columns {', '.join(missing)} are missing; got {', '.join(table.columns)}")
    check_once(table)
    if "feature_effects" in tables:
        table = with_effects(table, tables["feature_effects"])
    names = short_names(order(record, list(dict.fromkeys(table["model"]))))
    ranks = {model: rank for rank, model in enumerate(names)}
    table = table.assign(rank=table["model"].map(ranks)).sort_values(
        ["rank", "layer", "head", "feature"], kind="stable"
    )
    title = record.get("title") or (Path(source).resolve().name if isinstance(source, str | Path) else "Feature atlas")
    n_tokens = count_range(table["n_tokens"]) if "n_tokens" in table else ""
    beside = source if isinstance(source, str | Path) and out.parent.resolve() == Path(source).resolve() else None
    has_report = beside is not None and len(find_tables(beside)) > 1
    adequacy, inadequate = atlas_adequacy(table, tables.get("sae_training_results"), names)
    page_data = ablation_data(tables, names) | {"inadequate": inadequate}
    return render_page(
        "atlas.html.j2",
        out,
        scripts=SCRIPTS,
        styles=STYLES,
        title=title,
        n_features=f"{len(table):,}",
        sparsity=", ".join(f"{l1:g}" for l1 in sorted(table["l1"].dropna().unique())) if "l1" in table else "",
        notes=[*adequacy, *notes],
        n_models=len(names),
        n_tokens=n_tokens,
        report="report.html" if has_report else "",
        heads=HEADS if beside is not None and has_heads(read_study(beside)) else "",
        page_data=pack_json(page_data),
        atlas_data=pack(encode_atlas(table, {"title": title, "names": names, "n_tokens": n_tokens})),
    )


def check_once(table: pd.DataFrame) -> None:
    """Raise ValueError for a row without a place, and if two rows are one feature by name, as of two SAEs of one head:
    the page's links know one."""
    keys = [column for column in ("model", "seed", "layer", "head", "feature") if column in table]
    if broken := unplaced(table, "feature_atlas", keys):
        raise ValueError(f"feature_atlas: {broken[0]} is no whole number in some row; expected one in each")
    again = table.duplicated(keys)
    if again.any():
        which = ", ".join(f"{key} {table.loc[again, key].iloc[0]}" for key in keys)
        raise ValueError(
            f"feature_atlas: {which} stands in several rows; expected one SAE a model, seed, layer and head"
        )


def with_effects(table: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """Return the features with what ablating them does, where effects have a row for them: of the same SAE, which
    another l1 is not.

    Raises:
        ValueError: if effects lack columns, hold text for numbers, or two rows of one feature.
    """
    places = [name for name in ("model", "seed", "layer", "head", "feature", "l1") if name in table]
    missing = missing_columns(effects.columns, [*EFFECTS, *(name for name in places if name != "l1")])
    if missing:
        raise ValueError(f"feature_effects: the columns {', '.join(missing)} are missing")
    if text := [name for name in EFFECTS if not pd.api.types.is_numeric_dtype(effects[name])]:
        raise ValueError(f"feature_effects: {text[0]} holds text; expected numbers")
    keys = [name for name in places if name in effects]
    own = effects[[*keys, *EFFECTS]].rename(columns=EFFECTS)
    if (again := own.duplicated(keys)).any():
        which = ", ".join(f"{key} {own.loc[again, key].iloc[0]}" for key in keys)
        raise ValueError(f"feature_effects: {which} stands in several rows; expected one for each feature")
    return table.merge(own, on=keys, how="left")


def read_tables(source: str | Path | Mapping[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Return the tables that an atlas draws, and the study's record, of a directory or of tables as they are."""
    if not isinstance(source, str | Path):
        return dict(source), {}
    wanted = ("feature_atlas", "ablation_results", "feature_effects", "sae_training_results")
    paths = {name: path for name, path in find_tables(source).items() if name in wanted}
    return {name: read_csv(path) for name, path in paths.items()}, read_record(Path(source) / "study.json")


def order(record: Mapping[str, Any], models: list[str]) -> list[str]:
    """Return the models as the record orders them; without one, a model named control first."""
    named = [str(model.get("name")) for model in record.get("models", ())]
    return sorted(
        models, key=lambda model: (named.index(model) if model in named else len(named), "control" not in model)
    )


def ablation_data(tables: Mapping[str, pd.DataFrame], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the ablation profile and its rows for the page; both empty where the table or a column is not there."""
    df = tables.get("ablation_results")
    colours = list(PALETTE)
    if df is None or df.empty or missing_columns(df.columns, ABLATION_COLUMNS):
        return {"figure": None, "heads": [], "colours": colours}
    text = [c for c in ("layer", "head", "impact_pct") if not pd.api.types.is_numeric_dtype(df[c])]
    if broken := text or unplaced(df, "ablation_results", df.columns.intersection([*ABLATION_COLUMNS, "seed"])):
        raise ValueError(f"ablation_results: {broken[0]} of some row is no {'number' if text else 'whole number'}")
    kind = "zero" if (df["kind"] == "zero").any() else df["kind"].iloc[0]
    df = df[(df["kind"] == kind) & df["model"].isin(list(names)) & (df["head"] >= 0)]
    if df.empty:
        return {"figure": None, "heads": [], "colours": colours}
    figure = ablation_strip(df.assign(model=df["model"].map(names)), kind, list(names.values()))
    interval = {"ci_low", "ci_high"} <= set(df.columns)
    has_seeds = "seed" in df and "seed" in tables["feature_atlas"]
    if not has_seeds and "seed" in df and df["seed"].nunique() > 1:
        df = df.iloc[:0]  # which of its seeds the features are of is not said
    seeds = df["seed"] if has_seeds else [""] * len(df)  # "": of any
    numbers = [df[column] if interval else [None] * len(df) for column in ("ci_low", "ci_high")]
    columns = (df["model"], seeds, df["layer"], df["head"], df["impact_pct"], *numbers)
    heads = [
        [model, str(seed), int(layer), int(head), *(finite(value) for value in impact)]
        for model, seed, layer, head, *impact in zip(*columns, strict=True)
    ]
    return {"figure": figure_json(figure), "heads": heads, "colours": colours}


def finite(value: float | None) -> float | None:
    """Return a number for JSON, which cannot write nan and infinity: None for them."""
    return None if value is None or not math.isfinite(value) else float(value)
