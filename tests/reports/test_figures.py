"""Figures hold the numbers of their tables: every value is looked up again by a plain loop."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from averages import average

from reports import figures
from reports.figures.saes import of_dictionary
from reports.figures.style import DARK, PALETTE, label
from reports.figures.training import thin
from reports.panels import SECTIONS
from reports.panels.attention import say_sinks
from reports.panels.heads import say_matched, say_sides
from reports.panels.interventions import change_grids, summary
from reports.study import read_study
from reports.table_cells import percent_change, significant

NO_CURVES = pd.DataFrame(columns=["model", "set", "layer", "mean"])


@pytest.fixture(scope="module")
def study(made_study):
    return read_study(made_study)


def draw_all(study) -> dict[str, object]:
    """Every figure of the page by its panel's key, those of several variants also by key and name."""
    found = {}
    for panel in (panel for section in SECTIONS for panel in section.panels if not panel.is_table):
        for name, figure in panel.draw(study) if panel.key != "continuations" else ():
            found.setdefault(panel.key, figure)
            found[f"{panel.key} {name}".strip()] = figure
    strip = figures.ablation_strip(study.tables["ablation_results"], "zero", study.models)
    years = figures.concept_points(study.tables["concept_points"], NO_CURVES, "years", study.models)
    return found | {"strip": strip, "points alone": years}


@pytest.fixture(scope="module")
def drawn(study):
    return draw_all(study)


def test_every_colour_has_a_counterpart_on_a_dark_page(drawn):
    for name, figure in drawn.items():
        colours = set(re.findall(r"#[0-9a-fA-F]{6}", figure.to_json()))
        assert colours <= set(DARK), name
    assert len(set(DARK.values())) == len(DARK), "two colours would become one"


def test_figures_hold_no_nan_and_no_default_template(drawn):
    for name, figure in drawn.items():
        text = figure.to_json()
        json.loads(text, parse_constant=lambda word, name=name: pytest.fail(f"{name} holds {word}"))
        assert len(text) < 200_000, name  # the default template alone is 7 kB, a figure of ours says what it needs


def test_heatmaps_hold_the_cosines_and_blank_the_diagonal(study, drawn):
    df = study.tables["head_cosines"]
    cosines = {
        (row.model, row.layer, row.head_i, row.head_j): row.cos for row in df.itertuples() if row.basis == "z"
    }  # fmt: skip
    panels = list(itertools.product(study.models, (0, 1)))
    assert len(drawn["heatmaps"].data) == len(panels)
    for (model, layer), trace in zip(panels, drawn["heatmaps"].data, strict=True):
        for i, j in itertools.product(range(4), range(4)):
            value = trace.z[i][j]
            assert value is None or (np.isnan(value) if i == j else value == cosines[model, layer, i, j])
            assert (i == j) == (value is None or np.isnan(value))
    span = max(abs(cos) for (_, _, i, j), cos in cosines.items() if i != j)
    assert (drawn["heatmaps"].layout.coloraxis.cmin, drawn["heatmaps"].layout.coloraxis.cmax) == (-span, span)


def test_heatmaps_take_one_seed(tmp_path):
    rows = [("a", seed, 0, "z", i, j, 0.1 * seed) for seed in (3, 5) for i in range(2) for j in range(2)]
    df = pd.DataFrame(rows, columns=["model", "seed", "layer", "basis", "head_i", "head_j", "cos"])
    assert figures.cosine_heatmaps(df, "z").data[0].z[0][1] == pytest.approx(0.3)
    assert figures.cosine_heatmaps(df, "z", seed=5).data[0].z[0][1] == pytest.approx(0.5)


