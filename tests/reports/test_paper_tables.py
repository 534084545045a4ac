"""Tables 1 to 3: every cell is found again by a plain loop over the CSV."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from reports import paper_tables
from reports.study import read_study
from reports.table_cells import fixed
from reports.tables import COLUMNS, write_table
from workbench.study.effects import write_effects
from workbench.study.seed_values import with_recovery


@pytest.fixture(scope="module")
def study(made_study):
    return read_study(made_study)


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("%", "").replace("+", ""))


def test_table_1_holds_the_cosines_and_the_difference_from_control(study):
    grids = paper_tables.topology_grids(study)
    assert [grid.title[:3] for grid in grids] == ["(a)", "(b)", "(c)", "(d)"]
    rows = {(row.model, row.layer, row.basis): row for row in study.tables["topology_stats"].itertuples()}
    for grid, basis in zip(grids[:3], ("z", "pattern", "residual"), strict=True):
        assert grid.groups == (("max |cos|", 3), ("mean |cos|", 3))
        assert grid.columns == ("control", "adaptive", "Δ") * 2
        for (layer,), cells in grid.rows:
            for start, measure in ((0, "max_cos"), (3, "mean_cos")):
                control, adaptive = (getattr(rows[model, int(layer), basis], measure) for model in study.models)
                assert [cell.text for cell in cells[start : start + 2]] == [fixed(control, 4), fixed(adaptive, 4)]
                assert number(cells[start + 2].text) == pytest.approx(100 * (adaptive - control) / control, abs=0.051)
    for (layer,), cells in grids[3].rows:
        assert cells[0].text == fixed(rows["control", int(layer), "z"].nuclear_rank, 1)


def test_table_2_holds_means_over_heads_beside_the_controls(study):
    grids = paper_tables.sae_grids(study)
    df = study.tables["sae_training_results"]
    for grid, (measure, scale, digits) in zip(
        grids[:4], [("l0", 1, 2), ("mse", 1, 5), ("fvu", 1, 3), ("dead_fraction", 4 * 24, 0)], strict=True
    ):
        assert grid.groups == (("trained", 3), ("random", 2), ("shuffled", 2))
        for (layer,), cells in grid.rows:
            shown = [cell.text for cell in cells if not cell.is_difference]
            expected = []
            for dictionary in ("trained", "random", "shuffled"):
                for model in study.models:
                    key = (dictionary, model, int(layer))
                    of_heads = [
                        scale * getattr(row, measure)
                        for row in df.itertuples()
                        if (row.dictionary, row.model, row.layer) == key
                    ]
                    expected.append(fixed(sum(of_heads) / len(of_heads), digits))
            assert shown == expected


def test_recovered_loss_is_summed_over_heads_before_it_is_divided(study):
    grid = paper_tables.sae_grids(study)[4]
    df = study.tables["sae_training_results"]
    for (layer,), cells in grid.rows:
        shown = [cell.text for cell in cells if not cell.is_difference]
        for dictionary, start in (("trained", 0), ("random", 2)):
            for column, model in enumerate(study.models, start):
                key = (dictionary, model, int(layer))
                own = [row for row in df.itertuples() if (row.dictionary, row.model, row.layer) == key]
                recovered = sum(row.ce_zero - row.ce_spliced for row in own)
                assert shown[column] == fixed(recovered / sum(row.ce_zero - row.ce_base for row in own), 3)


def test_a_layer_that_costs_nothing_recovers_nothing_that_can_be_said():
    row = {"model": "m", "seed": 0, "layer": 0, "head": 0, "ce_base": 2.0, "ce_spliced": 2.0, "ce_zero": 2.0}
    assert with_recovery(pd.DataFrame([row]))["ce_recovered"].isna().all()


def test_table_3_ranks_the_heads_of_all_models_together(study):
    (grid,) = paper_tables.ablation_grids(study)
    assert grid.columns == ("model", "layer", "head", "impact (%)")
    rows = sorted(study.tables["ablation_results"].itertuples(), key=lambda row: -row.impact_pct)[:5]
    assert [headers for headers, _ in grid.rows] == [(str(rank),) for rank in range(1, 6)]
    for (_, cells), row in zip(grid.rows, rows, strict=True):
        assert [cell.text for cell in cells] == [row.model, str(row.layer), str(row.head), fixed(row.impact_pct, 2)]
        assert cells[3].note == f"[{fixed(row.ci_low, 2)}, {fixed(row.ci_high, 2)}]"
    assert len({row.model for row in rows}) == 2, "both models have heads among the five"


def ablations(directory, impacts: dict[tuple[str, int], list[float]], **record):
    """A study of heads 0, 1, … of layer 2 by (model, seed)."""
    rows = [
        (model, seed, 2, head, "zero", 4.0, 4.0, impact, 0.1, impact - 1, impact + 1, 0.0, 64)
        for (model, seed), own in impacts.items()
        for head, impact in enumerate(own)
    ]
    write_table(pd.DataFrame(rows, columns=COLUMNS["ablation_results"]), directory, "ablation_results")
    (directory / "study.json").write_text(json.dumps(record))
    write_effects(directory)
    return read_study(directory)


def texts(grid):
    return [[cell.text for cell in cells] for _, cells in grid.rows]


def test_over_seeds_a_rank_has_a_mean_and_no_head_has(tmp_path):
    impacts = {("a", 0): [9.0, 1.0], ("a", 1): [2.0, 4.0], ("a", 2): [5.0, 3.0]}
    impacts |= {("b", 0): [7.0, 2.0], ("b", 1): [6.0, 0.5], ("b", 2): [2.0, np.nan]}
    *by_seed, over = paper_tables.ablation_grids(ablations(tmp_path, impacts))
    assert [grid.title for grid in by_seed] == ["seed 0", "seed 1", "seed 2"]
    assert texts(by_seed[1])[:2] == [["b", "2", "0", "6.00"], ["a", "2", "1", "4.00"]]
    assert len(by_seed[2].rows) == 3, "an impact that was not measured has no rank"
    assert over.title == "over 3 seeds"
    # the largest of the seeds are 9 (a), 6 (b), 5 (a): mean 20/3, t(.975, 2) · s / √3 with s² = 13/3
    half = 4.302653 * math.sqrt(13 / 3) / math.sqrt(3)
    first = over.rows[0][1]
    assert [cell.text for cell in first] == ["6.67", "3", "a 2, b 1", "2, 2, 2"]
    assert first[0].note == f"[{fixed(20 / 3 - half, 2)}, {fixed(20 / 3 + half, 2)}]"
    assert texts(over)[3] == ["1.00 / 0.50", "2", "a 1, b 1", "2, 2"]


def test_of_more_models_the_papers_pair_comes_first(tmp_path):
    impacts = {("c", 0): [1.0, 0.5], ("x", 0): [9.0, 8.0], ("d", 0): [2.0, 0.1]}
    pair, every = paper_tables.ablation_grids(ablations(tmp_path, impacts, roles={"control": "c", "adaptive": "d"}))
    assert (pair.title, every.title) == ("c and d", "all 3 models")
    assert [row[0] for row in texts(pair)] == ["d", "c", "c", "d"]
    assert [row[0] for row in texts(every)] == ["x", "x", "d", "c", "c"]
    (alone,) = paper_tables.ablation_grids(ablations(tmp_path, impacts, roles={"control": "c", "adaptive": "gone"}))
    assert alone.title == ""


def test_effective_sizes_are_means_over_seeds(tmp_path):
    rows = [
        ("d", seed, "c", seed, 2e6, used, 0.5, 2e6 * used / 0.5, layer, layer, 1e6, 1e6 * used / 0.5)
        for layer, of_seeds in ((-1, (0.5, 0.55, 0.6)), (1, (0.6, 0.61, 0.62)))
        for seed, used in enumerate(of_seeds)
    ]
    rows.append(("d", 0, "c", 1, 2e6, 0.9, 0.5, 3.6e6, -1, -1, 1e6, 1.8e6))  # of two seeds: no pair
    columns = [*COLUMNS["effective_size"], "layer_a", "layer_b", "n_parameters_no_embedding", "n_eff_no_embedding"]
    write_table(pd.DataFrame(rows, columns=columns), tmp_path, "effective_size")
    write_effects(tmp_path)
    (grid,) = paper_tables.effective_size_grids(read_study(tmp_path))
    assert [headers for headers, _ in grid.rows] == [("d against c", "all, mean"), ("d against c", "1")]
    assert texts(grid)[1] == ["61.0", "50.0", "2.000", "2.440", "1.000", "1.220"]
    half = 4.302653 * 0.04 / math.sqrt(3)  # 4 · .01 million is the seeds' standard deviation
    assert grid.rows[1][1][3].note == f"[{2.44 - half:.3f}, {2.44 + half:.3f}]"


def test_losses_stand_below_or_above_each_baseline(study):
    (grid,) = paper_tables.loss_grids(study)
    rows = {headers[0]: cells for headers, cells in grid.rows}
    log = study.tables["train_log"]
    last = log[(log["model"] == "control") & log["held_out_loss"].notna()].iloc[-1]["held_out_loss"]
    assert grid.columns[:2] == ("loss", "perplexity")
    assert [cell.text for cell in rows["control, seed 0"]] == [
        fixed(last, 3),
        fixed(math.exp(last), 2),
        fixed(last - 6.6349, 3),
        fixed(last - 4.6501, 3),
    ]
    assert [cell.text for cell in rows["bigram"]] == ["4.650", "104.60", "–", "–"]


def test_a_seed_that_a_model_lacks_is_a_dash(made_study, tmp_path):
    df = pd.read_csv(made_study / "topology_stats.csv")
    extra = df[df["model"].str.contains("control")].assign(seed=1)
    write_table(pd.concat([df, extra]), tmp_path, "topology_stats")
    write_effects(tmp_path)
    grid = paper_tables.topology_grids(read_study(tmp_path))[0]
    assert grid.headers == ("layer", "seed")
    for (_, seed), cells in grid.rows:
        assert (cells[1].text == "–") == (seed == "1")
        assert (cells[2].text == "–") == (seed == "1")


def test_one_model_has_no_differences(study):
    df = study.tables["topology_stats"]
    alone = df[df["model"] == "adaptive"]
    values = alone[alone["basis"] == "z"].rename(columns={"mean_cos": "value"}).astype({"seed": "str"})
    grid = paper_tables.by_layer(study, alone, "t", {"mean |cos|": (values, 4)})
    assert grid.columns == ("adaptive",)
    assert not any(cell.is_difference for _, cells in grid.rows for cell in cells)


def test_ablation_in_one_number_is_a_mean_over_seeds_but_every_seeds_own_p(tmp_path):
    rows = [("a", seed, "zero", layer, "gini", 0.1 * seed, 4) for seed in range(3) for layer in (0, 1)]
    rows += [("a", seed, "zero", 0, "load_bearing_p", 0.2 + seed / 100, 4) for seed in range(3)]
    rows += [("a", 0, "mean", 0, "gini", 9.0, 4), ("a", 0, "zero", -1, "rank_correlation", 0.5, 8)]
    write_table(pd.DataFrame(rows, columns=COLUMNS["ablation_summary"]), tmp_path, "ablation_summary")
    write_effects(tmp_path)
    grids = {grid.title: grid for grid in paper_tables.summary_grids(read_study(tmp_path))}
    half = 4.302653 * 0.1 / 3**0.5
    gini, correlation = grids["Gini of the impacts"], grids["rank correlation of estimates with impacts"]
    assert [headers for headers, _ in gini.rows] == [("0",), ("1",)]
    cell = gini.rows[0][1][0]
    assert (cell.text, cell.note) == ("0.100", f"[−{half - 0.1:.3f}, {half + 0.1:.3f}]")
    assert grids["p of the top head (load-bearing)"].rows[0][1][0].text == ".20 / .21 / .22"
    assert (correlation.rows[0][0], correlation.rows[0][1][0].text) == (("all",), "0.500")
