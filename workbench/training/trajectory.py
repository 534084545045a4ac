"""Whether layers go on or turn back (zig-zag), of the tokens of a few windows, as a training sees it in one forward."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from workbench.models import HookedLM, ModelConfig
from workbench.models.geometry import exact

LEVEL = 0.95
COLUMNS = ("trajectory_consistency", "trajectory_consistency_low", "trajectory_consistency_high")


class Consistency(NamedTuple):
    """Trajectory consistency with its 95 % interval over sequences."""

    value: float
    """nan without a cosine"""
    low: float
    """nan for fewer than two sequences with a cosine"""
    high: float


class TrajectorySums:
    """Sums of cosines of successive steps, a sequence each, while forward passes go through the hooks."""

    def __init__(self, cfg: ModelConfig) -> None:
        self.names = ("hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(cfg.n_layers)))
        self._state: Tensor | None = None
        self._step: Tensor | None = None
        self._sums: list[Float64[Tensor, " batch"]] = []
        self._counts: list[Float64[Tensor, " batch"]] = []

    def add(self, state: Tensor, hook: object) -> None:
        """Take the next state of a forward; the embedding, which has no step before it, begins one."""
        state = exact(state[:, 1:])
        if getattr(hook, "name", None) == self.names[0]:
            self._state, self._step = state.clone(), None
            self._sums.append(state.new_zeros(len(state)))
            self._counts.append(state.new_zeros(len(state)))
            return
        assert self._state is not None, "the embedding's hook comes first"
        step = torch.nn.functional.normalize(state - self._state, dim=-1, eps=0.0)  # 0/0: nan
        if self._step is not None:
            cosines = (step * self._step).sum(-1)
            self._sums[-1] += cosines.nansum(dim=1)
            self._counts[-1] += (~cosines.isnan()).sum(dim=1)
        self._state, self._step = state.clone(), step

    def result(self) -> Consistency:
        """The consistency of all sequences so far."""
        return consistency_of(torch.cat(self._sums).cpu().numpy(), torch.cat(self._counts).cpu().numpy())


def consistency_of(sums: Float64[np.ndarray, " sequence"], counts: Float64[np.ndarray, " sequence"]) -> Consistency:
    """Σ sums / Σ counts with its 95 % interval over sequences: Student's t on the residuals sum − value · count of the
    sequences that have a cosine, the usual interval of a mean where counts are equal."""
    sums, counts = sums[counts > 0], counts[counts > 0]
    n = len(counts)
    if not n:
        return Consistency(math.nan, math.nan, math.nan)
    value = float(sums.sum() / counts.sum())
    if n < 2:
        return Consistency(value, math.nan, math.nan)
    stderr = math.sqrt(n / (n - 1) * float(np.square(sums - value * counts).sum())) / float(counts.sum())
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1)) * stderr
    return Consistency(value, value - half, value + half)


@torch.no_grad()
def trajectory_consistency(model: HookedLM, tokens: Int[Tensor, "batch pos"]) -> Consistency:
    """Mean over tokens and layers of cos(d_ℓ, d_{ℓ+1}), d_ℓ = h_{ℓ+1} − h_ℓ: do layers go on, or turn back (zig-zag)?

    h are a token's states, at `hook_embed` and every `hook_resid_post`; position 0 is left out. The statistic of
    `probes.trajectory_consistency`, on single tokens where concept tables take means over templates, and with its
    nulls: −½ for independent states, 0 for a random walk. Displacements of 0 are left out; nan where no cosine is left,
    and in a model of one layer. The interval is over sequences: tokens of one share a text.
    """
    sums = TrajectorySums(model.cfg)
    model.run_with_hooks(tokens, return_type=None, fwd_hooks=[(name, sums.add) for name in sums.names])
    return sums.result()