@pytest.mark.parametrize("measure", ["l0", "fvu"])
def test_lines_run_through_the_mean_over_heads(study, drawn, measure):
    df = of_dictionary(study.tables["sae_training_results"], "trained")
    name, axis = ("l0", "x") if measure == "l0" else ("sae-health", "x4")
    known = [trace for trace in drawn[name].data if trace.xaxis == axis and trace.name in study.models]
    lines = [trace for trace in known if "lines" in trace.mode]
    assert [trace.name for trace in lines] == study.models
    for trace in lines:
        for layer in (0, 1):
            values = [getattr(row, measure) for row in df.itertuples() if (row.model, row.layer) == (trace.name, layer)]
            assert trace.y[layer] == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_a_mean_takes_single_heads_of_one_hook_together():
    columns = ["model", "seed", "layer", "head", "l0", "hook"]
    rows = [("m", 0, layer, head, 1.0, f"blocks.{layer}.attn.hook_z") for layer in (0, 11) for head in (-1, 0, 1)]
    rows.append(("m", 0, 0, 0, 9.0, "blocks.0.hook_resid_post"))
    kept = figures.of_heads(pd.DataFrame(rows, columns=columns))
    assert kept[["layer", "head"]].to_numpy().tolist() == [[0, 0], [0, 1], [11, 0], [11, 1]]
    only_joint = pd.DataFrame(rows, columns=columns).query("head < 0")
    assert len(figures.of_heads(only_joint)) == 2


def test_uniform_attention_is_a_level():
    df = pd.DataFrame(
        {"model": ["m"], "seed": [0], "layer": [0], "head": [0], "bos_mass": [0.2], "bos_uniform": [0.03]}
    )
    assert [
        shape.y0 for shape in figures.bos_mass_by_layer(df, average(df, "bos_mass", "model", "layer")).layout.shapes
    ] == [0.03]


def test_more_active_features_than_dimensions_lie_above_a_level(study, drawn):
    for name in ("l0", "sae-health"):
        level = [shape for shape in drawn[name].layout.shapes if shape.xref == "x domain"]
        assert [shape.y0 for shape in level] == [16]
        assert "d_head = 16" in [note.text for note in drawn[name].layout.annotations]
    unequal = study.tables["sae_training_results"].assign(d_in=lambda df: 16 + df["layer"])
    means = study.means("sae_training_results", "l0", "model", "layer")
    assert figures.l0_by_layer(unequal, means).layout.shapes == ()


def test_health_shows_the_shares_of_dense_features_and_of_copies(study, drawn):
    titles = [note.text for note in drawn["sae-health"].layout.annotations][:4]
    assert titles == ["L0", "share of dense features", "share of near-copies", "FVU"]
    lines = [trace for trace in drawn["sae-health"].data if trace.name in study.models and "lines" in trace.mode]
    for axis, values in {"x2": [0.1, 0.2], "x3": [0.015, 0.015]}.items():
        assert [list(line.y) for line in lines if line.xaxis == axis] == [pytest.approx(values)] * 2


def test_controls_are_grey_and_named_once(drawn):
    named = [trace.name for trace in drawn["sae-health"].data if trace.showlegend is not False]
    assert sorted(named) == ["adaptive", "control", "random dictionary", "shuffled activations"]
    grey = {trace.line.color for trace in drawn["sae-health"].data if trace.name in ("random dictionary",)}
    assert grey.isdisjoint(PALETTE)


def test_densities_sum_heads_and_keep_the_dead_apart(study, drawn):
    df = study.tables["sae_density"]
    alive = sum(row.n_features for row in df.itertuples() if row.log10_density_bin != "dead")
    dead = sum(row.n_features for row in df.itertuples() if row.log10_density_bin == "dead")
    counts = dict.fromkeys((False, True), 0)
    for trace in (trace for trace in drawn["density"].data if trace.mode == "markers"):
        counts[str(trace.marker.symbol).endswith("-open")] += sum(trace.y)
    assert counts == {False: alive, True: dead}
    assert alive + dead == 2 * 2 * 4 * 24  # models, layers, heads, features


def test_densities_are_steps_and_an_empty_bin_is_empty():
    bins = {"-4.25": 3, "-4": 2, "-2.5": 7, "-2.25": 0, "-2": 1, "dead": 4}
    df = pd.DataFrame({"model": "a", "seed": 0, "layer": 0, "head": 0, "log10_density_bin": list(bins)})
    line, marks, dead = figures.feature_density(df.assign(n_features=list(bins.values()))).data
    assert line.x == (-4.25, -4, -4, -3.75, None, -2.5, -2.25, None, -2, -1.75)
    assert line.y == (3, 3, 2, 2, None, 7, 7, None, 1, 1)
    assert line.hoverinfo == "skip"
    assert (marks.x, marks.y) == ((-4.125, -3.875, -2.375, -1.875), (3, 2, 7, 1))
    assert dead.y == (4,)


