"""Figures of the lineage and of whole spectra: each mark and line against plain arithmetic on its table."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from averages import average

from reports import figures
from reports.panels import attention
from reports.study import read_study
from reports.tables import COLUMNS, write_table
from workbench.study.effects import write_effects
from workbench.study.seed_values import MAX_INDICES, decays


def spectra_rows(n_layers: int = 4) -> pd.DataFrame:
    """Two models of W_Q and W_O; σ_i = 2^(−i·rate), whose log₁₀ ratios are lines."""
    rows = [
        (model, seed, layer, matrix, json.dumps([8 * 2.0 ** (-i * rate) for i in range(k)]))
        for model, rate in (("a", 1.0), ("b", 0.5))
        for seed in range(3)
        for layer in range(n_layers)
        for matrix, k in (("W_Q", 5), ("W_O", 200))
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS["singular_values"]))


def test_lines_are_logarithms_of_the_ratios_to_the_largest():
    df = decays(spectra_rows().query("layer == 0"))
    figure = figures.spectra_over_index(average(df, "decay", "model", "matrix", "i"), ["a", "b"])
    lines = [trace for trace in figure.data if trace.mode == "lines" and trace.customdata is not None]
    assert [(trace.name, trace.xaxis) for trace in lines] == [("a", "x"), ("b", "x"), ("a", "x2"), ("b", "x2")]
    for trace, rate in zip(lines, (1.0, 0.5, 1.0, 0.5), strict=True):
        np.testing.assert_allclose(trace.y, [-(i - 1) * rate * np.log10(2) for i in trace.x], atol=1e-12)
    assert list(lines[0].x) == [1, 2, 3, 4, 5]  # all of few
    assert len(lines[2].x) <= MAX_INDICES  # of many some, both ends among them
    assert (lines[2].x[0], lines[2].x[-1]) == (1, 200)


def test_zeros_have_no_logarithm_and_a_zero_matrix_no_line():
    rows = [("a", 0, 0, "W_Q", "[4.0,2.0,0.0]"), ("a", 0, 0, "W_K", "[0.0,0.0]")]
    df = pd.DataFrame(rows, columns=list(COLUMNS["singular_values"]))
    assert average(decays(df), "decay", "matrix", "i")["mean"].tolist() == [0, pytest.approx(np.log10(0.5))]


def test_variants_are_the_first_the_middle_and_the_last_layer(tmp_path):
    write_table(spectra_rows(), tmp_path, "singular_values")
    write_effects(tmp_path)
    assert [name for name, _ in attention.spectra(read_study(tmp_path))] == [
        "first layer: 0", "middle layer: 1", "last layer: 3"
    ]  # fmt: skip
    write_table(spectra_rows(n_layers=1), tmp_path, "singular_values")
    write_effects(tmp_path)
    assert [name for name, _ in attention.spectra(read_study(tmp_path))] == ["first layer: 0"]


@pytest.mark.parametrize("cell", ["", "[1.0,nan]", "[1.0,-2.0]", "3.0", "[]", '["x"]', "[1.0"])
def test_a_cell_that_is_no_list_of_numbers_is_said(tmp_path, cell):
    df = spectra_rows()
    df.loc[3, "singular_values"] = cell
    write_table(df, tmp_path, "singular_values")
    with pytest.raises(ValueError, match=r"singular_values.csv: got .*; expected a JSON list of numbers"):
        write_effects(tmp_path)


def test_our_marks_are_means_over_seeds_and_diamonds_are_published():
    values = [1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 9.0, 9.0, 9.0]
    df = pd.DataFrame({"model": list("xxxyyyzzz"), "seed": [0, 1, 2] * 3, "value": values})
    figure = figures.beside_published(
        {"mass": average(df, "value", "model")}, {"mass": {"y": 0.5, "gone": 7.0}}, ["y", "x"], ["x", "y", "z"]
    )
    marks = {trace.legendgroup: trace for trace in figure.data if trace.mode == "markers"}
    assert set(marks) == {"x", "y", "published"}  # z is not shown, a model of none neither
    assert (list(marks["y"].x), list(marks["y"].y)) == ([0], [4.0])
    assert (list(marks["x"].x), list(marks["x"].y)) == ([1], [2.0])
    half = 4.302653 * 1.0 / np.sqrt(3)
    assert marks["x"].error_y.array[0] == pytest.approx(half, rel=1e-6)
    assert (list(marks["published"].x), list(marks["published"].y)) == ([0], [0.5])


def test_a_rank_over_the_phase_is_drawn_from_its_start():
    rows = [("a", seed, x, 10.0 + x + seed) for seed in range(3) for x in (-20, 0, 20)]
    means = average(pd.DataFrame(rows, columns=["model", "seed", "x", "value"]), "value", "model", "x")
    figure = figures.rank_over_phase(means, "rank", ["a"])
    (line,) = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert (list(line.x), list(line.y)) == ([-20, 0, 20], [-9, 11, 31])
    assert [shape.x0 for shape in figure.layout.shapes] == [0]
