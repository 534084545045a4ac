"""The published 2 × 2 of automata (NCA) and attention residuals (AttnRes): cells, main effects and interaction.

With y₀₀ the measure of the model with neither, y₁₀ with NCA, y₀₁ with AttnRes and y₁₁ with both,

    main effect of NCA        ((y₁₀ − y₀₀) + (y₁₁ − y₀₁)) / 2
    main effect of AttnRes    ((y₀₁ − y₀₀) + (y₁₁ − y₁₀)) / 2
    interaction               (y₁₁ − y₁₀) − (y₀₁ − y₀₀)

Effects are taken seed by seed, over the seeds that all four models have; means over seeds carry Student's t, from three
seeds on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd

from reports.lineage import lineage_data
from reports.tables import COLUMNS, MIN_SEEDS
from workbench.data.claims import Measure
from workbench.data.lineage import read_lineage
from workbench.study.effects import DIGITS, student
from workbench.study.measures import Tables, read_measure

CELLS = ("neither", "attn_res", "nca", "both")
# term -> the weight of each cell, in the order of CELLS
TERMS: Mapping[str, tuple[float, float, float, float]] = MappingProxyType(
    {
        "neither": (1, 0, 0, 0),
        "attn_res": (0, 1, 0, 0),
        "nca": (0, 0, 1, 0),
        "both": (0, 0, 0, 1),
        "main effect of nca": (-0.5, -0.5, 0.5, 0.5),
        "main effect of attn_res": (-0.5, 0.5, -0.5, 0.5),
        "interaction": (1, -1, -1, 1),
    }
)
MIDDLE = "14 of 28"
# key of the published figures -> what is measured of each model
MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "effective_dim": Measure(
            name="mid-layer effective dimension", table="concept_geometry", column="effective_dim", layers=MIDDLE
        ),
        "bos_mass": Measure(name="mid-layer BOS mass", table="attention_stats", column="bos_mass", layers=MIDDLE),
        "digits": Measure(
            name="r of digits", table="concept_mantel", column="r", where={"set": "digits"},
            layers=MIDDLE,
        ),
        "entropy_std": Measure(
            name="layer-0 head entropy, std", table="attention_stats", column="entropy", layers="first",
            reduce="standard deviation",
        ),
    }
)  # fmt: skip


def factorial(tables: Tables, roles: Mapping[str, str]) -> pd.DataFrame:
    """factorial.csv's rows: of each measure the four cells, both main effects and the interaction, with the published
    ones; none of a study that lacks one of the four models, nor of a measure without a value.

    value, ci_low, ci_high: mean over n seeds and its 95 % interval, nan below three. published_value: the same
    combination of the published cells; stated_value: what the report's text says of that term, where it does.

    Args:
        tables: a study's tables by name, all models and seeds merged.
        roles: role -> the model's name in the tables.
    """
    place = read_lineage()["two_by_two"]
    names = [roles.get(place[cell]) for cell in CELLS]
    models = [name for name in names if name is not None]
    rows = []
    for key, measure in MEASURES.items() if len(models) == len(CELLS) else ():
        readings = [read_measure(tables, measure, model, models).values for model in models]
        known = [{seed: value for seed, value in own.items() if math.isfinite(value)} for own in readings]
        if not any(known):
            continue
        published = [lineage_data()["published"][key].get(place[cell], math.nan) for cell in CELLS]
        stated = place["stated"].get(key, {})
        for term, weights in TERMS.items():
            used = [(weight, own) for weight, own in zip(weights, known, strict=True) if weight]
            seeds = sorted(set.intersection(*(set(own) for _, own in used)))
            found = [sum(weight * own[seed] for weight, own in used) for seed in seeds]
            low, high = student(found) if len(seeds) >= MIN_SEEDS else (math.nan, math.nan)
            mean = float(np.mean(found)) if found else math.nan
            theirs = round(sum(weight * own for weight, own in zip(weights, published, strict=True) if weight), DIGITS)
            rows.append((measure.name, term, mean, low, high, len(seeds), theirs, stated.get(term, math.nan)))
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS["factorial"]))
