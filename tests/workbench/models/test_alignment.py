"""Zeros appended before a product, as a CUDA device has them, change no logit, loss or gradient."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import small_model, tokens_for

from workbench.models import Extensions, cross_entropy, layers
from workbench.models.alignment import n_missing, pad

KINDS = {
    "gated": ("janus-v3", {"d_mlp": 85}),
    "gated, biases": ("janus-v3", {"d_mlp": 85, "extensions": Extensions(mlp_bias=True)}),
    "gelu, biases": ("janus-small", {"d_mlp": 85}),
    "untied, capped": ("untied-softcap", {"d_mlp": 85}),
}


@pytest.mark.parametrize("bonus", [0.0, 0.3])
@pytest.mark.parametrize("name", KINDS)
def test_padding_leaves_no_trace(monkeypatch: pytest.MonkeyPatch, name: str, bonus: float) -> None:
    kind, changes = KINDS[name]
    found, widths = [], []
    for n in (0, 3):
        monkeypatch.setattr(layers, "n_missing", lambda width, like, n=n: n)
        monkeypatch.setattr(cross_entropy, "n_missing", lambda width, like, n=n: n)
        real = pad
        monkeypatch.setattr(layers, "pad", lambda t, n, dim, pad=real: widths.append(n) or pad(t, n, dim))
        model = small_model(kind, **changes)
        tokens = tokens_for(model)
        logits = model(tokens)
        per_token = model(tokens, return_type="loss", loss_per_token=True)
        loss = model(tokens, return_type="loss", z_loss=1e-2, entropy_bonus=bonus)
        (loss + per_token.square().mean()).backward()
        with torch.no_grad():
            without_gradients = model(tokens, return_type="loss", z_loss=1e-2, entropy_bonus=bonus)
        grads = {n: p.grad for n, p in model.named_parameters()}
        found.append((logits.detach(), per_token.detach(), loss.detach(), without_gradients, grads))
    assert set(widths) == {3}, "the second round was padded"
    *values, grads = found[0]
    *others, other_grads = found[1]
    for value, other in zip(values, others, strict=True):
        torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-5)
    for key, grad in grads.items():
        torch.testing.assert_close(other_grads[key], grad, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


def test_a_hook_sees_the_width_that_the_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "n_missing", lambda width, like: 3)
    model = small_model("janus-v3", d_mlp=85)
    _, cache = model.run_with_cache(tokens_for(model))
    assert {cache[f"blocks.{i}.mlp.{hook}"].shape[-1] for i in range(3) for hook in ("hook_pre", "hook_post")} == {85}


def test_nothing_is_missing_on_a_cpu() -> None:
    assert n_missing(50257, torch.empty(1)) == 0


@pytest.mark.parametrize(("dim", "shape"), [(0, (5, 2)), (1, (3, 4)), (-1, (3, 4)), (-2, (5, 2))])
def test_zeros_are_appended_along_the_axis(dim: int, shape: tuple[int, int]) -> None:
    padded = pad(torch.ones(3, 2), 2, dim)
    assert padded.shape == shape
    assert float(padded.sum()) == 6
    assert torch.equal(padded[:3, :2], torch.ones(3, 2))
