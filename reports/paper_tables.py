"""The first paper's Tables 1 to 3 and the baselines, as grids: topology, SAEs, top heads; Control beside the others.

Every figure is a cell of a CSV, or a mean of cells over heads where a table has one row a layer; differences are given
in per cent of the reference model, which is the study's first.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

import pandas as pd

from reports.figures.saes import of_dictionary, of_heads
from reports.figures.style import models_of
from reports.seed_means import each_seed, interval, mean_cell
from reports.study import Study
from reports.table_cells import MISSING, Cell, Grid, fixed, p_text, percent_change, signed, thousands
from reports.tables import missing_columns

BASIS_TITLES = {
    "z": "(a) Cosine between heads, on z",
    "pattern": "(b) Cosine between heads, on the attention pattern",
    "residual": "(c) Cosine between heads, on the residual contribution",
}
SAE_MEASURES = {
    "l0": ("(a) L0", 2),
    "mse": ("(b) mse", 5),
    "fvu": ("(c) FVU", 3),
    "dead_fraction": ("(d) dead features", 0),
    "ce_recovered": ("(e) cross-entropy recovered", 3),
}
WITH_ERRORS = ("dead_fraction", "ce_recovered")  # measures of Table 2 that show their standard errors
SUMMARY_TITLES = {
    "gini": "Gini of the impacts",
    "load_bearing_p": "p of the top head (load-bearing)",
    "rank_correlation": "rank correlation of estimates with impacts",
    "top_margin": "top head − runner-up (% of the loss)",
}
# of effective_size.csv: title, column, scale and digits
EFFECTIVE = (
    ("utilization (%)", "utilization_a", 100.0, 1),
    ("of the reference (%)", "utilization_b", 100.0, 1),
    ("N, millions", "n_parameters", 1e-6, 3),
    ("N_eff, millions", "n_eff", 1e-6, 3),
    ("N without embeddings, millions", "n_parameters_no_embedding", 1e-6, 3),
    ("N_eff without embeddings, millions", "n_eff_no_embedding", 1e-6, 3),
)
COSTS = ("ce_base", "ce_spliced", "ce_zero")  # what a layer's ce_recovered is made of
DICTIONARIES = ("trained", "random", "shuffled")
N_TOP_HEADS = 5  # of all models together, as the paper has them


def topology_grids(study: Study) -> list[Grid]:
    """Return Table 1: max and mean |cos| of each basis by layer, and rank and utilization."""

    def of_basis(basis: str, measures: dict[str, tuple[str, int]]) -> dict[str, tuple[pd.DataFrame, int]]:
        by = ("model", "basis", "layer")
        found = {
            title: (study.means("topology_stats", name, *by), digits) for title, (name, digits) in measures.items()
        }
        return {title: (each_seed(means[means["basis"] == basis]), digits) for title, (means, digits) in found.items()}

    df = study.tables["topology_stats"]
    cosines = {"max |cos|": ("max_cos", 4), "mean |cos|": ("mean_cos", 4)}
    grids = [
        by_layer(study, df[df["basis"] == basis], title, of_basis(basis, cosines))
        for basis, title in BASIS_TITLES.items()
        if (df["basis"] == basis).any()
    ]
    ranked = df[df["nuclear_rank"].notna() & (df["basis"] == "z")]
    if not ranked.empty:
        ranks = {"nuclear rank": ("nuclear_rank", 1), "utilization": ("rank_utilization", 3)}
        grids.append(by_layer(study, ranked, "(d) Rank of the concatenated z", of_basis("z", ranks)))
    return grids


def effective_size_grids(study: Study) -> list[Grid]:
    """Return N_eff of each pair of models that share a seed, at the paper's layer and over all: means over seeds."""
    by = ["model_a", "model_b", "layer_a", "layer_b"]
    found = [study.means("effective_size", name, *by) for _, name, _, _ in EFFECTIVE]
    places = pd.concat(found)[by].drop_duplicates()
    rows = []
    for model, reference, layer, other in places.itertuples(index=False):
        place = "all, mean" if layer == -1 else str(layer) if layer == other else f"{layer} against {other}"
        cells = []
        for means, (_, name, scale, digits) in zip(found, EFFECTIVE, strict=True):
            own = means[(means[by] == [model, reference, layer, other]).all(axis=1)]
            is_given = name.startswith("n_parameters") and len(own)  # the same of every seed
            cells.append(
                Cell(fixed(scale * own["mean"].iloc[0], digits)) if is_given else mean_cell(own, digits, scale)
            )
        rows.append(((f"{model} against {reference}", place), tuple(cells)))
    columns = tuple(title for title, *_ in EFFECTIVE)
    return [Grid("", (), ("models", "layer"), columns, tuple(rows), is_wide=True)] if rows else []