@pytest.mark.parametrize("name", ["ablation", "strip"])
def test_ablation_marks_lead_to_their_heads(study, drawn, name):
    df = study.tables["ablation_results"].set_index(["model", "layer", "head"])
    marks = 0
    for trace in drawn[name].data:
        for (model, layer, head), y, above, below in zip(
            trace.customdata, trace.y, trace.error_y.array, trace.error_y.arrayminus, strict=True
        ):
            row = df.loc[(model, layer, head)]
            assert y == row["impact_pct"]
            assert y + above == pytest.approx(row["ci_high"], rel=1e-12)
            assert y - below == pytest.approx(row["ci_low"], rel=1e-12)
            marks += 1
    assert marks == len(df)


def test_strip_places_no_two_marks_on_each_other(drawn):
    places = [x for trace in drawn["strip"].data for x in trace.x]
    assert len(set(places)) == len(places)


def test_losses_stand_beside_both_baselines(drawn):
    levels = sorted(shape.y0 for shape in drawn["loss"].layout.shapes if shape.yref == "y")
    assert levels == [4.6501, 6.6349]
    assert {note.text for note in drawn["loss"].layout.annotations} >= {"unigram 6.63", "bigram 4.65"}


def test_the_difference_of_losses_stands_beside_curves_that_coincide(study, drawn):
    log = study.tables["train_log"].dropna(subset=["held_out_loss"])
    by_step = log.pivot_table(index="step", columns="model", values="held_out_loss")
    (trace,) = [trace for trace in drawn["loss"].data if trace.xaxis == "x2"]
    assert trace.name == "adaptive − control"
    assert list(trace.x) == by_step.index.tolist()
    assert list(trace.y) == pytest.approx((by_step["adaptive"] - by_step["control"]).tolist(), abs=1e-11)


def test_one_legend_entry_a_model(drawn):
    for name in ("redundancy", "density", "ablation", "pressure", "crystallisation", "spectra"):
        named = [trace.name for trace in drawn[name].data if trace.showlegend is not False]
        assert sorted(named) == ["adaptive", "control"], name


def test_the_legend_names_a_model_that_the_first_panel_does_not_show():
    log = pd.DataFrame({"model": ["a", "a", "b", "b"], "seed": 0, "step": [0, 1, 0, 1], "sigma_z": 0.1})
    log = log.assign(**{"vsm.lambda": [np.nan, np.nan, 0.0, 0.1]})
    panels = {name: average(log.dropna(subset=name), name, "model", "step") for name in ("vsm.lambda", "sigma_z")}
    figure = figures.pressure_and_redundancy(log, panels, ["a", "b"])
    assert sorted(trace.name for trace in figure.data if trace.showlegend) == ["a", "b"]
    shown = [trace.showlegend for trace in figure.data if trace.name == "b"]
    assert shown == [True, False]
    dead = pd.DataFrame({"model": ["a", "b"], "seed": 0, "layer": 0, "head": 0, "n_features": 5})
    figure = figures.feature_density(dead.assign(log10_density_bin=["-2", "dead"]), ["a", "b"])
    assert sorted(trace.name for trace in figure.data if trace.showlegend) == ["a", "b"]


def test_correlations_of_concepts_carry_their_intervals():
    df = pd.DataFrame({"model": "a", "seed": 0, "set": "months", "topology": "cyclic", "layer": [-1, 0, 1]})
    df = df.assign(r=[0.1, 0.5, 0.6], ci_low=[-0.1, np.nan, 0.65], ci_high=[0.4, np.nan, 0.7])
    means, none = average(df, "r", "model", "set", "layer"), average(df.assign(r=np.nan), "r", "model", "set", "layer")
    bars = figures.crystallisation(df, means, none).data[0].error_y
    np.testing.assert_allclose(bars.array, [0.3, 0, 0.1])
    np.testing.assert_allclose(bars.arrayminus, [0.2, 0, 0])  # an interval that does not hold the estimate
    assert figures.crystallisation(df.drop(columns="ci_low"), means, none).data[0].error_y.array is None


