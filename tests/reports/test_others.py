"""What the page calls the figures of an analysis."""

from __future__ import annotations

import functools
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.contract import Table
from reports.panels.others import _names, _panel
from reports.study import Study
from workbench.analyses import all_analyses


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
    several = [own for own in all_analyses() if len(own.figures) > 1]
    assert several
    for own in several:
        assert not any(name.isdigit() for name in _names(own.figures)), own.name