def by_layer(study: Study, df: pd.DataFrame, title: str, measures: dict[str, tuple[pd.DataFrame, int]]) -> Grid:
    """Return one row per layer (and seed) of a table: each measure, its values one a model, layer and seed, of each
    model, and its difference from the reference."""
    models, seeds = models_of(df, study.models), list(dict.fromkeys(df["seed"]))
    values = {name: (by_place(rows), digits) for name, (rows, digits) in measures.items()}
    rows = []
    for layer in sorted(set(df["layer"])):
        for seed in seeds:
            cells = []
            for own, digits in values.values():
                cells += compared([own.get((model, str(seed), layer)) for model in models], digits)
            rows.append((row_headers(layer, seed, seeds), tuple(cells)))
    columns = [name for _ in measures for name in compared_columns(models)]
    span = len(compared_columns(models))
    groups = tuple((name, span) for name in measures)
    return Grid(title, groups, header_names(seeds), tuple(columns), tuple(rows))


def by_place(values: pd.DataFrame) -> dict[Hashable, float]:
    """Return (model, seed, layer) -> value."""
    return values.set_index(["model", "seed", "layer"])["value"].to_dict()


def compared(
    values: list[float | None], digits: int, errors: list[str] | None = None, *, is_count: bool = False
) -> list[Cell]:
    """Return a cell a model, and behind every model but the first its difference from the first: in per cent of it, of
    counts in their number. errors: what stands behind each value in small type."""
    notes = errors or [""] * len(values)
    reference = values[0]
    cells = [Cell(fixed(reference, digits), notes[0])]
    for value, note in zip(values[1:], notes[1:], strict=True):
        change = percent_change(value, reference)
        if is_count:
            change = signed(None if value is None or reference is None else value - reference, 0)
        cells += [Cell(fixed(value, digits), note), Cell(change, is_difference=True)]
    return cells


def compared_columns(models: list[str]) -> list[str]:
    """Return the column names that go with `compared`."""
    return [models[0], *(name for model in models[1:] for name in (model, "Δ"))]


def header_names(seeds: list) -> tuple[str, ...]:
    """Return the names of the row-header columns: the seed has one where there are several."""
    return ("layer", "seed") if len(seeds) > 1 else ("layer",)


def row_headers(layer: float, seed: object, seeds: list) -> tuple[str, ...]:
    """Return a row's headers, as `header_names` orders them."""
    return (str(int(layer)), str(seed)) if len(seeds) > 1 else (str(int(layer)),)


def sae_grids(study: Study) -> list[Grid]:
    """Return Table 2: l0, mse, fvu, dead share, recovered loss by layer (head means), trained beside the controls."""
    df, at = shown_saes(study)
    present = [name for name in DICTIONARIES if not of_dictionary(df, name).empty]
    return [
        _sae_grid(study, df, measure, title + at, digits, present)
        for measure, (title, digits) in SAE_MEASURES.items()
        if not missing_columns(df.columns, (measure, *(COSTS if measure == "ce_recovered" else ())))
    ]


