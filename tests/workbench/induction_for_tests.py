"""A model of two layers whose weights are set by hand so that two heads, and nothing else, do induction; and pairs of
prompts that only both together tell apart."""

from __future__ import annotations

import torch

from workbench.data.pairs import PairTokens
from workbench.models import HookedLM, ModelConfig

N_TOKENS, N_CTX = 24, 16
PREVIOUS, INDUCTION = (0, 1), (1, 2)  # layer, head
SHARP = 60.0  # of the scores, before the softmax


def induction_model() -> HookedLM:
    """Head 0.1 writes each token's predecessor into a subspace of its own; head 1.2 looks for the place whose
    predecessor is the token at hand, and writes what stands there to where the unembedding reads.

    Subspaces of the stream: token, position, predecessor, output. Every other weight is small noise.
    """
    v, n = N_TOKENS, N_CTX
    cfg = ModelConfig(
        n_layers=2, d_model=3 * v + n, n_ctx=n, d_vocab=v, n_heads=4, d_head=max(v, n), d_mlp=16, gated_mlp=False,
        act_fn="gelu", positional_embedding_type="standard", normalization_type="RMS", dtype=torch.float64,
    )  # fmt: skip
    model = HookedLM(cfg, seed=0)
    token, place, before, out = slice(0, v), slice(v, v + n), slice(v + n, 2 * v + n), slice(2 * v + n, 3 * v + n)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(".w"):
                parameter.mul_(0.01)
        model.embed.W_E[:, token] += torch.eye(v)
        model.pos_embed.W_pos[:, place] += torch.eye(n)
        model.unembed.W_U[out] += torch.eye(v)
        first, second = (model.blocks[layer].attn for layer in range(2))
        previous, induction = PREVIOUS[1], INDUCTION[1]
        first.W_Q[previous, place, :n] += SHARP * torch.eye(n)
        first.W_K[previous, place, :n] += torch.eye(n).roll(1, dims=1)  # a key of position j is looked for at j + 1
        first.W_V[previous, token, :v] += torch.eye(v)
        first.W_O[previous, :v, before] += torch.eye(v)
        second.W_Q[induction, token, :v] += SHARP * torch.eye(v)
        second.W_K[induction, before, :v] += torch.eye(v)
        second.W_V[induction, token, :v] += torch.eye(v)
        second.W_O[induction, :v, out] += torch.eye(v)
    return model


def swapped_pairs(n_pairs: int = 32, seed: int = 0) -> PairTokens:
    """`… A B … A′ B′ … A` → B rather than B′; corrupt `… A′ B … A B′ … A`: the same tokens at the same places but for
    what stands before B and B′. A pair and its mirror are a cluster."""
    generator = torch.Generator().manual_seed(seed)
    length, b, other = 12, 4, 8
    told, swapped = [], []
    for _ in range(n_pairs // 2):
        drawn = torch.randperm(N_TOKENS, generator=generator)[:length]
        drawn[-1] = drawn[b - 1]
        second = drawn.clone()
        second[b - 1], second[other - 1] = drawn[other - 1], drawn[b - 1]
        told.append(drawn)
        swapped.append(second)
    both = lambda one, two: torch.stack([torch.stack(one), torch.stack(two)], dim=1).flatten(0, 1)  # noqa: E731
    clean, corrupt = both(told, swapped), both(swapped, told)
    is_told = torch.arange(n_pairs) % 2 == 0
    rows = torch.arange(n_pairs)
    answers, foils = (clean[rows, torch.where(is_told == first, b, other)] for first in (True, False))
    at = {"b": b, "other": other, "end": length - 1}
    return PairTokens(
        "swapped", clean, corrupt, torch.ones_like(clean, dtype=torch.bool), answers[:, None], foils[:, None],
        rows // 2, {name: torch.full((n_pairs,), place) for name, place in at.items()},
    )  # fmt: skip
