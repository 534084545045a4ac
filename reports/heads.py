"""The page of heads: `heads.html`, what is known of every attention head of a study, in one file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from reports.bundle import pack, pack_json, render_page
from reports.contract import Table
from reports.figures.style import PALETTE
from reports.head_maps import Maps, read_maps
from reports.head_rows import ROLES, Place, head_rows, seed_name
from reports.panels import SECTIONS
from reports.panels.checkpoints import tables_over_training
from reports.study import Study, read_study
from reports.table_cells import count_range, significant
from reports.tables import read_csv

HEADS = "heads.html"
SCRIPTS = (
    "unpack.js", "theme.js", "characters.js", "elements.js", "head_address.js", "heads_data.js", "heads_view.js",
    "heads_maps.js", "heads_gallery.js", "heads.js",
)  # fmt: skip
STYLES = ("base.css", "heads.css")
N_FEATURES = 8  # strongest features that are named of a head
FEATURE_COLUMNS = ("model", "layer", "head", "feature", "density", "max_act", "top_token")

# measure -> its name, what it is
MEASURES = {
    "entropy_share": ("Entropy", "of attention, as a share of that of attention spread evenly over the past"),
    "bos_mass": ("Position 0", "mean attention to the first position"),
    "local_mass": ("Local", "mean attention to the four latest positions, its own among them"),
    "previous_token": ("Previous token", "mean attention to the token before, on random tokens said twice"),
    "induction": ("Induction", "mean attention to the token after the first mention, on random tokens said twice"),
}
# kinds of the gallery, in the order in which one is looked for
KINDS = ("induction", "previous_token", "bos_mass", "local_mass", "entropy_share")
# tables that the page shows in sections of their own, or that are of dictionaries and not of heads
OWN = ("attention_stats", "ablation_results", "attention_patterns", "attention_examples", "head_kinds")
OF_DICTIONARIES = ("sae_training_results", "sae_density", "sae_curves", "sae_alarms")


def has_heads(study: Study) -> bool:
    """Return whether a study has a table of heads, so that there is a page of them."""
    return bool(_places(study.without(tables_over_training(study))))


def write_heads(directory: str | Path, out: str | Path | None = None) -> Path | None:
    """Return the path of the page of heads, `<directory>/heads.html` by default, drawn from the directory's CSVs
    alone; None, and no page, where no table is of heads.

    A table that is missing or not what its contract says costs the parts that show it, which then say so.

    Raises:
        ValueError: if the directory holds no known table, a CSV is ragged, or study.json is malformed.
    """
    out = Path(directory) / HEADS if out is None else Path(out)
    study = read_study(directory)
    study = study.without(tables_over_training(study))
    places = _places(study)
    if not places:
        return None
    maps = read_maps(study)
    features, notes = _features(study, places)
    data = {
        "names": dict(study.names),
        "heads": [[_full(study, model), seed, layer, head] for model, seed, layer, head in places],
        "measures": _measures(study, places),
        "counts": _counts(study),
        "kinds": _kinds(study, places),
        "ablation": _ablation(study, places),
        "rows": _rows(study, places),
        "alike": _alike(study, places),
        "features": features,
        "panels": _panels(study),
        "colours": list(PALETTE),
        **_examples(maps, places),
    }
    return render_page(
        "heads.html.j2",
        out,
        scripts=SCRIPTS,
        styles=STYLES,
        title=study.record.get("title") or Path(directory).resolve().name,
        n_heads=len(places),
        n_models=len({model for model, *_ in places}),
        notes=[*notes, *maps.notes, *study.notes],
        report="report.html",
        atlas="atlas.html" if "feature_atlas" in study.paths else "",
        page_data=pack_json(data),
        maps=pack(maps.planes()),
    )


def _full(study: Study, short: str) -> str:
    return next((name for name, own in study.names.items() if own == short), short)


def _tables_of_heads(study: Study) -> dict[str, tuple[Table, pd.DataFrame]]:
    found = {}
    for name, df in study.tables.items():
        table = study.contracts[name]
        if not {"feature", "block"} & {*table.key} and len(df):
            found[name] = (table, df)
    return found


def _places(study: Study) -> list[Place]:
    """Every head that a table with models and seeds names: models as the study orders them."""
    found: set[Place] = set()
    for table, df in _tables_of_heads(study).values():
        for place in ROLES:
            columns = ["model", "seed", *place]
            if not {*columns} <= {*table.leading} & {*df.columns} or table.name in OF_DICTIONARIES:
                continue
            if not all(pd.api.types.is_numeric_dtype(df[name]) for name in ("seed", *place)):
                continue
            own = df[columns].dropna().drop_duplicates()
            own = own[(own[place[1]] >= 0) & (own[place[0]] >= 0)]
            found |= {
                (str(m), seed_name(s), int(layer), int(head)) for m, s, layer, head in own.itertuples(index=False)
            }
    ranks = {model: rank for rank, model in enumerate(study.models)}
    return sorted(found, key=lambda own: (ranks.get(own[0], len(ranks)), float(own[1]), own[2], own[3]))


def _by_place(df: pd.DataFrame, columns: Iterable[str]) -> dict[Place, dict[str, Any]]:
    """The rows of a table by head, the first of each; without rows of no head."""
    if not {"model", "seed", "layer", "head"} <= set(df.columns):
        return {}
    numbers = [name for name in columns if name in df and pd.api.types.is_numeric_dtype(df[name])]
    known = df.dropna(subset=["seed", "layer", "head"])
    found: dict[Place, dict[str, Any]] = {}
    for row in known[["model", "seed", "layer", "head", *numbers]].to_dict("records"):
        place = (str(row["model"]), seed_name(row["seed"]), int(row["layer"]), int(row["head"]))
        found.setdefault(place, {name: finite(row[name]) for name in numbers})
    return found


def finite(value: float) -> float | None:
    """Return a number to seven significant digits, None for what is not finite."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _measures(study: Study, places: list[Place]) -> list[dict[str, Any]]:
    """A record per measure: its values, those of even attention, and z, in the order of the heads."""
    stats = _by_place(study.tables.get("attention_stats", pd.DataFrame()), [*MEASURES, "entropy"])
    kinds = study.tables.get("head_kinds", pd.DataFrame())
    found = []
    for key, (title, meaning) in MEASURES.items():
        own = kinds[kinds["measure"] == key] if "measure" in kinds else pd.DataFrame()
        judged = _by_place(own, ("value", "uniform", "z", "threshold"))
        values = [stats.get(place, {}).get(key, judged.get(place, {}).get("value")) for place in places]
        if all(value is None for value in values):
            continue
        record: dict[str, Any] = {"key": key, "title": title, "meaning": meaning, "value": values}
        for name in ("uniform", "z"):
            record[name] = [judged.get(place, {}).get(name) for place in places]
        record["threshold"] = next((one["threshold"] for one in judged.values() if "threshold" in one), None)
        if key == "entropy_share":
            record["nats"] = [stats.get(place, {}).get("entropy") for place in places]
        found.append(record)
    return found


