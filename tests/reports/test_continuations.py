"""Continuations and text quality as the page tells them."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from reports.continuations import describe_continuations
from reports.page import write_report
from reports.panels.text import quality_grids
from reports.study import read_study
from reports.tables import COLUMNS, write_table
from workbench.study.effects import write_effects

LINE = {"model": "a", "prompt": "p", "sample": 0, "seed": 0, "text": "t"}


def test_a_file_is_described(made_study):
    found, faults = describe_continuations(made_study / "continuations.jsonl")
    assert (found.n_prompts, found.n_samples, found.n_seeds) == (3, 2, 1)
    assert faults == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "continuations.jsonl has no lines."),
        (b"\xff\n", "continuations.jsonl: not UTF-8"),
        (b"{\n", "continuations.jsonl, line 1: not JSON"),
        (b"[]\n", "line 1: got a list; expected an object"),
        (json.dumps(LINE).encode() + b'\n{"model": "a"}\n', "line 2: lacks prompt, sample, seed, text; expected"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_on_the_page(tmp_path, content, fault):
    (tmp_path / "continuations.jsonl").write_bytes(content)
    found, faults = describe_continuations(tmp_path / "continuations.jsonl")
    assert found is None
    assert fault in faults[0]
    rows = [("a", 0, "noun_ratio", 0.5, 0.4, 0.6, 32)]
    write_table(pd.DataFrame(rows, columns=COLUMNS["text_quality"]), tmp_path, "text_quality")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    figure = page[page.index('<figure id="continuations"') :]
    assert fault.split(":")[-1].strip() in figure[: figure.index("</figure>")]


def test_measures_are_of_seeds_or_have_their_own_interval(tmp_path):
    rows = [("a", 0, "noun_ratio", 0.5, 0.4, 0.6, 32), ("a", 0, "loop_rate", 0.0, float("nan"), float("nan"), 1)]
    rows += [("b", seed, "noun_ratio", 0.1 * seed, 0.0, 1.0, 32) for seed in range(3)]
    write_table(pd.DataFrame(rows, columns=COLUMNS["text_quality"]), tmp_path, "text_quality")
    write_effects(tmp_path)
    (grid,) = quality_grids(read_study(tmp_path))
    cells = {headers[0]: [(cell.text, cell.note) for cell in row] for headers, row in grid.rows}
    assert grid.columns == ("a", "b")
    half = 4.302653 * 0.1 / 3**0.5
    assert cells["noun ratio"][0] == ("0.500", "[0.400, 0.600]")
    assert cells["noun ratio"][1] == ("0.100", f"[−{half - 0.1:.3f}, {half + 0.1:.3f}]")
    assert cells["loop rate"] == [("0.000", ""), ("–", "")]
