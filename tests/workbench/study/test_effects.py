"""effects.csv and seed_means.csv: each number again by a plain loop over the tables, intervals by SciPy's own tests."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports.tables import COLUMNS, read_table, write_table
from workbench.study.effects import comparisons, over_seeds, write_effects
from workbench.study.seed_values import OPTIONAL, SOURCES, averaged


def test_the_interval_covers_as_often_as_it_says():
    for n in (3, 5):
        x = np.random.default_rng(n).normal(2.0, 3.0, (4000, n))
        rows = pd.DataFrame({"group": np.repeat(np.arange(4000), n), "seed": np.tile(np.arange(n), 4000)})
        found = over_seeds(rows.assign(value=x.ravel()), ["group"])
        covered = ((found["ci_low"] <= 2.0) & (found["ci_high"] >= 2.0)).mean()
        assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)  # four standard errors of a share


def test_a_seed_counts_once_however_many_heads_it_has():
    rows = [
        ("a", 0, 1.0),
        ("a", 0, 3.0),
        ("a", 1, 5.0),
        ("a", 2, 8.0),
        ("b", 0, 1.0),
        ("b", 3, 2.0),
        ("c", 0, math.nan),
    ]
    df = pd.DataFrame(rows, columns=["model", "seed", "y"])
    found = over_seeds(averaged(df, ("model",), "y"), ["model"]).set_index("model")
    interval = stats.t.interval(0.95, 2, np.mean([2.0, 5.0, 8.0]), stats.sem([2.0, 5.0, 8.0]))
    assert (found.loc["a", "ci_low"], found.loc["a", "ci_high"]) == pytest.approx(interval, rel=1e-12)
    assert found.loc["a", ["mean", "n", "seeds", "values"]].tolist() == [5.0, 3, "0 1 2", "2.0 5.0 8.0"]
    assert found.loc["b", ["mean", "n", "seeds", "values"]].tolist() == [1.5, 2, "0 3", "1.0 2.0"]
    assert math.isnan(found.loc["b", "ci_low"])  # two seeds have no interval
    assert "c" not in found.index


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two models of three seeds, two layers, four heads; the second's third seed has no head entropies."""
    directory, rng = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    runs = [(model, seed) for model in ("x", "y") for seed in range(3)]
    rows = [
        (m, s, layer, head, rng.random(), 0.5, rng.random(), 9, 9)
        for m, s in runs
        for layer in (0, 1)
        for head in range(4)
    ]
    df = pd.DataFrame(rows, columns=list(COLUMNS["attention_stats"]))
    df["entropy"] = df["entropy"].mask((df["model"] == "y") & (df["seed"] == 2))
    df.loc[0, "bos_mass"] = np.inf
    write_table(df, directory, "attention_stats")
    rows = [(m, s, layer, b, *rng.random(7), 64) for m, s in runs for layer in (0, 1) for b in ("z", "residual")]
    write_table(pd.DataFrame(rows, columns=list(COLUMNS["topology_stats"])), directory, "topology_stats")
    (directory / "study.json").write_text(json.dumps({"models": [{"name": "x"}, {"name": "y"}]}))
    write_effects(directory)
    return directory


def test_means_are_those_of_a_plain_loop(study):
    found = read_table(study, "seed_means")
    df = read_table(study, "topology_stats")
    own = found[(found["table"] == "topology_stats") & (found["measure"] == "mean_cos")]
    assert len(own) == 2 * 2 * 2
    for row in own.itertuples():
        at = (df["model"] == row.model) & (df["layer"] == row.layer) & (df["basis"] == row.basis)
        values = df[at]["mean_cos"].tolist()
        interval = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (row.mean, row.ci_low, row.ci_high) == pytest.approx((np.mean(values), *interval), rel=1e-12)
        assert [float(text) for text in row.values.split()] == values
    masses = found[(found["measure"] == "bos_mass") & (found["model"] == "x") & (found["layer"] == 0)]
    df = read_table(study, "attention_stats").replace(np.inf, np.nan).query("model == 'x' and layer == 0")
    assert masses["mean"].item() == pytest.approx(df.groupby("seed")["bos_mass"].mean().mean(), rel=1e-12)


def test_a_log_has_means_of_what_it_measures_and_none_of_the_clock(tmp_path):
    runs = [(model, seed, "language", step) for model in ("x", "y") for seed in range(3) for step in (0, 10)]
    columns = list(COLUMNS["train_log"])
    rows = [(*run, *np.arange(len(columns) - 4.0) + run[1]) for run in runs]
    log = pd.DataFrame(rows, columns=columns).assign(**{"vsm.lambda": 0.1, "vsm.loss": 0.2, "entropy.0": 0.3})
    write_table(log, tmp_path, "train_log")
    write_effects(tmp_path)
    found = read_table(tmp_path, "seed_means")
    assert {"held_out_loss", "vsm.lambda", "vsm.loss", "sigma_z"} <= set(found["measure"])
    assert not {"tokens_per_s", "lr", "n_tokens"} & set(found["measure"])
    assert not found.duplicated(["table", "measure", "model", "step", "layer"]).any()


