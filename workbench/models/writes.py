"""What a part of another library's model adds to the residual stream, measured: no configuration of theirs says whether
a norm or a multiplier stands behind attention or an MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.models.checks import device_of, run_hooked, run_watched

PROBED = 8  # tokens of the sequence that is run
LARGE = 30.0  # how many times an activation its change is, so that the stream's own rounding is nothing beside it
# of the norm of what is written, what rounding may leave unexplained
UNEXPLAINED = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 3e-2}


@torch.no_grad()
def write_factor(
    model: Any, layer: int, hook: str, expect: Callable[[Tensor], Float[Tensor, "batch pos d_model"]]
) -> float | None:
    """The c for which a change Δ of the activation at a hook adds c · expect(Δ) to the stream; None where there is no
    such c: a norm stands behind the part, or expect is not what the part computes.

    Args:
        hook: within the block: `attn.hook_z`, `hook_attn_out`, `mlp.hook_post` or `hook_mlp_out`.
        expect: a linear function of a change [batch pos …].
    """
    behind = "hook_resid_mid" if "attn" in hook and f"blocks.{layer}.hook_resid_mid" in model.hook_dict else None
    seen = f"blocks.{layer}.{behind or 'hook_resid_post'}"
    tokens, name = probed_tokens(model), f"blocks.{layer}.{hook}"
    before = run_watched(model, tokens, [name, seen], layer + 1)
    activation = before[name]
    noise = torch.randn(activation.shape, generator=torch.Generator().manual_seed(0)).to(activation)
    change = LARGE * activation.float().square().mean().sqrt().to(activation) * noise
    found: list[Tensor] = []
    hooks = [(name, lambda x, hook: x + change), (seen, lambda x, hook: found.append(x.float()))]
    run_hooked(model, tokens, hooks, stop_at_layer=layer + 1, return_type=None)
    written, expected = found[0] - before[seen].float(), expect(change).float()
    return fitted_factor(written, expected, activation.dtype)


def fitted_factor(found: Tensor, expected: Tensor, dtype: torch.dtype) -> float | None:
    """The c of found = c · expected, exactly 1 where rounding in the dtype makes the difference; None where more than
    rounding is left unexplained."""
    c = float((found * expected).sum() / expected.square().sum())
    if not float((found - c * expected).norm() / found.norm()) <= (allowed := UNEXPLAINED[dtype]):
        return None
    return 1.0 if abs(c - 1) <= allowed else c


def probed_tokens(model: Any) -> Int[Tensor, "1 pos"]:
    """A short sequence on the model's device."""
    return torch.arange(min(PROBED, model.cfg.n_ctx, model.cfg.d_vocab), device=device_of(model))[None]
