"""The Kotodama lineage: its models in a study, the measures that the page shows of them, and layers by depth."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from reports.study import Study

DATA = Path(__file__).with_name("lineage.toml")
Depth = Callable[[int], int]  # number of layers -> a layer


@dataclass(frozen=True)
class Measure:
    """One column: the key of its published figures, what effects.csv and seed_means.csv call it, and its digits."""

    key: str
    title: str
    digits: int
    is_of_steps: bool = True  # whether the tables of what a step changes show it


@cache
def lineage_data() -> Mapping[str, Any]:
    """Return the published recipes and figures."""
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


def lineage_models(study: Study) -> dict[str, str]:
    """Return lineage key -> short name of the models that this study has of it, in the order of the lineage.

    A model belongs to it by its role in study.json (`roles`: key -> model), else by its name, `-nano` aside.
    """
    roles = {str(role): str(model) for role, model in study.record.get("roles", {}).items()}
    named = {name.lower().removesuffix("-nano"): short for name, short in study.names.items()}
    found = {}
    for model in lineage_data()["model"]:
        key = model["key"]
        short = study.names.get(roles[key]) if key in roles else named.get(key)
        if short is not None:
            found[key] = short
    return found


def first_layer(n_layers: int) -> int:
    """Return layer 0."""
    return 0


def middle_layer(n_layers: int) -> int:
    """Return the layer at the depth of the published model's layer 14 of 28: the nearest (layer + 1)/n, the earlier of
    two as near; 0 of none, as where only the embedding was measured."""
    return min(range(max(1, n_layers)), key=lambda layer: (abs((layer + 1) * 28 - 15 * n_layers), layer))


def last_layer(n_layers: int) -> int:
    """Return the last layer."""
    return n_layers - 1


DEPTHS: Mapping[str, Depth] = MappingProxyType(
    {"first layer": first_layer, "middle layer": middle_layer, "last layer": last_layer}
)


def rows_at(df: pd.DataFrame, depth: Depth) -> pd.DataFrame:
    """Return a table's rows of each model's layer at that depth, by the layers that the table has of the model."""
    df = df.dropna(subset="layer")
    n_layers = df.groupby("model")["layer"].transform("max") + 1
    return df[df["layer"] == n_layers.map(lambda n: depth(int(n)))]


# title of a table -> its measures
GROUPS: Mapping[str, tuple[Measure, ...]] = MappingProxyType(
    {
        "Loss and nuclear ranks of weights": (
            Measure("loss", "held-out loss", 3),
            Measure("perplexity", "held-out perplexity", 2),
            Measure("rank_W_O", "nuclear rank of W_O, layer 0", 1),
            Measure("rank_W_Q", "nuclear rank of W_Q, mean over layers", 1),
        ),
        "Stable rank of W_Q at the middle layer": (
            Measure("rank_start", "start of the last phase", 1, is_of_steps=False),
            Measure("rank_end", "end of training", 1, is_of_steps=False),
        ),
        "Head entropy of layer 0": (
            Measure("entropy_mean", "layer-0 head entropy, mean", 3),
            Measure("entropy_std", "layer-0 head entropy, std", 3),
        ),
        "BOS mass at three depths": (
            Measure("bos_first", "first-layer BOS mass", 3),
            Measure("bos_mass", "mid-layer BOS mass", 3),
            Measure("bos_last", "last-layer BOS mass", 3),
        ),
        "Concept geometry": (
            Measure("consistency", "trajectory consistency", 3),
            Measure("effective_dim", "mid-layer effective dimension", 2, is_of_steps=False),
            Measure("two_nn", "last-layer intrinsic dimension", 1, is_of_steps=False),
        ),
        "Correlations with order, place and time, mid-layer": (
            Measure("digits", "r of digits", 2, is_of_steps=False),
            Measure("number_words", "r of number words", 2, is_of_steps=False),
            Measure("sizes", "r of sizes", 2, is_of_steps=False),
            Measure("us_states", "r of states", 2, is_of_steps=False),
        ),
        "Years and their spelling, mid-layer": (
            Measure("years_raw", "r of years", 2, is_of_steps=False),
            Measure("years_partial", "partial r of years", 2, is_of_steps=False),
            Measure("years_r2", "partial r², years", 3, is_of_steps=False),
        ),
    }
)
MEASURES = tuple(measure for group in GROUPS.values() for measure in group)
