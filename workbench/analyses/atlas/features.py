"""Every feature of every SAE as the atlas shows it: how often and how strongly it fires, where most, which tokens it
pushes, and which features lie near it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from sae.metrics import nearest_features
from sae.stack import StackedSAE, check_model
from sae.top_activations import TopActivations
from workbench.analyses.atlas.intervals import (
    N_BINS,
    N_INTERVALS,
    Contexts,
    Spread,
    SpreadKeeper,
    windows_around,
)  # fmt: skip
from workbench.analyses.sae_train.evaluation import BLOCK_TOKENS, forward_batches
from workbench.analyses.spectra.weights import own_weight
from workbench.models import HookedLM
from workbench.models.activations import EVERYWHERE, Positions, Slot, collect, special_ids
from workbench.models.checks import checked_tokens, device_of, run_hooked
from workbench.models.sae_places import stack_slots, written_slots
from workbench.models.weights import weights_sha256
from workbench.models.writes import fitted_factor, probed_tokens, write_factor

ACTS_HELD = 1 << 24  # activations of one forward pass that are held at once
# hooks that write to the stream, and through which weight of the block
WRITERS = {
    "attn.hook_z": "attn.W_O", "mlp.hook_post": "mlp.W_out", "attn.hook_result": None, "hook_attn_out": None,
    "hook_mlp_out": None,
}  # fmt: skip
DIGITS = 4  # of activations in contexts and of logit effects, where they are less than 1 counted from the first that
# is not 0: an activation's unit is its decoder row's to choose


@dataclass(frozen=True)
class FeatureSums:
    """What one pass over the tokens leaves of every feature."""

    n_tokens: int
    """tokens at the positions that count"""
    n_active: Float64[Tensor, "n_saes d_sae"]
    """tokens on which it fires"""
    total: Float64[Tensor, "n_saes d_sae"]
    """sum of its activations"""
    contexts: Contexts
    """the sequences in which it fires most, one window of each around the strongest token (the first of equals),
    strongest first"""
    spread: Spread
    """its activations in bins, and contexts of weaker ones"""


def atlas_features(
    model: Any,
    sae: StackedSAE,
    tokens: Int[Tensor, "n_sequences n_ctx"],
    *,
    n_contexts: int = 8,
    radius: int = 10,
    n_logits: int = 10,
    n_neighbours: int = 5,
    name: str | None = None,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The table feature_atlas: one row per feature, head −1 where the SAE reads all heads together.

    All of it is of the positions that the SAEs are meant for, see `sae_train`: all but the first and those of special
    tokens, unless they were trained with include_special. density: share of tokens on which it fires; mean_act: mean
    over the tokens on which it fires (0 if none). max_act and top_token: of its largest activation. top_contexts: its
    n_contexts strongest sequences, each once, as windows of ±radius tokens around the peak, from one pass whose memory
    grows with features and not with tokens; acts are null at other positions, where nothing is measured.
    logit_promoted, logit_suppressed: the tokens with the largest and smallest direct effect
    W_dec (W_O[head]) diag(final norm's weight) W_U, the mean over the vocabulary taken off, in logits a unit of
    activation before the final norm's division; empty for hooks that do not write to the stream, or only through a norm
    of their own. neighbours: nearest
    decoder rows of the same SAE. match is empty: `match` fills it. The trailing columns l1 and sae_seed tell apart
    several SAEs of one head; n_tokens is the number of tokens that density is a share of.

    Args:
        sae: the stack; it must say which hook each SAE reads, and where it says which model it belongs to, that must
            be this one.
        tokens: held-out tokens.
        name, seed: the columns model and seed.

    Raises:
        ValueError: a stack of another model (sha256), or without sources; tokens that do not fit; a count or a radius
            that is negative, or no context.
    """
    slots = stack_slots(sae)
    if sae.info.model_sha256 is not None:
        check_model(sae, weights_sha256(model), name)
    tokens = checked_tokens("atlas", model, tokens, min_ctx=2)
    for what, given, least in (
        ("n_contexts", n_contexts, 1),
        ("radius", radius, 0),
        ("n_logits", n_logits, 0),
        ("n_neighbours", n_neighbours, 0),
    ):
        if given < least:
            raise ValueError(f"atlas: {what} is {given}; expected ≥ {least}")
    sums = scan(model, sae, tokens, slots, n_contexts, radius, on_progress, stack_positions(model, sae))
    if not sums.n_tokens:
        raise ValueError("atlas: all tokens are special or at position 0; expected others")
    decode = token_decoder(model)
    promoted, suppressed = logit_effects(model, sae, written_slots(sae), n_logits)
    n_neighbours = min(n_neighbours, sae.config.d_sae - 1)
    cosines, nearest = nearest_features(sae.W_dec.detach(), n_neighbours) if n_neighbours else (None, None)
    parts = []
    for k, source in enumerate(sae.info.sources):
        n_active = sums.n_active[k]
        columns = {
            "model": name or model.cfg.model_name,
            "layer": source.layer,
            "head": slots[k].column,
            "feature": range(sae.config.d_sae),
            "density": n_active / sums.n_tokens,
            "max_act": sums.contexts.values[k, :, 0].double(),
            "mean_act": sums.total[k] / n_active.clamp_min(1),
            "top_token": _top_tokens(sums.contexts, tokens, decode, k),
            "top_contexts": _context_cells(sums.contexts, tokens, decode, k, radius),
            "logit_promoted": _pair_cells(promoted, k, decode),
            "logit_suppressed": _pair_cells(suppressed, k, decode),
            "seed": seed,
            "dead": (n_active == 0).tolist(),
            "neighbours": _neighbour_cells(cosines, nearest, k, sae.config.d_sae),
            "match": "",
            "histogram": _histogram_cells(sums.spread, sums.n_tokens, k),
            "interval_contexts": _interval_cells(sums, tokens, decode, k, radius),
            "l1": source.l1,
            "sae_seed": source.seed,
            "n_tokens": sums.n_tokens,
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def stack_positions(model: Any, *stacks: StackedSAE) -> Positions:
    """The positions that all of these stacks of the model's are meant for."""
    return Positions(special_ids(model), all(stack.info.include_special for stack in stacks))


@torch.no_grad()
def scan(
    model: Any,
    sae: StackedSAE,
    tokens: Int[Tensor, "n n_ctx"],
    slots: Sequence[Slot],
    n_contexts: int,
    radius: int,
    on_progress: Callable[[float], None] | None = None,
    positions: Positions = EVERYWHERE,
) -> FeatureSums:
    """One pass over the tokens: counts, sums and strongest contexts of every feature at the positions, brought to the
    CPU.

    slots: what each SAE reads; several SAEs may read one slot.
    """
    unique = list(dict.fromkeys(slots))
    index = torch.tensor([unique.index(slot) for slot in slots])
    n_saes, d_sae, n_ctx = len(slots), sae.config.d_sae, tokens.shape[1]
    device = device_of(sae)
    total = torch.zeros(n_saes, d_sae, dtype=torch.float64, device=device)
    keeper, spreads = ContextKeeper(sae, n_contexts, radius), SpreadKeeper(n_saes, d_sae, radius, device)
    n_counted = 0
    batches = forward_batches(tokens, max(n_ctx, min(4096, ACTS_HELD // (n_saes * d_sae))))
    for number, batch in enumerate(batches):
        x = collect(model, batch, unique, number)
        acts = torch.empty(n_saes, x.shape[1], d_sae, device=device)
        is_counted = positions.of(batch).to(device)
        n_counted += int(is_counted.sum())
        parts = (own.split(BLOCK_TOKENS, dim=dim) for own, dim in ((x, 1), (acts, 1), (is_counted.flatten(), 0)))
        for block, out, counts in zip(*parts, strict=True):
            own = sae.encode(block[index]).float()  # sums of bfloat16 activations would keep 8 bits of theirs
            own[:, ~counts] = 0
            out.copy_(own)
            total += own.sum(dim=1).double()
        acts = rearrange(acts, "sae (batch pos) feature -> sae batch pos feature", pos=n_ctx)
        keeper.update(acts, is_counted)
        spreads.update(acts, is_counted)
        if on_progress is not None:
            on_progress((number + 1) / len(batches))
    spread = spreads.spread(n_ctx)
    return FeatureSums(n_counted, spread.counts.sum(dim=-1).double(), total.cpu(), keeper.contexts(), spread)


class ContextKeeper:
    """The k sequences in which each feature is strongest, kept with their windows while activations stream past."""

    def __init__(self, sae: StackedSAE, k: int, radius: int) -> None:
        device = device_of(sae)
        shape = (sae.config.n_saes, sae.config.d_sae, k)
        self._radius = radius
        # sequences take the place of tokens: what is kept of a sequence is its largest activation
        self._top = TopActivations(sae.config, k, device)
        self._peaks = torch.zeros(shape, dtype=torch.int64, device=device)
        self._windows = torch.zeros(*shape, 2 * radius + 1, device=device)

    def update(
        self, acts: Float[Tensor, "n_saes batch pos d_sae"], is_counted: Bool[Tensor, "batch pos"] | None = None
    ) -> None:
        """Take the next sequences; activations are 0 at positions that do not count."""
        before, old = self._top.n_tokens, self._top.tokens.clone()
        largest, where = acts.max(dim=2)
        self._top.update(largest)
        new = self._top.tokens
        is_new = new >= before
        if not bool(is_new.any()):
            return
        # what stays moves with its sequence to the place that it has now
        place = (new.unsqueeze(-1) == old.unsqueeze(-2)).int().argmax(dim=-1)
        self._peaks = self._peaks.gather(-1, place)
        self._windows = self._windows.gather(2, place.unsqueeze(-1).expand_as(self._windows))
        sae, feature, rank = is_new.nonzero(as_tuple=True)
        row = new[sae, feature, rank] - before
        peak = where[sae, row, feature]
        self._peaks[sae, feature, rank] = peak
        window = windows_around(acts, is_counted, sae, row, peak, feature, self._radius)
        self._windows[sae, feature, rank] = window

    def contexts(self) -> Contexts:
        """What is kept so far, on the CPU."""
        kept = (self._top.values, self._top.tokens, self._peaks, self._windows)
        return Contexts(*(tensor.cpu() for tensor in kept))


@torch.no_grad()
def logit_effects(
    model: Any, sae: StackedSAE, slots: Sequence[Slot], n: int
) -> tuple[list[tuple[Tensor, Tensor] | None], list[tuple[Tensor, Tensor] | None]]:
    """((values, token ids) [d_sae n] of the n largest, and of the n smallest, direct logit effects) of each SAE; None
    for a hook that does not write to the stream, or only through a norm of its own."""
    n = min(n, model.cfg.d_vocab)
    unembeds = unembedding_factor(model)
    if unembeds is None:
        return [None] * len(slots), [None] * len(slots)
    W_U = unembeds * (final_gain(model)[:, None] * model.W_U).float()
    W_U = W_U - W_U.mean(dim=1, keepdim=True)
    promoted: list[tuple[Tensor, Tensor] | None] = []
    suppressed: list[tuple[Tensor, Tensor] | None] = []
    directions = sae.directions
    for k, slot in enumerate(slots):
        written = write_directions(model, slot, directions[k].float())
        if written is None:
            promoted.append(None)
            suppressed.append(None)
            continue
        if getattr(model.cfg, "normalization_type", None) in ("LN", "LNPre"):
            written = written - written.mean(dim=-1, keepdim=True)
        effects = written.to(W_U.device) @ W_U
        for found, is_largest in ((promoted, True), (suppressed, False)):
            values, ids = effects.topk(n, dim=-1, largest=is_largest)
            found.append((values, ids))
    return promoted, suppressed


def final_gain(model: Any) -> Float[Tensor, "d_model"]:
    """What the final norm multiplies each coordinate by, apart from the division.

    Of another model than ours it is measured: its weight may be folded into W_U, or be less by 1 (Gemma's).
    """
    if isinstance(model, HookedLM):
        return model.ln_final.gain
    signs = torch.ones(model.cfg.d_model, dtype=model.W_U.dtype, device=model.W_U.device)
    signs[::2] = -1  # mean 0 and mean square 1 already; 100 times that, so that the norm's eps is nothing beside it
    plus, minus = model.ln_final(100 * torch.stack([signs, -signs])[:, None])[:, 0]
    return (plus - minus) / 2 * signs


def unembedding_factor(model: Any) -> float | None:
    """What logits are multiples of, in terms of the final norm's output times W_U; None where they are none.

    Of another model than ours it is measured (Granite's logits are divided, say); a soft cap is passed over, as it is
    in ours.
    """
    if isinstance(model, HookedLM) or getattr(model.cfg, "output_logits_soft_cap", 0) > 0:
        return 1.0
    tokens = probed_tokens(model)
    kept: list[Tensor] = []
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    logits = run_hooked(model, tokens, [(last, lambda x, hook: kept.append(x))], return_type="logits").float()[0]
    expected = (model.ln_final(kept[0])[0] @ model.W_U).float()
    logits, expected = logits[1:] - logits[:1], expected[1:] - expected[:1]  # a bias is the same at every position
    return fitted_factor(logits, expected, kept[0].dtype)


def write_directions(
    model: Any, slot: Slot, rows: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "d_sae d_model"] | None:
    """What decoder rows of a slot write to the residual stream; None for a hook that writes through something else."""
    name = slot.hook_name.split(".", 2)[-1]
    if name.startswith("hook_resid_"):
        return rows
    weight = _writer(model.blocks[slot.layer], name, rows.device)
    if name not in WRITERS or (weight is None and WRITERS[name] is not None):
        return None

    def write(x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_model"]:
        if weight is not None:
            return x.float() @ weight.flatten(0, -2)
        return x.unflatten(-1, (-1, model.cfg.d_model)).sum(dim=-2)  # of hook_result, what each head writes

    if isinstance(model, HookedLM):
        factor = None if "." in name and not model.cfg.writes_linearly else 1.0
    else:
        factor = write_factor(model, slot.layer, name, lambda change: write(change.flatten(2)))
    if factor is None:
        return None
    return factor * (write(rows) if slot.head is None or weight is None else rows @ weight[slot.head])


def _writer(block: Any, name: str, device: torch.device) -> Float[Tensor, "*n d_in d_model"] | None:
    """The weight through which a hook of a block writes; None for a hook without one, or where the block shows none."""
    if (place := WRITERS.get(name)) is None:
        return None
    part, leaf = place.split(".")
    weight = own_weight(getattr(block, part, None), leaf)
    return None if weight is None or not weight.is_floating_point() else weight.detach().float().to(device)


def token_decoder(model: Any) -> Callable[[int], str]:
    """A function from a token id to its text, decoded alone; bytes that are no character on their own show as hex.

    A model without tokenizer shows ids.
    """
    tokenizer = getattr(model, "tokenizer", None)
    known: dict[int, str] = {}

    def decode(token: int) -> str:
        if token not in known:
            known[token] = f"[{token}]" if tokenizer is None else _decode_alone(tokenizer, token)
        return known[token]

    return decode


def _decode_alone(tokenizer: Any, token: int) -> str:
    text = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    piece = tokenizer.convert_ids_to_tokens(token)
    # a decoder of SentencePiece's takes the first token's space for one that was put before the text
    if isinstance(piece, str) and (spaced := piece.replace("▁", " ")) != piece and spaced.endswith(text):
        return spaced
    if "\ufffd" not in text:
        return text
    # a piece of a character: its byte-level form, one printable sign a byte, back to the bytes
    return piece_bytes(piece) if isinstance(piece, str) else text


def piece_bytes(piece: str) -> str:
    """A byte-level BPE piece with its bytes as ⟨e2⟩⟨80⟩ where they are no printable ASCII; other pieces as they are."""
    table = _byte_of_sign()
    if any(sign not in table for sign in piece):
        return piece
    return "".join(chr(b) if 32 <= b < 127 else f"⟨{b:02x}⟩" for b in (table[sign] for sign in piece))


def _byte_of_sign() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (Radford et al. 2019): printable Latin-1 stands for itself, the other bytes
    for the signs from U+0100 on, in order."""
    themselves = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [b for b in range(256) if b not in themselves]
    return {chr(b): b for b in themselves} | {chr(256 + i): b for i, b in enumerate(others)}


# --- cells


def _top_tokens(contexts: Contexts, tokens: Tensor, decode: Callable[[int], str], k: int) -> list[str]:
    sequences, peaks = contexts.sequences[k, :, 0].cpu(), contexts.peaks[k, :, 0].cpu()
    ids = tokens[sequences.clamp_min(0), peaks].tolist()
    return [decode(token) if fires else "" for token, fires in zip(ids, (sequences >= 0).tolist(), strict=True)]


def _context_cells(contexts: Contexts, tokens: Tensor, decode: Callable[[int], str], k: int, radius: int) -> list[str]:
    found = _context_lists(contexts, tokens, decode, k, radius, contexts.values[k, :, 0])
    return [json.dumps([own for own in of_feature if own], ensure_ascii=False) for of_feature in found]


def _interval_cells(sums: FeatureSums, tokens: Tensor, decode: Callable[[int], str], k: int, radius: int) -> list[str]:
    """Contexts of the intervals with their bounds, the highest first, without those among the strongest."""
    own, top = sums.spread.contexts, sums.contexts
    places, shown = (torch.stack([of.sequences[k], of.peaks[k]], dim=-1).tolist() for of in (own, top))
    found = _context_lists(own, tokens, decode, k, radius, top.values[k, :, 0])
    widths = (sums.spread.widths[k] * (N_BINS // N_INTERVALS)).tolist()
    cells = []
    for contexts, of_feature, of_top, width in zip(found, places, shown, widths, strict=True):
        kept = [
            context | {"low": interval * width, "high": (interval + 1) * width}
            for interval, context in enumerate(contexts)
            if context and of_feature[interval] not in of_top
        ]
        cells.append(json.dumps(kept[::-1], ensure_ascii=False))
    return cells


def _context_lists(
    contexts: Contexts, tokens: Tensor, decode: Callable[[int], str], k: int, radius: int, largest: Float[Tensor, "n"]
) -> list[list[dict[str, Any] | None]]:
    """The contexts of each feature of an SAE as JSON has them; None where there is none. largest: its activation, which
    gives the digits."""
    sequences, peaks = contexts.sequences[k].tolist(), contexts.peaks[k].tolist()
    windows, values = _rounded(contexts.windows[k], largest), _rounded(contexts.values[k], largest)
    ids, n_ctx = tokens.tolist(), tokens.shape[1]

    def context(sequence: int, peak: int, window: list[float], value: float) -> dict[str, Any]:
        start, stop = max(0, peak - radius), min(n_ctx, peak + radius + 1)
        return {
            "tokens": [decode(token) for token in ids[sequence][start:stop]],
            "acts": [act if act == act else None for act in window[start - peak + radius : stop - peak + radius]],
            "peak": peak - start,
            "value": value,
        }

    return [
        [context(*own) if own[0] >= 0 else None for own in zip(*of_feature, strict=True)]
        for of_feature in zip(sequences, peaks, windows, values, strict=True)
    ]


def _histogram_cells(spread: Spread, n_tokens: int, k: int) -> list[str]:
    """JSON {"zero": tokens, "width": of a bin, "counts": tokens by bin, to the last that holds one}; empty for a
    feature that never fires."""
    cells = []
    for width, counts in zip(spread.widths[k].tolist(), spread.counts[k].tolist(), strict=True):
        while counts and not counts[-1]:
            counts.pop()
        cell = {"zero": n_tokens - sum(counts), "width": width, "counts": counts}
        cells.append(json.dumps(cell) if counts else "")
    return cells


def _rounded(values: Float[Tensor, "n *more"], largest: Float[Tensor, "n"]) -> list[Any]:
    """Nested lists, each of the n with as many decimals as its largest number needs for DIGITS digits, or DIGITS."""
    rows = zip(values.double(), largest.tolist(), strict=True)
    return [row.round(decimals=_decimals(most)).tolist() for row, most in rows]


def _decimals(largest: float) -> int:
    return DIGITS if not 0 < largest < 1 else DIGITS - 1 - math.floor(math.log10(largest))


def _pair_cells(
    effects: Sequence[tuple[Tensor, Tensor] | None], k: int, decode: Callable[[int], str]
) -> list[str] | str:
    own = effects[k]
    if own is None:
        return "[]"
    values, ids = own
    largest = values.abs().amax(dim=1) if values.shape[1] else values.new_zeros(len(values))
    rows = zip(_rounded(values, largest), ids.tolist(), strict=True)
    return [
        json.dumps([[decode(i), v] for v, i in zip(vs, tokens, strict=True)], ensure_ascii=False) for vs, tokens in rows
    ]


def _neighbour_cells(cosines: Tensor | None, nearest: Tensor | None, k: int, d_sae: int) -> list[str]:
    if cosines is None or nearest is None:
        return ["[]"] * d_sae
    rows = zip(_rounded(cosines[k], torch.ones(d_sae)), nearest[k].tolist(), strict=True)
    return [json.dumps([[f, c] for c, f in zip(cs, fs, strict=True) if c == c]) for cs, fs in rows]
