"""The tokens on which each feature is most active, kept while activations stream past."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from sae.config import SAEConfig

_BLOCK_TOKENS = 32


class TopActivations:
    """The k largest activations of every feature and the flat indices of their tokens.

    Memory is n_saes · d_sae · k, whatever the number of tokens. Only activations > 0 are kept; of equal ones those of
    the smaller token index, so the result is that of sorting all tokens at once, if batches come in order.
    """

    def __init__(self, config: SAEConfig, k: int, device: torch.device | str = "cpu") -> None:
        """No token yet. Raises ValueError for k < 1."""
        if k < 1:
            raise ValueError(f"TopActivations: k is {k}; expected ≥ 1")
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
                f"TopActivations.update: acts has shape {tuple(acts.shape)}; expected ({n_saes}, tokens, {d_sae})"
            )
        start = 0
        while start < acts.shape[1]:
            # no longer than what was seen before: so a feature gains about k tokens per part at most, from the start on
            part = acts[:, start : start + max(_BLOCK_TOKENS, self._n_tokens)]
            n_whole = part.shape[1] // _BLOCK_TOKENS * _BLOCK_TOKENS
            for piece, block in ((part[:, :n_whole], _BLOCK_TOKENS), (part[:, n_whole:], part.shape[1] - n_whole)):
                if piece.shape[1]:
                    self._take(rearrange(piece, "s (b t) f -> s b t f", t=block))
            start += part.shape[1]

    def _take(self, acts: Float[Tensor, "n_saes blocks tokens d_sae"]) -> None:
        """Merge whole blocks: their maxima, one cheap pass, tell the few that hold anything new."""
        n_saes, d_sae = self._shape
        best = acts.amax(dim=2).float()
        if bool(best.isnan().any()):
            which = best.isnan().flatten(start_dim=1).any(dim=-1).nonzero().flatten().tolist()
            raise ValueError(f"TopActivations.update: acts of SAE {which} have nan; expected finite activations")
        floor = self._values[:, -1].view(n_saes, 1, d_sae)
        sae, block, feature = (best > floor).nonzero().unbind(dim=-1)
        candidates = acts[sae, block, :, feature].float()
        hit, offset = (candidates > floor[sae, 0, feature].unsqueeze(-1)).nonzero().unbind(dim=-1)
        tokens = self._n_tokens + block[hit] * acts.shape[2] + offset
        self._merge((sae * d_sae + feature)[hit], tokens, candidates[hit, offset])
        self._n_tokens += acts.shape[1] * acts.shape[2]

    def _merge(self, feature: Int[Tensor, " n"], token: Int[Tensor, " n"], value: Float[Tensor, " n"]) -> None:
        """Take these activations in; for each feature they stand in the order of their tokens."""
        k = self._values.shape[1]
        by_value = value.argsort(descending=True, stable=True)
        order = by_value[feature[by_value].argsort(stable=True)]
        rows, row, n_of_row = feature[order].unique_consecutive(return_inverse=True, return_counts=True)
        rank = torch.arange(len(order), device=value.device) - (n_of_row.cumsum(0) - n_of_row)[row]
        is_kept = rank < k
        order, row, rank = order[is_kept], row[is_kept], rank[is_kept]
        new_values = value.new_zeros(len(rows), k)
        new_tokens = token.new_full((len(rows), k), -1)
        new_values[row, rank] = value[order]
        new_tokens[row, rank] = token[order]
        # what was kept stands before what is new, so a stable order prefers the earlier token
        values = torch.cat([self._values[rows], new_values], dim=-1)
        tokens = torch.cat([self._tokens[rows], new_tokens], dim=-1)
        order = values.argsort(dim=-1, descending=True, stable=True)[:, :k]
        self._values[rows] = values.gather(-1, order)
        self._tokens[rows] = tokens.gather(-1, order)
