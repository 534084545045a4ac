"""What --dry-run says, against what is written and held; it reads no weights and leaves nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from workbench.analyses import all_analyses
from workbench.cli.app import app
from workbench.data.shards import open_shards
from workbench.extend import Cost, TextSize
from workbench.models.checkpoint import save
from workbench.models.config import ModelConfig
from workbench.models.costs import loading_bytes, weights_bytes
from workbench.models.load import load, load_config
from workbench.runs import open_run
from workbench.study.plan import describe_cost


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    "verb",
    [
        "ablate",
        "topology",
        "attention",
        "attention-patterns",
        "spectra",
        "harvest",
        "evaluate",
        "probe",
        "sae-train",
        "text-quality",
        "atlas",
    ],
)
def test_a_model_without_its_weights_is_planned(place, verb):
    shutil.copytree(place / "model", "model")
    Path("model/model.safetensors").unlink()
    layers = ["--layers", "all"] if verb == "harvest" else []
    found = call(verb, "--ckpt", "model", *layers, "--dry-run", "--json")
    assert found["n_models"] == 1
    assert found["flops"] > 0
    assert [path.name for path in Path().iterdir()] == ["model"]


def test_a_run_without_its_weights_is_planned_and_not_loaded(place):
    with open_run("run", {"verb": "import"}, device="cpu", seed=0) as run:
        save(load(place / "model"), run.path)
    Path("run/model.safetensors").unlink()
    assert call("topology", "--ckpt", "run", "--dry-run", "--json")["n_models"] == 1
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load("run")


@pytest.mark.parametrize(
    "hooks", [["attn.hook_z"], ["attn.hook_z", "hook_resid_post", "attn.hook_k"], ["attn.hook_pattern"]]
)
@pytest.mark.parametrize("dtype", [[], ["--store-dtype", "float16"]])
def test_a_harvest_takes_the_bytes_that_were_planned(place, hooks, dtype):
    words = ["harvest", "--ckpt", place / "model", "--data", place / "text.txt", "--n-sequences", 6]
    words += ["--layers", "0-1", *(part for hook in hooks for part in ("--hook", hook)), *dtype]
    planned = call(*words, "--dry-run", "--json")["bytes_on_disk"]
    call(*words, "--out", "h", "--json")
    headers = 0
    for shard in open_shards("h").shards:
        data = Path("h", shard.file).read_bytes()
        headers += 8 + int.from_bytes(data[:8], "little")
    assert planned == sum(shard.bytes for shard in open_shards("h").shards) - headers


def test_every_analysis_of_models_says_what_it_takes(place):
    for analysis in all_analyses():
        assert analysis.cost is not None, analysis.name


def cost_of(name: str, cfg: ModelConfig, text: TextSize, **settings) -> Cost:
    analysis = next(own for own in all_analyses() if own.name == name)
    assert analysis.cost is not None
    return analysis.cost(cfg, analysis.settings(**settings), text)


@pytest.mark.parametrize(
    "name", ["ablate", "topology", "attention", "attention-patterns", "spectra", "compare", "probe", "evaluate"]
)
def test_a_larger_model_takes_more(place, name):
    cfg, _ = load_config(place / "model")
    wide = cfg.model_copy(update={"d_model": 64 * cfg.d_model, "d_mlp": 64 * cfg.d_mlp})
    text = TextSize(6, 24)
    small, large = cost_of(name, cfg, text), cost_of(name, wide, text)
    assert large.flops > 8 * small.flops
    assert small.bytes_on_device + small.bytes_in_memory > weights_bytes(cfg)
    assert large.bytes_on_device >= weights_bytes(wide) > 8 * weights_bytes(cfg)
    narrow = wide.model_copy(update={"dtype": torch.bfloat16})
    assert weights_bytes(narrow) * 2 == weights_bytes(wide)


def test_more_text_takes_more_operations_and_no_more_memory(place):
    cfg, _ = load_config(place / "model")
    for name in ("topology", "ablate", "evaluate"):
        little, much = cost_of(name, cfg, TextSize(10_000, 24)), cost_of(name, cfg, TextSize(20_000, 24))
        assert much.flops == pytest.approx(2 * little.flops)
        assert much.bytes_on_device == little.bytes_on_device


def test_loading_counts_where_it_is_the_peak(place):
    cfg, _ = load_config(place / "model")
    weights, loading = weights_bytes(cfg), loading_bytes([cfg])
    base = describe_cost(Cost(), "cpu")["bytes_in_memory"]
    one = describe_cost(Cost(bytes_on_device=weights + 100), "cpu", loading=loading)["bytes_in_memory"]
    two = describe_cost(Cost(bytes_on_device=3 * weights), "cpu", loading=loading)["bytes_in_memory"]
    # the process's own peak may rise a little in between
    assert one - base == pytest.approx(loading, abs=1 << 20)
    assert weights + 100 < loading
    assert two - base == pytest.approx(3 * weights, abs=1 << 20)
