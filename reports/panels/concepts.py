"""Panels of concept geometry: crystallisation, effective dimension, trajectories, shared components."""

from __future__ import annotations

import pandas as pd

from reports import figures, lineage
from reports.figures.style import models_of
from reports.panels.panel import Drawing, Panel, Section, needing, seed_variants, without_numbers
from reports.study import Study
from reports.table_cells import MISSING, Cell, Grid, fixed, p_text, significant, thousands


def dimensions(study: Study) -> list[Drawing]:
    """Return the heatmaps of effective dimension: the mean over seeds, then each."""
    df = study.tables["concept_geometry"]
    means = study.means("concept_geometry", "effective_dim", "model", "set", "layer").rename(columns={"mean": "value"})
    seeds = [
        (name, df if seed is None else df[df["seed"] == seed].rename(columns={"effective_dim": "value"}))
        for name, seed in seed_variants(df)
    ]
    variants = [(f"mean of {len(seeds)} seeds", means), *seeds] if len(seeds) > 1 else [("", means)]
    return [(name, figures.effective_dimension(own, study.models)) for name, own in variants]


def partial(study: Study) -> list[Drawing]:
    """Return raw against partial correlations, a variant a set that has them, the years first."""
    raw, left = correlations(study)
    sets = years_first(list(dict.fromkeys(left["set"])))
    return [
        (name if len(sets) > 1 else "", figures.raw_against_partial(raw, left, name, study.models)) for name in sets
    ]


