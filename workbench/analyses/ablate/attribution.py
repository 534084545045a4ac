"""Direct attribution: what the loss's gradient alone says an ablation would change.

For a part with activation a and replacement a', the estimate is Σ over positions of ∇ₐ loss · (a' − a): the first term
of the loss's expansion in the change, from one backward pass for all parts (Nanda 2023, "attribution patching").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.analyses.ablate.losses import Reference, loss_gradient
from workbench.analyses.ablate.records import CleanPass, Part, Replacements
from workbench.models import HookedLM
from workbench.models.block import Attended, Block


def attribute(
    model: HookedLM,
    clean: CleanPass,
    base: Reference,
    parts: Sequence[Part],
    replacements: Replacements,
    logits_held: int,
) -> Float64[Tensor, "part batch"]:
    """Estimated change of each sequence's mean loss, nats per token, averaged over the replacements.

    The backward pass goes a layer at a time from the states that the clean pass keeps, of every layer from the parts'
    first on, so that one layer's graph is held at once.
    """
    found: dict[Part, Tensor] = {}
    for layer, z_gradient, mlp_out, mlp_gradient in _gradients(model, clean, base, logits_held):
        for part in (own for own in parts if own.layer == layer):
            activation, gradient = (mlp_out, mlp_gradient) if part.component == "mlp" else (clean.z[layer], z_gradient)
            changes = [_change(replacement, part, activation) for replacement in replacements]
            products = torch.stack([(change * gradient.to(change.dtype)).sum(1) for change in changes]).mean(0)
            found[part] = (products[:, part.head] if part.component == "head" else products).flatten(1).sum(1)
    return torch.stack([found[part] for part in parts]).cpu()


def _change(
    replacement: Mapping[str, Tensor | None], part: Part, activation: Tensor
) -> Float64[Tensor, "batch pos ..."]:
    """a' − a, in float64: sums over thousands of terms of either sign follow."""
    stand_in = replacement[part.hook]
    return -activation.double() if stand_in is None else stand_in.double() - activation.double()


def _gradients(
    model: HookedLM, clean: CleanPass, base: Reference, logits_held: int
) -> Iterator[tuple[int, Float[Tensor, "batch pos head d_head"], Tensor, Tensor]]:
    """(layer, gradient by z, the MLP's output, gradient by it) of the sequences' mean losses, from the last layer."""
    n_batch, n_ctx = next(iter(clean.z.values())).shape[:2]
    of_x = (loss_gradient(model, base, logits_held) / (n_ctx - 1)).to(base.x.dtype).view(n_batch, n_ctx - 1, -1)
    behind = [torch.nn.functional.pad(of_x, (0, 0, 0, 1))]  # nothing is predicted behind the last position
    for layer in sorted(clean.mid, reverse=True):
        caught: list[Tensor] = []
        leaves = [tensor.detach().requires_grad_() for tensor in _tensors(clean.mid[layer])]
        hook = (f"blocks.{layer}.hook_mlp_out", lambda tensor, hook, into=caught: into.append(tensor))
        with torch.enable_grad(), model.hooks(fwd_hooks=[hook]):
            state = model.blocks[layer].feed_forward(_rebuilt(clean.mid[layer], iter(leaves)), model.read_out)
            if layer + 1 < model.cfg.n_layers:
                outputs = _tensors(model.blocks[layer + 1].attend(state))
            else:
                outputs = [model.ln_final(model.read_out(state))]
        pairs = [(out, g) for out, g in zip(outputs, behind, strict=True) if out.requires_grad and g is not None]
        ends, weights = [out for out, _ in pairs], [g for _, g in pairs]
        *behind, of_mlp = torch.autograd.grad(ends, [*leaves, caught[0]], weights, allow_unused=True)
        running = behind[_place_of_running(clean.mid[layer])]
        assert running is not None, "all that follows reads the stream"
        W_O = model.blocks[layer].attn.W_O.detach().to(running.dtype)
        written = _ahead_of_norm(model.blocks[layer], clean.mid[layer], running)
        of_z = einsum(written, W_O, "batch pos d, head e d -> batch pos head e")
        yield layer, of_z, caught[0].detach(), of_mlp


def _ahead_of_norm(block: Block, mid: Any, running: Float[Tensor, "batch pos d_model"]) -> Tensor:
    """The gradient by what heads wrote together, from that by the stream behind them."""
    if not isinstance(mid, Attended) or mid.written is None:
        return running
    with torch.enable_grad():
        written = mid.written.detach().requires_grad_()
        return torch.autograd.grad(block.behind_attention(written), written, running)[0]


def _place_of_running(state: Any) -> int:
    running = state if isinstance(state, Tensor) else state.running
    return next(i for i, tensor in enumerate(_tensors(state)) if tensor is running)


def _tensors(state: Any) -> list[Tensor]:
    """The tensors in a state, in a fixed order."""
    if isinstance(state, Tensor):
        return [state]
    if is_dataclass(state):
        return [tensor for field in fields(state) for tensor in _tensors(getattr(state, field.name))]
    return [tensor for item in state for tensor in _tensors(item)] if isinstance(state, tuple) else []


def _rebuilt(state: Any, tensors: Iterator[Tensor]) -> Any:
    """The state with other tensors, in the order of `_tensors`."""
    if isinstance(state, Tensor):
        return next(tensors)
    if is_dataclass(state):
        return replace(state, **{f.name: _rebuilt(getattr(state, f.name), tensors) for f in fields(state)})  # type: ignore[type-var]
    return tuple(_rebuilt(item, tensors) for item in state) if isinstance(state, tuple) else state
