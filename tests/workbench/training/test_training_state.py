"""Checkpoints: whole or not there, checked when read, old ones removed; and the log that goes with them."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from reports.tables import COLUMNS, read_table
from workbench.models import HookedLM, ModelConfig
from workbench.models.weights import weights_sha256
from workbench.training import state
from workbench.training.log import TrainLog
from workbench.training.state import Position, last_good, load_checkpoint, save_checkpoint

CFG = ModelConfig(n_layers=1, d_model=8, n_ctx=8, d_vocab=16, n_heads=2, d_head=4, d_mlp=12)
INFO = {"recipe": "tiny", "seed": 0, "log": {"n_bytes": 7}}


def model(seed: int = 0) -> HookedLM:
    return HookedLM(CFG, seed=seed)


def save(directory: Path, step: int, keep: int | None = None) -> Path:
    tensors = {"optimizer/adamw/ln_final.w/exp_avg": torch.full((8,), float(step))} | state.random_state()
    return save_checkpoint(directory, Position(step=step, phase_step=step), model(step), tensors, INFO, keep)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_is_saved_comes_back(tmp_path):
    assert load_checkpoint(tmp_path) is None
    save(tmp_path, 3)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.position == Position(step=3, phase_step=3)
    assert found.info == INFO
    assert weights_sha256(found.model) == weights_sha256(model(3))
    assert torch.equal(found.tensors["optimizer/adamw/ln_final.w/exp_avg"], torch.full((8,), 3.0))


def test_random_state_round_trip(tmp_path):
    torch.manual_seed(5)
    save(tmp_path, 1)
    expected = torch.rand(4)
    found = load_checkpoint(tmp_path)
    assert found is not None
    state.restore_random_state(found.tensors)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("keep", "left"), [(None, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_oldest_are_removed(tmp_path, keep, left):
    for step in range(1, 5):
        save(tmp_path, step, keep)
    assert names(tmp_path) == ["latest", *(f"step_{n:08d}" for n in left)]
    assert (tmp_path / "latest").read_text() == "step_00000004\n"


def test_leftovers_of_a_kill_are_cleared_and_overwritten(tmp_path):
    save(tmp_path, 1)
    half = tmp_path / ".step_00000002.0123abcd.tmp"
    shutil.copytree(tmp_path / "step_00000001", half)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_00000002")  # renamed, but `latest` not yet written
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.position.step == 1
    assert not half.exists()
    save(tmp_path, 2)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert weights_sha256(found.model) == weights_sha256(model(2))


@pytest.mark.parametrize("failing", ["save", "save_file", "atomic_write"])
def test_a_write_that_fails_leaves_the_previous_state(tmp_path, failing, monkeypatch):
    save(tmp_path, 1)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, failing, full)
    with pytest.raises(ValueError, match=r"could not be written .*No space.*last good checkpoint is .*step_00000001"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.position.step == 1
    save(tmp_path, 2)
    assert last_good(tmp_path).endswith("step_00000002")


def test_a_disk_without_room_is_noticed_before_writing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(state.shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match="17 MB needed, 0 MB free.*no checkpoint was saved before"):
        save(tmp_path, 1)
    assert names(tmp_path) == []


FILES = ["model.safetensors", "hooked_config.json", "train_state.safetensors", "train_state.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "empty"])
def test_every_altered_file_is_named(tmp_path, name, harm):
    path = save(tmp_path, 1) / name
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 0x80
        path.write_bytes(data)
    elif harm == "remove":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if harm == "truncate" else b"")
    with pytest.raises(ValueError, match=name):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/1"}, "of another program"),
        ({"position": {"step": 1}}, "no whole position"),
        ({"position": None}, "no whole position"),
        ({"position": {"phase": 0, "phase_step": -1, "step": 1, "n_tokens": 0}}, "no whole position"),
        ({"position": {"phase": 0, "phase_step": True, "step": 1, "n_tokens": 0}}, "no whole position"),
        ({"sha256": {}}, "lacks the sha256"),
        ({"sha256": {"../../etc/passwd": "0"}}, "lacks the sha256"),
    ],
)
def test_a_foreign_state_file_is_refused(tmp_path, change, message):
    path = save(tmp_path, 1) / "train_state.json"
    content = json.loads(path.read_text()) | change
    del content["own_sha256"]
    path.write_text(json.dumps(content | {"own_sha256": state._sha256_of(content)}))
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(tmp_path)
    assert "train_state.json" in str(caught.value)


def test_one_changed_number_is_noticed(tmp_path):
    path = save(tmp_path, 1) / "train_state.json"
    path.write_text(path.read_text().replace('"phase_step": 1', '"phase_step": 2'))
    with pytest.raises(ValueError, match="train_state.json is altered"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("pointer", ["", "step_1", "../elsewhere", "/etc", "step_00000009", "\x00"])
def test_a_pointer_to_nothing_is_refused(tmp_path, pointer):
    save(tmp_path, 1)
    (tmp_path / "latest").write_text(pointer)
    with pytest.raises(ValueError, match="latest|step_00000009"):
        load_checkpoint(tmp_path)


# --- the log


def test_the_log_is_cut_back_and_goes_on(tmp_path):
    with TrainLog(tmp_path, ["sigma_z.0"]) as log:
        log.write({"model": "a", "seed": 0, "phase": "p", "step": 1, "loss": 0.1 + 0.2, "sigma_z.0": float("nan")})
        at = log.sync()
        log.write({"step": 2, "loss": 2.0})
    with (tmp_path / "train_log.csv").open("ab") as file:
        file.write(b"a,0,p,3,torn")
    with TrainLog(tmp_path, ["sigma_z.0"], at) as log:
        log.write({"model": "a", "seed": 0, "phase": "p", "step": 2, "loss": 3.0, "sigma_z.0": 0.5})
    table = read_table(tmp_path, "train_log")
    assert tuple(table.columns) == (*COLUMNS["train_log"], "sigma_z.0")
    assert table["step"].tolist() == [1, 2]
    assert table["loss"].tolist() == [0.1 + 0.2, 3.0]
    assert table["sigma_z.0"].isna().tolist() == [True, False]


def test_a_log_that_does_not_fit_is_refused(tmp_path):
    with TrainLog(tmp_path, ["x"]) as log:
        log.write({"step": 1, "loss": 0.5})
        at, path = log.sync(), log.path
    with pytest.raises(ValueError, match="train_log.csv has other columns"):
        TrainLog(tmp_path, ["y"], at)
    whole = path.read_bytes()
    for harmed in (whole[:-1], whole.replace(b"0.5", b"0.6")):
        path.write_bytes(harmed)
        with pytest.raises(ValueError, match="train_log.csv is altered or cut"):
            TrainLog(tmp_path, ["x"], at)
    path.unlink()
    with pytest.raises(ValueError, match="train_log.csv is altered or cut"):
        TrainLog(tmp_path, ["x"], at)


@pytest.mark.parametrize(("keep", "left"), [(None, [2, 4, 6]), (1, [6]), (2, [4, 6])])
def test_what_an_interrupt_made_goes_with_the_next_and_costs_no_other(tmp_path, keep, left):
    def is_planned(step: int) -> bool:
        return step % 2 == 0

    for step in (2, 3, 4, 5):
        tensors = {"rng/x": torch.zeros(1)}
        save_checkpoint(tmp_path, Position(step=step), model(step), tensors, INFO, keep, is_planned)
    assert names(tmp_path)[-1] == "step_00000005", "the newest stays, planned or not"
    save_checkpoint(tmp_path, Position(step=6), model(6), {"rng/x": torch.zeros(1)}, INFO, keep, is_planned)
    assert names(tmp_path) == ["latest", *(f"step_{n:08d}" for n in left)]
