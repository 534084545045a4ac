"""Two studies compared: Welch over seeds, the jackknife over text, Benjamini and Hochberg over what was tested."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from blocks_for_tests import MEASURE, N_BLOCKS, write_topology
from scipy import stats
from typer.testing import CliRunner

from probes.jackknife import jackknife_stderr
from reports.tables import read_csv
from workbench.cli.app import app
from workbench.study.against import Numbers, measure_change, write_against


def rows_of(directory: Path) -> pd.DataFrame:
    df = read_csv(directory / "against.csv").fillna({"where": "", "model_a": ""})
    return df.set_index(["measure", "quantity", "model_b", "where"])


def two_studies(tmp_path: Path, seeds: int, scale: float = 1.5) -> tuple[Path, Path, np.ndarray]:
    old, new = tmp_path / "old", tmp_path / "new"
    values = write_topology(old, seeds)
    write_topology(new, seeds, scale=scale)
    return old, new, values


def test_three_seeds_are_compared_by_welchs_t(tmp_path: Path) -> None:
    old, new, values = two_studies(tmp_path, 3)
    write_against(new, old)
    row = rows_of(new).loc[(MEASURE, "value", "y", "")]
    before = values[1].mean((1, 2))
    test = stats.ttest_ind(1.5 * before, before, equal_var=False)
    bounds = test.confidence_interval()
    assert row["difference"] == pytest.approx(0.5 * before.mean())
    assert [row["ci_low"], row["ci_high"], row["p"]] == pytest.approx([bounds.low, bounds.high, test.pvalue])
    assert (row["interval"], row["n_old"], row["n_new"]) == ("welch", 3, 3)
    effect = rows_of(new).loc[(MEASURE, "effect", "y", "")]
    differences = before - values[0].mean((1, 2))
    test = stats.ttest_ind(1.5 * differences, differences, equal_var=False)
    assert [effect["old"], effect["new"]] == pytest.approx([differences.mean(), 1.5 * differences.mean()])
    assert (effect["p"], effect["model_a"]) == (pytest.approx(test.pvalue), "x")


def test_one_seed_on_the_same_text_leaves_each_block_out_of_both(tmp_path: Path) -> None:
    old, new, values = two_studies(tmp_path, 1)
    write_against(new, old)
    row = rows_of(new).loc[("mean_cos", "value", "y", "basis z, layer 1")]
    by_block = 0.5 * values[1, 0, 1]
    error = by_block.std(ddof=1) / np.sqrt(N_BLOCKS)
    half = stats.t.ppf(0.975, N_BLOCKS - 1) * error
    assert [row["difference"], row["ci_low"], row["ci_high"]] == pytest.approx(
        [by_block.mean(), by_block.mean() - half, by_block.mean() + half]
    )
    assert row["p"] == pytest.approx(2 * stats.t.sf(by_block.mean() / error, N_BLOCKS - 1))
    assert row["interval"] == "own"


def test_of_another_text_the_errors_of_both_add_up(tmp_path: Path) -> None:
    old, new, _ = two_studies(tmp_path, 1)
    record = json.loads((old / "study.json").read_text())
    (old / "study.json").write_text(json.dumps(record | {"corpus": "another"}))
    write_against(new, old)
    wide = rows_of(new).loc[(MEASURE, "value", "y", "")]
    (old / "study.json").write_text(json.dumps(record))
    write_against(new, old)
    narrow = rows_of(new).loc[(MEASURE, "value", "y", "")]
    assert wide["ci_high"] - wide["ci_low"] > 2 * (narrow["ci_high"] - narrow["ci_low"])
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 0.1, 8), rng.normal(2, 0.1, 8)
    change = measure_change(Numbers({0: 1.0}, first), Numbers({0: 2.0}, second), 1.0, is_same_text=False)
    error = np.hypot(jackknife_stderr(first), jackknife_stderr(second))
    assert change.high - 1.0 == pytest.approx(stats.t.ppf(0.975, 7) * error)


def test_what_is_equal_is_not_tested_and_q_counts_what_is(tmp_path: Path) -> None:
    old, new, _ = two_studies(tmp_path, 1, scale=1.0)
    write_against(new, old)
    df = read_csv(new / "against.csv")
    assert (df["difference"] == 0).all()
    assert df["p"].isna().all()
    assert set(df["changed"]) == {"no"}
    df = read_csv(new / "topology_stats.csv")
    df.loc[df["model"] == "y", "mean_cos"] += 1  # without blocks that say the same, nothing else
    df.to_csv(new / "topology_stats.csv", index=False)
    (new / "topology_stats_blocks.csv").unlink()
    write_against(new, old)
    df = read_csv(new / "against.csv").fillna({"changed": ""})
    moved = df[df["difference"] != 0]
    assert set(moved["interval"]) == {"none"}
    assert set(moved["changed"]) == {""}


def test_chance_alone_changes_few(tmp_path: Path) -> None:
    """p of Welch's t over three seeds each is at most .05 in about 5 % of studies that differ by nothing."""
    rng = np.random.default_rng(5)
    n = 2000
    ps = []
    for _ in range(n):
        first, second = (dict(enumerate(rng.normal(0, 1, 3))) for _ in range(2))
        difference = np.mean(list(second.values())) - np.mean(list(first.values()))
        ps.append(measure_change(Numbers(first), Numbers(second), float(difference), is_same_text=True).p)
    assert np.mean(np.array(ps) <= 0.05) < 0.06  # Welch's t is a little conservative for three and three


