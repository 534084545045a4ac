"""The effect of each path: a sender's output as one part of the model reads it, and all else as it was.

For a sender s and a receiver r the sender's change of the stream is Δ = (z_source − z_base) W_O[h], or behind a norm
norm(o + δ) − norm(o). The receiver reads norm(x_base + Δ); its own activation then stands in for the base's, and the
model goes on from there (Wang et al. 2023, path patching; Goldowsky-Dill et al. 2023).

All senders ahead of a receiver are one batch: what the receiver makes of them is one product, and what follows is the
part of the model behind the receiver, at the positions where the prompts differ or later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import einsum
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.analyses.patch.sites import places_of
from workbench.analyses.paths.layer_runs import (
    LayerRun,
    Sizes,
    first_difference,
    go_on_behind_attention,
    go_on_behind_layer,
    mlp_write,
    read_changed,
    run_layers,
    sum_of_heads,
    with_prefix,
)
from workbench.analyses.paths.measures import Metric, measure_streams
from workbench.data.pairs import PairTokens
from workbench.models import HookedLM
from workbench.models.block import Block

WHOLE = -1  # the head of a sender or receiver that is an MLP, or the logits


class Sender(NamedTuple):
    """A head, or an MLP (head −1)."""

    layer: int
    head: int


class Receiver(NamedTuple):
    """What a sender is read by: q, k or v of a head, an MLP (head −1), or the logits (of the layer behind the last)."""

    layer: int
    site: str
    head: int


@dataclass(frozen=True)
class PathEffects:
    """What each path changes of the measure, and what the whole prompt does."""

    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    effects: Float64[Tensor, "receiver sender pair"]
    """nan where the sender is not ahead of the receiver"""
    gaps: Float64[Tensor, " pair"]
    """measure of the source − measure of the base"""
    base: Float64[Tensor, " pair"]


@dataclass(frozen=True)
class How:
    """How a path is taken.

    Attributes:
        direction: denoise, base corrupt and source clean; or noise, the reverse.
        mlps: frozen, or live: MLPs between sender and receiver are computed anew, heads are not.
        is_scale_frozen: whether the receiver's norm keeps the scale of the base.
        is_per_query_head: whether k and v are of each query head rather than of each key/value head.
        metric: what is measured.
        position: at which the sender's output is changed, as `patch.sites.places_of` names it.
    """

    direction: str = "denoise"
    mlps: Literal["frozen", "live"] = "frozen"
    is_scale_frozen: bool = False
    is_per_query_head: bool = False
    metric: Metric = "effect"
    position: str = "all"


def is_ahead(sender: Sender, receiver: Receiver, is_parallel: bool) -> bool:
    """Whether the receiver reads what the sender writes."""
    if sender.layer != receiver.layer:
        return sender.layer < receiver.layer
    return receiver.site == "mlp" and sender.head != WHOLE and not is_parallel


@torch.no_grad()
def path_effects(
    model: HookedLM,
    pairs: PairTokens,
    senders: Sequence[Sender],
    receivers: Sequence[Receiver],
    how: How,
    sizes: Sizes,
) -> PathEffects:
    """The effect of every path from a sender to a receiver, of every pair.

    The model is one of a single residual stream, and senders and receivers are parts of it.
    """
    senders, receivers = sorted(set(senders)), sorted(set(receivers))
    parts, bases, gaps = [], [], []
    for first in range(0, len(pairs), sizes.n_pairs):
        own = pairs.take(slice(first, first + sizes.n_pairs))
        of_batch, base, source = _Batch(model, own, how, sizes).measure(senders, receivers)
        parts.append(of_batch)
        bases.append(base)
        gaps.append(source - base)
    effects = torch.cat(parts, dim=2)
    return PathEffects(tuple(senders), tuple(receivers), effects, torch.cat(gaps), torch.cat(bases))


class _Batch:
    """Some of the pairs: both runs, and the changes that senders make on their way through the layers."""

    def __init__(self, model: HookedLM, pairs: PairTokens, how: How, sizes: Sizes) -> None:
        self.model, self.how = model, how
        start = first_difference(pairs)
        device = model.W_E.device
        last = pairs.last
        sides = pairs.sides(how.direction)
        self.base, self.source = (run_layers(model, own.to(device), last, start) for own in sides)
        self.pairs, self.n_pos = pairs, pairs.clean.shape[1] - start
        self.clean_final = (self.source if how.direction == "denoise" else self.base).final
        self.base_measure = self._measure(self.base.final[None])[0]
        self.n_rows = max(1, sizes.n_tokens // (len(pairs) * self.n_pos))
        self.mask = _mask(pairs, how.position, start).to(device)

    def measure(self, senders: Sequence[Sender], receivers: Sequence[Receiver]) -> tuple[Tensor, Tensor, Tensor]:
        """(effects [receiver sender pair], measure of the base, of the source)."""
        model, n_layers = self.model, self.model.cfg.n_layers
        found = torch.full((len(receivers), len(senders), len(self.pairs)), torch.nan, dtype=torch.float64)
        changes = self.base.final.new_zeros(len(senders), len(self.pairs), self.n_pos, model.cfg.d_model)
        n_ahead = 0  # senders come by layer, an MLP (−1) ahead of its layer's heads
        for layer in range(n_layers):
            own = [i for i, receiver in enumerate(receivers) if receiver.layer == layer]
            of_heads = [i for i in own if receivers[i].site != "mlp"]
            for receiver, part, effect in self._into_heads(layer, [receivers[i] for i in of_heads], changes[:n_ahead]):
                found[of_heads[receiver], part] = effect
            here = [i for i, sender in enumerate(senders) if sender.layer == layer]
            heads = [i for i in here if senders[i].head != WHOLE]
            if heads:
                changes[heads] = self._of_heads(layer, [senders[i].head for i in heads])
            if model.cfg.parallel_attn_mlp or not heads:
                reading = torch.arange(n_ahead)
            else:
                reading = torch.tensor([*range(n_ahead), *heads])
            for i in own:
                if receivers[i].site == "mlp":
                    for part, effect in self._into_mlp(layer, changes, reading):
                        found[i, part] = effect
            if self.how.mlps == "live":
                for part in reading.split(self.n_rows):
                    changes[part] += self._mlp_change(layer, changes[part], is_scale_frozen=False)
            for i in set(here) - set(heads):
                moved = self.source.layers[layer].mlp_out - self.base.layers[layer].mlp_out
                changes[i] = moved * self.mask[..., None]
            n_ahead += len(here)
        for i, receiver in enumerate(receivers):
            if receiver.layer == n_layers:
                rows = torch.arange(len(self.pairs), device=changes.device)
                final = self._final_changed(changes[:, rows, self.base.at])
                found[i] = final - self.base_measure
        return found, self.base_measure, self._measure(self.source.final[None])[0]

    # --- senders

    def _of_heads(self, layer: int, heads: Sequence[int]) -> Float[Tensor, "sender pair pos d_model"]:
        """What replacing each head's z by the source's adds to the stream."""
        block, base, source = self.model.blocks[layer], self.base.layers[layer], self.source.layers[layer]
        moved = (source.z - base.z)[:, :, list(heads)] * self.mask[..., None, None]
        W_O = block.attn.W_O[list(heads)].to(moved.dtype)
        written = einsum(moved, W_O, "pair pos head e, head e d -> head pair pos d")
        if block.norm_behind is None:
            return written
        return block.behind_attention(base.written + written) - block.behind_attention(base.written)

    # --- receivers

    def _into_heads(
        self, layer: int, receivers: Sequence[Receiver], changes: Float[Tensor, "sender pair pos d_model"]
    ) -> Iterator[tuple[int, slice, Float64[Tensor, "sender pair"]]]:
        """(index of the receiver, senders, their effects) of receivers that are q, k or v of heads."""
        block, own = self.model.blocks[layer], self.base.layers[layer]
        groups = self.model.cfg.n_heads // self.model.cfg.kv_heads
        norm = None if self.model.cfg.extensions.post_norm else block.ln1
        for first in range(0, len(changes) if receivers else 0, self.n_rows):
            part = slice(first, min(first + self.n_rows, len(changes)))
            x = read_changed(norm, own.resid_pre, changes[part], self.how.is_scale_frozen)
            mixed = self._mixed(block, own, x.flatten(0, 1), {receiver.site for receiver in receivers})
            for i, receiver in enumerate(receivers):
                is_whole_group = receiver.site != "q" and not self.how.is_per_query_head
                heads = [receiver.head * groups + j for j in range(groups)] if is_whole_group else [receiver.head]
                z = mixed[receiver.site][:, :, heads].unflatten(0, x.shape[:2])
                change = sum_of_heads(block, z - own.z[:, :, heads], heads)
                final = go_on_behind_attention(self.model, self.base, layer, change)
                yield i, part, self._measure(final) - self.base_measure

    def _mixed(self, block: Block, own: LayerRun, x: Tensor, sites: set[str]) -> dict[str, Tensor]:
        """z [n·pair pos head d_head] of all heads with q, k or v made of x, the other two the base's.

        Heads do not read each other, so that one head's z is the same whether the others are changed or not.
        """
        attn, start = block.attn, self.base.start
        q, k, v = attn.project(x)
        q, k = attn.turn(q, k, start)
        n = len(x) // len(own.q)
        old = [t.repeat(n, 1, 1, 1) for t in (own.q, own.k, own.v)]
        found = {}
        if "q" in sites:
            found["q"] = attn.mix(q, old[1], old[2])
        if "k" in sites:
            found["k"] = attn.mix(old[0], with_prefix(own.k, k, start), old[2])
        if "v" in sites:
            found["v"] = attn.mix(old[0], old[1], with_prefix(own.v, v, start))
        return found

    def _into_mlp(
        self, layer: int, changes: Tensor, reading: Tensor
    ) -> Iterator[tuple[Tensor, Float64[Tensor, "sender pair"]]]:
        for part in reading.split(self.n_rows):
            change = self._mlp_change(layer, changes[part], self.how.is_scale_frozen)
            yield part, self._measure(go_on_behind_layer(self.model, self.base, layer, change)) - self.base_measure

    def _mlp_change(self, layer: int, change: Tensor, is_scale_frozen: bool) -> Tensor:
        """What the layer's MLP adds to the stream beyond the base's, where it reads the base and `change`."""
        block, own, cfg = self.model.blocks[layer], self.base.layers[layer], self.model.cfg
        read = own.resid_pre if cfg.parallel_attn_mlp else own.resid_mid
        if not is_scale_frozen:
            return mlp_write(block, read + change) - own.mlp_out
        norm = None if cfg.extensions.post_norm else block.ln2
        return block.behind_mlp(block.mlp(read_changed(norm, read, change, True))) - own.mlp_out

    # --- the measure

    def _measure(self, final: Float[Tensor, "n pair d_model"]) -> Float64[Tensor, "n pair"]:
        """Of final streams at the last tokens."""
        return self._read(self.model.ln_final(final))

    def _final_changed(self, change: Float[Tensor, "n pair d_model"]) -> Float64[Tensor, "n pair"]:
        norm, base = self.model.ln_final, self.base.final[:, None]
        changed = read_changed(norm, base, change[:, :, None], self.how.is_scale_frozen)
        return self._read(changed[:, :, 0])

    def _read(self, normed: Float[Tensor, "n pair d_model"]) -> Float64[Tensor, "n pair"]:
        clean = self.model.ln_final(self.clean_final)
        return measure_streams(self.model, normed, self.pairs, self.how.metric, clean)


def _mask(pairs: PairTokens, position: str, start: int) -> Tensor:
    """[pair pos] from `start` on: True where the sender's output is changed."""
    return places_of(pairs, [position])[0].mask(pairs)[:, start:]
