"""Measures of trained stacks: sums kept over batches of held-out activations, and comparisons of dictionaries."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from sae.config import SAEConfig

_TOKENS_AT_ONCE = 1024
_ROWS_AT_ONCE = 1024


class SAEMetrics(NamedTuple):
    """Measures of every SAE of a stack over the tokens given. float64; all nan if there was no token."""

    n_tokens: int
    """Tokens measured."""
    l0: Float[Tensor, " n_saes"]
    """Mean number of activations > 0 per token."""
    mse: Float[Tensor, " n_saes"]
    """Squared error, mean over tokens and dims."""
    fvu: Float[Tensor, " n_saes"]
    """Σ‖x − recon‖² / Σ‖x − mean(x)‖² pooled over tokens; nan where x does not vary. Of a transcoder x is what it
    reconstructs."""
    explained_variance: Float[Tensor, " n_saes"]
    """1 − fvu."""
    dead_fraction: Float[Tensor, " n_saes"]
    """Share of features that fired on no token."""
    density: Float[Tensor, "n_saes d_sae"]
    """Share of tokens on which each feature fired."""

    def cpu(self) -> SAEMetrics:
        """The same, on the CPU."""
        return self._replace(**{name: own.cpu() for name, own in self._asdict().items() if isinstance(own, Tensor)})


class MetricSums:
    """Running sums from which `result` gives the `SAEMetrics` of all tokens seen, whatever the batches were.

    Memory does not depend on the number of tokens. Means and squared deviations are merged in float64 (Chan et al.
    1979), so a large mean of x costs no digits.
    """

    def __init__(self, config: SAEConfig, device: torch.device | str = "cpu") -> None:
        """Sums of no token, for stacks of this config."""
        n_saes, d_out, d_sae = config.n_saes, config.d_target, config.d_sae
        self._shape = (n_saes, d_out, d_sae)
        self._n_tokens = 0
        self._n_active = torch.zeros(n_saes, d_sae, dtype=torch.float64, device=device)
        self._squared_error = torch.zeros(n_saes, dtype=torch.float64, device=device)
        self._mean = torch.zeros(n_saes, d_out, dtype=torch.float64, device=device)
        self._deviation = torch.zeros(n_saes, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(
        self,
        x: Float[Tensor, "n_saes tokens d_out"],
        acts: Float[Tensor, "n_saes tokens d_sae"],
        recon: Float[Tensor, "n_saes tokens d_out"],
    ) -> None:
        """Add a batch; x is what recon is of, so of a transcoder y. Raises ValueError for a shape that does not fit or
        for nan or inf in x."""
        n_saes, d_out, d_sae = self._shape
        n_new = x.shape[1] if x.ndim == 3 else -1
        for name, tensor, width in (("x", x, d_out), ("acts", acts, d_sae), ("recon", recon, d_out)):
            if tuple(tensor.shape) != (n_saes, n_new, width):
                raise ValueError(
                    f"MetricSums.update: {name} has shape {tuple(tensor.shape)}; expected ({n_saes}, tokens, {width})"
                )
        is_bad = ~x.sum(dim=(1, 2), dtype=torch.float64).isfinite()
        if bool(is_bad.any()):
            which = is_bad.nonzero().flatten().tolist()
            raise ValueError(f"MetricSums.update: x of SAE {which} has nan or inf; expected finite activations")
        # in pieces that stay in the cache, since every one is passed over several times
        for start in range(0, n_new, _TOKENS_AT_ONCE):
            rows = slice(start, start + _TOKENS_AT_ONCE)
            for k in range(n_saes):
                self._add(k, x[k, rows].double(), recon[k, rows])
                self._n_active[k] += count_active(acts[k, rows])
            self._n_tokens += min(_TOKENS_AT_ONCE, n_new - start)

    def _add(self, k: int, x: Float[Tensor, "tokens d_in"], recon: Float[Tensor, "tokens d_in"]) -> None:
        n_old, n_new = self._n_tokens, len(x)
        mean = x.mean(dim=0)
        deviation = (x - mean).square_().sum()
        shift = mean - self._mean[k]
        self._deviation[k] += deviation + shift.square().sum() * (n_old * n_new / (n_old + n_new))
        self._mean[k] += shift * (n_new / (n_old + n_new))
        self._squared_error[k] += (x - recon).square_().sum()

    def merge(self, other: MetricSums) -> None:
        """Add what another has seen. Raises ValueError for one of another config."""
        if other._shape != self._shape:
            sizes = "(n_saes, d_out, d_sae)"
            raise ValueError(f"MetricSums.merge: got sums of {sizes} {other._shape}; expected {self._shape}")
        n = self._n_tokens + other._n_tokens
        if other._n_tokens:
            shift = other._mean - self._mean
            self._deviation += other._deviation
            self._deviation += shift.square().sum(dim=-1) * (self._n_tokens * other._n_tokens / n)
            self._mean += shift * (other._n_tokens / n)
        self._squared_error += other._squared_error
        self._n_active += other._n_active
        self._n_tokens = n

    def __add__(self, other: MetricSums) -> MetricSums:
        """Sums of what both have seen. Raises ValueError as `merge`."""
        total = copy.deepcopy(self)
        total.merge(other)
        return total

    def result(self) -> SAEMetrics:
        """Measures of all tokens so far."""
        _, d_out, d_sae = self._shape
        n = self._n_tokens if self._n_tokens else torch.nan
        fvu = torch.where(self._deviation > 0, self._squared_error / self._deviation, torch.nan)
        n_dead = (self._n_active == 0).sum(dim=-1).double()
        return SAEMetrics(
            n_tokens=self._n_tokens,
            l0=self._n_active.sum(dim=-1) / n,
            mse=self._squared_error / (n * d_out),
            fvu=fvu,
            explained_variance=1 - fvu,
            dead_fraction=n_dead / d_sae if self._n_tokens else torch.full_like(n_dead, torch.nan),
            density=self._n_active / n,
        )


def count_active(acts: Float[Tensor, "tokens d_sae"]) -> Float[Tensor, " d_sae"]:
    """Tokens on which each feature is > 0, float64."""
    # as numbers: a sum of booleans is several times slower on a CPU; float32 counts to 2²⁴
    assert len(acts) <= 2**24
    return torch.gt(acts, 0, out=torch.empty_like(acts, dtype=torch.float32)).sum(dim=0).double()


def density_histogram(
    density: Float[Tensor, "*saes d_sae"], bin_width: float = 0.25, lowest: float = -6.0
) -> tuple[Float[np.ndarray, " n_bins"], Int[np.ndarray, "*saes n_bins"], Int[np.ndarray, "*saes"]]:
    """(lower edges, counts, n_dead): features by log10 of their density, dead ones apart.

    Bins are [edge, edge + bin_width) from `lowest` to 0; the first also takes what is below it, the last includes
    density 1. counts.sum(-1) + n_dead is the number of features. Raises ValueError for a density outside [0, 1] or
    bins that do not divide [lowest, 0].
    """
    values = density.detach().double().cpu().numpy()
    if not bool(np.all((values >= 0) & (values <= 1))):
        raise ValueError("density_histogram: density has values outside [0, 1]; expected shares of tokens")
    n_bins = round(-lowest / bin_width) if bin_width > 0 else 0
    if n_bins < 1 or abs(n_bins * bin_width + lowest) > 1e-9:
        raise ValueError(
            f"density_histogram: lowest {lowest}, bin_width {bin_width}; expected a whole number of bins below 0"
        )
    edges = lowest + bin_width * np.arange(n_bins)
    flat = values.reshape(-1, values.shape[-1])
    counts = np.zeros((len(flat), n_bins), dtype=np.int64)
    for row, own in zip(counts, flat, strict=True):
        # 1e-9: a density of 10^-3 must not fall below its edge by the rounding of the logarithm
        index = np.floor((np.log10(own[own > 0]) - lowest) / bin_width + 1e-9).astype(np.int64)
        row += np.bincount(index.clip(0, n_bins - 1), minlength=n_bins)
    n_dead = (values == 0).sum(axis=-1)
    return edges, counts.reshape(*values.shape[:-1], n_bins), n_dead


def max_cosine(rows: Float[Tensor, "*saes n d_in"], others: Float[Tensor, "*saes m d_in"]) -> Float[Tensor, "*saes n"]:
    """Largest cosine of each row with any of the others, float64, in [−1, 1]; nan for a row of zeros.

    Rows of zeros among the others are passed over. Raises ValueError for shapes that do not fit.
    """
    if rows.ndim != others.ndim or rows.shape[:-2] != others.shape[:-2] or rows.shape[-1] != others.shape[-1]:
        raise ValueError(
            f"max_cosine: rows {tuple(rows.shape)}, others {tuple(others.shape)}; expected the same stack and width"
        )
    if rows.ndim > 2:
        return torch.stack([max_cosine(a, b) for a, b in zip(rows, others, strict=True)])
    a, b = _unit_rows(rows), _unit_rows(others)
    b = b[b.isfinite().all(dim=-1)]
    if len(b) == 0:
        return torch.full_like(a[:, 0], torch.nan)
    return torch.cat([(part @ b.T).amax(dim=-1).clamp(-1, 1) for part in a.split(4096)])


class Stability(NamedTuple):
    """How well one seed's features are found again in another's."""

    max_cosine: Float[Tensor, "n_saes d_sae"]
    """For each feature, the largest cosine of its decoder row with the other seed's rows."""
    mean: Float[Tensor, " n_saes"]
    """Mean over features; rows of zeros are left out; nan if there is no other."""
    share_above: Float[Tensor, " n_saes"]
    """Share of those features above the threshold."""


