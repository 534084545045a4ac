"""What pages say of SAEs that are not adequate: of each model and l1, of the heads that an atlas shows."""

from __future__ import annotations

import math
import re
from html import unescape

import numpy as np
import pandas as pd

from reports.adequacy import MAX_NAMED, atlas_adequacy, name_places, say_adequacy, warn_adequacy
from reports.atlas import write_atlas
from reports.page import write_report
from reports.tables import read_table, write_table

NAMES = {"control": "control", "adaptive": "adaptive"}


def results(l1: tuple[float, ...] = (2.0,), n_heads: int = 2, **left: set[tuple[int, int]]) -> pd.DataFrame:
    """Trained SAEs of two models beside their random controls; left: places (layer, head) of a model's inadequate."""
    rows = [
        (model, 0, layer, head, own, 0, 7.0, 0.5, "trained", (layer, head) not in left.get(model, set()))
        for model in NAMES
        for own in l1
        for layer in range(2)
        for head in range(n_heads)
    ]
    columns = ["model", "seed", "layer", "head", "l1", "sae_seed", "l0", "fvu_over_random", "dictionary", "is_adequate"]
    df = pd.DataFrame(rows, columns=columns)
    return pd.concat([df, df.assign(dictionary="random", fvu_over_random=math.nan, is_adequate=math.nan)])


def with_columns(directory, is_adequate) -> pd.DataFrame:
    """The directory's sae_training_results with the columns, is_adequate a function of trained rows, written back."""
    df = read_table(directory, "sae_training_results")
    is_trained = df["dictionary"] == "trained"
    df = df.assign(fvu_over_random=np.where(is_trained, 0.125, math.nan))
    df["is_adequate"] = [
        is_adequate(row) if known else math.nan for row, known in zip(df.itertuples(), is_trained, strict=True)
    ]
    write_table(df, directory, "sae_training_results")
    return df


# --- sentences


def test_each_model_and_l1_is_counted_and_its_heads_named() -> None:
    (said,) = say_adequacy(results(adaptive={(0, 1), (1, 0)}))
    assert said.startswith("adequate SAEs (l0 ≤ d_in / 3 and fvu ≤ .75 of the random dictionary’s at equal l0): ")
    assert said.endswith(": control 4 of 4, adaptive 2 of 4 (not L0 H1, L1 H0)")
    sweep = say_adequacy(results(l1=(2.0, 4.0)))
    assert ["".join(re.findall(r"at l1 (\d) control 4 of 4", own)) for own in sweep] == ["2", "4"]


def test_a_reader_is_warned_of_inadequate_saes_and_of_no_others() -> None:
    assert warn_adequacy(results()) == []
    (said,) = warn_adequacy(results(adaptive={(0, 1), (1, 0)}))
    assert said.startswith("At λ₁ = 2, 2 of 8 SAEs are inadequate: adaptive L0 H1, L1 H0. Do not read")
    assert len(warn_adequacy(results(l1=(2.0, 4.0), control={(0, 0)}))) == 2


def test_where_none_is_adequate_no_head_is_named() -> None:
    every = {(layer, head) for layer in range(2) for head in range(2)}
    assert say_adequacy(results(control=every))[0].endswith(": control 0 of 4, adaptive 4 of 4")


def test_a_table_of_earlier_versions_says_nothing() -> None:
    df = results()
    assert say_adequacy(df.drop(columns="is_adequate")) == []
    assert say_adequacy(df.assign(is_adequate=math.nan)) == []


def test_of_many_heads_the_first_are_named() -> None:
    rows = pd.DataFrame({"layer": 3, "head": range(MAX_NAMED + 4)})
    assert name_places(rows).endswith(f"L3 H{MAX_NAMED - 1} and 4 more")
    assert name_places(pd.DataFrame({"layer": [2, 2], "head": [-1, -1]})) == "L2"  # a whole hook, two seeds


def test_an_atlas_speaks_of_the_saes_that_it_shows_alone() -> None:
    df = results(l1=(2.0, 4.0), control={(1, 1)})
    df.loc[(df["l1"] == 2.0) & (df["layer"] == 0), "is_adequate"] = False  # not shown
    features = df[["model", "seed", "layer", "head", "l1", "sae_seed"]].query("l1 == 4")
    (said,), rows = atlas_adequacy(features, df, {"control": "C", "adaptive": "A"})
    assert said.startswith("1 of the 8 SAEs shown are inadequate")
    assert said.endswith(": C L1 H1.")
    assert rows == [["control", "0", 1, 1, 7.0, 0.5]]
    assert atlas_adequacy(features, results(l1=(4.0,)), NAMES)[0][0].startswith("Each of the 8 SAEs shown is adequate")


def test_of_saes_that_nothing_tells_apart_an_atlas_says_nothing() -> None:
    df = results()
    features = df[["model", "seed", "layer", "head", "l1", "sae_seed"]]
    assert atlas_adequacy(features, pd.concat([df, df]), NAMES) == ([], [])
    assert atlas_adequacy(features, None, NAMES) == ([], [])
    assert atlas_adequacy(features.drop(columns="seed"), df, NAMES) == ([], [])


# --- pages


def test_the_page_names_the_heads_whose_saes_are_not_adequate(study_copy) -> None:
    with_columns(study_copy, lambda row: (row.layer, row.head) != (1, 2))
    page = unescape(write_report(study_copy).read_text(encoding="utf-8"))
    n = 2 * 4
    assert f"control {n - 1} of {n} (not L1 H2)" in page


def test_the_atlas_names_them_and_marks_their_features(study_copy) -> None:
    df = with_columns(study_copy, lambda row: row.head != 3)
    page = unescape(write_atlas(study_copy, study_copy / "atlas.html").read_text(encoding="utf-8"))
    features = read_table(study_copy, "feature_atlas")
    n = len(features[["model", "seed", "layer", "head"]].drop_duplicates())
    n_left = df.query("dictionary == 'trained' and head == 3").drop_duplicates(["model", "seed", "layer", "head"])
    assert f"{len(n_left)} of the {n} SAEs shown are inadequate" in page
    assert "this head’s SAE is inadequate" in page