def test_how_they_were_made_is_set_side_by_side(tmp_path: Path) -> None:
    old, new, _ = two_studies(tmp_path, 3)
    for directory, steps, version in ((old, 100, "1"), (new, 200, "2")):
        record = json.loads((directory / "study.json").read_text())
        models = [{"name": name, "seed": seed} for name in "xy" for seed in range(3)]
        record |= {"versions": {"torch": version}, "models": models, "title": "A study"}
        (directory / "study.json").write_text(json.dumps(record))
        folder = directory / "models" / "x-seed0"
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(f"[recipe]\nname = 'x'\n[[recipe.phases]]\nn_steps = {steps}\n")
    write_against(new, old)
    said = read_csv(new / "against_setup.csv").set_index("name")
    assert tuple(said.loc["version of torch"].astype(str)) == ("1", "2", "yes")
    assert tuple(said.loc["x: phases.0.n_steps"].astype(str)) == ("100", "200", "yes")
    assert tuple(said.loc["seeds of y"]) == ("0 1 2", "0 1 2", "no")
    assert "x: name" not in said.index  # settings that are the same


def test_a_folder_of_something_else_is_refused_in_one_line(tmp_path: Path) -> None:
    old, new, _ = two_studies(tmp_path, 1)
    with pytest.raises(ValueError, match="the study itself; expected another"):
        write_against(new, new)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no known table"):
        write_against(new, empty)
    for name in ("topology_stats", "topology_stats_blocks"):
        df = read_csv(old / f"{name}.csv")
        df.assign(model=df["model"].map({"x": "u", "y": "v"})).to_csv(old / f"{name}.csv", index=False)
    with pytest.raises(ValueError, match="no measure of one model in common"):
        write_against(new, old)


def test_the_verb_writes_the_table_and_the_section(tmp_path: Path) -> None:
    old, new, _ = two_studies(tmp_path, 3)
    result = CliRunner().invoke(app, ["report", str(new), "--against", str(old)])
    assert result.exit_code == 0, result.output
    page = (new / "report.html").read_text(encoding="utf-8")
    assert 'id="against"' in page
    df = read_csv(new / "against.csv")
    n_changed, n_tested = (df["changed"] == "yes").sum(), df["p"].notna().sum()
    assert f"{n_changed} of {n_tested} tested changes exclude 0" in page
    shutil.rmtree(old)
    result = CliRunner().invoke(app, ["report", str(new), "--against", str(old)])
    assert result.exit_code == 1
    assert result.output.strip().count("\n") == 0
    assert "not a directory" in result.output