def stability(
    W_dec: Float[Tensor, "n_saes d_sae d_in"], W_dec_other: Float[Tensor, "n_saes m d_in"], threshold: float = 0.7
) -> Stability:
    """Largest cosines of decoder rows with another seed's, their mean, and the share above `threshold`.

    Not symmetric: each feature of the first is compared with those of the second. Raises ValueError as `max_cosine`.
    """
    best = max_cosine(W_dec, W_dec_other)
    is_above = torch.where(best.isnan(), torch.nan, (best > threshold).double())
    return Stability(best, best.nanmean(dim=-1), is_above.nanmean(dim=-1))


def nearest_features(
    W_dec: Float[Tensor, "n_saes d_sae d_in"], n_neighbours: int
) -> tuple[Float[Tensor, "n_saes d_sae n_neighbours"], Int[Tensor, "n_saes d_sae n_neighbours"]]:
    """(cosines, features): each feature's nearest others by cosine of decoder rows, nearest first, itself left out.

    A row of zeros has cosine nan with all and is no row's neighbour while others are left. Memory grows with d_sae, not
    with its square. Raises ValueError unless 1 ≤ n_neighbours < d_sae.
    """
    d_sae = W_dec.shape[1]
    if not 1 <= n_neighbours < d_sae:
        raise ValueError(
            f"nearest_features: n_neighbours is {n_neighbours}; expected 1 ≤ n_neighbours < d_sae = {d_sae}"
        )
    cosines, features = [], []
    for rows in W_dec:
        unit = _unit_rows(rows)
        parts = [
            _nearest(unit[start : start + _ROWS_AT_ONCE] @ unit.T, start, n_neighbours)
            for start in range(0, d_sae, _ROWS_AT_ONCE)
        ]
        cosines.append(torch.cat([values for values, _ in parts]))
        features.append(torch.cat([index for _, index in parts]))
    return torch.stack(cosines), torch.stack(features)


