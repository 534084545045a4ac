"""The 2 × 2 of automata and attention residuals: cells, effects and intervals by hand, and studies that lack a part."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports import lineage
from reports.tables import COLUMNS
from workbench.study.factorial import MEASURES, factorial

ROLES = {"p3-muon": "plain", "p3-attnres": "routed", "nca-002": "grown", "nca-attnres": "routed and grown"}
# effective dimension of three seeds at the middle layer, two concept sets each: their mean is the cell
CELLS = {"plain": [2, 3, 4], "routed": [1, 1, 1], "grown": [3, 5, 4], "routed and grown": [6, 9, 9]}
LAYERS = 6  # of which layer 2 is as deep as 14 of 28


def geometry(cells: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        (model, seed, name, 9, layer, value + shift if layer == 2 else 99.0)
        for model, values in cells.items()
        for seed, value in enumerate(values)
        for name, shift in (("months", -0.5), ("digits", 0.5))
        for layer in range(-1, LAYERS)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS["concept_geometry"]))


def terms(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    return table[table["measure"] == measure].set_index("term")


def test_main_effects_and_interaction_by_hand():
    table = factorial({"concept_geometry": geometry(CELLS)}, ROLES)
    assert tuple(table.columns) == COLUMNS["factorial"]
    assert set(table["measure"]) == {"mid-layer effective dimension"}  # of the others there is nothing
    own = terms(table, "mid-layer effective dimension")
    by_seed = {
        "neither": [2, 3, 4],
        "attn_res": [1, 1, 1],
        "nca": [3, 5, 4],
        "both": [6, 9, 9],
        "main effect of nca": [(1 + 5) / 2, (2 + 8) / 2, (0 + 8) / 2],
        "main effect of attn_res": [(-1 + 3) / 2, (-2 + 4) / 2, (-3 + 5) / 2],
        "interaction": [3 - -1, 4 - -2, 5 - -3],
    }
    assert own.index.tolist() == list(by_seed)
    for term, values in by_seed.items():
        row = own.loc[term]
        assert row["value"] == pytest.approx(np.mean(values), rel=1e-12)
        assert row["n"] == 3
        wanted = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)) if np.std(values) else (values[0],) * 2
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(wanted, rel=1e-9)


def test_published_cells_are_combined_alike_and_what_was_stated_stands_beside():
    own = terms(factorial({"concept_geometry": geometry(CELLS)}, ROLES), "mid-layer effective dimension")
    wanted = {"neither": 1.63, "attn_res": 1.01, "nca": 2.24, "both": 5.27}
    wanted |= {"main effect of nca": 2.435, "main effect of attn_res": 1.205, "interaction": 3.65}
    assert own["published_value"].to_dict() == pytest.approx(wanted, abs=1e-12)
    assert own.loc["main effect of attn_res", "stated_value"] == 1.73
    assert own["stated_value"].notna().sum() == 1


def test_all_four_measures_are_read_at_their_layers():
    heads = [
        (
            model,
            seed,
            layer,
            head,
            base + 2.0 * head if layer == 0 else 7.0,
            0.5,
            0.1 * base if layer == 2 else 0.0,
            9,
            9,
        )
        for base, model in enumerate(ROLES.values())
        for seed in range(3)
        for layer in range(LAYERS)
        for head in range(2)
    ]
    mantel = [
        (model, seed, name, 10, "ordinal", layer, 0.2 * base if (name, layer) == ("digits", 2) else -1, 0, 0, 0, 0, 9)
        for base, model in enumerate(ROLES.values())
        for seed in range(3)
        for name in ("digits", "sizes")
        for layer in range(-1, LAYERS)
    ]
    tables = {
        "attention_stats": pd.DataFrame(heads, columns=list(COLUMNS["attention_stats"])),
        "concept_mantel": pd.DataFrame(mantel, columns=list(COLUMNS["concept_mantel"])),
    }
    table = factorial(tables, ROLES)
    # base is 0, 1, 2, 3 for neither, AttnRes, NCA, both
    for measure, unit in (("mid-layer BOS mass", 0.1), ("r of digits", 0.2)):
        own = terms(table, measure)["value"]
        assert own.tolist() == pytest.approx([0, unit, 2 * unit, 3 * unit, 2 * unit, unit, 0], abs=1e-12)
    spread = terms(table, "layer-0 head entropy, std")["value"]  # of two heads 2 apart, whatever the base
    assert spread.tolist() == pytest.approx([1, 1, 1, 1, 0, 0, 0], abs=1e-12)


def test_seeds_pair_over_the_four_models_and_few_have_no_interval():
    cells = CELLS | {"routed": [1, math.nan, 1]}
    own = terms(factorial({"concept_geometry": geometry(cells)}, ROLES), "mid-layer effective dimension")
    assert own["n"].to_dict() == {
        "neither": 3, "attn_res": 2, "nca": 3, "both": 3, "main effect of nca": 2, "main effect of attn_res": 2,
        "interaction": 2,
    }  # fmt: skip
    assert own.loc["interaction", "value"] == pytest.approx(((6 - 3) - (1 - 2) + (9 - 4) - (1 - 4)) / 2)
    assert own.loc[["attn_res", "interaction"], ["ci_low", "ci_high"]].isna().all(axis=None)
    assert own.loc["nca", ["ci_low", "ci_high"]].notna().all()


def test_seeds_that_never_meet_give_cells_and_no_effect():
    table = geometry(CELLS)
    shifted = table.assign(seed=table["seed"] + 5 * (table["model"] == "plain"))
    own = terms(factorial({"concept_geometry": shifted}, ROLES), "mid-layer effective dimension")
    assert own.loc["neither", "value"] == 3
    assert own.loc["interaction", "n"] == 0
    assert math.isnan(own.loc["interaction", "value"])


@pytest.mark.parametrize("role", ROLES)
def test_without_one_of_the_four_there_is_no_factorial(role):
    roles = {key: name for key, name in ROLES.items() if key != role}
    table = factorial({"concept_geometry": geometry(CELLS)}, roles)
    assert table.empty
    assert tuple(table.columns) == COLUMNS["factorial"]


def test_without_tables_or_values_there_is_no_row():
    assert factorial({}, ROLES).empty
    empty = geometry(CELLS).assign(effective_dim=math.nan)
    assert factorial({"concept_geometry": empty}, ROLES).empty


def test_measures_are_those_of_the_lineage_and_published_for_all_four():
    titles = {measure.key: measure.title for measure in lineage.MEASURES}
    assert {key: measure.name for key, measure in MEASURES.items()} == {key: titles[key] for key in MEASURES}
    published = lineage.lineage_data()["published"]
    assert all(set(ROLES) <= set(published[key]) for key in MEASURES)
