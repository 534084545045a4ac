"""Progress bars where stderr is no terminal, as in a log."""

from __future__ import annotations

import pytest

from workbench.bars import progress_bar


def fail(completed: float) -> None:
    with progress_bar() as bar:
        bar.update(bar.add_task("work", total=1.0), completed=completed)
        raise KeyError


def test_what_fails_before_it_begins_leaves_no_line(capsys) -> None:
    with pytest.raises(KeyError):
        fail(0)
    assert capsys.readouterr().err == ""


def test_what_fails_on_its_way_says_how_far_it_came(capsys) -> None:
    with pytest.raises(KeyError):
        fail(0.5)
    assert "work" in capsys.readouterr().err
