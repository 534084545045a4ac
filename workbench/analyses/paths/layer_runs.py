"""A forward pass opened at every layer, and the rest of it from any layer on for many changed streams at once.

For models of one residual stream that every sub-layer reads and adds to. Positions before `start`, where both prompts
of a pair are the same and no change of a stream is anything but 0, are run once; what goes on reads their keys and
values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.data.pairs import PairTokens
from workbench.models import HookedLM
from workbench.models.block import Attended, Block
from workbench.models.layers import KeyValueCache, Norm


@dataclass(frozen=True)
class Sizes:
    """How the work is cut: pairs that are run at once, tokens of changed streams that go on together."""

    n_pairs: int
    n_tokens: int


@dataclass(frozen=True)
class LayerRun:
    """What one layer read and wrote, at the positions from `start` on; keys and values at all."""

    resid_pre: Float[Tensor, "pair pos d_model"]
    q: Float[Tensor, "pair pos head d_head"]
    """turned, as k"""
    k: Float[Tensor, "pair all_pos kv_head d_head"]
    v: Float[Tensor, "pair all_pos kv_head d_head"]
    z: Float[Tensor, "pair pos head d_head"]
    written: Float[Tensor, "pair pos d_model"]
    """by the heads together, ahead of a norm"""
    resid_mid: Float[Tensor, "pair pos d_model"]
    """resid_pre and what attention added"""
    mlp_out: Float[Tensor, "pair pos d_model"]
    """as it enters the stream"""


@dataclass(frozen=True)
class ModelRun:
    """A forward pass of some prompts."""

    layers: tuple[LayerRun, ...]
    final: Float[Tensor, "pair d_model"]
    """the stream behind the last layer, at each prompt's last token"""
    start: int
    at: Int[Tensor, " pair"]
    """each prompt's last token, counted from `start`"""


def first_difference(pairs: PairTokens) -> int:
    """The first position at which the two prompts of any pair differ; the last position where none does."""
    differs = (pairs.clean != pairs.corrupt).any(dim=0).nonzero()
    return int(differs[0]) if len(differs) else pairs.clean.shape[1] - 1


def run_layers(
    model: HookedLM, tokens: Int[Tensor, "pair pos"], last: Int[Tensor, " pair"], start: int = 0
) -> ModelRun:
    """A forward pass that keeps what every layer read and wrote from position `start` on."""
    x = model.embed_state(tokens)
    assert isinstance(x, Tensor), "a model of one residual stream"
    found = []
    for block in model.blocks:
        attn, resid_pre = block.attn, x
        q, k, v = attn.project(ahead_of_attention(block, x))
        q, k = attn.turn(q, k)
        z = attn.mix(q, k, v)
        written = attn.output(z)
        resid_mid = x + block.behind_attention(written)
        mlp_out = mlp_write(block, resid_pre if model.cfg.parallel_attn_mlp else resid_mid)
        x = resid_mid + mlp_out
        # copies: a slice would keep the positions before it
        cut = [t[:, start:].clone() if start else t for t in (resid_pre, q, z, written, resid_mid, mlp_out)]
        found.append(LayerRun(cut[0], cut[1], k, v, *cut[2:]))
    at = last.to(x.device) - start
    return ModelRun(tuple(found), at_last(x[:, start:], at)[:, 0], start, at)


def ahead_of_attention(block: Block, x: Tensor) -> Tensor:
    """What q, k and v are projected from."""
    return x if block.cfg.extensions.post_norm else block.ln1(x)


