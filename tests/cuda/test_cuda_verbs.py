"""Every verb on a CUDA device beside the CPU, on the same checkpoints: the same tables, but for the rounding."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from grounds import Ground, call, write_ground

# what is typed, and how far numbers may be apart: (relative, absolute)
VERBS = {
    "ablate": ("ablate --ckpt model --data text.txt --n-sequences 6 --components head,mlp,layer", 1e-2, 2e-4),
    "ablate pairs": ("ablate --ckpt grouped --data text.txt --n-sequences 6 --pairs within", 1e-2, 2e-4),
    "topology": ("topology --ckpt model --data text.txt --n-sequences 6", 1e-3, 1e-4),
    "attention": ("attention --ckpt grouped --data text.txt --n-tokens 288", 1e-3, 1e-4),
    "attention-patterns": ("attention-patterns --ckpt grouped --data text.txt --n-tokens 288", 1e-3, 1e-3),
    "evaluate": ("evaluate --ckpt model --data text.txt --n-bytes 4000 --stride 16", 1e-3, 1e-4),
    "probe": (
        "probe --ckpt model --concepts concepts.toml --sets things --data text.txt "
        "--set n_permutations=19 --set n_points=64",
        2e-2,
        1e-3,
    ),
    "compare": ("compare model twin --data text.txt --n-sequences 6", 1e-2, 1e-3),
    "text-quality": (
        "text-quality --ckpt model --prompts prompts.toml --n-samples 1 --max-new-tokens 8 --tagger none "
        "--temperature 0 --recall recall.toml",
        1e-2,
        1e-3,
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return write_ground(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(autouse=True)
def at_home(place: Ground, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place.place)
    monkeypatch.setenv("COLUMNS", "200")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # too little text for some statistics
        yield


def run(command: str, device: str, out: Path) -> dict[str, pd.DataFrame]:
    """The tables that a verb leaves."""
    result = call(*command.split(), "--device", device, "--out", str(out))
    assert result.exit_code == 0, result.output
    return {path.stem: pd.read_csv(path) for path in sorted(out.glob("*.csv"))}


def assert_same(tables: dict[str, pd.DataFrame], others: dict[str, pd.DataFrame], rtol: float, atol: float) -> None:
    assert tables.keys() == others.keys()
    assert tables
    for name, table in tables.items():
        other = others[name]
        assert list(table.columns) == list(other.columns)
        assert len(table) == len(other)
        for column in table:
            mine, theirs = table[column], other[column]
            if column == "tokens_per_s" or column.endswith("_s"):
                continue
            if pd.api.types.is_float_dtype(mine):
                near = np.isclose(theirs, mine, rtol=rtol, atol=atol, equal_nan=True)
                assert near.all(), f"{name}.{column}: {mine[~near].tolist()[:4]}, {theirs[~near].tolist()[:4]}"
            elif column in ("pattern", "weights"):  # JSON of rounded weights
                numbers = [np.hstack([np.hstack(json.loads(cell)) for cell in own]) for own in (mine, theirs)]
                np.testing.assert_allclose(*numbers, atol=atol, err_msg=f"{name}.{column}")
            else:
                assert mine.tolist() == theirs.tolist(), f"{name}.{column}"


@pytest.mark.parametrize("verb", VERBS)
def test_the_tables_of_the_cpu(tmp_path: Path, verb: str) -> None:
    command, rtol, atol = VERBS[verb]
    assert_same(run(command, "cpu", tmp_path / "cpu"), run(command, "cuda", tmp_path / "cuda"), rtol, atol)


def test_shards_hold_the_cpus_activations(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    command = "harvest --ckpt model --split train --layers all --data text.txt --n-sequences 12"
    for device in ("cpu", "cuda"):
        result = call(*command.split(), "--device", device, "--out", str(tmp_path / device))
        assert result.exit_code == 0, result.output
    shards = sorted(path.name for path in (tmp_path / "cpu").glob("shard_*.safetensors"))
    assert shards
    for name in shards:
        ours, theirs = (load_file(tmp_path / d / name) for d in ("cuda", "cpu"))
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, rtol=1e-3, atol=1e-4)


def test_saes_of_the_device_are_as_good(tmp_path: Path) -> None:
    command = (
        "sae-train --ckpt model --layers 0 --data text.txt --n-train-tokens 4800 --n-eval-tokens 480 "
        "--set batch_size=32 "
        "--set buffer_tokens=128 --set expansion=3 --set n_ce_tokens=48"
    )
    on_cpu, on_device = (run(command, d, tmp_path / d)["sae_training_results"] for d in ("cpu", "cuda"))
    assert on_device["fvu"].to_numpy() == pytest.approx(on_cpu["fvu"].to_numpy(), rel=0.02)
    assert on_device["l0"].to_numpy() == pytest.approx(on_cpu["l0"].to_numpy(), rel=0.02)


@pytest.mark.parametrize("verb", ["harvest", "sae-train", "ablate"])
def test_a_verb_run_twice_leaves_the_same_bytes(tmp_path: Path, verb: str) -> None:
    commands = {
        "harvest": "harvest --ckpt model --split train --layers all --data text.txt --n-sequences 12",
        "sae-train": "sae-train --ckpt model --layers 0 --data text.txt --n-train-tokens 480 --n-eval-tokens 240 "
        "--set batch_size=32 --set buffer_tokens=128 --set expansion=3 --set n_ce_tokens=48",
        "ablate": VERBS["ablate"][0],
    }
    kept = []
    for name in ("one", "two"):
        result = call(*commands[verb].split(), "--device", "cuda", "--out", str(tmp_path / name))
        assert result.exit_code == 0, result.output
        files = sorted((tmp_path / name).rglob("*"))
        kept.append({p.name: p.read_bytes() for p in files if p.suffix in (".csv", ".safetensors")})
    assert kept[0].keys() == kept[1].keys()
    assert [n for n in kept[0] if kept[0][n] != kept[1][n]] == []


def test_a_study_from_training_to_page(tmp_path: Path) -> None:
    result = call("study", "tiny.toml", "--device", "cuda", "--out", str(tmp_path / "study"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "study" / "report.html").stat().st_size > 100_000