def neighbour_cosines(
    W_dec: Float[Tensor, "n_saes d_sae d_in"], is_alive: Bool[Tensor, "n_saes d_sae"]
) -> Float[Tensor, "n_saes d_sae"]:
    """Cosine of each living feature's decoder row with the nearest other living feature's, float64, in [−1, 1].

    nan for a feature that is not alive, whose row is zero, or that has no other. Memory grows with d_sae, not with its
    square.
    """
    found = torch.full(W_dec.shape[:2], torch.nan, dtype=torch.float64, device=W_dec.device)
    for k, rows in enumerate(W_dec):
        alive = (is_alive[k].to(rows.device) & (rows != 0).any(dim=-1)).nonzero().squeeze(1)
        unit = _unit_rows(rows[alive])
        for start in range(0, len(unit), _ROWS_AT_ONCE):
            cosine = unit[start : start + _ROWS_AT_ONCE] @ unit.T
            cosine.diagonal(start).fill_(-torch.inf)
            nearest = cosine.amax(dim=-1)
            found[k, alive[start : start + _ROWS_AT_ONCE]] = torch.where(
                nearest.isfinite(), nearest.clamp(-1, 1), torch.nan
            )
    return found


def _nearest(
    cosine: Float[Tensor, "rows d_sae"], first: int, n: int
) -> tuple[Float[Tensor, "rows n"], Int[Tensor, "rows n"]]:
    """The n largest cosines of each row but its own, which stands at column `first` and on, and their columns."""
    order = cosine.round(decimals=12).nan_to_num(nan=-2.0)  # products of equal rows may differ in the last bits
    order.diagonal(first).fill_(-torch.inf)
    index = order.topk(n, dim=-1).indices.sort(dim=-1).values  # of equal cosines the smaller feature first
    by_cosine = order.gather(-1, index).argsort(dim=-1, descending=True, stable=True)
    index = index.gather(-1, by_cosine)
    return cosine.gather(-1, index).clamp(-1, 1), index


