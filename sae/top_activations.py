"""The tokens on which each feature is most active, kept while activations stream past."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.config import SAEConfig


class TopActivations:
    """The k largest activations of every feature and the flat indices of their tokens.

    Memory is n_saes · d_sae · k, whatever the number of tokens. Only activations > 0 are kept; of equal ones those of
    the smaller token index, so the result is that of sorting all tokens at once, if batches come in order.
    """

    def __init__(self, config: SAEConfig, k: int, device: torch.device | str = "cpu") -> None:
        """No token yet. Raises ValueError for k < 1."""
        if k < 1:
            raise ValueError(f"TopActivations: k is {k}; want ≥ 1")
        self._shape = (config.n_saes, config.d_sae)
        n_features = config.n_saes * config.d_sae
        self._values = torch.zeros(n_features, k, device=device)
        self._tokens = torch.full((n_features, k), -1, dtype=torch.int64, device=device)
        self._n_tokens = 0

    @property
    def n_tokens(self) -> int:
        """Tokens seen; the flat index of the next one."""
        return self._n_tokens

    @property
    def values(self) -> Float[Tensor, "n_saes d_sae k"]:
        """Activations, largest first, float32; 0 where a feature fired on fewer than k tokens."""
        return self._values.view(*self._shape, -1)

    @property
    def tokens(self) -> Int[Tensor, "n_saes d_sae k"]:
        """Flat indices of their tokens, in the order in which they were given; −1 where the value is 0."""
        return self._tokens.view(*self._shape, -1)

    @torch.no_grad()
    def update(self, acts: Float[Tensor, "n_saes tokens d_sae"]) -> None:
        """Take the next tokens; their flat indices go on where the last batch ended.

        Raises ValueError for a shape that does not fit or for nan.
        """
        n_saes, d_sae = self._shape
        if acts.ndim != 3 or acts.shape[0] != n_saes or acts.shape[2] != d_sae:
            raise ValueError(
                f"TopActivations.update: acts has shape {tuple(acts.shape)}; want ({n_saes}, tokens, {d_sae})"
            )
        if acts.shape[1] == 0:
            return
        # one cheap pass tells which features gain anything; late in a stream few do
        best = acts.amax(dim=1).float()
        if bool(best.isnan().any()):
            which = best.isnan().any(dim=-1).nonzero().flatten().tolist()
            raise ValueError(f"TopActivations.update: acts of SAE {which} have nan; want finite activations")
        gains = best > self._values[:, -1].view(n_saes, d_sae)
        for k in range(n_saes):
            features = gains[k].nonzero().flatten()
            if len(features):
                self._merge(features + k * d_sae, acts[k][:, features].T.float())
        self._n_tokens += acts.shape[1]

    def _merge(self, rows: Int[Tensor, " n"], acts: Float[Tensor, "n tokens"]) -> None:
        # the batch's own best k first, by a stable order: topk would break ties as it likes
        k = self._values.shape[1]
        if acts.shape[1] > 4 * k:
            floor = acts.topk(k, dim=-1).values[:, -1:]
            candidates = (acts >= floor.clamp_min(torch.finfo(acts.dtype).tiny)).nonzero()
        else:
            candidates = (acts > 0).nonzero()
        feature, token = candidates.unbind(dim=-1)
        value = acts[feature, token]
        by_value = value.argsort(descending=True, stable=True)
        order = by_value[feature[by_value].argsort(stable=True)]
        feature, token, value = feature[order], token[order], value[order]
        n_of_feature = torch.bincount(feature, minlength=len(rows))
        rank = torch.arange(len(feature), device=acts.device) - (n_of_feature.cumsum(0) - n_of_feature)[feature]
        is_kept = rank < k
        feature, token, value, rank = feature[is_kept], token[is_kept], value[is_kept], rank[is_kept]
        new_values = torch.zeros(len(rows), k, device=acts.device)
        new_tokens = torch.full((len(rows), k), -1, dtype=torch.int64, device=acts.device)
        new_values[feature, rank] = value
        new_tokens[feature, rank] = token + self._n_tokens
        # what is kept stands before what is new, so a stable order prefers the earlier token
        values = torch.cat([self._values[rows], new_values], dim=-1)
        tokens = torch.cat([self._tokens[rows], new_tokens], dim=-1)
        order = values.argsort(dim=-1, descending=True, stable=True)[:, :k]
        self._values[rows] = values.gather(-1, order)
        self._tokens[rows] = tokens.gather(-1, order)