def redundancy(seeds, models=("a",)):
    """The figure of redundancy of made-up topology_stats."""
    return figures.redundancy_by_layer(average(topology_rows(seeds, models), "mean_cos", "model", "basis", "layer"))


def topology_rows(seeds, models=("a",)) -> pd.DataFrame:
    rows = [(model, seed, layer, "z", 0.1 * seed + layer) for model in models for seed in seeds for layer in range(3)]
    return pd.DataFrame(rows, columns=["model", "seed", "layer", "basis", "mean_cos"])


def test_one_seed_is_a_line_and_two_are_marks_about_their_mean():
    (line,) = redundancy([4]).data
    assert list(line.y) == [0.4, 1.4, 2.4]
    marks, line = redundancy([1, 2]).data
    assert sorted(zip(marks.x, marks.y, strict=True)) == [(0, 0.1), (0, 0.2), (1, 1.1), (1, 1.2), (2, 2.1), (2, 2.2)]
    assert marks.mode == "markers"
    assert list(line.y) == pytest.approx([0.15, 1.15, 2.15])
    assert (marks.showlegend, line.showlegend) == (False, True)


def test_three_seeds_are_a_mean_and_its_band():
    band, line = redundancy([0, 1, 2]).data
    half = 4.302653 * 0.1 / np.sqrt(3)  # t(.975, 2) · s/√n, s of 0, .1, .2
    assert list(line.y) == pytest.approx([0.1, 1.1, 2.1])
    above, below = [0.1 + half, 1.1 + half, 2.1 + half], [2.1 - half, 1.1 - half, 0.1 - half]
    assert list(band.y) == pytest.approx(above + below, rel=1e-6)
    assert band.fill == "toself"
    assert line.text[0] == f" [{0.1 - half:.4g}, {0.1 + half:.4g}]"


def test_bars_are_means_over_sets_of_lag_one(study, drawn):
    df = study.tables["trajectories"].query("measure == 'trajectory_consistency'")
    bars = [trace for trace in drawn["regimes"].data if trace.type == "bar"]
    wanted = [df[df["model"] == model]["value"].mean() for model in study.models]
    assert [bar.y[0] for bar in bars] == pytest.approx(wanted)
    nulls = {trace.name: trace.y[0] for trace in drawn["regimes"].data if str(trace.name).startswith("null")}
    assert nulls == {"null: independent states": -0.5, "null: a random walk": 0.0}


def test_the_nulls_band_is_the_widest_of_unequal_models(study):
    table = study.tables["trajectories"]
    spread = {study.models[0]: 0.1, study.models[1]: 0.3}
    sides = {"low": -1, "high": 1}
    wide = table.assign(**{f"null_random_walk_{end}": table["model"].map(spread) * sign for end, sign in sides.items()})
    by_lag = [average(wide, "value", *by, "lag") for by in (["model"], ["model", "set"])]
    nulls = {name: average(wide, name, "lag") for name in ("null_independent", "null_random_walk")}
    drawn = figures.trajectory_regimes(wide, *by_lag, nulls, study.models)
    bands = [tuple(trace.y) for trace in drawn.data if trace.type == "scatter" and trace.fill == "toself"]
    assert (0.3, 0.3, -0.3, -0.3) in bands


def test_the_ladder_holds_every_rung_and_its_change(study, drawn):
    table = study.tables["ladder"].sort_values("rung")
    bits, delta = drawn["ladder"].data
    assert list(bits.x) == table["bits_per_byte"].tolist()
    assert list(delta.x) == table["delta_bits"].dropna().tolist()
    assert list(delta.y) == [1, 2, 3, 4, 5]  # the base has none


