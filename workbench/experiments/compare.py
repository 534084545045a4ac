"""Two models side by side: principal components and geometry of their states, and the spectra of their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int
from torch import Tensor

import probes
from probes.checks import centered
from probes.subspaces import DEGENERACY
from workbench.experiments.concepts.states import TOKENS_A_BATCH, state_hooks
from workbench.experiments.harvest import stream
from workbench.experiments.subject import as_list, checked_tokens
from workbench.models.layers import Attention

ATTENTION = ("W_Q", "W_K", "W_V", "W_O")
MLP = ("W_gate", "W_in", "W_out")
RANKS = ("nuclear_rank", "effective_rank", "stable_rank", "participation_ratio")
MIN_SEQUENCES = 4  # below, the unbiased CKA is undefined
N_SHUFFLED = 20  # draws of the null of shuffled items
NO_SHARED_BASIS = (
    "two models share no basis: pc_cosine compares coordinates, which training from other initial weights permutes and "
    "rotates; principal_angle, cka and procrustes compare the items' geometry"
)


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured, a data frame a table."""

    pc_cosine: pd.DataFrame
    """a (layer, component): |cos| of the principal components, and the layer's likeness in item space"""
    weight_spectra: pd.DataFrame
    """a (model, layer, matrix): the four ranks"""
    eigenspectra_divergence: pd.DataFrame
    """attention, mlp and all matrices: how far the models' nuclear ranks lie apart"""
    note: str = NO_SHARED_BASIS

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by its name in the column contract."""
        return {name: table for name, table in vars(self).items() if name != "note"}


def compare(
    a: Any,
    b: Any,
    tokens: Int[Tensor, "n n_ctx"],
    *,
    n_components: int = 4,
    names: tuple[str, str] | None = None,
    seeds: tuple[int, int] | None = None,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Comparison:
    """How alike two models are: their states of the same sequences, layer by layer, and the ranks of their weights.

    A sequence's state is its mean over positions ≥ 1, at `hook_embed` (layer −1) and at every `hook_resid_post`. In
    models of unequal depth layer ℓ of a meets the layer of b whose (layer + 1)/n_layers is nearest. Of weights the
    matrices are compared that there are: a layer without attention, or without an MLP, has no rows of it.

    Args:
        tokens: the sequences, in the one vocabulary that both models have; n ≥ 4, positions ≥ 2.
        n_components: principal components, 1 ≤ k ≤ n − 1.
        names, seeds: fill the columns; the configs' names and 0 unless given.
        seed: of the shuffles that draw the nulls of item-space columns.

    Raises:
        ValueError: unequal vocabularies, tokens that do not fit a model, too few sequences, components out of range, a
            model that does not pass those hooks.
    """
    n = len(checked_tokens("compare", a, tokens, min_ctx=2))
    check_pair(a, b, n, n_components)
    called = as_list("names", (a.cfg.model_name, b.cfg.model_name) if names is None else names)
    trained = as_list("seeds", (0, 0) if seeds is None else seeds)
    if not len(called) == len(trained) == 2:
        raise ValueError(f"names, seeds: got {len(called)} and {len(trained)} for two models; expected one each")
    tell = on_progress or (lambda share: None)
    states, spectra = [], []
    for index, model in enumerate((a, b)):
        states.append(mean_pooled(model, tokens))
        tell(0.5 * index + 0.2)
        spectra.append(matrix_spectra(model))
        tell(0.5 * index + 0.5)
    rng = np.random.default_rng(seed)
    layers = matching_layers(a.cfg.n_layers, b.cfg.n_layers)
    rows = []
    for layer, other in [(-1, -1), *layers]:
        found = _layer_rows(states[0][layer + 1], states[1][other + 1], n_components, rng)
        rows += [{"layer": layer} | row | {"n": n, "layer_b": other} for row in found]
    names_of = {"model_a": called[0], "model_b": called[1]}
    return Comparison(
        pc_cosine=pd.DataFrame([names_of | row for row in rows]),
        weight_spectra=pd.concat(
            [_spectra_table(spectra[i], called[i], trained[i]) for i in (0, 1)], ignore_index=True
        ),
        eigenspectra_divergence=pd.DataFrame(
            [names_of | row for row in _divergence_rows(spectra[0], spectra[1], layers)]
        ),
    )


def check_pair(a: Any, b: Any, n_sequences: int, n_components: int) -> None:
    """Raise the ValueErrors of `compare` that need no forward pass."""
    if a.cfg.d_vocab != b.cfg.d_vocab:
        raise ValueError(f"compare: vocabularies of {a.cfg.d_vocab} and {b.cfg.d_vocab}; want one for both models")
    first, second = (getattr(model, "tokenizer", None) for model in (a, b))
    if first is not None and second is not None and first.get_vocab() != second.get_vocab():
        raise ValueError("compare: the models' tokenizers differ; want one for both, so that both read the same tokens")
    if n_sequences < MIN_SEQUENCES:
        raise ValueError(f"compare: {n_sequences} sequences; want at least {MIN_SEQUENCES}")
    if not 1 <= n_components <= n_sequences - 1:
        raise ValueError(f"n_components: got {n_components}; want 1 … {n_sequences - 1} for {n_sequences} sequences")


def weight_spectra(model: Any, *, name: str | None = None, seed: int = 0) -> pd.DataFrame:
    """weight_spectra.csv's rows of one model: the four ranks of every layer's matrices, uncentred.

    Heads stand side by side: W_Q, W_K, W_V are [d_model, heads·d_head], W_O is [heads·d_head, d_model]; grouped keys
    and values count once. A matrix that the model has not (W_gate of an ungated MLP) has no row.
    """
    return _spectra_table(matrix_spectra(model), name or model.cfg.model_name, seed)


def matrix_spectra(model: Any) -> dict[tuple[int, str], probes.MatrixRanks]:
    """The ranks of (layer, matrix), in the order of depth."""
    found = {}
    for layer, block in enumerate(model.blocks):
        for name, matrix in weight_matrices(block).items():
            found[layer, name] = probes.matrix_ranks(matrix.detach().cpu().double().numpy())
    return found


def weight_matrices(block: Any) -> dict[str, Float[Tensor, "rows cols"]]:
    """The matrices that one layer has, by name, the heads of each side by side."""
    attn, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    heads = {name: w for name in ATTENTION if (w := _matrix(attn, name)) is not None}
    # grouped keys and values stand beside the form that repeats them for every query head: ours, then TransformerLens's
    for name in ("W_K", "W_V"):
        if isinstance(attn, Attention):
            heads[name] = attn.stored(name)
        elif (grouped := getattr(attn, f"_{name}", None)) is not None:
            heads[name] = grouped
    found = {
        name: rearrange(w, "h e d -> (h e) d") if name == "W_O" else rearrange(w, "h d e -> d (h e)")
        for name, w in heads.items()
    }
    return found | {name: w for name in MLP if (w := _matrix(mlp, name)) is not None}


def _matrix(part: Any, name: str) -> Tensor | None:
    """A weight of an attention or an MLP; None where there is none."""
    try:
        found = getattr(part, name, None)
    except NotImplementedError:  # so a bridge says that its attention has no such matrix (latent attention)
        return None
    return found if isinstance(found, Tensor) else None  # the W_gate of experts is a module that routes


def matching_layers(n_a: int, n_b: int) -> list[tuple[int, int]]:
    """Each layer of a with the layer of b at the nearest (layer + 1)/n_layers, the earlier of two as near.

    >>> matching_layers(2, 4)
    [(0, 1), (1, 3)]
    """
    return [
        (layer, min(range(n_b), key=lambda own: (abs((own + 1) * n_a - (layer + 1) * n_b), own)))
        for layer in range(n_a)
    ]  # fmt: skip


@torch.no_grad()
def mean_pooled(model: Any, tokens: Int[Tensor, "n n_ctx"]) -> Float64[np.ndarray, "state n d_model"]:
    """Each sequence's mean state over positions ≥ 1, summed in float64, at every hook in the order of depth."""
    tokens = checked_tokens("compare", model, tokens, min_ctx=2)
    hooks = state_hooks(model)
    size = max(1, TOKENS_A_BATCH // tokens.shape[1])
    batches = [
        torch.stack([batch[name][:, 1:].double().mean(dim=1).cpu() for name in hooks])
        for batch in stream(model, tokens, hooks, size)
    ]
    return torch.cat(batches, dim=1).numpy()


def _layer_rows(
    x: Float64[np.ndarray, "n d_a"], y: Float64[np.ndarray, "n d_b"], n_components: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Rows of pc_cosine of one pair of layers, but for what names them: a row a component."""
    x, y = centered(x), centered(y)  # exactly 0 where all are equal: their rounded mean would leave components of noise
    has_one_width = x.shape[1] == y.shape[1]
    baseline = probes.random_pc_cosine(x.shape[1]) if has_one_width else math.nan
    explained = [_explained(states) for states in (x, y)]
    k = min(n_components, *(np.linalg.matrix_rank(states, rtol=DEGENERACY) for states in (x, y)))
    own = _item_space(x, y, k)
    shuffled = [_item_space(x, y[rng.permutation(len(y))], k) for _ in range(N_SHUFFLED)]
    rows = []
    for index in range(n_components):
        angles = [found[0][index] if index < k else math.nan for found in (own, *shuffled)]
        rows.append(
            {
                "pc": index + 1,
                "cosine": probes.pc_abs_cosine(x, y, index + 1) if has_one_width and index < k else math.nan,
                "baseline": baseline,
                "explained_a": explained[0][index] if index < len(explained[0]) else math.nan,
                "explained_b": explained[1][index] if index < len(explained[1]) else math.nan,
                "principal_angle": angles[0],
                "principal_angle_null": float(np.mean(angles[1:])),
                "cka": own[1],
                "cka_null": float(np.mean([found[1] for found in shuffled])),
                "procrustes": own[2],
                "procrustes_null": float(np.mean([found[2] for found in shuffled])),
            }
        )
    return rows


def _item_space(x: np.ndarray, y: np.ndarray, k: int) -> tuple[np.ndarray, float, float]:
    """Principal angles of the k leading components' scores (smallest first), unbiased CKA, Procrustes disparity, of
    centred states."""
    angles = probes.principal_angles(x, y, k)[::-1] if k else np.zeros(0)
    return angles, probes.linear_cka(x, y), probes.procrustes_disparity(x, y)


def _explained(states: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " k"]:
    """Share of the variance that each principal component of centred states holds."""
    variance = np.linalg.svd(states, compute_uv=False) ** 2
    return variance / variance.sum() if variance.sum() > 0 else np.full(variance.shape, math.nan)


def _spectra_table(ranks: dict[tuple[int, str], probes.MatrixRanks], name: str, seed: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (name, seed, layer, matrix, *(getattr(found, rank) for rank in RANKS), found.n_singular_values)
            for (layer, matrix), found in ranks.items()
        ],
        columns=pd.Index(["model", "seed", "layer", "matrix", *RANKS, "n_singular_values"]),
    )


def _divergence_rows(
    a: dict[tuple[int, str], probes.MatrixRanks],
    b: dict[tuple[int, str], probes.MatrixRanks],
    layers: Sequence[tuple[int, int]],
) -> list[dict[str, Any]]:
    """eigenspectra_divergence's rows: mean over (layer, matrix) that both have of |Δ nuclear rank| / their mean."""
    rows = []
    for part, names in (("attention", ATTENTION), ("mlp", MLP), ("all", ATTENTION + MLP)):
        pairs = [
            (a[layer, name].nuclear_rank, b[other, name].nuclear_rank)
            for layer, other in layers
            for name in names
            if (layer, name) in a and (other, name) in b
        ]
        values = [2 * abs(first - second) / (first + second) for first, second in pairs]
        rows.append({"part": part, "divergence": float(np.mean(values)) if values else math.nan, "n": len(values)})
    return rows
