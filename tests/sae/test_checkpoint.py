"""What is saved comes back bit for bit; what was altered is refused by name; nothing half-written stays."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stacks_for_tests import KINDS

from sae import SAEConfig, SAESource, StackedSAE, StackInfo, check_model
from sae.checkpoint import new_directory
from sae.tensors import hash_tensor


def stack(architecture: str = "relu", k: float | None = None, dtype: torch.dtype = torch.float32) -> StackedSAE:
    config = SAEConfig(n_saes=2, d_in=4, d_sae=9, architecture=architecture, k=k)
    sources = tuple(SAESource(hook_name="blocks.9.attn.hook_z", layer=9, head=h, l1=0.1, seed=3) for h in (0, 5))
    info = StackInfo(sources=sources, model_name="control", model_sha256="ab" * 32, n_train_tokens=1000)
    sae = StackedSAE(config, torch.Generator().manual_seed(0), info=info, dtype=dtype)
    with torch.no_grad():
        for tensor in sae.state_dict().values():
            tensor.add_(0.37)
    return sae


@pytest.mark.parametrize(("architecture", "k"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_round_trip_is_exact(tmp_path, architecture, k, dtype):
    sae = stack(architecture, k, dtype)
    path = sae.save(tmp_path / "deep" / "stack")
    assert sorted(p.name for p in path.iterdir()) == ["sae.json", "sae.safetensors"]
    assert [p.name for p in path.parent.iterdir()] == ["stack"]
    again = StackedSAE.load(path)
    assert again.config == sae.config
    assert again.info == sae.info
    assert again.dtype == dtype
    for name, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in sae.named_parameters()]


def test_saving_twice_needs_overwrite(tmp_path):
    sae = stack()
    sae.save(tmp_path / "s")
    with pytest.raises(ValueError, match="exists; expected a new directory"):
        sae.save(tmp_path / "s")
    with torch.no_grad():
        sae.b_enc.add_(1)
    sae.save(tmp_path / "s", overwrite=True)
    assert torch.equal(StackedSAE.load(tmp_path / "s").b_enc, sae.b_enc)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path):
    old = stack()
    old.save(tmp_path / "s")

    def write_half() -> None:
        with new_directory(tmp_path / "s", overwrite=True) as partial:
            (partial / "half").write_text("x")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_half()
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert torch.equal(StackedSAE.load(tmp_path / "s").W_enc, old.W_enc)


def test_an_unset_stack_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="tensor W_dec has nan or inf|tensor W_enc has nan or inf"):
        StackedSAE(SAEConfig(n_saes=1, d_in=4, d_sae=9)).save(tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_every_flipped_bit_is_caught(tmp_path):
    """200 random single-bit flips anywhere in either file: refused, or (in the JSON) harmless to the last tensor."""
    sae = stack("jumprelu")
    sae.save(tmp_path / "s")
    flips = random.Random(0)
    n_harmless = 0
    for name in ("sae.safetensors", "sae.json"):
        path = tmp_path / "s" / name
        whole = path.read_bytes()
        for _ in range(100):
            position, bit = flips.randrange(len(whole)), flips.randrange(8)
            altered = bytearray(whole)
            altered[position] ^= 1 << bit
            path.write_bytes(altered)
            if name == "sae.safetensors":
                with pytest.raises(ValueError, match=r"sae\.safetensors"):
                    StackedSAE.load(tmp_path / "s")
                continue
            again = None
            with contextlib.suppress(ValueError):
                again = StackedSAE.load(tmp_path / "s")
            if again is not None:
                n_harmless += 1
                for key, tensor in sae.state_dict().items():
                    assert torch.equal(again.state_dict()[key], tensor)
        path.write_bytes(whole)
    # letters of the hook's name, digits of a seed: what no weight depends on
    assert n_harmless < 60
    StackedSAE.load(tmp_path / "s")


def test_a_flipped_weight_is_named_with_its_tensor(tmp_path):
    sae = stack()
    path = sae.save(tmp_path / "s") / "sae.safetensors"
    tensors = load_file(path)
    tensors["b_dec"][1, 2] += 1e-6
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"s/sae\.safetensors: tensor b_dec has sha256 .* was altered"):
        StackedSAE.load(tmp_path / "s")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _edit(change):
    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def _swap(change):
    def apply(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("sae.json", Path.unlink, "sae.json: cannot be read"),
        ("sae.safetensors", Path.unlink, "sae.safetensors: cannot be read"),
        ("sae.json", _truncate, "sae.json: cannot be read"),
        ("sae.safetensors", _truncate, "sae.safetensors: cannot be read"),
        ("sae.json", lambda p: p.write_text("[1]"), "sae.json: holds list"),
        ("sae.json", lambda p: p.write_text("[" * 100_000), "sae.json: cannot be read"),
        ("sae.json", lambda p: p.write_bytes(b"\xff\xfe"), "sae.json: cannot be read"),
        ("sae.json", _edit(lambda c: c["config"].update(d_sae=10)), r"tensor \w+ has shape"),
        ("sae.json", _edit(lambda c: c["config"].update(d_sae=10**12)), r"tensor \w+ has shape"),
        ("sae.json", _edit(lambda c: c["config"].update(architecture="magic")), "config.architecture: got 'magic'"),
        ("sae.json", _edit(lambda c: c["config"].pop("d_in")), "sae.json: config.d_in"),
        ("sae.json", _edit(lambda c: c.update(pickle="x")), "sae.json: pickle"),
        ("sae.json", _edit(lambda c: c.update(version=2)), "sae.json: version"),
        ("sae.json", _edit(lambda c: c["sha256"].pop("W_dec")), "tensor W_dec has sha256"),
        ("sae.json", _edit(lambda c: c["info"]["sources"].pop()), "info.sources has 1 entries; expected 2"),
        ("sae.safetensors", _swap(lambda t: t.pop("b_enc")), "holds tensors"),
        ("sae.safetensors", _swap(lambda t: t.update(extra=torch.zeros(1))), "holds tensors"),
        ("sae.safetensors", _swap(lambda t: t.update(W_enc=t["W_enc"][:1])), r"tensor W_enc has shape \(1, 4, 9\)"),
        ("sae.safetensors", _swap(lambda t: t.update(W_enc=t["W_enc"].double())), "tensor W_enc has sha256"),
        ("sae.safetensors", lambda p: p.write_bytes(b"\xff" * 64), "sae.safetensors: cannot be read"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path, name, damage, message):
    stack().save(tmp_path / "s")
    damage(tmp_path / "s" / name)
    with pytest.raises(ValueError, match=message):
        StackedSAE.load(tmp_path / "s")


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ValueError, match="none/sae.json: cannot be read"):
        StackedSAE.load(tmp_path / "none")


def test_saes_of_another_model_are_refused_naming_both():
    sae = stack()
    check_model(sae, "ab" * 32)
    with pytest.raises(
        ValueError, match=f"belong to control with sha256 {'ab' * 32}; expected adaptive with sha256 cdcd"
    ):
        check_model(sae, "cd" * 32, "adaptive")
    sae.info = StackInfo()
    with pytest.raises(ValueError, match="do not say which model"):
        check_model(sae, "cd" * 32)


def test_hash_knows_dtype_shape_and_every_value():
    base = torch.arange(6.0)
    others = [base.view(2, 3), base.double(), base.bfloat16(), base + 1, base.flip(0)]
    hashes = {hash_tensor(t) for t in [base, *others]}
    assert len(hashes) == 6
    assert hash_tensor(base.view(2, 3).T.contiguous()) == hash_tensor(base.view(2, 3).T)