def _counts(study: Study) -> str:
    """What the measures are of, in a sentence; nothing where the table does not say."""
    df = study.tables.get("attention_stats", pd.DataFrame())
    n = {name: count_range(df[name]) for name in ("n_tokens", "n_ctx", "n_repeated", "n_half") if name in df}
    said = f"n = {n['n_tokens']} held-out tokens in windows of {n['n_ctx']}" if {"n_tokens", "n_ctx"} <= {*n} else ""
    if {"n_repeated", "n_half"} <= {*n}:
        said += f"; induction and previous token: {n['n_repeated']} sequences of {n['n_half']} random tokens said twice"
    return f"{said}. Rank: 1 for the largest." if said else "Rank: 1 for the largest."


def _kinds(study: Study, places: list[Place]) -> dict[str, Any]:
    """The kind of each head, as head_kinds.csv has it; none where the study has no such table."""
    df = study.tables.get("head_kinds", pd.DataFrame())
    if not {"measure", "is_kind", "model", "seed", "layer", "head"} <= set(df.columns):
        return {"titles": {}, "of": []}
    chosen = df[df["is_kind"] == 1].dropna(subset=["seed", "layer", "head"])
    of = {
        (str(row.model), seed_name(row.seed), int(float(str(row.layer))), int(float(str(row.head)))): str(row.measure)
        for row in chosen.itertuples()
    }
    titles = {key: "Spread evenly" if key == "entropy_share" else MEASURES[key][0] for key in KINDS}
    return {"titles": titles, "of": [of.get(place, "") if of.get(place, "") in titles else "" for place in places]}


def _ablation(study: Study, places: list[Place]) -> list[dict[str, Any]]:
    """A record per kind of ablation: what removing each head costs."""
    df = study.tables.get("ablation_results", pd.DataFrame())
    if not {"kind", "impact_pct"} <= set(df.columns):
        return []
    columns = (
        "impact_pct",
        "ci_low",
        "ci_high",
        "stderr",
        "kl",
        "estimate_pct",
        "base_loss",
        "ablated_loss",
        "n_tokens",
    )
    found = []
    for kind, rows in df.groupby("kind", sort=False):
        own = _by_place(rows, columns)
        record: dict[str, Any] = {"kind": str(kind)}
        for name in columns:
            record[name] = [own.get(place, {}).get(name) for place in places]
        if any(value is not None for value in record["impact_pct"]):
            found.append(record)
    return found


def _rows(study: Study, places: list[Place]) -> list[list[tuple[str, str]]]:
    """What other tables say of each head."""
    names = [
        name
        for name, (table, _) in _tables_of_heads(study).items()
        if name not in (*OWN, *OF_DICTIONARIES) and (table.is_shown or name in _panels(study))
    ]
    numeric = [name for name in names if _has_numbers(study.tables[name])]
    said = head_rows({name: study.tables[name] for name in numeric}, study.contracts, numeric)
    of_saes = _dictionaries(study)
    return [
        [
            *said.get((m, seed, layer, head), []),
            *said.get((m, "", layer, head), []),
            *of_saes.get((m, seed, layer, head), []),
        ]
        for m, seed, layer, head in places
    ]


