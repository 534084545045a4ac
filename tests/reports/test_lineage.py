"""The lineage table: each cell from its table or the training log, published figures under it, steps paired by seed."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from fake_study import (
    study_record,
    write_attention_and_spectra,
    write_concepts,
    write_factorial,
    write_training,
)

from reports.lineage import MEASURES, lineage_data, lineage_models, middle_layer
from reports.lineage_tables import (
    budget_grids,
    divergence_grids,
    lineage_grids,
    pair_grids,
    step_grids,
    two_by_two_grids,
)
from reports.page import write_report
from reports.panels import kotodama
from reports.study import Study, read_study
from reports.tables import COLUMNS, read_csv, write_table
from workbench.study.effects import write_effects
from workbench.study.summaries import SUMMARIES, rank_at_end, rank_at_start

MODELS = ("p1-adamw-nano", "p3-muon-nano", "nca-002-nano")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("lineage")
    rng = np.random.default_rng(0)
    runs = [(model, seed) for model in MODELS for seed in range(3)]
    write_training(path, rng, runs, 3, n_steps=40)
    write_attention_and_spectra(path, rng, runs, 3, 4)
    write_concepts(path, rng, runs, 3)
    write_effects(path)
    return path


def made(directory) -> Study:
    """The study of a directory whose tables were just written."""
    write_effects(directory)
    return read_study(directory)


def row(grid, name: str) -> dict[str, tuple[str, str]]:
    cells = next(cells for headers, cells in grid.rows if headers[0] == name)
    return {title: (cell.text, cell.note) for title, cell in zip(grid.columns, cells, strict=True)}


def beside(grid, name: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(group, column) -> the text and note of a row's cell, in tables with groups of columns."""
    cells = next(cells for headers, cells in grid.rows if headers[0] == name)
    groups = [group for group, span in grid.groups for _ in range(span)]
    places = zip(groups, grid.columns, cells, strict=True)
    return {(group, column): (cell.text, cell.note) for group, column, cell in places}


def titled(grids, title: str):
    return next(grid for grid in grids if grid.title == title)


def test_cells_are_means_over_seeds_of_what_the_tables_hold(directory):
    grids = lineage_grids(read_study(directory))
    found = beside(titled(grids, "Head entropy of layer 0"), "p3-muon")
    attention = read_csv(directory / "attention_stats.csv")
    first = attention[(attention["model"] == "p3-muon-nano") & (attention["layer"] == 0)]
    spreads = [np.std(first[first["seed"] == seed]["entropy"]) for seed in range(3)]
    half = 4.302653 * np.std(spreads, ddof=1) / np.sqrt(3)
    text, note = found["layer-0 head entropy, std", "here"]
    assert text == f"{np.mean(spreads):.3f}"
    low, high = (float(part.replace("−", "-")) for part in note.strip("[]").split(","))
    assert (low, high) == pytest.approx((np.mean(spreads) - half, np.mean(spreads) + half), abs=6e-4)
    found = beside(titled(grids, "BOS mass at three depths"), "p3-muon")
    for layer, title in enumerate(("first-layer BOS mass", "mid-layer BOS mass", "last-layer BOS mass")):
        own = attention[(attention["model"] == "p3-muon-nano") & (attention["layer"] == layer)]  # of three layers
        assert found[title, "here"][0] == f"{own['bos_mass'].mean():.3f}"
    found = beside(titled(grids, "Loss and nuclear ranks of weights"), "p3-muon")
    log = read_csv(directory / "train_log.csv").dropna(subset=["held_out_loss"])
    last = log[log["model"] == "p3-muon-nano"].groupby("seed")["held_out_loss"].last()
    assert found["held-out loss", "here"][0] == f"{last.mean():.3f}"
    # a mean of the seeds' perplexities, which is not the perplexity of their mean loss
    assert found["held-out perplexity", "here"][0] == f"{np.exp(last).mean():.2f}"
    ranks = read_csv(directory / "weight_spectra.csv").query("model == 'p3-muon-nano'")
    of_first = ranks.query("matrix == 'W_O' and layer == 0")["nuclear_rank"].mean()
    assert found["nuclear rank of W_O, layer 0", "here"][0] == f"{of_first:.1f}"
    of_all = ranks.query("matrix == 'W_Q'")["nuclear_rank"].mean()
    assert found["nuclear rank of W_Q, mean over layers", "here"][0] == f"{of_all:.1f}"
    found = beside(titled(grids, "Concept geometry"), "p3-muon")
    geometry = read_csv(directory / "concept_geometry.csv").query("model == 'p3-muon-nano' and layer == 1")
    assert found["mid-layer effective dimension", "here"][0] == f"{geometry['effective_dim'].mean():.2f}"
    found = beside(titled(grids, "Correlations with order, place and time, mid-layer"), "p3-muon")
    mantel = read_csv(directory / "concept_mantel.csv").query("model == 'p3-muon-nano' and layer == 1")
    assert found["r of digits", "here"][0] == f"{mantel[mantel['set'] == 'digits']['r'].mean():.2f}"