def test_points_stand_where_the_table_says_at_the_best_layer(study, drawn):
    df = study.tables["concept_points"].query("set == 'months'")
    curves = [trace for trace in drawn["points months"].data if trace.xaxis == "x" and trace.mode != "markers"]
    assert {trace.name for trace in curves} == set(study.models)
    for k, model in enumerate(study.models):
        path, marks = [trace for trace in drawn["points months"].data if trace.xaxis == f"x{k + 2}"]
        own = df[(df["model"] == model) & (df["layer"] == 0)]  # of layers -1, 0 and 1, the one marked best
        assert (list(marks.x), list(marks.y)) == (own["pc1"].tolist(), own["pc2"].tolist())
        assert list(path.x) == [*marks.x, marks.x[0]], "months are a ring"
        assert list(marks.customdata) == [label(item) for item in own["item"]]
        assert [text for text in marks.text if text] == [label(own["item"].iloc[k]) for k in (0, -1)]
    titles = [note.text for note in drawn["points months"].layout.annotations]
    assert titles == ["Mantel r by layer", "control, layer 0", "adaptive, layer 0"]
    path, marks = drawn["points alone"].data[:2]
    assert list(path.x) == list(marks.x), "years are a line"
    unmarked = figures.concept_points(df.drop(columns="is_best"), NO_CURVES, "months", study.models)
    assert unmarked.layout.annotations[0].text == "control, layer 1"  # else the last


def test_layers_of_crystallisation_are_cells_and_nothing_is_blank(drawn):
    (trace,) = drawn["crystallisation-layers"].data
    cells = {(name, k): trace.z[i][k] for i, name in enumerate(trace.y) for k in (0, 1)}
    assert all(np.isnan(cells["digits", k] or np.nan) for k in (0, 1))
    assert all(cells[name, k] == 1.0 for name in ("months", "us_states", "years") for k in (0, 1))


def test_bars_of_years_are_of_the_middle_layer(study, drawn):
    df = study.tables["concept_mantel"].query("set == 'years' and layer == 0")  # of two layers, (0 + 1)/2 is 15/28
    bars = [trace for trace in drawn["partial-bars years"].data if trace.type == "bar"]
    for bar, column in zip(bars, ("r", "partial_r"), strict=True):
        assert list(bar.y) == [df[df["model"] == model][column].item() for model in study.models]
        assert not bar.error_y.visible  # one seed
    rows = [("a", seed, "years", layer, 0.1 * seed, 0.0) for seed in range(3) for layer in (-1, 0, 1)]
    three = pd.DataFrame(rows, columns=["model", "seed", "set", "layer", "r", "partial_r"]).query("layer == 0")
    means = (average(three, column, "model", "layer") for column in ("r", "partial_r"))
    bar = figures.raw_beside_partial(*means).data[0]
    assert (bar.y[0], bar.error_y.array[0]) == pytest.approx((0.1, 4.302653 * 0.1 / np.sqrt(3)))


def test_parallel_pairs_stand_on_the_band_of_shuffled_ones(study, drawn):
    df = study.tables["antonym_parallelism"].query("model == 'control'")
    band, shuffled, whole, without = [trace for trace in drawn["parallelism"].data if trace.xaxis == "x"]
    assert list(band.y) == pytest.approx([0.01] * 3 + [-0.07] * 3)  # -.03 ± 2 · .02
    assert list(shuffled.y) == [-0.03] * 3
    for trace, n_removed in ((whole, 0), (without, 1)):
        assert list(trace.y) == df[df["n_removed"] == n_removed]["parallelism"].tolist()


def test_dimensions_go_with_the_number_of_points(study, drawn):
    df = study.tables["intrinsic_dimension_curve"].query("model == 'adaptive' and layer == 1").sort_values("n_points")
    trace = [trace for trace in drawn["dimension-curve"].data if trace.name == "adaptive"][1]
    assert (list(trace.x), list(trace.y)) == (df["n_points"].tolist(), df["dimension"].tolist())


def test_stability_stands_beside_random_directions(study, drawn):
    df = study.tables["sae_stability"]
    traces = [trace for trace in drawn["stability"].data if trace.xaxis == "x"]
    for trace, model in zip(traces, study.models, strict=False):
        means = [df[(df["model"] == model) & (df["layer"] == layer)]["stability"].mean() for layer in (0, 1)]
        assert list(trace.y) == pytest.approx(means)
    assert list(traces[-1].y) == pytest.approx([0.45, 0.45])
    saes = study.tables["sae_training_results"].query("dictionary == 'trained'")
    fvu = saes.pivot_table(index="layer", columns="model", values="fvu")
    wanted = [(fvu["adaptive"] - fvu["control"]).tolist(), [0.0, 0.01], [0.0, -0.02]]
    assert [list(trace.y) for trace in drawn["matched"].data] == [pytest.approx(own, abs=1e-11) for own in wanted]
    assert say_matched(study) == [
        f"FVU of adaptive − control: at equal λ₁ = 0.03 {say_sides(pd.Series(wanted[0]))}; "
        "at equal L0 higher in 1 of 2 layers (0 to 0.010)."
    ]


