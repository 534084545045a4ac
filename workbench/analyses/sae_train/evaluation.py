"""What a stack of SAEs is worth on held-out tokens: its own measures beside its controls', and the loss with its
reconstruction in the place of what it reconstructs. Measured, and replaced, are the positions that SAEs are meant for.

Two controls stand beside every SAE: `random`, a dictionary of random directions of the same size and sparsity, and
`shuffled`, the same SAE on activations whose coordinates were permuted over the tokens, each by itself.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from sae.controls import random_dictionary, shuffle_coordinates
from sae.metrics import MetricSums, SAEMetrics
from sae.stack import StackedSAE
from workbench.analyses.ablate.engine import (
    LOGITS_HELD,
    TOKENS_TOGETHER,
    ablated_states,
    clean_pass,
    compare,
    reference,
    sequence_means,
)
from workbench.analyses.ablate.generic import losses_and_kl
from workbench.data.blocks import block_numbers, block_runs, without_each
from workbench.models import HookedLM
from workbench.models.activations import EVERYWHERE, Positions, Slot, at, collect, collect_groups, special_ids
from workbench.models.checks import device_of, is_whole, run_hooked

FORWARD_TOKENS = 4096  # tokens in one forward pass
CONTROL_TOKENS = 4096  # training tokens that the random dictionary's bias is fitted on
SHUFFLED_TOKENS = 32768  # measured of the shuffled control, whose fvu needs no more
OUTLYING = 3  # times the median length, beyond which an activation is outlying
PROBED = 8  # token ids of the sequences that hooks are tried on
LEAK = 0.05  # of the logits' difference between two sequences, what rounding may leave of it at most (bfloat16)
BLOCK_TOKENS = 512  # tokens encoded at once on a CPU: their activations stay in the cache


class SpliceLosses(NamedTuple):
    """Next-token losses, mean nats over all predictions of the tokens given."""

    n_tokens: int
    """tokens of the sequences"""
    base: float
    """of the model as it is"""
    zero: Float64[Tensor, "slot"]
    """with this slot's activation zeroed, all others as they are"""
    spliced: dict[str, Float64[Tensor, "n_saes"]]
    """with this SAE's reconstruction in its slot, all others as they are; one entry a dictionary"""
    zero_stderr: Float64[Tensor, "slot"]
    """standard error of zero − base, paired over sequences; nan for a single one"""
    spliced_stderr: dict[str, Float64[Tensor, "n_saes"]]
    """standard errors of spliced − base, likewise"""


class Spliced(NamedTuple):
    """Of every sequence, means over its predictions in nats. A round puts zero, then the reconstruction of each
    dictionary's 1st, 2nd … SAE, in one slot's place, all others as they are."""

    base: Float64[Tensor, " sequence"]
    """loss of the model as it is"""
    loss: Float64[Tensor, "round slot sequence"]
    kl: Float64[Tensor, "round slot sequence"] | None
    """KL(base‖spliced); None where it was not asked for"""

    def of(self, is_kept: Bool[Tensor, " sequence"]) -> Spliced:
        """The same of some of the sequences."""
        kl = None if self.kl is None else self.kl[..., is_kept]
        return Spliced(self.base[is_kept], self.loss[..., is_kept], kl)

    def losses(self, names: Sequence[str], n_ctx: int) -> SpliceLosses:
        """Means over the sequences, of n_ctx tokens each. names: of the dictionaries, in their order."""
        n_each = (len(self.loss) - 1) // len(names)
        means, errors = self.loss.mean(dim=-1), _standard_error(self.loss - self.base)
        spliced, spliced_error = (
            dict(zip(names, rearrange(own[1:], "(stack each) slot -> stack (slot each)", each=n_each), strict=True))
            for own in (means, errors)
        )
        n_tokens = len(self.base) * n_ctx
        return SpliceLosses(n_tokens, float(self.base.mean()), means[0], spliced, errors[0], spliced_error)

    def losses_without_blocks(self, names: Sequence[str], n_ctx: int) -> list[SpliceLosses]:
        """`losses` without each block of the sequences; nothing for fewer than 8."""
        numbers = torch.tensor(block_numbers(len(self.base)))
        n = int(numbers.max()) + 1
        return [self.of(numbers != block).losses(names, n_ctx) for block in range(n)] if n > 1 else []