def test_published_figures_stand_beside_their_measures(directory):
    grids = lineage_grids(read_study(directory))
    masses = titled(grids, "BOS mass at three depths")
    published = {
        "p3-muon": ("0.227", "0.862", "0.726"),
        "p1-adamw": ("0.208", "0.817", "0.442"),
        "nca-002": ("0.092", "0.753", "0.825"),
        "nca-attnres": ("0.086", "0.592", "0.925"),
        "nca-003": ("0.094", "0.553", "0.583"),
        "p3-attnres": ("0.221", "0.524", "0.843"),
        "lang-ddv1": ("0.256", "0.518", "0.634"),
        "lang-baseline": ("0.238", "0.898", "0.903"),
    }
    ours = {"p1-adamw", "p3-muon", "nca-002"}
    names = {model: model if model in ours else f"{model} (not in this study)" for model in published}
    assert {headers[0] for headers, _ in masses.rows} == set(names.values())
    for model, figures in published.items():
        found = beside(masses, names[model])
        own = [found[f"{depth} BOS mass", "published"][0] for depth in ("first-layer", "mid-layer", "last-layer")]
        assert tuple(own) == figures
    entropies = titled(grids, "Head entropy of layer 0")
    assert beside(entropies, "nca-002")["layer-0 head entropy, std", "published"][0] == "1.140"
    weights = beside(titled(grids, "Loss and nuclear ranks of weights"), "nca-002")
    assert weights["nuclear rank of W_O, layer 0", "published"][0] == "172.0"
    assert (weights["held-out loss", "published"][0], weights["held-out perplexity", "published"][0]) == (
        "2.931",
        "18.67",
    )
    concepts = beside(titled(grids, "Concept geometry"), "nca-attnres (not in this study)")
    assert concepts["mid-layer effective dimension", "published"][0] == "5.27"
    assert concepts["trajectory consistency", "published"][0] == "−0.134"
    assert set(lineage_data()["published"]) <= {measure.key for measure in MEASURES}
    assert {measure.title for measure in MEASURES} <= {summary.name for summary in SUMMARIES}
    named = {model["key"] for model in lineage_data()["model"]}
    assert len(named) == len(lineage_data()["model"]) == 10
    assert {key for figures in lineage_data()["published"].values() for key in figures} <= named


def test_a_published_model_that_the_study_lacks_has_dashes_of_ours(directory):
    grids = lineage_grids(read_study(directory))
    found = beside(titled(grids, "BOS mass at three depths"), "nca-003 (not in this study)")
    assert {text for (_, column), (text, _) in found.items() if column == "here"} == {"–"}
    entropies = titled(grids, "Head entropy of layer 0")
    assert not [headers for headers, _ in entropies.rows if headers[0].startswith("nca-003")]  # none was published
    recipes = dict(headers for headers, _ in titled(grids, "Recipes as published").rows)
    assert recipes["p3-muon"] == "Muon"
    assert len(recipes) == 10