def test_effects_are_paired_by_seed_where_both_models_have_it(study):
    found = read_table(study, "effects")
    df = read_table(study, "topology_stats").query("layer == 1 and basis == 'z'")
    x, y = (df[df["model"] == model]["mean_cos"].to_numpy() for model in "xy")
    (row,) = found.query("measure == 'mean_cos' and layer == 1 and basis == 'z'").to_dict("records")
    interval = stats.ttest_rel(y, x).confidence_interval(0.95)
    assert (row["effect"], row["ci_low"], row["ci_high"]) == pytest.approx((np.mean(y - x), *interval), abs=1e-12)
    assert (row["model_a"], row["model_b"], row["comparison"]) == ("x", "y", "")
    assert (row["n"], row["interval"]) == (3, "paired")
    df = read_table(study, "attention_stats").query("layer == 0").groupby(["model", "seed"])["entropy"].mean()
    (row,) = found[found["measure"] == "layer-0 head entropy, mean"].to_dict("records")  # of two seeds that both have
    assert row["effect"] == pytest.approx(np.mean([df["y", s] - df["x", s] for s in (0, 1)]), abs=1e-12)
    assert (row["n"], row["interval"], math.isnan(row["ci_low"])) == (2, "none", True)


def test_held_out_losses_are_compared_step_by_step(tmp_path):
    rows = [
        (model, seed, step, 4.0 - 0.01 * step + 0.001 * seed * step + 0.002 * step * (model == "y"))
        for model in ("x", "y") for seed in range(3) for step in (0, 10)
    ]  # fmt: skip
    log = pd.DataFrame(rows, columns=["model", "seed", "step", "held_out_loss"])
    log = log.reindex(columns=list(COLUMNS["train_log"])).assign(phase="language")
    write_table(log, tmp_path, "train_log")
    write_effects(tmp_path)
    found = read_table(tmp_path, "effects").query("measure == 'held_out_loss'")
    assert found["step"].astype(int).tolist() == [0, 10]
    assert found["effect"].tolist() == pytest.approx([0.0, 0.02], abs=1e-11)
    assert found["ci_high"].tolist() == pytest.approx([0.0, 0.02], abs=1e-11)
    assert set(found["interval"]) == {"paired"}


def test_no_column_of_a_place_has_the_name_of_a_number():
    leading = {*COLUMNS["effects"], *COLUMNS["seed_means"]} - {"model_a", "model_b"}
    assert not leading & {name for source in SOURCES for name in source.by}
    for source in SOURCES:
        assert {*source.by, *source.measures} - {"entropy_std", "place", "i", "decay"} <= {
            *COLUMNS[source.table], *OPTIONAL, "layer_a", "layer_b", "n_parameters_no_embedding", "n_eff_no_embedding",
            "perplexity", "near_copy_share", "dense_fraction",
        }, source.table  # fmt: skip


def test_comparisons_are_steps_of_the_lineage_else_with_the_first():
    assert comparisons(["a", "b", "c"], {}) == [("", "a", "b"), ("", "a", "c")]
    assert comparisons(["a"], {}) == []
    assert comparisons(["p1-adamw-nano", "p3-muon-nano", "z"], {}) == [
        ("Muon for AdamW", "p1-adamw-nano", "p3-muon-nano")
    ]
    by_role = comparisons(["old", "new", "p3-muon"], {"p1-adamw": "old", "p3-muon": "new"})
    assert by_role == [("Muon for AdamW", "old", "new")]  # a role goes before a name


def test_both_tables_come_out_the_same_again_and_do_not_count_themselves(study):
    before = [(study / f"{name}.csv").read_bytes() for name in ("effects", "seed_means")]
    assert [path.read_bytes() for path in write_effects(study)] == before


def test_a_study_of_one_model_has_means_and_no_effects(tmp_path, study):
    write_table(read_table(study, "topology_stats").query("model == 'x'"), tmp_path, "topology_stats")
    write_effects(tmp_path)
    assert read_table(tmp_path, "effects").empty
    assert len(read_table(tmp_path, "seed_means")) > 8


def test_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no known table; expected those of a study"):
        write_effects(tmp_path)
    (tmp_path / "topology_stats.csv").write_text("model,seed,layer,basis,mean_cos\na,0,0,z,much\n")
    with pytest.raises(ValueError, match=r"topology_stats.csv: got text in the column mean_cos; expected numbers"):
        write_effects(tmp_path)
