"""What a begun run goes on with: read back as written, and taken for nothing else."""

from __future__ import annotations

import random
import shutil

import pytest
import torch

from workbench.runs.resume_state import read_state, write_state

TENSORS = {
    "weights": torch.arange(6.0).view(2, 3).T,
    "half": torch.tensor([1.5, -2], dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "none": torch.empty(0, 3),
}


@pytest.fixture
def place(tmp_path):
    (tmp_path / "config.toml").write_text("seed = 0\n")
    write_state(tmp_path / "part", TENSORS, "a note: σ")
    return tmp_path


def test_a_state_reads_back_as_written(place):
    tensors, note = read_state(place / "part")
    assert note == "a note: σ"
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_any_flipped_bit_is_seen(place):
    whole, rng = (place / "part").read_bytes(), random.Random(0)
    for position in rng.sample(range(8 * len(whole)), 300):
        data = bytearray(whole)
        data[position // 8] ^= 1 << position % 8
        (place / "part").write_bytes(data)
        try:
            tensors, note = read_state(place / "part")
        except ValueError as error:
            assert "part is altered" in str(error)  # noqa: PT017 - some bits, such as spaces, say nothing
        else:
            assert note == "a note: σ"
            assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("length", [0, 7, 100])
def test_a_cut_file_is_named(place, length):
    (place / "part").write_bytes((place / "part").read_bytes()[:length])
    with pytest.raises(ValueError, match="part is altered"):
        read_state(place / "part")


def test_a_state_is_not_taken_under_another_name_or_in_another_run(place):
    shutil.copy(place / "part", place / "other")
    with pytest.raises(ValueError, match="other is altered, or of another run"):
        read_state(place / "other")
    (place / "config.toml").write_text("seed = 1\n")
    with pytest.raises(ValueError, match="part is altered, or of another run"):
        read_state(place / "part")