def test_the_strongest_pairs_of_heads_are_shown_with_their_intervals(study, drawn):
    df = study.tables["ablation_pairs"]
    for trace, model in zip(drawn["pairs"].data, study.models, strict=True):
        own = sorted(df[df["model"] == model]["interaction_pct"], key=abs, reverse=True)
        assert list(trace.x) == own[:12]
        assert list(trace.error_x.array) == pytest.approx([0.1] * 12)


def test_changes_are_differences_of_means_and_filled_where_seeds_agree(study, drawn):
    df = study.tables["topology_stats"].query("basis == 'residual'")
    means = {model: df[df["model"] == model]["mean_cos"].mean() for model in study.models}
    (effect,) = study.effects("topology_stats", "mean |cos|, residual").to_dict("records")
    assert (effect["model_a"], effect["model_b"]) == ("control", "adaptive")
    assert (effect["effect"], effect["n"]) == (pytest.approx(means["adaptive"] - means["control"], abs=1e-12), 1)
    assert summary(study) == []  # of few comparisons a table
    (grid,) = change_grids(study)
    rows = {name: [cell.text for cell in cells] for (name,), cells in grid.rows}
    assert {"held-out loss", "L0 of the SAEs", "nuclear rank of W_O, layer 0"} <= set(rows)
    sign = "+" * (effect["effect"] > 0)
    assert rows["mean |cos| between heads, residual contribution"] == [
        significant(means["control"]), f"{sign}{significant(effect['effect'])}",
        percent_change(means["adaptive"], means["control"]),
    ]  # fmt: skip
    rows = [("a → b", "x", 1.0, 0.5, 1.5, 3), ("a → c", "x", -1.0, -2.5, 0.5, 3)]
    columns = ["comparison", "measure", "effect", "ci_low", "ci_high", "n"]
    (trace,) = figures.changes(pd.DataFrame(rows, columns=columns)).data
    assert list(trace.marker.symbol) == ["circle", "circle-open"]
    assert list(trace.error_x.array) == [0.5, 1.5]


def test_steps_count_from_the_start_of_the_last_phase():
    rows = [("a", 0, "nca", 0, 9.0), ("a", 0, "nca", 10, 8.0)]
    rows += [("a", 0, "language", 20, 7.0), ("a", 0, "language", 30, 6.0)]
    rows += [("b", 0, "language", 0, 5.0), ("b", 0, "language", 10, 4.0)]
    log = pd.DataFrame(rows, columns=["model", "seed", "phase", "step", "rank"]).assign(layer=0)
    means = average(log, "rank", "model", "phase", "layer", "step")
    first, second = figures.monitor_over_steps(log, means, "rank").data
    assert (list(first.x), list(first.y)) == ([-20, -10, 0, 10], [9.0, 8.0, 7.0, 6.0])
    assert (list(second.x), list(second.y)) == ([0, 10], [5.0, 4.0])


def test_many_models_keep_their_intervals_in_the_text_or_have_a_panel_each():
    lines = redundancy([0, 1, 2], "abcdefghi").data
    assert [trace.fill for trace in lines] == [None] * 9
    assert all(text for trace in lines for text in trace.text)
    marks = {(trace.line.color, trace.marker.symbol) for trace in lines}
    assert len({colour for colour, _ in marks}) == len({symbol for _, symbol in marks}) == 9
    means = average(topology_rows([0, 1, 2], "abcdefghi"), "mean_cos", "model", "layer")
    panels = figures.measure_by_layer(means, "cos").data
    assert sum(trace.fill == "toself" for trace in panels) == 9
    assert len({trace.xaxis for trace in panels}) == 9


def test_marks_agree_between_figures_when_a_model_is_missing():
    df = pd.DataFrame({"model": ["b"], "seed": [0], "layer": [0], "basis": ["z"], "mean_cos": [0.1]})
    means = average(df, "mean_cos", "model", "basis", "layer")
    assert figures.redundancy_by_layer(means, ["a", "b"]).data[0].line.color == PALETTE[1]


