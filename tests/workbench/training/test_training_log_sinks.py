"""Rows reach TensorBoard and wandb (stand-ins here: neither is needed to test what is sent), or the error says why."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from workbench.training.log_sinks import mirror

ROW = {"model": "a", "seed": 3, "phase": "p", "step": 7, "loss": 0.5, "held_out_loss": float("nan"), "sigma_z.1": 0.25}


class Writer:
    """As torch's SummaryWriter, noting what is asked of it."""

    made: list[Writer] = []

    def __init__(self, directory: str, purge_step: int) -> None:
        self.directory, self.purge_step, self.rows, self.is_closed = directory, purge_step, [], False
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.rows.append((name, value, step))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.is_closed = True


def test_tensorboard_gets_every_number_at_its_step(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    monkeypatch.setattr(module, "SummaryWriter", Writer, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with mirror("tensorboard", Path("runs/x.partial"), {}, step=5) as write:
        assert write is not None
        write(ROW)
    writer = Writer.made[-1]
    assert (Path(writer.directory), writer.purge_step) == (Path("runs/x.partial/tensorboard"), 6)
    assert writer.rows == [("loss", 0.5, 7), ("sigma_z/1", 0.25, 7)]
    assert writer.is_closed


def test_wandb_gets_the_row_and_a_resumed_run_its_id(monkeypatch, tmp_path):
    seen = []

    def init(**settings):
        seen.append(settings)
        return types.SimpleNamespace(
            log=lambda row, step: seen.append((row, step)), finish=lambda: seen.append("finished")
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        with mirror("wandb", tmp_path / "x.partial", {"seed": 0}, step=0) as write:
            assert write is not None
            write(ROW)
    first, row, end, second = seen[:4]
    assert (first["name"], first["resume"], first["config"]) == ("x", "allow", {"seed": 0})
    assert first["id"] == second["id"]
    assert row == ({"loss": 0.5, "sigma_z.1": 0.25}, 7)
    assert end == "finished"


@pytest.mark.parametrize(("kind", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named(kind, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(ValueError, match=rf"{kind} is not installed; expected pip install .*\[{kind}\]"),
        mirror(kind, tmp_path, {}, step=0),
    ):
        pass


def test_none_and_nonsense():
    with mirror(None, Path(), {}, step=0) as write:
        assert write is None
    with (
        pytest.raises(ValueError, match="monitor: got 'paper'; expected tensorboard or wandb"),
        mirror("paper", Path(), {}, 0),
    ):
        pass
