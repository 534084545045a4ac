"""Verbs with models, SAEs and shards that they cannot take: hostile safetensors, configurations, pointers, links."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bad import refuse
from damage import HOSTILE, Gone, copy, edit_json, replace_tensor
from grounds import Ground, call

from workbench.runs import write_manifest

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

DEEP = b"[" * 100_000
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
DIGITS = b'{"a": ' + b"9" * 5000 + b"}"
NUMBERS = np.zeros((2, 3), dtype=np.float32)


def put(file: str, content: bytes) -> Callable[[Path], object]:
    """A file of the copy replaced."""
    return lambda place: (place / file).write_bytes(content)


def edit(file: str, **changes: object) -> Callable[[Path], object]:
    """Keys of a JSON file of the copy changed."""
    return lambda place: edit_json(place / file, **changes)


def swap(file: str, name: str, value: np.ndarray | None) -> Callable[[Path], object]:
    """A tensor of the copy replaced."""
    return lambda place: replace_tensor(place / file, name, value)


def lose(file: str) -> Callable[[Path], object]:
    """A file of the copy removed."""
    return lambda place: (place / file).unlink()


def lead_away(file: str, target: str = "/etc/hostname") -> Callable[[Path], object]:
    """A file of the copy replaced by a symbolic link."""

    def link(place: Path) -> None:
        (place / file).unlink(missing_ok=True)
        (place / file).symlink_to(target)

    return link


# our checkpoints, opened by `hooks`: what is done to the copy x of the model, part of the one line
CONFIG, WEIGHTS = "hooked_config.json", "model.safetensors"
MODELS = [
    *((f"weights: {name}", put(WEIGHTS, content), "x/model.safetensors") for name, content in HOSTILE.items()),
    *((f"configuration: {name}", put(CONFIG, content), "x/hooked_config.json") for name, content in (
        ("empty", b""), ("not UTF-8", b"\xff"), ("a list", b"[]"), ("a number", b"3"), ("null", b"null"),
        ("deep brackets", DEEP), ("digits", DIGITS), ("half", b'{"n_layers": '), ("nan", b'{"n_layers": NaN}'),
    )),
    *((f"{key} = {value!r}", edit(CONFIG, **{key: value}), key) for key, value in (
        ("n_layers", 0), ("n_layers", -1), ("n_layers", "two"), ("n_layers", 2.5), ("n_layers", None),
        ("d_model", 0), ("d_vocab", 1), ("n_heads", 0), ("n_ctx", 0), ("act_fn", "sin"), ("eps", -1.0),
        ("normalization_type", "none"), ("dtype", "int8"), ("rotary_base", float("nan")), ("nonsense", 1),
        ("n_layers", Gone()), ("extensions", "many"), ("n_key_value_heads", 3),
    )),
    ("one layer more", edit(CONFIG, n_layers=3), "blocks.2.attn.W_K is missing"),
    ("one layer less", edit(CONFIG, n_layers=1), "blocks.1.attn.W_K is unknown"),
    ("a wider model", edit(CONFIG, d_mlp=100), "expected [32, 100]"),
    ("layers without end", edit(CONFIG, n_layers=10**9), "n_layers"),
    ("a vocabulary without end", edit(CONFIG, d_vocab=10**15), "memory"),
    ("a tensor less", swap(WEIGHTS, "embed.W_E", None), "embed.W_E is missing"),
    ("a misshapen tensor", swap(WEIGHTS, "embed.W_E", NUMBERS), "embed.W_E has shape [2, 3], expected [300, 32]"),
    ("a tensor of integers", swap(WEIGHTS, "embed.W_E", np.zeros((300, 32), dtype=np.int64)), "embed.W_E"),
    ("a tensor of nan", swap(WEIGHTS, "embed.W_E", np.full((300, 32), np.nan, dtype=np.float32)), "embed.W_E"),
    ("a tensor of inf", swap(WEIGHTS, "embed.W_E", np.full((300, 32), np.inf, dtype=np.float32)), "embed.W_E"),
    ("no weights", lose(WEIGHTS), "x/model.safetensors: not there"),
    ("weights that are a directory", lambda p: ((p / WEIGHTS).unlink(), (p / WEIGHTS).mkdir()), "x/model.safetensors"),
    ("weights that lead nowhere", lead_away(WEIGHTS, "nowhere"), "x/model.safetensors"),
    ("weights that lead to a device", lead_away(WEIGHTS, "/dev/zero"), "x/model.safetensors"),
    ("a configuration that leads away", lead_away(CONFIG), "x/hooked_config.json"),
    ("tokenizer: empty", put("tokenizer.json", b""), "x/tokenizer.json cannot be read"),
    ("tokenizer: deep brackets", put("tokenizer.json", DEEP), "x/tokenizer.json cannot be read"),
    ("tokenizer: a pointer", put("tokenizer.json", POINTER), "x/tokenizer.json: a Git LFS pointer"),
    ("weights: a pointer", put(WEIGHTS, POINTER), "x/model.safetensors: a Git LFS pointer, not the file itself"),
    ("settings: a list", put("tokenizer_config.json", b"[]"), "x/tokenizer_config.json"),
    ("settings: numbers", put("tokenizer_config.json", b'{"bos_token": 3}'), "x has bos_token 3; expected a token"),
    ("settings: deep brackets", put("tokenizer_config.json", DEEP), "x/tokenizer_config.json"),
    ("settings: BOS or not", put("tokenizer_config.json", b'{"add_bos_token": "yes"}'), "add_bos_token is 'yes'"),
    ("generation: a word", put("generation_config.json", b'{"eos_token_id": "</s>"}'), "eos_token_id is '</s>'"),
]  # fmt: skip

# `latest`, in a directory that holds a checkpoint x/step_00000001
POINTERS = [
    ("empty", b"", "names ''"),
    ("..", b"..", "names '..'"),
    ("a way out", b"../../model", "names '../../model'"),
    ("absolute", b"/etc", "names '/etc'"),
    ("not UTF-8", b"\xff", "latest"),
    ("a NUL", b"step\0", "latest"),
    ("a step that is not there", b"step_00000009", "names 'step_00000009'; expected a step directory"),
    ("a page", b"x" * 5000, "latest"),
]

# Hugging Face folders, imported
HF = [
    *((f"weights: {name}", put(WEIGHTS, HOSTILE[name]), "x") for name in (
        "empty", "a header of 2^64 - 1 bytes", "deep brackets", "tensors that overlap", "a pickle", "another tensor")),
    ("no weights", lose(WEIGHTS), "no .safetensors file; "
        "expected weights in that form (pickled weights are never opened)"),
    ("pickled weights alone", lambda p: (p / WEIGHTS).rename(p / "pytorch_model.bin"), "pickled weights are never"),
    *((f"configuration: {name}", put("config.json", content), "x/config.json") for name, content in (
        ("empty", b""), ("a list", b"[]"), ("null", b"null"), ("deep brackets", DEEP), ("digits", DIGITS),
        ("not UTF-8", b"\xff"), ("no family", b"{}"), ("a family of a list", b'{"model_type": ["llama"]}'),
    )),
    *((f"{key} = {value!r}", edit("config.json", **{key: value}), message) for key, value, message in (
        ("model_type", "mamba", "x: backbone.embeddings.weight is missing"),
        ("model_type", "spiral", "model_type = 'spiral': neither a family here (gemma, gemma2,"),
        ("quantization_config", {"quant_method": "spiral"}, "x: weights quantized by spiral; expected one of"),
        ("hidden_size", Gone(), "hidden_size is missing"),
        ("hidden_size", "wide", "hidden_size is"),
        ("hidden_size", -32, "hidden_size is"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0; expected"),
        ("num_attention_heads", 0, "num_attention_heads is 0; expected"),
        ("num_attention_heads", "four", "num_attention_heads is"),
        ("num_key_value_heads", 3, "x/config.json"),
        ("hidden_act", "sin", "activation 'sin'; expected"),
        ("hidden_act", 3, "activation 3; expected"),
        ("rope_parameters", "far", "rope"),
        ("rope_parameters", {"rope_type": "spiral"}, "rope_type = 'spiral'; expected default, linear, llama3, dynamic"),
        ("rope_parameters", {"rope_type": "yarn"}, "x/config.json: factor is missing"),
        ("rope_parameters", {"rope_type": "linear"}, "x/config.json: factor is missing"),
        ("rope_parameters", {"rope_type": "llama3", "factor": "x"}, "low_freq_factor is missing"),
        ("rms_norm_eps", "small", "x/config.json: eps"),
        ("max_position_embeddings", None, "max_position_embeddings is missing"),
       )),
    ("a tensor less", swap(WEIGHTS, "model.norm.weight", None), "model.norm.weight is missing"),
    ("a misshapen tensor", swap(WEIGHTS, "model.norm.weight", NUMBERS), "[2, 3]"),
    ("a misshapen query", swap(WEIGHTS, "model.layers.0.self_attn.q_proj.weight", NUMBERS), "has shape [2, 3]; "
        "expected"),
    ("an index of a list", put("model.safetensors.index.json", b"[]"), "model.safetensors.index.json"),
    ("an index of nothing", put("model.safetensors.index.json", b"{}"), "weight_map is missing"),
    ("an index of what is not there",
     put("model.safetensors.index.json", b'{"weight_map": {"a.b": "../../c"}}'), "lists 'a.b'"),
    ("a tokenizer of nothing", put("tokenizer.json", b"{}"), "x/tokenizer.json cannot be read"),
    ("a tokenizer of brackets", put("tokenizer.json", DEEP), "x/tokenizer.json cannot be read"),
    ("weights that Git LFS did not fetch", put(WEIGHTS, POINTER), "x/model.safetensors: a Git LFS pointer"),
    ("a configuration that Git LFS did not fetch", put("config.json", POINTER), "x/config.json: a Git LFS pointer"),
]  # fmt: skip

# stacks of SAEs, exported
SAES = [
    *((f"weights: {name}", put("sae.safetensors", content), "x/sae.safetensors") for name, content in HOSTILE.items()
      if name not in ("an unknown dtype",)),
    *((f"description: {name}", put("sae.json", content), "x/sae.json") for name, content in (
        ("empty", b""), ("a list", b"[]"), ("deep brackets", DEEP), ("digits", DIGITS), ("not UTF-8", b"\xff"),
        ("nothing", b"{}"),
    )),
    ("another format", edit("sae.json", format="other"), "x/sae.json: format"),
    ("another version", edit("sae.json", version=2), "x/sae.json: version"),
    ("an unknown key", edit("sae.json", more=2), "x/sae.json: more"),
    ("no sums", edit("sae.json", sha256={}), "one of the two files was altered"),
    ("no description", lose("sae.json"), "x/sae.json"),
    ("no weights", lose("sae.safetensors"), "x/sae.safetensors"),
    ("weights that lead to a device", lead_away("sae.safetensors", "/dev/zero"), "x/sae.safetensors"),
]  # fmt: skip

# harvests, whose manifest was written anew by whoever changed them: trained on
SHARDS = [
    *((f"index: {name}", put("shards.json", content), "x/shards.json") for name, content in (
        ("empty", b""), ("a list", b"[]"), ("deep brackets", DEEP), ("digits", DIGITS), ("not UTF-8", b"\xff"),
        ("nothing", b"{}"),
    )),
    ("another format", edit("shards.json", format="x"), "x/shards.json"),
    ("no shards", edit("shards.json", shards=[]), "expected a finished harvest"),
    ("shards that are none", edit("shards.json", shards=3), "x/shards.json"),
    ("hooks that are none", edit("shards.json", hooks=[]), "x/shards.json"),
    ("a way out",
     edit("shards.json", shards=[{"file": "../y", "rows": 1, "bytes": 1, "sha256": ""}]), "names '../y'; "
         "expected shard_"),
    ("a name that is a number",
     edit("shards.json", shards=[{"file": 3, "rows": 1, "bytes": 1, "sha256": ""}]), "x/shards.json"),
    ("rows below 0", edit("shards.json", n_tokens=-4), "x/shards.json holds what is no count"),
    ("another model's", edit("shards.json", model_sha256="0" * 64), "model"),
]  # fmt: skip


def model(ground: Ground) -> Path:
    return copy(ground["model"], "x")


def step(ground: Ground) -> Path:
    copy(ground["model"], "x/step_00000001")
    return Path("x")


def folder(ground: Ground) -> Path:
    copy(ground["hf"], "x")
    Path("x/manifest.json").unlink()  # as a folder of somebody else
    Path("x/config.toml").unlink()
    return Path("x")


def stack(ground: Ground) -> Path:
    return copy(ground.run("saes") / "sae", "x")


def shards(ground: Ground) -> Path:
    return copy(ground.run("harvest"), "x")


TRAIN = "sae-train --ckpt {model} --layers 0 --shards x --data {text.txt} --out y --n-eval-tokens 240"
TRAIN += " --set batch_size=32 --set buffer_tokens=128 --set expansion=3 --set n_ce_tokens=48"
KINDS: dict[str, tuple[Callable[[Ground], Path], list, str]] = {
    "model": (model, MODELS, "hooks --ckpt x"),
    "pointer": (step, [(name, put("latest", data), message) for name, data, message in POINTERS], "hooks --ckpt x"),
    "folder": (folder, HF, "import x --out y"),
    "SAEs": (stack, SAES, "export --ckpt x --to sae-lens --out y"),
    "shards": (shards, SHARDS, TRAIN),
}
CASES = [(kind, name, damage, message) for kind, (_, cases, _) in KINDS.items() for name, damage, message in cases]


@pytest.mark.parametrize(("kind", "damage", "message"), [(k, d, m) for k, _, d, m in CASES], ids=[
    f"{kind} {name}" for kind, name, _, _ in CASES])  # fmt: skip
def test_a_bad_model_is_one_line(ground, home, tally, kind, damage, message) -> None:
    make, _, command = KINDS[kind]
    place = make(ground)
    damage(place)
    if (place / "manifest.json").is_file():
        write_manifest(place)
    refuse(ground, tally, "models, SAEs, shards", command, 1, message)


def test_no_two_are_the_same() -> None:
    assert len({(kind, name) for kind, name, _, _ in CASES}) == len(CASES)


def test_the_undamaged_ones_are_taken(ground, home) -> None:
    """Else what is refused could be refused for another reason."""
    for kind, (make, _, command) in KINDS.items():
        place = make(ground)
        if kind == "pointer":
            (place / "latest").write_text("step_00000001\n")
        result = call(*ground.fill(command))
        assert result.exit_code == 0, (kind, result.output)
        shutil.rmtree(place)
        shutil.rmtree("y", ignore_errors=True)
    assert json.loads(ground["hf"].joinpath("config.json").read_text())["model_type"] == "qwen3"