def test_heads_are_ranked_within_a_seed_before_seeds_are_averaged(tmp_path, directory):
    entropies = {0: [3.0, 1.0, 2.0, 4.0], 1: [1.0, 4.0, 2.0, 3.0], 2: [4.0, 3.0, 2.0, 1.0]}
    rows = [
        ("nca-002", seed, 0, head, value, 0.5, 0.1, 9, 9)
        for seed, own in entropies.items()
        for head, value in enumerate(own)
    ]
    write_table(pd.DataFrame(rows, columns=list(COLUMNS["attention_stats"])), tmp_path, "attention_stats")
    grid = titled(lineage_grids(made(tmp_path)), "Entropies of layer 0’s heads, in order")
    found = beside(grid, "nca-002")
    ours = [found[name, "here"] for name in ("lowest", "2.", "3.", "highest")]
    assert ours == [(f"{value:.2f}", f"[{value:.2f}, {value:.2f}]") for value in (1, 2, 3, 4)]
    theirs = [found[name, "published"][0] for name in ("lowest", "2.", "3.", "highest")]
    assert theirs == ["1.83", "1.90", "3.57", "4.51"]


def test_without_the_tables_the_training_monitor_speaks(directory, tmp_path):
    log = read_csv(directory / "train_log.csv")
    log = log[log["seed"] == 0].assign(**{"head_entropy.0": 1.25, "head_entropy_std.0": 0.5})
    log = log.assign(**{f"bos_mass.{layer}": 0.1 * layer for layer in range(3)})
    log.loc[log["model"] == "p3-muon-nano", "bos_mass.2"] = np.nan  # a model of two layers among those of three
    write_table(log, tmp_path, "train_log")
    grids = lineage_grids(made(tmp_path))
    found = beside(titled(grids, "Head entropy of layer 0"), "nca-002")
    assert found["layer-0 head entropy, mean", "here"] == ("1.250", "")
    assert found["layer-0 head entropy, std", "here"] == ("0.500", "")
    wanted = {"nca-002": ["0.000", "0.100", "0.200"], "p3-muon": ["0.000", "0.000", "0.100"]}
    for model, masses in wanted.items():
        found = beside(titled(grids, "BOS mass at three depths"), model)
        own = [found[f"{depth} BOS mass", "here"][0] for depth in ("first-layer", "mid-layer", "last-layer")]
        assert own == masses
    ranks = log[log["model"] == "nca-002-nano"].sort_values("step")["nuclear_rank.W_O.0"]
    weights = beside(titled(grids, "Loss and nuclear ranks of weights"), "nca-002")
    assert weights["nuclear rank of W_O, layer 0", "here"][0] == f"{ranks.iloc[-1]:.1f}"
    assert "Concept geometry" not in {grid.title for grid in grids}  # nothing of it was measured


def phases_log() -> pd.DataFrame:
    """Ranks of W_Q of two layers: lang-baseline of two phases, measured every 20 steps of 10; p3-muon of one."""
    rows = []
    for seed in range(2):
        for step in range(0, 101, 10):
            phase = "nca" if step <= 40 else "language"
            rows.append(("lang-baseline", seed, phase, step, 100.0 - step + seed if step % 20 == 0 else np.nan))
        rows += [("p3-muon", seed, "language", step, 10.0 + step) for step in range(0, 41, 20)]
    log = pd.DataFrame(rows, columns=["model", "seed", "phase", "step", "stable_rank.W_Q.0"])
    return log.assign(**{"stable_rank.W_Q.1": -1.0, "held_out_loss": 4.0, "loss": 4.0})


