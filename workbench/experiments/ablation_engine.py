"""Ablated losses of one batch: all heads of a layer continue together from the clean stream.

One clean forward keeps, per layer, the state after attention and z. The state without head h is that state plus
(z'_h − z_h) W_O[h]: everything before it is shared, so an ablation costs the layers behind the head and the
unembedding. Losses and KL need one pass over the logits, as log-partition functions: with logits linear in the final
residual x,

    loss = lse(x) − x·W_U[target]          KL(base‖ablated) = lse(x) − lse(x₀) − (x − x₀)·(W_U p₀)

with x₀, p₀ the clean residual and prediction, so that p₀ is met once, as the vector W_U p₀.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.models import HookedLM
from workbench.models.attn_residuals import RoutedStream
from workbench.models.cross_entropy import softcap
from workbench.models.transformer import State

LOGITS_HELD = 1 << 22  # logits of one chunk, elements; larger ones gain nothing on a CPU
TOKENS_TOGETHER = 8192  # tokens that continue together; more gain nothing on a CPU
_SAFE_LOGIT = 60.0  # e^60 times any vocabulary is far below float32's largest number


@dataclass(frozen=True)
class Sizes:
    """How the work is cut: sequences a batch, sequences (of all heads) that continue together, logits held at once."""

    batch_size: int
    n_together: int
    logits_held: int


def plan_sizes(model: HookedLM, n_ctx: int, n_layers: int, n_heads: int, budget: int) -> Sizes:
    """The cut that keeps what is held at once (weights and tokens apart) below `budget` bytes.

    Args:
        n_layers, n_heads: how many layers, and heads of each, are ablated.

    Raises:
        ValueError: a budget too small for one head of one sequence.
    """
    cfg = model.cfg
    logits_held = max(min(LOGITS_HELD, budget // 32), cfg.d_vocab)
    fixed = 3 * 4 * logits_held
    clean, continued = _bytes_per_sequence(model, n_ctx, n_layers)
    rest = budget - fixed
    if clean + continued > rest:
        least = fixed + clean + continued
        raise ValueError(f"memory_budget_bytes: got {budget}; want at least {least} for one head of one sequence")
    wanted = max(1, TOKENS_TOGETHER // n_ctx)
    batch_size = max(1, min(wanted // n_heads, rest // 2 // clean, rest // 2 // continued))
    n_together = max(batch_size, min(wanted, batch_size * n_heads, (rest - batch_size * clean) // continued))
    return Sizes(batch_size, n_together // batch_size * batch_size, logits_held)


def _bytes_per_sequence(model: HookedLM, n_ctx: int, n_layers: int) -> tuple[int, int]:
    """(clean, continued) bytes that one sequence holds: kept of the clean forward; at the widest point of a block."""
    cfg = model.cfg
    width_z = cfg.n_heads * cfg.d_head
    attn_res = cfg.extensions.attn_res
    n_sources = 1 if attn_res is None else len(attn_res.boundaries) + 1
    # of each layer: state after attention, z, and a donor's z; then final state, x, W_U p, W_U[target]
    kept = n_layers * (cfg.d_model + 2 * width_z) + (n_sources + 3) * cfg.d_model
    attention = 6 * width_z + 4 * cfg.kv_heads * cfg.d_head  # q, k, v, their rotations, repeated k and v, z
    running = (n_sources + 3) * cfg.d_model + max(3 * cfg.d_mlp, attention)
    itemsize = model.W_E.element_size()
    return n_ctx * itemsize * (kept + running), n_ctx * itemsize * running


@dataclass(frozen=True)
class CleanPass:
    """What one clean forward leaves: per layer the state after attention and z; the state after the last layer."""

    mid: Mapping[int, State]
    z: Mapping[int, Float[Tensor, "batch pos head d_head"]]
    final: State


def clean_pass(model: HookedLM, tokens: Int[Tensor, "batch pos"], layers: Sequence[int]) -> CleanPass:
    """One forward of `tokens`, keeping what ablations in `layers` start from."""
    mid: dict[int, State] = {}
    z: dict[int, Tensor] = {}
    hooks: list = [(f"blocks.{layer}.attn.hook_z", _keeper(z, layer)) for layer in layers]
    with model.hooks(fwd_hooks=hooks):
        state = model.embed_state(tokens)
        for layer, block in enumerate(model.blocks):
            state = block.attend(state)
            if layer in layers:
                mid[layer] = state
            state = block.feed_forward(state, model.read_out)
    return CleanPass(mid, z, state)


def _keeper(into: dict[int, Tensor], layer: int):
    def keep(tensor: Tensor, hook: object) -> None:
        into[layer] = tensor

    return keep


@dataclass(frozen=True)
class LinearPart:
    """The clean prediction in the form that logits linear in x allow; one row a scored position."""

    lse: Float[Tensor, " rows"]
    mean_writer: Float[Tensor, "rows d_model"]
    """W_U p₀: the unembedding averaged under the clean prediction"""
    target_writer: Float[Tensor, "rows d_model"]
    """W_U[target]"""
    target_bias: Float[Tensor, " rows"] | float
    is_tame: bool
    """no logit is so far from 0 that its exponential needs a shift"""


@dataclass(frozen=True)
class Reference:
    """The clean prediction at each scored position; rows run over batch, then position."""

    x: Float[Tensor, "rows d_model"]
    targets: Int[Tensor, " rows"]
    loss: Float[Tensor, " rows"]
    linear: LinearPart | None
    """None where logits are capped"""


def reference(model: HookedLM, final: State, tokens: Int[Tensor, "batch pos"], logits_held: int) -> Reference:
    """What the ablated residuals of this batch are compared with."""
    x = model.ln_final(model.read_out(final))[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    if model.cfg.output_logits_soft_cap > 0:
        loss, _ = _compare_capped(model, x[None], x, targets, logits_held)
        return Reference(x, targets, loss[0], None)
    W, b = model.W_U, model.b_U
    lse, writers, top = [], [], 0.0
    for rows in x.split(max(1, logits_held // W.shape[1])):
        logits = _logits(rows, W, b)
        top = max(top, float(logits.abs().amax()))
        lse.append(torch.logsumexp(logits, -1))
        writers.append(logits.sub_(lse[-1][:, None]).exp_().to(W.dtype) @ W.T)
    bias = 0.0 if b is None else b[targets].to(lse[0].dtype)
    linear = LinearPart(torch.cat(lse), torch.cat(writers), W.T[targets], bias, top < _SAFE_LOGIT)
    return Reference(x, targets, linear.lse - _dot(x, linear.target_writer) - bias, linear)


def compare(
    model: HookedLM, x: Float[Tensor, "head rows d_model"], clean: Reference, logits_held: int
) -> tuple[Float[Tensor, "head rows"], Float[Tensor, "head rows"]]:
    """(loss, KL(base‖ablated)) of final residuals x at each scored position, nats."""
    part = clean.linear
    if part is None:
        return _compare_capped(model, x, clean.x, clean.targets, logits_held)
    W, b = model.W_U, model.b_U
    chunks = x.reshape(-1, x.shape[-1]).split(max(1, logits_held // W.shape[1]))
    lse = torch.cat([_log_partition(rows, W, b, part.is_tame) for rows in chunks]).view(x.shape[:2])
    loss = lse - _dot(x, part.target_writer) - part.target_bias
    kl = (lse - part.lse) - _dot(x - clean.x, part.mean_writer)
    return loss, kl


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the last axis, summed in float32 at least."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) * b.to(wide)).sum(-1)


def _logits(x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    logits = x @ W if b is None else torch.addmm(b, x, W)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_partition(x: Tensor, W: Tensor, b: Tensor | None, is_tame: bool) -> Float[Tensor, " rows"]:
    """logsumexp of x W + b; without the shift by the maximum where logits are tame, which saves two passes."""
    if is_tame:
        lse = _logits(x, W, b).exp_().sum(-1).log()
        if bool(lse.isfinite().all()):
            return lse
    return torch.logsumexp(_logits(x, W, b), -1)


def _compare_capped(
    model: HookedLM, x: Float[Tensor, "head rows d_model"], x_clean: Tensor, targets: Tensor, logits_held: int
) -> tuple[Float[Tensor, "head rows"], Float[Tensor, "head rows"]]:
    """As `compare`, for logits that are capped and so not linear in x: the clean ones are made anew."""
    W, b, cap = model.W_U, model.b_U, model.cfg.output_logits_soft_cap
    n = max(1, logits_held // (3 * W.shape[1]))
    losses, divergences = [], []
    for of_head in x:
        for rows, rows_clean, target in zip(of_head.split(n), x_clean.split(n), targets.split(n), strict=True):
            log_p = torch.log_softmax(softcap(_logits(rows, W, b), cap), -1)
            log_clean = torch.log_softmax(softcap(_logits(rows_clean, W, b), cap), -1)
            losses.append(-log_p.gather(1, target[:, None]).squeeze(1))
            divergences.append((log_clean.exp() * (log_clean - log_p)).sum(-1))
    return torch.cat(losses).view(x.shape[:2]), torch.cat(divergences).view(x.shape[:2])


def ablated_states(
    model: HookedLM, clean: CleanPass, layer: int, heads: Sequence[int], replacement: Tensor | None
) -> State:
    """States after the attention of `layer` without each head in turn, [head·batch pos d_model].

    replacement: z' of all heads, broadcast to [batch pos head d_head]; None is zero.
    """
    attn, z = model.blocks[layer].attn, clean.z[layer]
    change = -z if replacement is None else replacement - z
    change = rearrange(change[:, :, list(heads)], "batch pos head d_head -> head (batch pos) d_head")
    mid = clean.mid[layer]
    stream = mid.partial if isinstance(mid, RoutedStream) else mid
    assert stream is not None, "attention has just added to the partial sum"
    shared = stream.flatten(0, 1).expand(len(heads), -1, -1)
    summed = torch.baddbmm(shared, change, attn.W_O[list(heads)].to(change.dtype))
    ablated = rearrange(summed, "head (batch pos) d -> (head batch) pos d", pos=z.shape[1])
    if not isinstance(mid, RoutedStream):
        return ablated
    return RoutedStream(tuple(v.repeat(len(heads), 1, 1) for v in mid.committed), ablated)


def ablate_batch(
    model: HookedLM,
    tokens: Int[Tensor, "batch pos"],
    selection: Mapping[int, Sequence[int]],
    replacements: Sequence[Mapping[int, Tensor | None]],
    sizes: Sizes,
) -> Iterator[tuple[int, tuple[int, ...], Tensor, Tensor]]:
    """First (-1, (), base losses, zeros), then (layer, heads, losses, KL) chunk by chunk, float64 means over positions:
    [batch] for the base, [head batch] for the heads.

    Args:
        selection: heads by layer.
        replacements: z' by layer, one mapping a resample; losses and KL are averaged over them.
    """
    n_batch = len(tokens)
    clean = clean_pass(model, tokens, list(selection))
    base = reference(model, clean.final, tokens, sizes.logits_held)
    losses = _by_sequence(base.loss[None], n_batch)[0]
    yield -1, (), losses, torch.zeros_like(losses)
    n_heads = sizes.n_together // n_batch
    for layer, heads in selection.items():
        for chunk in (tuple(heads[i : i + n_heads]) for i in range(0, len(heads), n_heads)):
            found: list[Tensor] = []
            for replacement in replacements:
                state = ablated_states(model, clean, layer, chunk, replacement[layer])
                state = model.blocks[layer].feed_forward(state, model.read_out)
                state = model(state, start_at_layer=layer + 1, return_type=None)
                x = model.ln_final(model.read_out(state))[:, :-1]
                x = rearrange(x, "(head batch) pos d -> head (batch pos) d", head=len(chunk))
                pair = compare(model, x, base, sizes.logits_held)
                found.append(torch.stack([_by_sequence(part, n_batch) for part in pair]))
            loss, kl = torch.stack(found).mean(0)
            yield layer, chunk, loss, kl


def _by_sequence(values: Float[Tensor, "head rows"], n_batch: int) -> Float[Tensor, "head batch"]:
    """Means over the positions of each sequence, float64 on the CPU."""
    return rearrange(values.cpu().double(), "head (batch pos) -> head batch pos", batch=n_batch).mean(-1)
