"""Weights out of files: peak memory, and what is said of tensors that are no weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from workbench.models import HookedLM, ModelConfig
from workbench.models.checkpoint import save
from workbench.models.interop import export
from workbench.models.load import load
from workbench.models.weights import open_tensors

PEAK = """
import json, re, sys
from pathlib import Path
import torch
import workbench.models.huggingface
from workbench.models.load import load
def peak():  # not ru_maxrss, which a process inherits from the one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
torch.ones(64, 64, dtype=torch.bfloat16).float().T.contiguous().aminmax()  # what torch loads for its first sums
before = peak()
model = load(sys.argv[1], dtype=sys.argv[2])
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps([peak() - before, weights]))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One model of 128 MB in bfloat16, as a checkpoint of ours and as a Hugging Face folder."""
    fields = {"n_layers": 16, "d_model": 512, "n_heads": 8, "d_head": 64, "d_mlp": 2048, "n_ctx": 64, "d_vocab": 999}
    cfg = ModelConfig(**fields, act_fn="silu", gated_mlp=True, dtype=torch.bfloat16)
    model, place = HookedLM(cfg), tmp_path_factory.mktemp("weights")
    (place / "ours").mkdir()
    save(model, place / "ours")
    export(model, "hf", place / "hf")
    return place


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["ours", "hf"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_the_memory_of_the_weights_and_a_tensor(form, dtype, folders, record_property):
    command = [sys.executable, "-c", PEAK, str(folders / form), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, weights = json.loads(done.stdout)
    record_property("peak over weights", peak / weights)
    assert weights > 100e6
    assert peak / weights <= 1.15


def test_tensors_are_known_by_their_header_alone(folders):
    stored = open_tensors(folders / "ours" / "model.safetensors")
    model = load(folders / "ours")
    assert {name: (own.shape, own.dtype) for name, own in stored.items()} == {
        name: (tuple(p.shape), p.dtype) for name, p in model.named_parameters()
    }
    assert all(torch.equal(stored[name].read(), p) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(512, dtype=torch.int64), "model.norm.weight is of int64; expected float64, float32"),
        (torch.full((512,), torch.nan), "model.norm.weight has NaN or inf; expected finite weights"),
        (torch.zeros(511), r"model.norm.weight has shape \[511\]; expected \[512\]"),
    ],
)
def test_a_tensor_of_a_folder_that_is_no_weight_is_named_as_it_is_there(tensor, said, folders, tmp_path):
    own = open_tensors(folders / "hf" / "model.safetensors")
    save_file({name: stored.read() for name, stored in own.items()} | {"model.norm.weight": tensor},
              tmp_path / "model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_bytes((folders / "hf" / "config.json").read_bytes())
    with pytest.raises(ValueError, match=said):
        load(tmp_path)