def _has_numbers(df: pd.DataFrame) -> bool:
    places = [name for place in ROLES for name in place if name in df]
    return all(pd.api.types.is_numeric_dtype(df[name]) for name in places)


def _dictionaries(study: Study) -> dict[Place, list[tuple[str, str]]]:
    """Of each head's trained SAEs l0, fvu and dead features, one line per l1."""
    df = study.tables.get("sae_training_results", pd.DataFrame())
    if not {"model", "seed", "layer", "head", "l0", "fvu", "dead_fraction"} <= set(df.columns):
        return {}
    df = df[df["dictionary"] == "trained"] if "dictionary" in df else df
    found: dict[Place, list[tuple[str, str]]] = {}
    for row in df[df["head"] >= 0].to_dict("records"):
        at = f" at λ₁ = {row['l1']:g}" if "l1" in row and row["l1"] == row["l1"] else ""
        said = f"SAE{at}: l0 {significant(row['l0'], 3)}, fvu {significant(row['fvu'], 2)}, "
        said += f"{significant(100 * row['dead_fraction'], 2)} % of its features dead"
        place = (str(row["model"]), seed_name(row["seed"]), int(row["layer"]), int(row["head"]))
        found.setdefault(place, []).append(("sae_training_results", said))
    return found


def _alike(study: Study, places: list[Place]) -> list[tuple[int, float] | None]:
    """The head of the same layer whose output is most alike, and the cosine; None where none is known."""
    df = study.tables.get("head_cosines", pd.DataFrame())
    columns = ["model", "seed", "layer", "head_i", "head_j", "cos"]
    if not {*columns, "basis"} <= set(df.columns):
        return [None] * len(places)
    df = df[(df["basis"] == "z") & (df["head_i"] != df["head_j"])].dropna(subset=columns)
    order = df["cos"].abs().sort_values(ascending=False, kind="stable").index
    top = df.loc[order].drop_duplicates(["model", "seed", "layer", "head_i"])
    found = {
        (str(m), seed_name(s), int(at), int(i)): (int(j), float(f"{c:.4g}"))
        for m, s, at, i, j, c in top[columns].to_numpy()
    }
    return [found.get(place) for place in places]


def _features(study: Study, places: list[Place]) -> tuple[list[list[Any]], list[str]]:
    """Of each head its features of largest activation: [feature, max_act, density, top_token, seed in the atlas]."""
    path = study.paths.get("feature_atlas")
    if path is None or path.stat().st_size == 0:
        return [[] for _ in places], []
    df = read_csv(path)
    numbers = [name for name in FEATURE_COLUMNS if name not in ("model", "top_token")]
    if not {*FEATURE_COLUMNS} <= set(df.columns) or not all(
        pd.api.types.is_numeric_dtype(df[name]) for name in numbers
    ):
        return [[] for _ in places], ["No features: feature_atlas.csv lacks columns, or has text for numbers."]
    df = df.dropna(subset=numbers)
    df = df[(df["density"] > 0) & df["max_act"].map(math.isfinite)].assign(model=df["model"].map(study.names))
    seeds = df["seed"].astype(str) if "seed" in df else pd.Series("", index=df.index)
    top = df.assign(seed=seeds).sort_values("max_act", ascending=False, kind="stable")
    keys = ["model", "seed", "layer", "head"]
    found: dict[Any, list[Any]] = {}
    for row in top.groupby(keys, sort=False).head(N_FEATURES).to_dict("records"):
        own = [int(row["feature"]), finite(row["max_act"]), finite(row["density"]), str(row["top_token"]), row["seed"]]
        found.setdefault((row["model"], row["seed"], int(row["layer"]), int(row["head"])), []).append(own)
    return [found.get(place) or found.get((place[0], "", *place[2:]), []) for place in places], []


def _panels(study: Study) -> dict[str, str]:
    """Table -> the panel of the report that shows it."""
    shown = {name: table.name for name, (table, _) in _tables_of_heads(study).items() if table.is_shown}
    panels = [panel for section in SECTIONS for panel in section.panels]
    return shown | {name: panel.key for panel in reversed(panels) for name in panel.needs if name in study.tables}


def _examples(maps: Maps, places: list[Place]) -> Mapping[str, Any]:
    """Sentences, those of equal runs once; of each run which, of each head the number of its map, −1 without one."""
    texts: list[Any] = []
    of_run: dict[str, int] = {}
    for (model, seed), own in maps.sentences.items():
        if own not in texts:
            texts.append(own)
        of_run[f"{model}|{seed}"] = texts.index(own)
    numbers = {place: number for number, place in enumerate(maps.places)}
    runs = [of_run.get(f"{place[0]}|{place[1]}", -1) for place in maps.places]
    return {"sentences": texts, "maps": [numbers.get(place, -1) for place in places], "runs": runs}
