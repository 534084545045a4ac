"""The features of two models that fire together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Float64, Int
from torch import Tensor

from sae.stack import StackedSAE, check_model
from workbench.analyses.atlas.features import DIGITS, stack_positions
from workbench.analyses.sae_train.evaluation import BLOCK_TOKENS, forward_batches
from workbench.models.activations import at, collect
from workbench.models.checks import checked_tokens, device_of
from workbench.models.sae_places import stack_slots
from workbench.models.weights import weights_sha256


@torch.no_grad()
def match_features(
    model_a: Any,
    sae_a: StackedSAE,
    model_b: Any,
    sae_b: StackedSAE,
    tokens: Int[Tensor, "n_sequences n_ctx"],
    on_progress: Callable[[float], None] | None = None,
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """(matches of a's features in b, of b's in a): (correlations, features) [d_sae] of each SAE in the stack's order.

    The match of a feature is the feature of the other model's SAE of the same layer and head whose activations
    correlate most (Pearson) with its own on the same tokens, at the positions that both SAEs are meant for. Two models
    share no basis, so decoder rows cannot be
    compared; nor does one model's head h correspond to the other's, so a low correlation says only that this head has
    no such feature. A feature that never fires has correlation nan.

    Raises:
        ValueError: models of different vocabularies, or stacks that do not read the same layers and heads.
    """
    slots = stack_slots(sae_a)
    check_pair(model_a, sae_a, model_b, sae_b)
    tokens = checked_tokens("match", model_a, tokens, min_ctx=2)
    positions = stack_positions(model_a, sae_a, sae_b)
    unique = list(dict.fromkeys(slots))
    index = torch.tensor([unique.index(slot) for slot in slots])
    device = device_of(sae_a)
    sums = PairSums.zeros(len(slots), sae_a.config.d_sae, sae_b.config.d_sae, device)
    batches = forward_batches(tokens)
    for number, batch in enumerate(batches):
        is_counted = positions.of(batch)
        x_a, x_b = (at(is_counted, collect(model, batch, unique, number)) for model in (model_a, model_b))
        for block_a, block_b in zip(x_a.split(BLOCK_TOKENS, dim=1), x_b.split(BLOCK_TOKENS, dim=1), strict=True):
            sums.update(sae_a.encode(block_a[index]), sae_b.encode(block_b[index]).to(device))
        if on_progress is not None:
            on_progress((number + 1) / len(batches))
    r = sums.correlations().cpu()
    return _best(r), _best(rearrange(r, "sae a b -> sae b a"))


@dataclass
class PairSums:
    """Sums from which the correlations of two sets of features follow.

    What is summed is less the first block's smallest activations: zeros of a sparse feature stay zeros, and the
    variance of one that is always on, or never varies, is not left to rounding.
    """

    n: int
    at_a: Float[Tensor, "n_saes 1 a"]
    at_b: Float[Tensor, "n_saes 1 b"]
    a: Float64[Tensor, "n_saes a"]
    b: Float64[Tensor, "n_saes b"]
    aa: Float64[Tensor, "n_saes a"]
    bb: Float64[Tensor, "n_saes b"]
    ab: Float64[Tensor, "n_saes a b"]

    @classmethod
    def zeros(cls, n_saes: int, n_a: int, n_b: int, device: torch.device | str = "cpu") -> PairSums:
        """Sums of no token."""
        sizes = ((n_saes, n_a), (n_saes, n_b), (n_saes, n_a), (n_saes, n_b), (n_saes, n_a, n_b))
        shifts = (torch.zeros(n_saes, 1, n, device=device) for n in (n_a, n_b))
        return cls(0, *shifts, *(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    def update(self, a: Float[Tensor, "n_saes tokens a"], b: Float[Tensor, "n_saes tokens b"]) -> None:
        """Add tokens; a block's products are float32, what they are added to is float64."""
        if not self.n:
            self.at_a, self.at_b = (own.float().amin(dim=1, keepdim=True) for own in (a, b))
        self.n += a.shape[1]
        a, b = a.float() - self.at_a, b.float() - self.at_b
        self.a += a.sum(dim=1).double()
        self.b += b.sum(dim=1).double()
        self.aa += einsum(a, a, "s t f, s t f -> s f").double()
        self.bb += einsum(b, b, "s t f, s t f -> s f").double()
        self.ab += (a.mT @ b).double()

    def correlations(self) -> Float64[Tensor, "n_saes a b"]:
        """Pearson's r of every pair; nan where one of the two does not vary."""
        cov = self.ab / self.n - self.a[:, :, None] * self.b[:, None, :] / self.n**2
        var_a, var_b = self.aa / self.n - (self.a / self.n) ** 2, self.bb / self.n - (self.b / self.n) ** 2
        scale = (var_a.clamp_min(0)[:, :, None] * var_b.clamp_min(0)[:, None, :]).sqrt()
        return torch.where(scale > 0, cov / scale, torch.nan).clamp(-1, 1)


def check_pair(model_a: Any, sae_a: StackedSAE, model_b: Any, sae_b: StackedSAE) -> None:
    """Raise ValueError unless each stack is its model's and the two read alike slots of one vocabulary."""
    for model, sae in ((model_a, sae_a), (model_b, sae_b)):
        check_model(sae, weights_sha256(model))
    if model_a.cfg.d_vocab != model_b.cfg.d_vocab:
        raise ValueError(
            f"match: vocabularies of {model_a.cfg.d_vocab} and {model_b.cfg.d_vocab} entries; expected one tokenizer"
        )
    if stack_slots(sae_a) != stack_slots(sae_b):
        raise ValueError("match: the stacks read different hooks or heads; expected the same, in the same order")


def match_cells(matches: Sequence[tuple[Tensor, Tensor]], other: str) -> list[str]:
    """The column match of feature_atlas, in the table's order of SAEs: JSON [other model, feature, correlation], or
    empty where there is none."""
    cells = []
    for values, features in matches:
        for value, feature in zip(values.tolist(), features.tolist(), strict=True):
            cells.append(json.dumps([other, feature, round(value, DIGITS)]) if value == value else "")
    return cells


def _best(r: Float64[Tensor, "n_saes a b"]) -> list[tuple[Tensor, Tensor]]:
    values, features = r.nan_to_num(nan=-2.0).max(dim=-1)
    return [(torch.where(v > -2, v, torch.nan), f) for v, f in zip(values, features, strict=True)]