def interpolate_at_l0(l0: ArrayLike, values: ArrayLike, at: ArrayLike) -> Float[np.ndarray, " n_at"]:
    """Values of an l1 sweep at the l0 asked for: linear in log10 l0 between the sweep's points, nan outside them.

    Points of equal l0 are averaged; points with l0 = 0 or a nan are left out. Raises ValueError for sweeps of unequal
    length.
    """
    l0, values = np.asarray(l0, dtype=np.float64), np.asarray(values, dtype=np.float64)
    at = np.atleast_1d(np.asarray(at, dtype=np.float64))
    if l0.ndim != 1 or l0.shape != values.shape:
        raise ValueError(
            f"interpolate_at_l0: l0 has shape {l0.shape}, values {values.shape}; expected one equal length"
        )
    is_usable = (l0 > 0) & np.isfinite(l0) & np.isfinite(values)
    points, inverse = np.unique(l0[is_usable], return_inverse=True)
    if len(points) == 0:
        return np.full(at.shape, np.nan)
    means = np.bincount(inverse, weights=values[is_usable]) / np.bincount(inverse)
    is_inside = (at >= points[0]) & (at <= points[-1])
    inside = np.where(is_inside, at, points[0])
    return np.where(is_inside, np.interp(np.log10(inside), np.log10(points), means), np.nan)


class MatchedL0(NamedTuple):
    """Two l1 sweeps on a common axis of l0."""

    l0: Float[np.ndarray, " n_points"]
    """Equal steps of log10 l0 over the range both sweeps cover; empty if there is none."""
    first: Float[np.ndarray, " n_points"]
    """The first sweep's values there."""
    second: Float[np.ndarray, " n_points"]
    """The second sweep's values there."""
    mean_difference: float
    """Mean of second − first; nan if the ranges do not meet."""


def match_l0(
    l0_first: ArrayLike, values_first: ArrayLike, l0_second: ArrayLike, values_second: ArrayLike, n_points: int = 16
) -> MatchedL0:
    """Two models' values (fvu, ce_recovered …) at matched l0, see `interpolate_at_l0`; never extrapolated.

    Raises ValueError as it does, and for n_points < 2.
    """
    if n_points < 2:
        raise ValueError(f"match_l0: n_points is {n_points}; expected ≥ 2")
    ranges = []
    for l0, values in ((l0_first, values_first), (l0_second, values_second)):
        points = np.asarray(l0, dtype=np.float64)
        is_usable = (points > 0) & np.isfinite(points) & np.isfinite(np.asarray(values, dtype=np.float64))
        ranges.append((points[is_usable].min(initial=np.inf), points[is_usable].max(initial=0.0)))
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    grid = np.geomspace(low, high, n_points) if low <= high else np.empty(0)
    if len(grid):
        # the ends are the sweeps' own points; no point may fall outside by a rounding
        grid = grid.clip(low, high)
        grid[0], grid[-1] = low, high
    first = interpolate_at_l0(l0_first, values_first, grid)
    second = interpolate_at_l0(l0_second, values_second, grid)
    return MatchedL0(grid, first, second, float((second - first).mean()) if len(grid) else float("nan"))


def _unit_rows(rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    rows = rows.detach().double()
    return rows / rows.norm(dim=-1, keepdim=True)