@pytest.mark.parametrize("n_layers", [1, 6, 13])
def test_many_layers_wrap(n_layers):
    rows = [("m", 0, layer, "z", i, j, 0.1) for layer in range(n_layers) for i in range(2) for j in range(2)]
    df = pd.DataFrame(rows, columns=["model", "seed", "layer", "basis", "head_i", "head_j", "cos"])
    fig = figures.cosine_heatmaps(df, "z")
    assert len(fig.data) == n_layers
    titles = [note.text for note in fig.layout.annotations if note.text]
    assert titles == [f"layer {layer}" for layer in range(n_layers)]


def test_an_empty_sae_is_drawn():
    rows = [("m", 0, 0, head, 0.0, float("nan"), "trained") for head in range(2)]
    df = pd.DataFrame(rows, columns=["model", "seed", "layer", "head", "l0", "fvu", "dictionary"])
    l0, fvu = (average(df, column, "model", "dictionary", "layer") for column in ("l0", "fvu"))
    assert list(figures.l0_by_layer(df, l0).data[-1].y) == [0.0]
    figures.sae_health(df, {"l0": l0, "fvu": fvu}).to_json()
    dead = pd.DataFrame({"model": ["m"], "seed": [0], "layer": [0], "head": [0]})
    dead = dead.assign(log10_density_bin=["dead"], n_features=[32])
    assert [list(trace.y) for trace in figures.feature_density(dead).data] == [[], [32]]


def test_long_logs_are_thinned_evenly():
    rows = pd.DataFrame({"step": np.arange(45_776)[::-1]})
    steps = thin(rows)["step"].to_numpy()
    assert len(steps) <= 1000
    assert steps[0] == 0
    assert set(np.diff(steps)) == {46}


def test_monitors_are_found_by_their_columns(study):
    names = [name for name in study.measures("train_log") if "." in name]
    assert sorted(names) == ["nuclear_rank.W_O", "stable_rank.W_O", "vsm.lambda", "vsm.loss", "vsm.sigma"]


def test_names_cannot_become_markup():
    name = "<b onclick='x'>&amp;"
    assert label(name) == "&lt;b onclick='x'&gt;&amp;amp;"
    df = pd.DataFrame({"model": [name], "seed": [0], "layer": [0], "head": [0], "kind": ["zero"], "impact_pct": [1.0]})
    fig = figures.ablation_profile(df, "zero")
    assert fig.data[0].name == label(name)
    assert "<b onclick" not in fig.data[0].hovertemplate


def test_heads_stand_in_the_order_of_their_impact_within_their_model():
    columns = ["model", "seed", "layer", "head", "kind", "impact_pct", "ci_low", "ci_high"]
    rows = [("a", 0, 0, head, "zero", impact, impact - 1, impact + 1) for head, impact in enumerate([1.0, 9.0, 4.0])]
    rows += [("b", 0, 0, head, "zero", impact, np.nan, np.nan) for head, impact in enumerate([3.0, 2.0, np.nan])]
    first, second = figures.ablation_profile(pd.DataFrame(rows, columns=columns), "zero").data
    assert [round(x + 0.15) for x in first.x] == [3, 1, 2]
    assert [round(x - 0.15) for x in second.x] == [1, 2, 3]
    assert first.text[1] == "+9.000 % [+8.000, +10.000]"
    assert second.text[0] == "+3.000 %"


def test_a_sink_is_said_to_be_there_or_not(study):
    def said(masses):
        df = pd.DataFrame({"model": ["a", "a", "b"], "layer": 0, "head": [0, 1, 0], "bos_mass": masses})
        return say_sinks(replace(study, tables={"attention_stats": df.assign(bos_uniform=0.03)}))

    assert said([0.1, 0.2, 0.05]) == [
        "No attention sink: no head puts more than 0.3 of its attention on position 0 (the largest is 0.20, a L0 H1; "
        "uniform attention would give 0.030)."
    ]
    assert said([0.1, 0.5, np.nan])[0].startswith("Attention sinks: 1 of 2 heads of a put more than 0.3")
