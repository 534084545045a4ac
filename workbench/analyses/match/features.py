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
from workbench.models.activations import Slot, at, collect
from workbench.models.checks import checked_tokens, device_of
from workbench.models.sae_places import stack_slots
from workbench.models.weights import weights_sha256


@dataclass(frozen=True)
class Matches:
    """The best match of each feature of one SAE."""

    correlations: Float64[Tensor, " d_sae"]
    """nan for a feature without a match"""
    saes: Int[Tensor, " d_sae"]
    """place of the other feature's SAE in the other stack"""
    features: Int[Tensor, " d_sae"]


@torch.no_grad()
def match_features(
    model_a: Any,
    sae_a: StackedSAE,
    model_b: Any,
    sae_b: StackedSAE,
    tokens: Int[Tensor, "n_sequences n_ctx"],
    on_progress: Callable[[float], None] | None = None,
) -> tuple[list[Matches], list[Matches]]:
    """(matches of a's features in b, of b's in a), of each SAE in the stack's order.

    The match of a feature is the feature of the other model's SAEs of the same layer, whichever head they read, whose
    activations correlate most (Pearson) with its own on the same tokens, at the positions that both SAEs are meant for.
    Two models share no basis, so decoder rows cannot be compared; nor does one model's head h correspond to the
    other's. A feature that never fires has correlation nan.

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
    layers = layers_of(slots)
    d_a, d_b = sae_a.config.d_sae, sae_b.config.d_sae
    sums = [PairSums.zeros(1, len(own) * d_a, len(own) * d_b, device) for own in layers]
    batches = forward_batches(tokens)
    for number, batch in enumerate(batches):
        is_counted = positions.of(batch)
        x_a, x_b = (at(is_counted, collect(model, batch, unique, number)) for model in (model_a, model_b))
        for block_a, block_b in zip(x_a.split(BLOCK_TOKENS, dim=1), x_b.split(BLOCK_TOKENS, dim=1), strict=True):
            acts_a, acts_b = sae_a.encode(block_a[index]), sae_b.encode(block_b[index]).to(device)
            for own, of_layer in zip(layers, sums, strict=True):
                of_layer.update(*(rearrange(acts[own], "sae t f -> 1 t (sae f)") for acts in (acts_a, acts_b)))
        if on_progress is not None:
            on_progress((number + 1) / len(batches))
    found: tuple[dict[int, Matches], dict[int, Matches]] = ({}, {})
    for own, of_layer in zip(layers, sums, strict=True):
        r = of_layer.correlations()[0].cpu()
        for matches, table, d_sae in ((found[0], r, d_b), (found[1], r.mT, d_a)):
            matches.update(zip(own, _best(table, own, d_sae), strict=True))
    in_a, in_b = ([matches[k] for k in range(len(slots))] for matches in found)
    return in_a, in_b


def layers_of(slots: Sequence[Slot]) -> list[list[int]]:
    """The places, in a stack, of the SAEs that read one hook: all heads of a layer together."""
    hooks = list(dict.fromkeys(slot.hook_name for slot in slots))
    return [[k for k, slot in enumerate(slots) if slot.hook_name == hook] for hook in hooks]


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


def match_cells(matches: Sequence[Matches], other: str, slots: Sequence[Slot]) -> list[str]:
    """The column match of feature_atlas, in the table's order of SAEs: JSON [other model, head, feature, correlation],
    or empty where there is none. slots: what the other model's SAEs read."""
    cells = []
    for own in matches:
        for value, sae, feature in zip(
            own.correlations.tolist(), own.saes.tolist(), own.features.tolist(), strict=True
        ):
            cell = [other, slots[sae].column, feature, round(value, DIGITS)]
            cells.append(json.dumps(cell) if value == value else "")
    return cells


def _best(r: Float64[Tensor, "a b"], saes: Sequence[int], d_sae: int) -> list[Matches]:
    """The largest correlation of each row, SAE by SAE; columns are the features of these SAEs, d_sae of each."""
    values, columns = r.nan_to_num(nan=-2.0).max(dim=-1)
    values = torch.where(values > -2, values, torch.nan)
    which = torch.tensor(saes)[columns // d_sae]
    parts = (own.chunk(len(saes)) for own in (values, which, columns % d_sae))
    return [Matches(*own) for own in zip(*parts, strict=True)]
