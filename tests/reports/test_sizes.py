"""The figure and the table of a study of several sizes hold what its tables hold."""

from __future__ import annotations

from typing import Any

import pytest
from fake_study import write_sizes

from reports.ledger import GROUPS
from reports.panels.sizes import effect_text, over_size, size_grids
from reports.study import read_study, short_names


@pytest.fixture
def study(tmp_path):
    write_sizes(tmp_path)
    return read_study(tmp_path)


def test_the_figure_holds_effects_line_and_published_figure(study) -> None:
    ((_, drawn),) = over_size(study)
    figure: Any = drawn
    by_name: dict[str, list[Any]] = {}
    for trace in figure.data:
        by_name.setdefault(trace.name, []).append(trace)
    assert [len(by_name[name]) for name in ("measured", "straight line", "predicted", "published")] == [3] * 4
    first = by_name["measured"][0]
    assert list(first.x) == [200_000, 800_000, 3_200_000]
    assert list(first.y) == pytest.approx([-0.1, -0.12, -0.14])
    assert list(first.error_y.array) == pytest.approx([0.05] * 3)
    assert list(by_name["straight line"][0].y) == pytest.approx([-0.1, -0.12, -0.14, -0.3])
    assert list(by_name["predicted"][0].error_y.array) == pytest.approx([12.3])
    assert list(by_name["published"][0].y) == [-0.4]
    assert list(by_name["published"][1].y) == [], "of a group without a published size"
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.yaxis.range[1] < 1, "a wide interval does not set the axis"


def test_the_tables_hold_slopes_effects_and_verdicts(study) -> None:
    slopes, effects = size_grids(study)
    headers, cells = slopes.rows[0]
    assert headers == (GROUPS["janus-ii"], "The cosine falls")
    assert [(cell.text, cell.note) for cell in cells] == [
        ("−0.050", "[−0.100, 0.000]"), ("3", ""), ("37,755,392", ""), ("−30.0 %", "[−60.0 %, 13.0 ×]"), ("−40.0 %", ""),
        ("flat", ""),
    ]  # fmt: skip
    assert [cell.text for cell in slopes.rows[1][1]] == ["−0.050", "3", "–", "–", "0.600 ×", "–"]
    assert slopes.rows[2][1][0].note == "", "one seed has no interval"
    assert effects.columns == ("small", "mid", "large")
    _, cells = effects.rows[0]
    assert (cells[0].text, cells[0].note) == ("−10.0 %", "[−15.0, −5.0] %; not seen")


def test_effects_are_said_in_their_unit() -> None:
    assert [effect_text(-0.331, unit) for unit in ("percent", "factor", "points", "plain")] == [
        "−33.1 %", "0.669 ×", "−33.1 points", "−0.331",
    ]  # fmt: skip
    assert effect_text(float("nan"), "percent") == "–"


def test_short_names_keep_the_size() -> None:
    names = short_names([f"janus-v3-{role}-nano@{size}" for size in ("quarter", "large") for role in ("control", "x")])
    assert list(names.values()) == ["control@quarter", "x@quarter", "control@large", "x@large"]
    assert short_names(["a@small", "a@large"]) == {"a@small": "a@small", "a@large": "a@large"}
