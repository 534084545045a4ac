"""How a feature's activations are spread, and a context from each interval of their range, while they stream past."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

N_BINS = 32  # of a feature's range, which ends at the least power of two above its largest activation
N_INTERVALS = 8  # of the same range, for contexts
ELEMENTS_AT_ONCE = 1 << 19  # activations whose places are listed at once: the list of a dense feature is long
MODULUS = 1 << 32  # places of tokens are shuffled within these, and lie below it
MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35)  # of MurmurHash3's 32-bit finalizer (Appleby 2011)


@dataclass(frozen=True)
class Contexts:
    """Windows of tokens around places at which features fire, k of each feature."""

    values: Float[Tensor, "n_saes d_sae k"]
    """activation at the place; 0 where there is none"""
    sequences: Int[Tensor, "n_saes d_sae k"]
    """row of the tokens; −1 where the value is 0"""
    peaks: Int[Tensor, "n_saes d_sae k"]
    """position in the row"""
    windows: Float[Tensor, "n_saes d_sae k width"]
    """activations from peak − radius to peak + radius; 0 beyond the sequence's ends, nan at positions that do not
    count"""


@dataclass(frozen=True)
class Spread:
    """The activations above 0 of every feature, counted in bins."""

    widths: Float[Tensor, "n_saes d_sae"]
    """of a bin: a power of two; bin i is [i · width, (i + 1) · width), without 0 itself"""
    counts: Int[Tensor, "n_saes d_sae n_bins"]
    """tokens"""
    contexts: Contexts
    """of interval i, an N_INTERVALS-th of the range, one of its tokens: the first in a fixed shuffle of all tokens"""


class SpreadKeeper:
    """Bins and one context an interval for every feature, kept while activations stream past.

    The range of a feature grows with its largest activation by powers of two, and pairs of bins become one: what comes
    out is that of sorting all activations at once, in whatever batches they come. Memory does not grow with tokens.
    """

    def __init__(self, n_saes: int, d_sae: int, radius: int, device: torch.device | str = "cpu") -> None:
        """No token yet."""
        shape = (n_saes, d_sae)
        self._radius, self._n_tokens = radius, 0
        self._exponents = torch.full(shape, -1000, dtype=torch.int32, device=device)  # the range ends at 2^exponent
        self._counts = torch.zeros(*shape, N_BINS, dtype=torch.int64, device=device)
        self._priorities = torch.full((*shape, N_INTERVALS), MODULUS, dtype=torch.int64, device=device)
        self._windows = torch.zeros(*shape, N_INTERVALS, 2 * radius + 1, device=device)

    def update(self, acts: Float[Tensor, "n_saes batch pos d_sae"], is_counted: Bool[Tensor, "batch pos"]) -> None:
        """Take the next sequences; activations are 0 at positions that do not count, and below 0 nowhere."""
        n_saes, batch, n_ctx, d_sae = acts.shape
        n_at_once = max(1, ELEMENTS_AT_ONCE // (batch * n_ctx * d_sae))
        for first in range(0, n_saes, n_at_once):
            self._take(acts[first : first + n_at_once], is_counted, first)
        self._n_tokens += batch * n_ctx

    def _take(self, acts: Float[Tensor, "some batch pos d_sae"], is_counted: Tensor, first: int) -> None:
        n_saes, _, n_ctx, d_sae = acts.shape
        own = slice(first, first + n_saes)
        flat = acts.reshape(n_saes, -1, d_sae)
        place = flat.reshape(-1).nonzero()[:, 0]
        value = flat.reshape(-1)[place]
        row, feature = place // d_sae, place % d_sae
        feature += row // flat.shape[1] * d_sae  # of all features of these SAEs
        token = row % flat.shape[1]
        largest = torch.zeros(n_saes * d_sae, device=acts.device).scatter_reduce_(0, feature, value, "amax")
        self._widen(largest.view(n_saes, d_sae), own)
        exponents = self._exponents[own].flatten()
        bins = torch.ldexp(value.double(), -exponents[feature]).mul_(N_BINS).long().clamp_(0, N_BINS - 1)
        counts = torch.bincount(feature * N_BINS + bins, minlength=n_saes * d_sae * N_BINS)
        self._counts[own] += counts.view(n_saes, d_sae, N_BINS)
        priority = shuffled(self._n_tokens + token)
        slot = feature * N_INTERVALS + bins // (N_BINS // N_INTERVALS)
        found = self._priorities[own].flatten().scatter_reduce(0, slot, priority, "amin").view(n_saes, d_sae, -1)
        sae, feature, interval = (found < self._priorities[own]).nonzero(as_tuple=True)
        token = unshuffled(found[sae, feature, interval]) - self._n_tokens
        window = windows_around(acts, is_counted, sae, token // n_ctx, token % n_ctx, feature, self._radius)
        self._windows[sae + first, feature, interval] = window
        self._priorities[own] = found

    def _widen(self, largest: Float[Tensor, "some d_sae"], own: slice) -> None:
        """Let the ranges of these SAEs' features reach beyond their largest activations."""
        exponents = self._exponents[own]
        needed = torch.where(largest > 0, torch.frexp(largest)[1], exponents)  # largest = m · 2^e with m < 1
        left = (needed - exponents).clamp(0, N_BINS.bit_length())  # by then all is in the first bin
        exponents.copy_(torch.maximum(exponents, needed))
        while bool((left > 0).any()):
            sae, feature = (left > 0).nonzero(as_tuple=True)
            left -= 1
            counts, priorities, windows = self._counts[own], self._priorities[own], self._windows[own]
            halved = rearrange(counts[sae, feature], "n (bin pair) -> n bin pair", pair=2).sum(dim=2)
            counts[sae, feature] = torch.cat([halved, torch.zeros_like(halved)], dim=1)
            pairs = rearrange(priorities[sae, feature], "n (interval pair) -> n interval pair", pair=2)
            kept, which = pairs.min(dim=2)
            priorities[sae, feature] = torch.cat([kept, torch.full_like(kept, MODULUS)], dim=1)
            places = which + 2 * torch.arange(N_INTERVALS // 2, device=which.device)
            moved = windows[sae[:, None], feature[:, None], places]
            windows[sae, feature] = torch.cat([moved, torch.zeros_like(moved)], dim=1)

    def spread(self, n_ctx: int) -> Spread:
        """What is kept so far, on the CPU; n_ctx: positions of a sequence."""
        is_kept = self._priorities < MODULUS
        token = unshuffled(self._priorities % MODULUS)
        values = self._windows[..., self._radius] * is_kept
        sequences = torch.where(is_kept, token // n_ctx, -1)
        kept = (values, sequences, torch.where(is_kept, token % n_ctx, 0), self._windows)
        widths = torch.exp2(self._exponents.cpu().double()) / N_BINS
        return Spread(widths, self._counts.cpu(), Contexts(*(tensor.cpu() for tensor in kept)))


def windows_around(
    acts: Float[Tensor, "n_saes batch pos d_sae"],
    is_counted: Bool[Tensor, "batch pos"] | None,
    sae: Int[Tensor, " n"],
    row: Int[Tensor, " n"],
    peak: Int[Tensor, " n"],
    feature: Int[Tensor, " n"],
    radius: int,
) -> Float[Tensor, "n width"]:
    """Activations of n features from peak − radius to peak + radius; 0 beyond the sequence's ends, nan at positions
    that do not count."""
    offsets = torch.arange(-radius, radius + 1, device=acts.device)
    position = peak.unsqueeze(-1) + offsets
    is_inside = (position >= 0) & (position < acts.shape[2])
    position = position.clamp(0, acts.shape[2] - 1)
    window = acts[sae[:, None], row[:, None], position, feature[:, None]]
    if is_counted is not None:
        window = torch.where(is_counted[row[:, None], position], window, torch.nan)
    return torch.where(is_inside, window, 0).float()


def shuffled(place: Int[Tensor, " *n"]) -> Int[Tensor, " *n"]:
    """A fixed shuffle of 0 … 2³² − 1: MurmurHash3's finalizer, of which every step can be undone."""
    first, second = MULTIPLIERS
    mixed = (place ^ (place >> 16)) * first % MODULUS
    mixed = (mixed ^ (mixed >> 13)) * second % MODULUS
    return mixed ^ (mixed >> 16)


def unshuffled(mixed: Int[Tensor, " *n"]) -> Int[Tensor, " *n"]:
    """The place that `shuffled` gives this number."""
    first, second = (pow(multiplier, -1, MODULUS) for multiplier in MULTIPLIERS)
    place = (mixed ^ (mixed >> 16)) * second % MODULUS
    place = (place ^ (place >> 13) ^ (place >> 26)) * first % MODULUS
    return place ^ (place >> 16)