def test_the_rank_at_the_start_of_a_phase_is_the_end_of_the_one_before(tmp_path):
    (tmp_path / "train_log.csv").write_text(phases_log().to_csv(index=False))
    study = made(tmp_path)
    x = kotodama.over_last_phase(study)
    own = x[x["model"] == "lang-baseline"]  # layer 0 of two is at the depth of 14 of 28
    assert own["x"].tolist() == [-40, -20, 0, 20, 40, 60]  # phases meet at step 40
    assert own["mean"].tolist() == [100.5, 80.5, 60.5, 40.5, 20.5, 0.5]
    assert x[x["model"] == "p3-muon"]["x"].tolist() == [0, 20, 40]
    start, end = rank_at_start(study.tables), rank_at_end(study.tables)
    assert start.to_dict() == {
        ("lang-baseline", 0): 60, ("lang-baseline", 1): 61, ("p3-muon", 0): 10, ("p3-muon", 1): 10
    }  # fmt: skip
    assert end.to_dict() == {("lang-baseline", 0): 0, ("lang-baseline", 1): 1, ("p3-muon", 0): 50, ("p3-muon", 1): 50}
    found = beside(titled(lineage_grids(study), "Stable rank of W_Q at the middle layer"), "lang-baseline")
    assert found["start of the last phase", "here"] == ("60.0 / 61.0", "")
    assert found["start of the last phase", "published"] == ("67.0", "")
    assert found["end of training", "published"] == ("42.0", "")
    names = [name for name, _ in kotodama.query_ranks(study)]
    assert names == ["lang-baseline", "all models of the lineage"]
    assert kotodama.measured_rows(study) == ["2 to 3 measurements in a run’s last phase"]


def test_two_by_two_tables_say_what_factorial_holds(tmp_path):
    write_factorial(tmp_path)
    dimension, mass, effects = two_by_two_grids(made(tmp_path))
    assert (dimension.title, mass.title, effects.title) == (
        "mid-layer effective dimension", "mid-layer BOS mass", "Effects"
    )  # fmt: skip
    found = beside(dimension, "with NCA")
    assert found["with AttnRes", "here"] == ("6.00", "[5.50, 6.50]")
    assert found["with AttnRes", "published"] == ("5.40", "")
    assert beside(mass, "without NCA")["without AttnRes", "here"] == ("0.200", "")  # one seed
    found = beside(effects, "mid-layer effective dimension")
    assert found["main effect of AttnRes", "published"] == ("+0.90", "stated: +1.73")
    assert found["interaction", "here"] == ("+4.00", "[3.50, 4.50]")


def test_pairs_stand_beside_the_published_ones_whichever_comes_first(tmp_path):
    rows = [
        (*pair, layer, pc, 0.1 * layer + 0.01 * pc, 0.07, 64, seed)
        for pair in (("p3-muon", "p1-adamw"), ("p3-muon", "nca-002"))
        for layer in (-1, 0, 1, 2)
        for pc in (1, 2)
        for seed in range(3)
    ]
    write_table(pd.DataFrame(rows, columns=[*COLUMNS["pc_cosine"], "seed"]), tmp_path, "pc_cosine")
    rows = [
        ("p3-muon", "nca-002", part, value, 9, seed)
        for part, value in (("attention", 0.2), ("mlp", 0.1))
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=[*COLUMNS["eigenspectra_divergence"], "seed"])
    write_table(table, tmp_path, "eigenspectra_divergence")
    study = made(tmp_path)
    (grid,) = pair_grids(study)
    assert [headers[0] for headers, _ in grid.rows] == ["p1-adamw – p3-muon", "p3-muon – nca-002"]
    found = beside(grid, "p1-adamw – p3-muon")
    assert [found[depth, "here"][0] for depth in ("first layer", "middle layer", "last layer")] == [
        "0.010",
        "0.110",
        "0.210",
    ]
    assert [found[depth, "published"][0] for depth in ("first layer", "middle layer", "last layer")] == [
        "0.003",
        "0.072",
        "0.028",
    ]
    (grid,) = divergence_grids(study)
    found = beside(grid, "p3-muon – nca-002")
    assert found["attention matrices", "here"] == ("0.200 / 0.200", "")
    assert found["MLP matrices", "published"] == ("0.016", "")


