"""findings.csv and text_errors.csv: intervals over seeds as effects.csv has them, over blocks as a plain loop finds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from blocks_for_tests import MEASURE, N_BLOCKS, write_topology
from scipy import stats

from reports.tables import read_csv
from workbench.study.effects import write_effects
from workbench.study.findings import write_findings


def finding(directory: Path) -> pd.Series:
    write_findings(directory)
    found = read_csv(directory / "findings.csv").set_index("measure")
    return found.loc[MEASURE]


def test_one_seed_has_the_jackknifes_interval_over_blocks(tmp_path: Path) -> None:
    values = write_topology(tmp_path, 1)
    row = finding(tmp_path)
    by_block = values[1, 0].mean(0) - values[0, 0].mean(0)  # blocks of equal size: the mean of their means
    effect, error = by_block.mean(), by_block.std(ddof=1) / math.sqrt(N_BLOCKS)
    half = stats.t.ppf(0.975, N_BLOCKS - 1) * error
    assert (row["interval"], row["n"]) == ("own", 1)
    assert [row["effect"], row["ci_low"], row["ci_high"]] == pytest.approx([effect, effect - half, effect + half])
    assert [row["value_a"], row["value_b"]] == pytest.approx([values[0].mean(), values[1].mean()])
    assert row["at_least"] == pytest.approx(-(effect + half) / values[0].mean())
    assert row["at_most"] == pytest.approx(-(effect - half) / values[0].mean())


def test_three_seeds_have_the_interval_of_effects(tmp_path: Path) -> None:
    write_topology(tmp_path, 3)
    row = finding(tmp_path)
    write_effects(tmp_path)
    effects = read_csv(tmp_path / "effects.csv")
    own = effects[(effects["measure"] == MEASURE) & (effects["table"] == "topology_stats")].iloc[0]
    for name in ("effect", "ci_low", "ci_high", "n", "interval"):
        assert row[name] == own[name]
    assert row["interval"] == "paired"


def test_without_blocks_there_is_no_interval_and_nothing_is_made_of_it(tmp_path: Path) -> None:
    write_topology(tmp_path, 1, with_blocks=False)
    row = finding(tmp_path)
    assert row["interval"] == "none"
    assert row[["ci_low", "ci_high", "at_most"]].isna().all()
    assert np.isnan(row["at_least"])


def test_text_errors_are_of_each_model_seed_and_place(tmp_path: Path) -> None:
    values = write_topology(tmp_path, 2)
    write_findings(tmp_path)
    df = read_csv(tmp_path / "text_errors.csv")
    own = df[(df["measure"] == "mean_cos") & (df["table"] == "topology_stats")]
    assert len(own) == 2 * 2 * 2
    for row in own.itertuples():
        by_block = values["xy".index(row.model), int(row.seed), int(row.layer)]
        assert row.stderr == pytest.approx(by_block.std(ddof=1) / math.sqrt(N_BLOCKS), rel=1e-9)
        assert (row.value, row.n_blocks) == (pytest.approx(by_block.mean()), N_BLOCKS)


def test_models_read_in_other_blocks_have_no_interval(tmp_path: Path) -> None:
    write_topology(tmp_path, 1)
    path = tmp_path / "topology_stats_blocks.csv"
    df = read_csv(path)
    df[(df["model"] == "x") | (df["block"] > 0)].to_csv(path, index=False)
    assert finding(tmp_path)["interval"] == "none"


def test_a_number_that_is_the_same_in_both_is_no_finding_of_a_change(tmp_path: Path) -> None:
    write_topology(tmp_path, 1)
    for name in ("topology_stats", "topology_stats_blocks"):
        df = read_csv(tmp_path / f"{name}.csv")
        same = df[df["model"] == "x"]
        pd.concat([same, same.assign(model="y")]).to_csv(tmp_path / f"{name}.csv", index=False)
    row = finding(tmp_path)
    assert (row["effect"], row["at_least"], row["at_most"]) == (0, 0, 0)
