"""What the page calls the figures of an analysis."""

from __future__ import annotations

import functools
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.contract import Table
from reports.panels.others import _names, _panel
from reports.study import Study, problems
from workbench.analyses import figures_of_tables, find_analysis


def draw_one(table: pd.DataFrame) -> go.Figure:
    return go.Figure(layout={"height": 100})


def draw_the_other(table: pd.DataFrame) -> go.Figure:
    return go.Figure()


def test_several_figures_are_named_by_their_functions_and_one_by_nothing(tmp_path) -> None:
    table = Table("gap", key=("model",))
    study = Study(tmp_path, {}, {"gap": pd.DataFrame({"model": ["a"]})}, frozenset(), {"a": "a"}, {})
    drawn: Any = _panel(table, [draw_one, draw_the_other]).draw(study)
    names = [name for name, _ in drawn]
    assert names == ["one", "the other"]
    drawn = _panel(table, [draw_one]).draw(study)
    assert [name for name, _ in drawn] == [""]


def test_names_that_tell_nothing_apart_are_numbers() -> None:
    assert _names([draw_one, draw_one]) == ["1", "2"]
    assert _names([draw_one, functools.partial(draw_one)]) == ["1", "2"]
    assert _names([draw_one, lambda table: draw_one(table)]) == ["one", "lambda"]


def test_no_analysis_numbers_its_figures() -> None:
    several = {table: own for table, own in figures_of_tables().items() if len(own) > 1}
    assert several
    for table, own in several.items():
        assert not any(name.isdigit() for name in _names(own)), table


def test_every_analysis_of_pairs_is_drawn_on_the_page(tmp_path) -> None:
    """Their rows are told apart by words, such as a direction or a position, which no panel may take for numbers."""
    for name in ("tasks", "patch", "paths", "attribute", "scrub", "monitor", "steer", "sae-scores"):
        for table in find_analysis(name).tables:
            words = {own: ["all"] for own in table.leading if table.kind(own) in ("text", None)}
            rows = pd.DataFrame({own: words.get(own, [1]) for own in table.leading})
            study = Study(tmp_path, {}, {table.name: rows}, frozenset(), {"all": "all"}, {})
            vars(study)["contracts"] = {table.name: table}
            assert problems(study, {table.name: table.leading}) == [], table.name
            spoilt = rows.assign(**{table.leading[-1]: ["word"]})
            if table.kind(table.leading[-1]) == "number":
                spoilt = Study(tmp_path, {}, {table.name: spoilt}, frozenset(), {"all": "all"}, {})
                vars(spoilt)["contracts"] = {table.name: table}
                assert "where numbers are wanted" in problems(spoilt, {table.name: table.leading})[0]