def test_the_budget_and_what_co_training_changes(tmp_path):
    rows = []
    for model, total, late in (("lang-baseline", 60.0, 0.4), ("lang-ddv1", 61.0, 0.6)):
        for seed in range(3):
            for part, share in (
                ("all", 1.0),
                ("early", 0.3),
                ("middle", 0.7 - late),
                ("late", late),
                ("last half", late + 0.1),
            ):
                rows.append((model, seed, "W_Q", part, share * (total + seed), share, 2))
    write_table(pd.DataFrame(rows, columns=list(COLUMNS["rank_budget"])), tmp_path, "rank_budget")
    (grid,) = budget_grids(made(tmp_path))
    assert grid.title == "W_Q"
    assert row(grid, "baseline")["Σ stable rank"][0] == "61.0"
    assert row(grid, "ddv1")["last half"][0] == "0.700"
    changed = row(grid, "baseline → ddv1")
    assert changed["Σ stable rank"][0] == "+1.0 ●"
    assert changed["early"][0] == "0.000 ○"
    assert changed["late"][0] == "+0.200 ●"


def test_a_log_without_perplexities_says_so(directory, tmp_path):
    log = read_csv(directory / "train_log.csv")
    write_table(log.drop(columns="held_out_perplexity"), tmp_path, "train_log")
    found = beside(titled(lineage_grids(made(tmp_path)), "Loss and nuclear ranks of weights"), "nca-002")
    assert found["held-out perplexity", "here"] == ("–", "")
    assert found["held-out loss", "here"][0] != "–"
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "No column held_out_perplexity in train_log.csv" in page


def test_steps_are_paired_and_marked(tmp_path):
    rows = [("p1-adamw", seed, 9, 5.0 + seed) for seed in range(3)]
    rows += [("p3-muon", seed, 9, 4.0 + seed + 0.01 * seed) for seed in range(3)]  # always about one lower
    rows += [("nca-002", seed, 9, 4.0 + seed + (-1) ** seed) for seed in range(3)]
    log = pd.DataFrame(rows, columns=["model", "seed", "step", "held_out_loss"]).assign(loss=1.0)
    (tmp_path / "train_log.csv").write_text(log.to_csv(index=False))
    (grid,) = step_grids(made(tmp_path))
    assert row(grid, "Muon for AdamW")["held-out loss"][0] == "−0.990 ●"
    assert row(grid, "NCA pre-training")["held-out loss"][0] == "+0.323 ○"
    assert [headers[0] for headers, _ in grid.rows] == ["Muon for AdamW", "NCA pre-training"]


def test_two_seeds_are_both_given(tmp_path):
    rows = [("p1-adamw", 0, 9, 5.0), ("p1-adamw", 1, 9, 6.0), ("p3-muon", 0, 9, 4.0)]
    log = pd.DataFrame(rows, columns=["model", "seed", "step", "held_out_loss"])
    (tmp_path / "train_log.csv").write_text(log.to_csv(index=False))
    study = made(tmp_path)
    assert beside(lineage_grids(study)[1], "p1-adamw")["held-out loss", "here"] == ("5.000 / 6.000", "")
    assert row(step_grids(study)[0], "Muon for AdamW")["held-out loss"] == ("−1.000", "")  # no mark on one pair


def test_roles_name_the_models_and_others_have_no_lineage(directory, made_study, tmp_path):
    assert lineage_models(read_study(made_study)) == {}
    assert lineage_grids(read_study(made_study)) == []
    rows = [("mine", 0, 9, 5.0), ("theirs", 0, 9, 6.0)]
    log = pd.DataFrame(rows, columns=["model", "seed", "step", "held_out_loss"])
    (tmp_path / "train_log.csv").write_text(log.to_csv(index=False))
    (tmp_path / "study.json").write_text('{"roles": {"p3-muon": "theirs"}}')
    assert lineage_models(made(tmp_path)) == {"p3-muon": "theirs"}


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