def correlations(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the means over seeds of r and of partial r."""
    raw, left = (study.means("concept_mantel", measure, "model", "set", "layer") for measure in ("r", "partial_r"))
    return raw, left


def crystallisation(study: Study) -> list[Drawing]:
    """Return Mantel r by layer of every set."""
    return [("", figures.crystallisation(study.tables["concept_mantel"], *correlations(study), study.models))]


def crystallisation_layers(study: Study) -> list[Drawing]:
    """Return the layer at which each set crystallises."""
    df = study.tables["crystallisation"]
    layers, largest = (study.means("crystallisation", measure, "model", "set") for measure in ("layer", "maximum"))
    sets, models = list(dict.fromkeys(df["set"])), models_of(df, study.models)
    return [("", figures.crystallisation_layers(sets, layers, largest, models))]


def partial_counts(study: Study) -> dict[str, pd.DataFrame]:
    """Return the rows that have a partial correlation."""
    df = study.tables["concept_mantel"]
    return {"": df[df["partial_r"].notna()]}


def years_first(sets: list[str]) -> list[str]:
    """Return the sets with those of years in front, the others in their order."""
    return sorted(sets, key=lambda name: not name.startswith("years"))


def partial_bars(study: Study) -> list[Drawing]:
    """Return raw beside partial correlations at the middle layer, a variant a set that has them, the years first."""
    found = correlations(study)
    drawings, sets = [], years_first(list(dict.fromkeys(found[1]["set"])))
    for name in sets:
        raw, left = (lineage.rows_at(means[means["set"] == name], lineage.middle_layer) for means in found)
        drawings.append((name if len(sets) > 1 else "", figures.raw_beside_partial(raw, left, study.models)))
    return drawings


def stability_grids(study: Study) -> list[Grid]:
    """Return a table a set and statistic: of each model and training seed its value, the p of each seed of
    permutations, and that of all of them with its interval."""
    df = study.tables["mantel_stability"]
    grids = []
    for (name, measure), own in df.groupby(["set", "measure"], sort=False):
        rows = [
            ((str(model), str(seed)), _stability_cells(group))
            for (model, seed), group in own.groupby(["model", "seed"], sort=False)
        ]
        title = f"{name}, {'given spelling' if measure == 'partial_r' else 'raw'}"
        columns = ("correlation", "p by seed", "p, pooled", "permutations")
        grids.append(Grid(title, (), ("model", "seed"), columns, tuple(rows)))
    return grids


def _stability_cells(rows: pd.DataFrame) -> tuple[Cell, ...]:
    is_pooled = rows["permutation_seed"] == -1
    if not is_pooled.any():
        return (Cell(MISSING),) * 4
    pooled = rows[is_pooled].iloc[0]
    singles = ", ".join(_bare(p, n) for p, n in rows.loc[~is_pooled, ["p", "n_permutations"]].itertuples(index=False))
    interval = f"[{significant(pooled['p_low'], 2)}, {significant(pooled['p_high'], 2)}]"
    return (
        Cell(fixed(pooled["value"], 3)),
        Cell(singles or MISSING),
        Cell(_bare(pooled["p"], pooled["n_permutations"]), "" if pd.isna(pooled["p"]) else interval),
        Cell(thousands(pooled["n_permutations"])),
    )


def _bare(p: float, n_permutations: float) -> str:
    """Return a p without its name, for a column of them."""
    return p_text(p, n_permutations).removeprefix("p = ").removeprefix("p ")


def points(study: Study) -> list[Drawing]:
    """Return the words of every set in the plane of their components, a variant a set, ordinal ones first."""
    df, (mantel, _) = study.tables["concept_points"], correlations(study)
    is_line = dict(zip(df["set"], df["topology"] == "ordinal", strict=True))
    sets = sorted(is_line, key=lambda name: not is_line[name])  # stable: the others keep their order
    return [(name if len(sets) > 1 else "", figures.concept_points(df, mantel, name, study.models)) for name in sets]


def parallelism(study: Study) -> list[Drawing]:
    """Return the parallelism of pairs by layer, a variant a set."""
    measures, by = ("parallelism", "null_mean", "null_std"), ("model", "set", "n_removed", "layer")
    found = [study.means("antonym_parallelism", measure, *by) for measure in measures]
    drawings, sets = [], list(dict.fromkeys(found[0]["set"]))
    for name in sets:
        means, null, spread = (own[own["set"] == name] for own in found)
        drawings.append((name if len(sets) > 1 else "", figures.pair_parallelism(means, null, spread, study.models)))
    return drawings


def decay(study: Study) -> list[Drawing]:
    """Return lag decay over all sets, a panel a model, and by set."""
    df, (means, sets) = study.tables["trajectories"], steps(study)
    return [
        ("mean over concept sets", figures.lag_decay(df, means, study.models)),
        ("each concept set", figures.trajectory_bars(df, sets, study.models)),
    ]


def steps(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the means over seeds of the cosines of steps by lag: over all concept sets, and of each."""
    return study.means("trajectories", "value", "model", "lag"), study.means(
        "trajectories", "value", "model", "set", "lag"
    )


def regimes(study: Study) -> list[Drawing]:
    """Return trajectory consistency beside both nulls."""
    nulls = {name: study.means("trajectories", name, "lag") for name in ("null_independent", "null_random_walk")}
    return [("", figures.trajectory_regimes(study.tables["trajectories"], *steps(study), nulls, study.models))]


def components(study: Study) -> list[Drawing]:
    """Return |cos| of two models' principal components by layer."""
    means = study.means("pc_cosine", "cosine", "model_a", "model_b", "pc", "layer")
    return [("", figures.pc_alignment(study.tables["pc_cosine"], means))]


def intrinsic_dimensions(study: Study) -> list[Drawing]:
    """Return the TwoNN dimension by layer."""
    means = study.means("intrinsic_dimension", "dimension", "model", "layer")
    return [("", figures.intrinsic_dimension(study.tables["intrinsic_dimension"], means, study.models))]


def dimension_curves(study: Study) -> list[Drawing]:
    """Return the TwoNN dimension against the number of points."""
    means = study.means("intrinsic_dimension_curve", "dimension", "model", "layer", "n_points")
    return [("", figures.dimension_by_points(means, study.models))]


CONCEPTS = Section(
    "concepts",
    "Concept geometry",
    "Whether the order, the circle or the map of a set of concepts can be read off the model’s states.",
    (
        Panel(
            "points",
            "Ordinal and cyclic concepts on their first two components",
            "A line that runs from faint to strong colour without turning back is an order the model holds in space; a "
            "ring is a cycle. A tangle under a high curve has its order in directions that this plane does not show.",
            needing("concept_points", "model seed set topology layer item place pc1 pc2 share_pc1 share_pc2"),
            points,
            ("n", "concepts a set"),
            "Every model at the layer where its own Mantel r, drawn in the first panel, is largest; colour goes with a "
            "word’s place, neighbours are joined. The plane is each model’s own: shapes compare, coordinates do not. "
            "Points are of each model’s first seed; the curves are means over seeds.",
            uses=("concept_mantel", "seed_means"),
            is_first_seed=True,
            is_core=False,
        ),
        Panel(
            "crystallisation",
            "Crystallisation of concept sets, by layer",
            "A curve that rises early and stays is a geometry that the model builds and keeps. Dotted, where four "
            "models or fewer share the figure: what is left when spelling is partialled out.",
            needing("concept_mantel", "model seed set topology layer r", "seed_means"),
            crystallisation,
            ("n_permutations", "permutations"),
            "Mantel correlation (Spearman) of the states’ distances with the set’s; layer −1 is the embedding. Bars of "
            "a lone seed: 95 % over resampled concepts.",
            is_core=False,
        ),
        Panel(
            "crystallisation-layers",
            "The layer at which concept sets crystallise",
            "A faint row is a set that is there from the start; a column fainter than its neighbours is a model that "
            "arranges its concepts earlier. Point at a cell: early means little where the largest r is near 0.",
            needing("crystallisation", "model seed set layer maximum share", "seed_means"),
            crystallisation_layers,
            ("n", "concepts a set"),
            "The first layer with 90 % of the set’s largest r over layers, mean over seeds; −1 is the embedding, "
            "blank: no r above 0. Intervals over words are in the table.",
            is_by_seed=True,
            is_core=False,
        ),
        Panel(
            "partial-bars",
            "Years raw against partial, at the middle layer",
            "Compare hatched bars between models: what is left of the order once spelling has explained its part.",
            needing("concept_mantel", "model seed set layer r partial_r", "seed_means"),
            partial_bars,
            ("n", "concepts a set"),
            counted=partial_counts,
            detail="Mantel r and partial Mantel r given the Levenshtein distances of the words, at the layer at the "
            "depth of 14 of 28. Bars on bars: 95 % over three seeds or more.",
            interval="a bar",
            of_two="a bar is their mean",
            is_core=False,
        ),
        Panel(
            "mantel-stability",
            "Do other permutations give another p?",
            "Where the p of single seeds differ, too few permutations were drawn to read more than the pooled p. The "
            "correlation itself does not depend on them.",
            needing(
                "mantel_stability",
                "model seed set layer measure value permutation_seed n_permutations p p_low p_high",
            ),
            stability_grids,
            detail="The same tests at the layer at the depth of 14 of 28 over several seeds of permutations; pooled p: "
            "(Σb + 1)/(Σm + 1), b of m permutations at least as extreme. Brackets: 95 % (Clopper and Pearson) for the "
            "share of all permutations that is. A dash: all permutations were taken. Given spelling, p describes and "
            "tests nothing.",
            is_table=True,
            is_by_seed=True,
            is_core=False,
        ),
        Panel(
            "partial",
            "Raw against partial correlations: years, and other sets",
            "The gap between the two lines is what spelling explains: years that are near in time look alike. Only the "
            "lower line is order that the model made.",
            needing("concept_mantel", "model seed set layer r partial_r", "seed_means"),
            partial,
            ("n", "concepts a set"),
            counted=partial_counts,
            detail="Partial Mantel r given the Levenshtein distances of the words; layer −1 is the embedding.",
            interval="a band",
            is_core=False,
        ),
        Panel(
            "effective-dimension",
            "Effective dimension of concept sets",
            "Cells of strong colour are sets spread over many directions; a faint row is a set that has collapsed to a "
            "line.",
            needing("concept_geometry", "model seed set layer effective_dim", "seed_means"),
            dimensions,
            ("n", "concepts a set"),
            "Participation ratio of the centred mean states; at most n − 1.",
            is_by_seed=True,
            is_core=False,
        ),
        Panel(
            "regimes",
            "Three regimes of trajectories",
            "Compare with the two nulls, not with 0 alone: states that share nothing give −.5, a random walk gives 0; "
            "bars above are steps that agree, bars between are steps that partly undo each other.",
            needing("trajectories", "model seed set measure lag value null_independent null_random_walk", "seed_means"),
            regimes,
            ("n", "concepts a set"),
            "Mean cosine of successive displacements (lag 1), mean over concept sets; small marks are sets, bars on "
            "bars 95 % over seeds, grey bands the middle 95 % of single null trajectories (of unequal models the "
            "widest).",
            interval="a bar",
            of_two="a bar is their mean",
            is_core=False,
        ),
        Panel(
            "trajectories",
            "Do a concept’s steps through the layers agree?",
            "A memory longer than one layer is a line that stays away from both nulls beyond lag 1.",
            needing("trajectories", "model seed set lag value null_independent null_random_walk", "seed_means"),
            decay,
            detail="Mean cosine of displacements that many layers apart.",
            is_core=False,
        ),
        Panel(
            "pc-alignment",
            "Do two models share principal components?",
            "At the baseline, two directions are as unrelated as random ones; two models share no basis to begin with.",
            needing("pc_cosine", "model_a model_b layer pc cosine baseline", "seed_means"),
            components,
            ("n", "sequences"),
            "Dotted: the mean |cos| of two random directions.",
            faults=without_numbers(
                "pc_cosine",
                "cosine",
                "The models’ states have different widths: directions in two such spaces have no cosine.",
            ),
            interval="a band",
            is_core=False,
        ),
        Panel(
            "intrinsic-dimension",
            "Intrinsic dimension of the states (TwoNN), by layer",
            "Agreement between models whose weights differ is the finding to look for.",
            needing("intrinsic_dimension", "model seed layer dimension stderr", "seed_means"),
            intrinsic_dimensions,
            ("n_used", "points"),
            "Facco et al. 2017; bars of a lone seed are standard errors of the fit.",
            interval="a band",
            is_core=False,
        ),
        Panel(
            "dimension-curve",
            "Intrinsic dimension against the number of points",
            "A curve that still rises at its right end has no dimension to report yet: compare models at one number of "
            "points only.",
            needing("intrinsic_dimension_curve", "model seed layer n_points dimension", "seed_means"),
            dimension_curves,
            ("n_points", "points"),
            "TwoNN of n, n/2, n/4 … points, means over disjoint subsamples; logarithmic axis.",
            is_core=False,
        ),
        Panel(
            "parallelism",
            "Are the differences of antonyms parallel?",
            "Only what lies outside the grey band is a shared direction; a line that falls into it once the first "
            "component is taken out was that component alone.",
            needing(
                "antonym_parallelism", "model seed set n layer n_removed parallelism null_mean null_std", "seed_means"
            ),
            parallelism,
            ("n", "pairs"),
            "Mean pairwise cosine of second − first. Grey: the same with the seconds shuffled among the pairs, mean "
            "and twice its standard deviation.",
            interval="a band",
            is_core=False,
        ),
    ),
)