def forward_batches(tokens: Int[Tensor, "n n_ctx"], n_tokens: int = FORWARD_TOKENS) -> list[Int[Tensor, "rows n_ctx"]]:
    """The sequences in order, in batches of about n_tokens tokens."""
    return list(tokens.split(max(1, n_tokens // tokens.shape[1])))


@torch.no_grad()
def measure(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    slots: Sequence[Slot],
    slot_index: Sequence[int],
    dictionaries: Mapping[str, StackedSAE],
    shuffled: str | None = "trained",
    generator: torch.Generator | None = None,
    on_progress: Callable[[float], None] | None = None,
    *,
    positions: Positions = EVERYWHERE,
    left_out: LeftOut | None = None,
    outs: Sequence[Slot] | None = None,
) -> dict[str, SAEMetrics]:
    """The measures of every dictionary on all tokens at the positions, from one pass of the model; on the CPU, where
    tables are made.

    Args:
        slots: what the model's hooks give.
        slot_index: the slot of each SAE of a stack.
        dictionaries: stacks of one size by name.
        shuffled: the dictionary that is also measured on shuffled activations, as "shuffled", on part of the tokens
            (batches evenly spaced, SHUFFLED_TOKENS in all); None: none.
        generator: draws the permutations; each batch is shuffled within itself.
        left_out: takes the activations at the other positions, too.
        outs: of transcoders, what each slot's reconstruct.
    """
    part = Measured(slots, slot_index, dictionaries, shuffled, generator, left_out, outs)
    (found,) = measure_together(model, tokens, [part], on_progress, positions=positions)
    return found


class Measured:
    """One stack that is measured, with its controls: what `measure` is given of it, and its sums."""

    def __init__(
        self,
        slots: Sequence[Slot],
        slot_index: Sequence[int],
        dictionaries: Mapping[str, StackedSAE],
        shuffled: str | None = "trained",
        generator: torch.Generator | None = None,
        left_out: LeftOut | None = None,
        outs: Sequence[Slot] | None = None,
    ) -> None:
        assert shuffled is None or generator is not None, "shuffling needs a generator"
        self.groups = [tuple(slots)] if outs is None else [tuple(slots), tuple(outs)]
        """slots that are read, and those of what transcoders reconstruct"""
        self.left_out = left_out
        self._index, self._dictionaries = torch.as_tensor(slot_index), dictionaries
        self._shuffled, self._generator = shuffled, generator
        self._sums: dict[str, list[MetricSums]] = {name: [] for name in dictionaries}  # of each block of the text
        if shuffled is not None:
            self._sums["shuffled"] = [_no_sums(dictionaries[shuffled])]

    def update(
        self,
        everything: Sequence[Float[Tensor, "slot tokens width"]],
        is_counted: Bool[Tensor, "batch pos"],
        is_shuffled: bool,
        numbers: Sequence[int],
    ) -> None:
        """Take the activations of a batch, a group each, at all its positions; is_shuffled: the shuffled control takes
        them, too. numbers: the block of the text of each sequence."""
        counted = [at(is_counted, own) for own in everything]
        rows = torch.repeat_interleave(torch.tensor(numbers), is_counted.sum(dim=1)).tolist()
        for name, stack in self._dictionaries.items():
            own = self._sums[name]
            own += [_no_sums(stack) for _ in range(max(numbers) + 1 - len(own))]
            _add(own, stack, counted, self._index, rows)
        if self.left_out is not None:
            self.left_out.update(everything, is_counted, self._dictionaries, self._index)
        if self._shuffled is not None and is_shuffled:
            assert self._generator is not None
            mixed = [shuffle_coordinates(own, self._generator) for own in counted]
            sums = self._sums["shuffled"]
            _add(sums, self._dictionaries[self._shuffled], mixed, self._index, [0] * mixed[0].shape[1])

    def finish(self) -> dict[str, SAEMetrics]:
        """The measures of every dictionary, on the CPU."""
        sums = {name: functools.reduce(operator.add, own) for name, own in self._sums.items()}
        if self.left_out is not None:
            self.left_out.finish(sums)
        return {name: own.result().cpu() for name, own in sums.items()}

    def without_blocks(self) -> list[dict[str, SAEMetrics]]:
        """The measures of every dictionary without each block of the text; nothing for fewer than 8 sequences. The
        shuffled control, which reads part of the tokens, has none."""
        left_out = [without_each(self._sums[name], operator.add) for name in self._dictionaries]
        return [
            {name: own.result().cpu() for name, own in zip(self._dictionaries, sums, strict=True)}
            for sums in zip(*left_out, strict=True)
        ]


@torch.no_grad()
def measure_together(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    parts: Sequence[Measured],
    on_progress: Callable[[float], None] | None = None,
    *,
    positions: Positions = EVERYWHERE,
) -> list[dict[str, SAEMetrics]]:
    """What `measure` gives for each of several stacks, which one pass of the model feeds."""
    batches = forward_batches(tokens)
    stride = -(-tokens.numel() // SHUFFLED_TOKENS)
    read = list(dict.fromkeys(group for part in parts for group in part.groups))
    numbers, done = block_numbers(len(tokens)), 0
    for number, batch in enumerate(batches):
        found = dict(zip(read, collect_groups(model, batch, read, number), strict=True))
        is_counted = positions.of(batch)
        for part in parts:
            own = [found[group] for group in part.groups]
            part.update(own, is_counted, number % stride == 0, numbers[done : done + len(batch)])
        done += len(batch)
        if on_progress is not None:
            on_progress((number + 1) / len(batches))
    return [part.finish() for part in parts]


class LeftOut:
    """What the positions left out of the measures would add: fvu with them, and how many activations are outlying.

    An activation is outlying that is longer than three times the median of its slot's, over every position; of
    transcoders, what is reconstructed.

    Memory: 4 bytes for each token and slot.
    """

    def __init__(self, dictionaries: Mapping[str, StackedSAE], slot_index: Sequence[int]) -> None:
        self.fvu: dict[str, Float64[Tensor, "n_saes"]] = {}
        """of each dictionary at all positions"""
        self.n_left_out = 0
        """tokens at positions that are not measured"""
        self._left_out = {name: MetricSums(stack.config, device_of(stack)) for name, stack in dictionaries.items()}
        self._slot_index = torch.as_tensor(slot_index)
        self._norms: list[Float[Tensor, "slot tokens"]] = []
        self._is_counted: list[Bool[Tensor, "tokens"]] = []

    def update(
        self,
        everything: Sequence[Float[Tensor, "slot tokens width"]],
        is_counted: Bool[Tensor, "batch pos"],
        dictionaries: Mapping[str, StackedSAE],
        index: Int[Tensor, "n_saes"],
    ) -> None:
        """Take the activations of a batch, what is read and what transcoders reconstruct, at all its positions."""
        self._norms.append(everything[-1].norm(dim=-1).cpu())
        self._is_counted.append(is_counted.flatten())
        left_out = [at(~is_counted, own) for own in everything]
        self.n_left_out += left_out[0].shape[1]
        for name, stack in dictionaries.items():
            _add([self._left_out[name]], stack, left_out, index, [0] * left_out[0].shape[1])

    def finish(self, sums: Mapping[str, MetricSums]) -> None:
        """Take the sums of the positions that are measured."""
        for name, own in self._left_out.items():
            own.merge(sums[name])
            self.fvu[name] = own.result().cpu().fvu

    def count_outlying(self) -> tuple[Int[Tensor, "n_saes"], Int[Tensor, "n_saes"]]:
        """(outlying activations at all positions, those of them that are not measured) of each SAE's slot."""
        norms, is_counted = torch.cat(self._norms, dim=1), torch.cat(self._is_counted)
        is_outlying = norms > OUTLYING * torch.from_numpy(np.median(norms.numpy(), axis=1, keepdims=True))
        everywhere, left_out = is_outlying.sum(dim=1), is_outlying[:, ~is_counted].sum(dim=1)
        return everywhere[self._slot_index], left_out[self._slot_index]


def _no_sums(stack: StackedSAE) -> MetricSums:
    return MetricSums(stack.config, device_of(stack))


def _add(
    sums: Sequence[MetricSums],
    stack: StackedSAE,
    given: Sequence[Float[Tensor, "slot tokens width"]],
    index: Int[Tensor, "n_saes"],
    numbers: Sequence[int],
) -> None:
    """Add what is reconstructed, the last one given, beside the reconstruction of the first. numbers: of each token,
    which of the sums it is added to."""
    done = 0
    for pieces in zip(*map(_pieces, given), strict=True):
        own = [piece[index] for piece in pieces]
        acts, recon = stack(own[0])
        for number, at_once in block_runs(numbers[done : done + acts.shape[1]]):
            sums[number].update(own[-1][:, at_once], acts[:, at_once], recon[:, at_once])
        done += acts.shape[1]


def _pieces(x: Float[Tensor, "slot tokens d_in"]) -> tuple[Float[Tensor, "slot piece d_in"], ...]:
    """The tokens in order, as many together as are encoded at once."""
    return x.split(BLOCK_TOKENS if x.device.type == "cpu" else x.shape[1], dim=1)


@torch.no_grad()
def random_control(
    stack: StackedSAE,
    x: Float[Tensor, "n_saes tokens d_in"],
    generators: Sequence[torch.Generator],
    y: Float[Tensor, "n_saes tokens d_out"] | None = None,
) -> StackedSAE:
    """Random directions as sparse on x as the trained stack is; a generator per SAE draws them. y: what transcoders
    reconstruct."""
    n_active = torch.stack([(stack.encode(block) > 0).sum(dim=(1, 2)) for block in _pieces(x)]).sum(dim=0)
    # a dead SAE's control still has to be one: one activation in all the tokens
    l0 = (n_active.double() / x.shape[1]).clamp(1 / x.shape[1], stack.config.d_sae - 1 / x.shape[1])
    return random_dictionary(stack.config, x, l0.tolist(), generators, y=y)


@torch.no_grad()
def splice(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    slots: Sequence[Slot],
    slot_index: Sequence[int],
    dictionaries: Mapping[str, StackedSAE],
    on_progress: Callable[[float], None] | None = None,
    *,
    positions: Positions = EVERYWHERE,
    outs: Sequence[Slot] | None = None,
) -> SpliceLosses:
    """The loss with one slot at a time replaced at the positions: by zero, and by the reconstruction of each of its
    SAEs. At other positions it stays as it is; the loss is the mean over all predictions.

    A head's part of the stream is linear in its z, so heads of a `HookedLM` go the way of ablations: the state after
    attention plus (recon − z_h) W_O[h] continues behind it, all heads of a layer together. Any other hook is replaced
    by a hook in a forward that starts at the slot's layer; in any other model, in a whole forward.

    slot_index: the slot of each SAE; as many SAEs for every slot, slot by slot. outs: of transcoders, the slot in each
    one's layer that is reconstructed from it, and replaced.
    """
    found = splice_sequences(
        model, tokens, slots, slot_index, dictionaries, on_progress, positions=positions, outs=outs
    )
    return found.losses(list(dictionaries), tokens.shape[1])


@torch.no_grad()
def splice_sequences(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    slots: Sequence[Slot],
    slot_index: Sequence[int],
    dictionaries: Mapping[str, StackedSAE],
    on_progress: Callable[[float], None] | None = None,
    *,
    positions: Positions = EVERYWHERE,
    has_kl: bool = False,
    outs: Sequence[Slot] | None = None,
) -> Spliced:
    """What `splice` takes means of, sequence by sequence; with has_kl, how far each round moves the predictions."""
    n_each = len(slot_index) // len(slots)
    assert list(slot_index) == [slot for slot in range(len(slots)) for _ in range(n_each)], slot_index
    batches = splice_batches(model, tokens, slots)
    base, rounds = [], []
    for number, batch in enumerate(batches):
        batch, stacks = batch.to(device_of(model)), list(dictionaries.values())
        is_counted = positions.of(batch).flatten()
        if _is_linear(model, slots):
            own_base, own = _spliced_heads(model, batch, is_counted, slots, n_each, stacks, has_kl)
        else:
            own_base, own = _spliced_hooks(model, batch, is_counted, slots, n_each, stacks, has_kl, outs)
        base.append(own_base)
        rounds.append(own)
        if on_progress is not None:
            on_progress((number + 1) / len(batches))
    loss, *kl = torch.cat(rounds, dim=-1)
    return Spliced(torch.cat(base), loss, kl[0] if kl else None)


def splice_batches(
    model: Any, tokens: Int[Tensor, "n n_ctx"], slots: Sequence[Slot]
) -> list[Int[Tensor, "rows n_ctx"]]:
    """The sequences in order, in batches as `splice` takes them: all heads of a layer go on together."""
    is_linear = _is_linear(model, slots)
    n_heads = max(sum(slot.layer == own.layer for own in slots) for slot in slots) if is_linear else 1
    return forward_batches(tokens, max(tokens.shape[1], TOKENS_TOGETHER // n_heads))


def _is_linear(model: Any, slots: Sequence[Slot]) -> bool:
    return is_whole(model) and all(slot.head is not None for slot in slots)


def _standard_error(differences: Float64[Tensor, "*n sequence"]) -> Float64[Tensor, "*n"]:
    n = differences.shape[-1]
    if n < 2:
        return torch.full(differences.shape[:-1], torch.nan, dtype=torch.float64)
    return differences.std(dim=-1) / n**0.5


def recovered(base: float, zero: Float[Tensor, "*n"], spliced: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """(zero − spliced) / (zero − base); nan where zeroing changes nothing."""
    gain = zero - base
    return torch.where(gain == 0, torch.nan, (zero - spliced) / gain)


def _rounds(
    x: Float[Tensor, "slot tokens d_in"],
    is_counted: Bool[Tensor, "tokens"],
    n_each: int,
    stacks: Sequence[StackedSAE],
    y: Float[Tensor, "slot tokens d_out"] | None = None,
) -> Float[Tensor, "round slot tokens d_out"]:
    """What stands in for x, or for y that transcoders reconstruct from it, in each round: zero, then the reconstruction
    of each stack's 1st, 2nd … SAE of a slot; at positions that do not count x or y itself."""
    y = x if y is None else y
    repeated = x.repeat_interleave(n_each, dim=0)
    recons = [rearrange(stack(repeated)[1], "(slot each) t d -> each slot t d", each=n_each) for stack in stacks]
    rounds = torch.cat([torch.zeros_like(y)[None], *(recon.to(y) for recon in recons)])
    rounds[:, :, ~is_counted] = y[:, ~is_counted]
    return rounds


def _spliced_heads(
    model: HookedLM,
    tokens: Int[Tensor, "batch pos"],
    is_counted: Bool[Tensor, "tokens"],
    slots: Sequence[Slot],
    n_each: int,
    stacks: Sequence[StackedSAE],
    has_kl: bool,
) -> tuple[Float64[Tensor, "batch"], Float64[Tensor, "value round slot batch"]]:
    """(base loss, losses and, with has_kl, KL) of every sequence, for slots that are heads."""
    layers = sorted({slot.layer for slot in slots})
    clean = clean_pass(model, tokens, layers)
    base = reference(model, clean.final, tokens, LOGITS_HELD)
    x = torch.stack([clean.z[slot.layer][:, :, slot.head].flatten(0, 1).float() for slot in slots])
    rounds = _rounds(x, is_counted, n_each, stacks)
    losses = torch.empty(1 + has_kl, len(rounds), len(slots), len(tokens), dtype=torch.float64)
    n_rows = len(base.loss)
    for layer in layers:
        at = [i for i, slot in enumerate(slots) if slot.layer == layer]
        heads = [slot.head for slot in slots if slot.layer == layer and slot.head is not None]
        for number, stand_in in enumerate(rounds):
            z = clean.z[layer].clone()
            z[:, :, heads] = rearrange(stand_in[at], "head (batch pos) d -> batch pos head d", batch=len(tokens)).to(z)
            state = model.blocks[layer].feed_forward(ablated_states(model, clean, layer, heads, z), model.read_out)  # type: ignore[operator]
            state = model(state, start_at_layer=layer + 1, return_type=None)
            x_final = model.ln_final(model.read_out(state))[:, :-1]
            values = compare(model, x_final.reshape(len(heads), n_rows, -1), base, LOGITS_HELD)
            for own, value in zip(losses, values, strict=False):
                own[number, at] = value.double().unflatten(1, (len(tokens), -1)).mean(dim=-1).cpu()
    return base.loss.double().view(len(tokens), -1).mean(dim=-1).cpu(), losses


def _spliced_hooks(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    is_counted: Bool[Tensor, "tokens"],
    slots: Sequence[Slot],
    n_each: int,
    stacks: Sequence[StackedSAE],
    has_kl: bool,
    outs: Sequence[Slot] | None,
) -> tuple[Float64[Tensor, "batch"], Float64[Tensor, "value round slot batch"]]:
    """(base loss, losses and, with has_kl, KL) of every sequence, for slots of any hook of any model."""
    x, *ys = collect_groups(model, tokens, [slots] if outs is None else [slots, outs])
    rounds = _rounds(x, is_counted, n_each, stacks, *ys)
    slots, x = (slots, x) if outs is None else (outs, ys[0])
    losses = torch.empty(1 + has_kl, *rounds.shape[:2], len(tokens), dtype=torch.float64)
    clean = _clean_prediction(model, tokens) if has_kl else None
    # other models than ours go from the tokens to the end each time: bridges start nowhere else, and the blocks of a
    # shortformer are given the positions too, which a state does not hold
    state, reached = (model(tokens, stop_at_layer=0), 0) if is_whole(model) else (tokens, None)
    for i in sorted(range(len(slots)), key=lambda i: slots[i].layer):
        slot = slots[i]
        if reached is not None:
            state, reached = model(state, start_at_layer=reached, stop_at_layer=slot.layer), slot.layer
        for number in range(len(rounds)):
            hooks = stand_in(model, slot, x[i], rounds[number, i])
            losses[:, number, i] = _sequence_values(model, state, reached, tokens, hooks, clean)
    return _sequence_values(model, state, reached, tokens, [], clean)[0], losses


@torch.no_grad()
def check_stand_ins(model: Any, slots: Sequence[Slot]) -> None:
    """Raise ValueError for a hook in whose place nothing can stand: the logits do not depend on it, or it is a
    residual stream that goes on past it.

    Two sequences are given one and the same activation there. The logits must change; and where all that a block knows
    of the tokens comes through the stream (in other models than ours), they must come out the same for both.
    """
    special = special_ids(model)
    ids = [token for token in range(model.cfg.d_vocab) if token not in special][:PROBED] or [0]
    n_ctx = min(model.cfg.n_ctx, PROBED // 2)
    rows = [[ids[(row + pos) % len(ids)] for pos in range(n_ctx)] for row in (0, PROBED // 2)]
    tokens = torch.tensor(rows, device=device_of(model))
    plain = run_hooked(model, tokens, [], return_type="logits")
    for whole in dict.fromkeys(Slot(slot.hook_name, slot.layer) for slot in slots):
        (x,) = collect(model, tokens, [whole])
        value = torch.randn(n_ctx, x.shape[1], generator=torch.Generator().manual_seed(0)).to(x.device).repeat(2, 1)
        hooks = stand_in(model, whole, x, value * x.square().mean().sqrt())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an edit changes nothing is what is asked
            edited = run_hooked(model, tokens, hooks, return_type="logits")
        if torch.equal(edited, plain):
            raise ValueError(
                f"hook: got {whole.hook_name}; what stands in its place changes no logit of this model, so that no SAE "
                "can be measured there; expected another hook, such as hook_resid_pre or hook_mlp_out"
            )
        is_stream = ".hook_resid_" in whole.hook_name and not isinstance(model, HookedLM)
        differ, differed = (float((own[0] - own[1]).abs().max()) for own in (edited, plain))
        if is_stream and differ > LEAK * differed:
            raise ValueError(
                f"hook: got {whole.hook_name}, which the residual stream of this model goes past: no SAE can stand in "
                "for it; expected hook_resid_pre or hook_resid_post"
            )


def stand_in(
    model: Any, slot: Slot, x: Float[Tensor, "tokens d_in"], value: Float[Tensor, "tokens d_in"]
) -> list[tuple[str, Callable[[Tensor, Any], Tensor]]]:
    """Hooks that put the value in the place of the slot's activation x.

    A bridge's hook_resid_mid is what its second norm reads; the stream itself goes past it. There the change is added
    to the stream where the block ends, too.
    """

    def replace(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        place = changed if slot.head is None else changed[:, :, slot.head]
        place.copy_(value.view(place.shape))
        return changed

    def add_change(activation: Tensor, hook: Any) -> Tensor:
        return activation + (value - x).view(activation.shape).to(activation)

    hooks = [(slot.hook_name, replace)]
    point = model.hook_dict[slot.hook_name].name
    if slot.hook_name.endswith(".hook_resid_mid") and point != slot.hook_name:
        hooks.append((f"blocks.{slot.layer}.hook_resid_post", add_change))
    return hooks


def _clean_prediction(model: Any, tokens: Int[Tensor, "batch pos"]) -> Any:
    """What predictions are compared with: of a model of ours in blocks of logits, of any other all of them."""
    if not is_whole(model):
        return run_hooked(model, tokens, [], return_type="logits")
    return reference(model, model(tokens, return_type=None), tokens, LOGITS_HELD)


def _sequence_values(
    model: Any,
    state: Any,
    layer: int | None,
    tokens: Int[Tensor, "batch pos"],
    hooks: list[tuple[str, Callable]],
    clean: Any,
) -> Float64[Tensor, "value batch"]:
    """Mean loss and, beside a clean prediction, mean KL from it, of every sequence, from the state entering `layer`;
    None: from the tokens."""
    if clean is None:
        scored: dict[str, Any] = {"return_type": "loss", "loss_per_token": True}
        if layer is None:
            per_token = run_hooked(model, tokens, hooks, **scored)
        else:
            per_token = model.run_with_hooks(state, start_at_layer=layer, tokens=tokens, fwd_hooks=hooks, **scored)
        return per_token.double().mean(dim=1).cpu()[None]
    if layer is None:
        logits = run_hooked(model, tokens, hooks, return_type="logits")
        return torch.stack(losses_and_kl(logits, clean, tokens, LOGITS_HELD))
    span: dict[str, Any] = {"start_at_layer": layer, "tokens": tokens, "return_type": None}
    final = model.run_with_hooks(state, fwd_hooks=hooks, **span)
    x = model.ln_final(model.read_out(final))[:, :-1].flatten(0, 1)
    return sequence_means(compare(model, x[None], clean, LOGITS_HELD), len(tokens))[:, 0]
