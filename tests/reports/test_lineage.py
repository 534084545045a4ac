"""The lineage table: each cell from its table or the training log, published figures under it, steps paired by seed."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from fake_study import study_record, write_attention_and_spectra, write_concepts, write_training

from reports.lineage import MEASURES, lineage_data, lineage_grids, lineage_models, middle_layer, step_grids
from reports.page import write_report
from reports.study import read_study
from reports.tables import read_csv, write_table

MODELS = ("p1-adamw-nano", "p3-muon-nano", "nca-002-nano")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("lineage")
    rng = np.random.default_rng(0)
    runs = [(model, seed) for model in MODELS for seed in range(3)]
    write_training(path, rng, runs, 3, n_steps=40)
    write_attention_and_spectra(path, rng, runs, 3, 4)
    write_concepts(path, rng, runs, 3)
    return path


def row(grid, name: str) -> dict[str, tuple[str, str]]:
    cells = next(cells for headers, cells in grid.rows if headers[0] == name)
    return {title: (cell.text, cell.note) for title, cell in zip(grid.columns, cells, strict=True)}


def test_cells_are_means_over_seeds_of_what_the_tables_hold(directory):
    (grid,) = lineage_grids(read_study(directory))
    found = row(grid, "p3-muon")
    attention = read_csv(directory / "attention_stats.csv")
    first = attention[(attention["model"] == "p3-muon-nano") & (attention["layer"] == 0)]
    spreads = [np.std(first[first["seed"] == seed]["entropy"]) for seed in range(3)]
    half = 4.302653 * np.std(spreads, ddof=1) / np.sqrt(3)
    assert found["layer-0 head entropy, std"][0] == f"{np.mean(spreads):.3f}"
    low, high = (float(text.replace("−", "-")) for text in found["layer-0 head entropy, std"][1].strip("[]").split(","))
    assert (low, high) == pytest.approx((np.mean(spreads) - half, np.mean(spreads) + half), abs=6e-4)
    middle = attention[(attention["model"] == "p3-muon-nano") & (attention["layer"] == 1)]  # of three layers
    assert found["mid-layer BOS mass"][0] == f"{middle['bos_mass'].mean():.3f}"
    log = read_csv(directory / "train_log.csv").dropna(subset=["held_out_loss"])
    last = log[log["model"] == "p3-muon-nano"].groupby("seed")["held_out_loss"].last()
    assert found["held-out loss"][0] == f"{last.mean():.3f}"
    # a mean of the seeds' perplexities, which is not the perplexity of their mean loss
    assert found["held-out perplexity"][0] == f"{np.exp(last).mean():.2f}"
    ranks = read_csv(directory / "weight_spectra.csv").query("model == 'p3-muon-nano' and matrix == 'W_O'")
    assert found["nuclear rank of W_O"][0] == f"{ranks['nuclear_rank'].mean():.1f}"


def test_published_figures_stand_under_their_measures(directory):
    (grid,) = lineage_grids(read_study(directory))
    published = row(grid, "published")
    assert published["mid-layer BOS mass"][0] == "86 % → 52 %"
    assert published["held-out loss"][0] == "–"
    assert row(grid, "p3-muon")["held-out loss, published"] == ("2.925", "")
    assert row(grid, "nca-002")["held-out perplexity, published"] == ("18.67", "")
    assert published["held-out perplexity, published"] == ("–", "")
    assert set(lineage_data()["published"]) <= {measure.key for measure in MEASURES}
    assert len(lineage_data()["model"]) == 9


def test_without_the_tables_the_training_monitor_speaks(directory, tmp_path):
    log = read_csv(directory / "train_log.csv")
    log = log[log["seed"] == 0].assign(**{"head_entropy.0": 1.25, "head_entropy_std.0": 0.5})
    log = log.assign(**{f"bos_mass.{layer}": 0.1 * layer for layer in range(3)})
    write_table(log, tmp_path, "train_log")
    (grid,) = lineage_grids(read_study(tmp_path))
    found = row(grid, "nca-002")
    assert found["layer-0 head entropy, mean"] == ("1.250", "")
    assert found["layer-0 head entropy, std"] == ("0.500", "")
    assert found["mid-layer BOS mass"] == ("0.100", "")
    assert found["trajectory consistency"] == ("–", "")


def test_a_log_without_perplexities_says_so(directory, tmp_path):
    log = read_csv(directory / "train_log.csv")
    write_table(log.drop(columns="held_out_perplexity"), tmp_path, "train_log")
    (grid,) = lineage_grids(read_study(tmp_path))
    assert row(grid, "nca-002")["held-out perplexity"] == ("–", "")
    assert row(grid, "nca-002")["held-out loss"][0] != "–"
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "No column held_out_perplexity in train_log.csv" in page


def test_steps_are_paired_and_marked(tmp_path):
    rows = [("p1-adamw", seed, 9, 5.0 + seed) for seed in range(3)]
    rows += [("p3-muon", seed, 9, 4.0 + seed + 0.01 * seed) for seed in range(3)]  # always about one lower
    rows += [("nca-002", seed, 9, 4.0 + seed + (-1) ** seed) for seed in range(3)]
    log = pd.DataFrame(rows, columns=["model", "seed", "step", "held_out_loss"]).assign(loss=1.0)
    (tmp_path / "train_log.csv").write_text(log.to_csv(index=False))
    (grid,) = step_grids(read_study(tmp_path))
    assert row(grid, "Muon for AdamW")["held-out loss"][0] == "−0.990 ●"
    assert row(grid, "NCA pre-training")["held-out loss"][0] == "+0.323 ○"
    assert [headers[0] for headers, _ in grid.rows] == ["Muon for AdamW", "NCA pre-training"]


def test_two_seeds_are_both_given(tmp_path):
    rows = [("p1-adamw", 0, 9, 5.0), ("p1-adamw", 1, 9, 6.0), ("p3-muon", 0, 9, 4.0)]
    log = pd.DataFrame(rows, columns=["model", "seed", "step", "held_out_loss"])
    (tmp_path / "train_log.csv").write_text(log.to_csv(index=False))
    study = read_study(tmp_path)
    assert row(lineage_grids(study)[0], "p1-adamw")["held-out loss"] == ("5.000 / 6.000", "")
    assert row(step_grids(study)[0], "Muon for AdamW")["held-out loss"] == ("−1.000", "")  # no mark on one pair


def test_roles_name_the_models_and_others_have_no_lineage(directory, made_study, tmp_path):
    assert lineage_models(read_study(made_study)) == {}
    assert lineage_grids(read_study(made_study)) == []
    rows = [("mine", 0, 9, 5.0), ("theirs", 0, 9, 6.0)]
    log = pd.DataFrame(rows, columns=["model", "seed", "step", "held_out_loss"])
    (tmp_path / "train_log.csv").write_text(log.to_csv(index=False))
    (tmp_path / "study.json").write_text('{"roles": {"p3-muon": "theirs"}}')
    assert lineage_models(read_study(tmp_path)) == {"p3-muon": "theirs"}


@pytest.mark.parametrize(("n_layers", "middle"), [(1, 0), (2, 0), (3, 1), (6, 2), (12, 5), (28, 14)])
def test_the_middle_layer_lies_where_fourteen_of_twenty_eight_does(n_layers, middle):
    assert middle_layer(n_layers) == middle


def test_a_study_of_the_lineage_leaves_out_what_it_did_not_make(directory, tmp_path):
    (directory / "study.json").write_text(json.dumps(study_record(MODELS, range(3))))
    text = write_report(directory, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not drawn" not in text
    assert "The Kotodama lineage" in text
    assert "The paper’s tables and figures" not in text
    assert text.count("mean and 95 % interval over seeds") > 8