def mlp_write(block: Block, read: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
    """What an MLP that reads this stream adds to it."""
    return block.behind_mlp(block.mlp(read if block.cfg.extensions.post_norm else block.ln2(read)))


def at_last(x: Float[Tensor, "batch pos d_model"], at: Int[Tensor, " pair"]) -> Float[Tensor, "batch 1 d_model"]:
    """x at each prompt's last token; rows are the pairs, time and again."""
    rows = torch.arange(len(x), device=x.device)
    return x[rows, at.repeat(len(x) // len(at))][:, None]


def read_changed(
    norm: Norm | None,
    base: Float[Tensor, "pair pos d_model"],
    change: Float[Tensor, "n pair pos d_model"],
    is_scale_frozen: bool,
) -> Float[Tensor, "n pair pos d_model"]:
    """norm(base + change), or with the scale that the norm has of `base` alone; base + change without a norm."""
    if norm is None:
        return base + change
    if not is_scale_frozen:
        return norm(base + change)
    centred = base - base.mean(-1, keepdim=True) if norm.kind == "LN" else base
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    moved = change - change.mean(-1, keepdim=True) if norm.kind == "LN" else change
    return norm(base) + moved / scale * norm.gain


class _Prefix(KeyValueCache):
    """The keys and values of the positions before `start`, for rows that are the pairs time and again; it keeps none
    of those that follow."""

    def __init__(self, base: ModelRun) -> None:
        super().__init__(capacity=base.start)
        self.base, self.length = base, base.start

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k and v behind those of the positions before."""
        own = self.base.layers[layer]
        return with_prefix(own.k, k, self.length), with_prefix(own.v, v, self.length)


def with_prefix(base: Tensor, new: Tensor, start: int) -> Tensor:
    """Keys or values of changed rows [n·pair pos …] behind the first `start` of the pairs [pair all_pos …]."""
    if not start:
        return new
    return torch.cat([base[:, :start].repeat(len(new) // len(base), 1, 1, 1), new], dim=1)


def go_on_behind_attention(
    model: HookedLM, base: ModelRun, layer: int, change: Float[Tensor, "n pair pos d_model"]
) -> Float[Tensor, "n pair d_model"]:
    """The final streams at the last tokens, `change` added to what the heads of `layer` write together."""
    block, own = model.blocks[layer], base.layers[layer]
    if block.norm_behind is None:
        running = own.resid_mid + change
    else:
        running = own.resid_pre + block.behind_attention(own.written + change)
    mid = running.flatten(0, 1)
    if model.cfg.parallel_attn_mlp:
        mid = Attended(mid, own.resid_pre.expand_as(running).flatten(0, 1))
    if layer + 1 == model.cfg.n_layers:  # only the last token is read
        mid = _narrowed(mid, base.at)
    x = block.feed_forward(mid)
    assert isinstance(x, Tensor), "a model of one residual stream"
    return _layers_from(model, base, layer + 1, x).unflatten(0, change.shape[:2])


def go_on_behind_layer(
    model: HookedLM, base: ModelRun, layer: int, change: Float[Tensor, "n pair pos d_model"]
) -> Float[Tensor, "n pair d_model"]:
    """The final streams at the last tokens, `change` added to the stream behind `layer`."""
    own = base.layers[layer]
    x = (own.resid_mid + own.mlp_out + change).flatten(0, 1)
    return _layers_from(model, base, layer + 1, x).unflatten(0, change.shape[:2])


def _layers_from(model: HookedLM, base: ModelRun, first: int, x: Tensor) -> Float[Tensor, "row d_model"]:
    cache = _Prefix(base) if base.start else None
    for layer in range(first, model.cfg.n_layers):
        state = model.blocks[layer].attend(x, cache)
        if layer + 1 == model.cfg.n_layers:
            state = _narrowed(state, base.at)
        x = model.blocks[layer].feed_forward(state)  # type: ignore[assignment]
    return x[:, 0] if x.shape[1] == 1 else at_last(x, base.at)[:, 0]


def _narrowed(state: Any, at: Tensor) -> Attended | Tensor:
    if isinstance(state, Attended):
        return Attended(at_last(state.running, at), at_last(state.resid_pre, at))
    return at_last(state, at)


def sum_of_heads(
    block: Block, change: Float[Tensor, "n pair pos head d_head"], heads: Sequence[int]
) -> Float[Tensor, "n pair pos d_model"]:
    """What a change of these heads' z adds to what heads write together; `change` has these heads alone."""
    W_O = block.attn.W_O[list(heads)].flatten(0, 1).to(change.dtype)
    return change.flatten(-2) @ W_O
