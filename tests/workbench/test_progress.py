"""Progress bars where stderr is no terminal, as in a log."""

from __future__ import annotations

import pytest

from workbench.progress import progress_bar
from workbench.training import load_recipe
from workbench.training.progress import progress_meter
from workbench.training.state import Position


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


def test_the_bar_of_training_shows_the_newest_held_out_perplexity(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with progress_meter(load_recipe("janus-v3-control-nano"), enabled=True) as meter:
        meter.advance(Position(step=7), 1234.0)
        meter.show(2.5, 18.6342)
        meter.show(2.25)  # logged between two evaluations
    shown = capsys.readouterr().err
    assert "loss 2.250  held-out PPL 18.63  1,234 tokens/s" in shown