def shown_saes(study: Study) -> tuple[pd.DataFrame, str]:
    """Return the rows of Table 2 and how their l1 is named: of a sweep, the middle one, the smaller of two."""
    df = of_heads(study.tables["sae_training_results"])
    sweep = sorted(df["l1"].dropna().unique())
    if len(sweep) < 2:
        return df, ""
    middle = sweep[(len(sweep) - 1) // 2]
    return df[df["l1"] == middle], f" at λ₁ = {middle:g}"


def _sae_grid(study: Study, df: pd.DataFrame, measure: str, title: str, digits: int, present: list[str]) -> Grid:
    models, seeds = models_of(df, study.models), list(dict.fromkeys(df["seed"]))
    means = study.means("sae_training_results", measure, "model", "layer")
    means = means[means["l1"].isin(df["l1"].unique())] if "l1" in means else means
    values = {name: by_place(each_seed(of_dictionary(means, name))) for name in present}
    errors = text_errors(study, measure, df) if measure in WITH_ERRORS else {}
    is_count = measure == "dead_fraction"
    sizes = count_features(df) if is_count else {}
    totals = sorted(set(sizes.values()))
    title += f", of {thousands(totals[0])}" if len(totals) == 1 else ""
    rows = []
    for layer in sorted(set(df["layer"])):
        for seed in seeds:
            cells = []
            for name in present:
                places = [(model, str(seed), layer) for model in models]
                scales = [sizes.get(place, math.nan) if is_count else 1.0 for place in places]
                found = [values[name].get(place) for place in places]
                own = [None if value is None else scale * value for value, scale in zip(found, scales, strict=True)]
                spread = [scale * errors.get(place, math.nan) for place, scale in zip(places, scales, strict=True)]
                notes = [f"± {fixed(error, max(digits, 1))}" if error == error else "" for error in spread]
                plain = [Cell(fixed(value, digits)) for value in own]
                cells += compared(own, digits, notes, is_count=is_count) if name == "trained" else plain
            rows.append((row_headers(layer, seed, seeds), tuple(cells)))
    columns = [compared_columns(models) if name == "trained" else models for name in present]
    groups = tuple((name, len(names)) for name, names in zip(present, columns, strict=True))
    return Grid(title, groups, header_names(seeds), tuple(name for names in columns for name in names), tuple(rows))


def count_features(df: pd.DataFrame) -> dict[Hashable, float]:
    """Return (model, seed, layer) -> the features of the layer's SAEs together."""
    rows = of_dictionary(df, "trained").assign(seed=df["seed"].astype("str"))
    return rows.groupby(["model", "seed", "layer"])["d_sae"].sum().to_dict() if "d_sae" in rows else {}


def text_errors(study: Study, measure: str, df: pd.DataFrame) -> dict[Hashable, float]:
    """Return (model, seed, layer) -> the standard error over blocks of text of a measure of trained SAEs."""
    errors = of_dictionary(study.errors("sae_training_results", measure, "model", "layer"), "trained")
    errors = errors[errors["l1"].isin(df["l1"].unique())] if "l1" in errors else errors
    return errors.assign(seed=errors["seed"].astype("str")).set_index(["model", "seed", "layer"])["stderr"].to_dict()


def ablation_grids(study: Study) -> list[Grid]:
    """Return Table 3: the heads of several models together whose ablation costs most, a grid per seed, and over seeds
    what stands at each rank. Of more than two models the paper's pair comes first, where the study says who plays it.
    """
    df = shown_heads(study)
    models, seeds = models_of(df, study.models), list(dict.fromkeys(df["seed"]))
    roles = {role: str(name) for role, name in study.record.get("roles", {}).items()}
    pair = [study.names[roles[role]] for role in ("control", "adaptive") if roles.get(role) in study.names]
    merged = [pair, models] if len(models) > 2 and len(pair) == 2 and set(pair) <= set(models) else [models]
    grids = []
    for chosen in merged:
        ranked = [top_heads(df[(df["seed"] == seed) & df["model"].isin(chosen)]) for seed in seeds]
        name = [" and ".join(chosen) if len(chosen) < 3 else f"all {len(chosen)} models"] * (len(merged) > 1)
        titles = [", ".join([*name, *[f"seed {seed}"] * (len(seeds) > 1)]) for seed in seeds]
        grids += [_merged_heads(top, title) for top, title in zip(ranked, titles, strict=True)]
        if len(seeds) > 1:
            means = study.means("ablation_results", "impact_pct", "group", "rank")
            group = "all" if chosen is models else "pair"
            title = ", ".join([*name, f"over {len(seeds)} seeds"])
            grids.append(_ranks_over_seeds(ranked, means[means["group"] == group], title))
    return grids


def top_heads(df: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the largest impacts, the largest first, with their rank from 1."""
    top = df.dropna(subset=["impact_pct"]).nlargest(N_TOP_HEADS, "impact_pct")
    return top.assign(rank=range(1, len(top) + 1))


def _merged_heads(top: pd.DataFrame, title: str) -> Grid:
    rows = tuple(((str(row["rank"]),), tuple(_head_cells(row))) for _, row in top.iterrows())
    return Grid(title, (), ("rank",), ("model", "layer", "head", "impact (%)"), rows)


def _ranks_over_seeds(ranked: list[pd.DataFrame], means: pd.DataFrame, title: str) -> Grid:
    every, rows = pd.concat(ranked), []
    for rank, own in every.groupby("rank"):
        holders = ", ".join(f"{model} {n}" for model, n in own["model"].value_counts(sort=False).items())
        layers = ", ".join(str(int(layer)) for layer in own["layer"])
        impact = mean_cell(means[means["rank"] == rank], 2)
        rows.append(((str(rank),), (impact, Cell(str(len(own))), Cell(holders), Cell(layers))))
    columns = ("impact (%)", "seeds", "whose head, in how many seeds", "its layer, by seed")
    return Grid(title, (), ("rank",), columns, tuple(rows))


def shown_heads(study: Study) -> pd.DataFrame:
    """Return the rows of Table 3: single heads, set to zero where the study has that kind of ablation."""
    df = of_one_kind(study.tables["ablation_results"])
    return df[df["head"] >= 0]  # whole layers and MLPs have head -1


def of_one_kind(df: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of one kind of ablation: zero, or the table's first."""
    return df[df["kind"] == ("zero" if (df["kind"] == "zero").any() else df["kind"].iloc[0])]


def _head_cells(row: pd.Series) -> list[Cell]:
    interval = ""
    if {"ci_low", "ci_high"} <= set(row.index) and pd.notna(row["ci_low"]) and pd.notna(row["ci_high"]):
        interval = f"[{fixed(row['ci_low'], 2)}, {fixed(row['ci_high'], 2)}]"
    place = (str(row["model"]), str(int(row["layer"])), str(int(row["head"])))
    return [*(Cell(text) for text in place), Cell(fixed(row["impact_pct"], 2), interval)]


def summary_grids(study: Study) -> list[Grid]:
    """Return a model's ablations in one number a layer: a grid a measure, its layers as rows (−1 is all layers)."""
    df = of_one_kind(study.tables["ablation_summary"])
    models = models_of(df, study.models)
    grids = []
    for measure in dict.fromkeys(df["measure"]):
        own = df[df["measure"] == measure]
        means = study.means("ablation_summary", str(measure), "model", "kind", "layer")
        means = means[means["kind"] == df["kind"].iloc[0]]
        rows = []
        for layer in sorted(set(own["layer"]), key=lambda layer: (layer < 0, layer)):
            at = own[own["layer"] == layer]
            cells = []
            for model in models:
                rows_of_seeds = at[at["model"] == model]
                is_own = str(measure).endswith("_p") or (measure == "top_margin" and len(rows_of_seeds) == 1)
                over_seeds = means[(means["layer"] == layer) & (means["model"] == model)]
                cells.append(each_cell(rows_of_seeds) if is_own else mean_cell(over_seeds, 3))
            rows.append((("all" if layer < 0 else str(int(layer)),), tuple(cells)))
        title = SUMMARY_TITLES.get(str(measure), str(measure).replace("_", " "))
        grids.append(Grid(title, (), ("layer",), tuple(models), tuple(rows)))
    return grids


def each_cell(rows: pd.DataFrame) -> Cell:
    """Return every seed's value side by side: of a p, of which a mean says nothing, with its floor; of a margin with
    the interval of its own."""
    if (rows["measure"] == "top_margin").all() and len(rows):
        row = rows.iloc[0]
        has_interval = pd.notna(row.get("ci_low")) and pd.notna(row.get("ci_high"))
        return Cell(fixed(row["value"], 3), interval(row["ci_low"], row["ci_high"], 3) if has_interval else "")
    floors = rows["n_permutations"] if "n_permutations" in rows else [None] * len(rows)
    texts = [p_text(p, n) for p, n in zip(rows["value"], floors, strict=True)]
    return Cell(" / ".join(text.removeprefix("p = ").removeprefix("p ") for text in texts) or MISSING)


def loss_grids(study: Study) -> list[Grid]:
    """Return the last held-out loss of each model and seed beside the baselines of the same tokens, in nats per token,
    each with its perplexity, which a table of an earlier version lacks."""
    baselines = study.tables["baselines"]
    named = dict(zip(baselines["name"], baselines["nats"], strict=True))
    perplexities = baselines.set_index("name").get("perplexity", pd.Series(dtype=float))
    rows = [
        ((name,), (Cell(fixed(nats, 3)), Cell(fixed(perplexities.get(name), 2)), *(Cell(MISSING) for _ in named)))
        for name, nats in named.items()
    ]
    log = study.tables["train_log"].dropna(subset=["held_out_loss"]).sort_values("step", kind="stable")
    for model in models_of(log, study.models):
        for seed, steps in log[log["model"] == model].groupby("seed", sort=False):
            last = steps.iloc[-1]
            gaps = [Cell(signed(last["held_out_loss"] - nats, 3), is_difference=True) for nats in named.values()]
            own = Cell(fixed(last["held_out_loss"], 3)), Cell(fixed(last.get("held_out_perplexity"), 2))
            rows.append(((f"{model}, seed {seed}",), (*own, *gaps)))
    columns = ("loss", "perplexity", *(f"− {name}" for name in named))
    return [Grid("", (), ("text or model",), columns, tuple(rows))]
