"""Tables over training on the page: what is drawn is what the tables say, and nothing takes steps for other rows."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest

from reports.contract import Column, Table, declare, over_training
from reports.figures.checkpoints import over_checkpoints
from reports.page import write_report
from reports.panels.checkpoints import tables_over_training, training_section
from reports.study import read_study
from reports.tables import COLUMNS, read_table, write_table

STEPS, LAYERS, BASES = (50, 100, 400), (0, 1), ("z", "pattern")


def topology(steps: tuple[int, ...] = STEPS, models: tuple[str, ...] = ("a",)) -> pd.DataFrame:
    """Rows of topology_stats over training: ranks are the same in every basis."""
    rows = []
    for model, step, layer, basis in itertools.product(models, steps, LAYERS, BASES):
        own = {"model": model, "seed": 0, "step": step, "layer": layer, "basis": basis}
        numbers = dict.fromkeys(COLUMNS["topology_stats"][4:], 0.001 * step + layer)
        numbers |= {"mean_cos": 0.01 * step + layer + (basis == "z"), "n_tokens": 64}
        rows.append(own | numbers)
    return pd.DataFrame(rows)


def heads(n: int) -> pd.DataFrame:
    """Rows of head_cosines, whose pairs a line cannot be of."""
    pairs = itertools.product(STEPS, LAYERS, BASES, range(n), range(n))
    return pd.DataFrame(
        [("a", 0, step, layer, basis, i, j, 0.1) for step, layer, basis, i, j in pairs],
        columns=["model", "seed", "step", "layer", "basis", "head_i", "head_j", "cos"],
    )


def contract(name: str) -> Table:
    from workbench.analyses import find_analysis

    return over_training(next(own for own in find_analysis("topology").tables if own.name == name))


def panels_of(figure) -> dict[str, list]:
    """Title of each panel -> its traces."""
    titles = [note.text for note in figure.layout.annotations]
    axes = ["x" if i == 0 else f"x{i + 1}" for i in range(len(titles))]
    return {title: [own for own in figure.data if own.xaxis == axis] for title, axis in zip(titles, axes, strict=True)}


def test_a_panel_per_measure_and_basis_and_a_line_per_layer() -> None:
    ((name, figure),) = over_checkpoints(topology(), contract("topology_stats"))
    panels = panels_of(figure)
    assert name == ""
    assert {"mean cos, z", "mean cos, pattern", "stable rank", "nuclear rank"} <= panels.keys()
    assert not {"n tokens", "stable rank, z"} & panels.keys()
    lines = panels["mean cos, z"]
    assert [line.name for line in lines] == ["layer 0", "layer 1"]
    assert [list(line.x) for line in lines] == [[*STEPS]] * 2
    assert [list(line.y) for line in lines] == [[0.01 * step + layer + 1 for step in STEPS] for layer in LAYERS]
    assert len({line.line.color for line in lines}) == 2


def test_steps_that_double_are_spaced_by_checkpoints_and_say_so() -> None:
    steps = (0, 1, 2, 4, 1000, 143_000)
    ((_, figure),) = over_checkpoints(topology(steps), contract("topology_stats"))
    assert list(figure.data[0].x) == [0, 1, 2, 3, 4, 5]
    assert list(figure.layout.xaxis.ticktext) == [str(step) for step in steps]
    titles = {figure.layout[axis].title.text for axis in figure.layout if axis.startswith("xaxis")}
    assert titles == {None, "step (checkpoints evenly spaced)"}
    assert figure.data[0].text[-1] == "step 143000"


def test_every_model_has_figures_of_its_own() -> None:
    found = over_checkpoints(topology(models=("a", "b")), contract("topology_stats"))
    assert [name for name, _ in found] == ["a, seed 0", "b, seed 0"]


def test_singular_values_are_drawn_by_three_of_them() -> None:
    table = Table("singular_values", ("model", "seed", "step", "layer"), [Column("singular_values", kind="text")])
    rows = [("a", 0, step, 0, json.dumps([9.0 * step, 5.0, 1.0 + step])) for step in STEPS]
    df = pd.DataFrame(rows, columns=["model", "seed", "step", "layer", "singular_values"])
    ((_, figure),) = over_checkpoints(df, table)
    panels = panels_of(figure)
    assert panels.keys() == {"largest σ", "smallest σ"}, "the middle one does not change"
    assert list(panels["largest σ"][0].y) == [9.0 * step for step in STEPS]


def test_rows_that_cannot_be_told_apart_are_not_drawn() -> None:
    twice = pd.concat([topology(), topology()])
    assert over_checkpoints(twice, contract("topology_stats")) == []
    assert over_checkpoints(heads(9), contract("head_cosines")) == []


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What topology over training leaves."""
    write_table(topology(), tmp_path, "topology_stats", is_over_training=True)
    write_table(heads(9), tmp_path, "head_cosines", is_over_training=True)
    return tmp_path


def test_the_step_stands_behind_the_seed_and_is_an_integer(directory: Path) -> None:
    header = (directory / "topology_stats.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.startswith("model,seed,step,layer,basis,max_cos")
    assert read_table(directory, "topology_stats")["step"].dtype == "int64"
    with pytest.raises(ValueError, match="the table lacks step"):
        write_table(topology().drop(columns="step"), directory, "topology_stats", is_over_training=True)


def test_no_other_panel_takes_the_steps_for_rows_of_one_model(directory: Path) -> None:
    study = read_study(directory)
    names = tables_over_training(study)
    assert sorted(names) == ["head_cosines", "topology_stats"]
    section = training_section(study, names)
    assert [panel.key for panel in section.panels] == ["topology_stats-over-training"]
    assert section.lead.endswith("Not drawn, for their many rows per step: head_cosines.csv.")
    page = write_report(directory).read_text(encoding="utf-8")
    assert 'id="topology_stats-over-training"' in page
    assert 'id="heatmaps"' not in page
    assert 'id="csv-head_cosines"' in page
    assert "Not measured in this study" not in page


def test_a_table_of_an_absent_plugin_is_drawn_from_what_it_says_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reports import contract as module

    own = Table("own_gap", key=("model", "seed", "layer"), columns=[Column("gap", "σ₁ / σ₂", unit="1")])
    with monkeypatch.context() as patched:
        patched.setattr(module, "_DECLARED", dict(module._DECLARED))
        declare([own])
        rows = [("a", 0, step, layer, step / 100 + layer) for step in STEPS for layer in LAYERS]
        df = pd.DataFrame(rows, columns=["model", "seed", "step", "layer", "gap"])
        write_table(df, tmp_path, "own_gap", is_over_training=True)
    section = training_section(study := read_study(tmp_path), tables_over_training(study))
    (panel,) = section.panels
    assert panel.detail == "gap: σ₁ / σ₂."
    assert len(panel.draw(study)) == 1
