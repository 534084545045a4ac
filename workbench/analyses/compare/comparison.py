"""Two models side by side: principal components and geometry of their states, and the spectra of their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

import probes
from probes.checks import centered
from probes.subspaces import DEGENERACY
from workbench.analyses.compare.settings import N_COMPONENTS, NO_SHARED_BASIS
from workbench.analyses.probe.states import TOKENS_A_BATCH, state_hooks
from workbench.analyses.spectra.weights import Spectra, divergence_rows, matrix_spectra, spectra_tables
from workbench.models.checks import as_list, checked_tokens, matching_layer
from workbench.models.streams import stream
from workbench.models.tokenizer_files import tokenizer_of

MIN_SEQUENCES = 4  # below, the unbiased CKA is undefined
N_SHUFFLED = 20  # draws of the null of shuffled items


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured, a data frame a table."""

    pc_cosine: pd.DataFrame
    """a (layer, component): |cos| of the principal components, and the layer's likeness in item space"""
    weight_spectra: pd.DataFrame
    """a (model, layer, matrix): the four ranks"""
    singular_values: pd.DataFrame
    """a (model, layer, matrix): all singular values"""
    rank_budget: pd.DataFrame
    """a (model, matrix, part of the depth): Σ over layers of the stable rank, and its share of all"""
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
    n_components: int = N_COMPONENTS,
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
    check_pair(a, b, len(checked_tokens("compare", a, tokens, min_ctx=2)), n_components)
    called = as_list("names", (a.cfg.model_name, b.cfg.model_name) if names is None else names)
    trained = as_list("seeds", (0, 0) if seeds is None else seeds)
    if not len(called) == len(trained) == 2:
        raise ValueError(f"names, seeds: got {len(called)} and {len(trained)} for two models; expected one each")
    tell = on_progress or (lambda share: None)
    states = compare_states(a, b, tokens, n_components=n_components, names=called, seed=seed)
    tell(0.4)
    spectra = [matrix_spectra(a)]
    tell(0.7)
    spectra.append(matrix_spectra(b))
    tell(1.0)
    own = [spectra_tables(found, called[i], trained[i]) for i, found in enumerate(spectra)]
    both = {name: pd.concat([tables[name] for tables in own], ignore_index=True) for name in own[0]}
    return Comparison(
        pc_cosine=states,
        weight_spectra=both["weight_spectra"],
        singular_values=both["singular_values"],
        rank_budget=both["rank_budget"],
        eigenspectra_divergence=compare_spectra(spectra[0], spectra[1], (a.cfg.n_layers, b.cfg.n_layers), called),
    )


def compare_states(
    a: Any, b: Any, tokens: Int[Tensor, "n n_ctx"], *, n_components: int, names: Sequence[str], seed: int
) -> pd.DataFrame:
    """pc_cosine.csv's rows of two models that `check_pair` lets pass; arguments as `compare`."""
    states = [mean_pooled(model, tokens) for model in (a, b)]
    rng = np.random.default_rng(seed)
    rows = []
    for layer, other in [(-1, -1), *matching_layers(a.cfg.n_layers, b.cfg.n_layers)]:
        found = _layer_rows(states[0][layer + 1], states[1][other + 1], n_components, rng)
        rows += [{"layer": layer} | row | {"n": len(tokens), "layer_b": other} for row in found]
    return pd.DataFrame([{"model_a": names[0], "model_b": names[1]} | row for row in rows])


def compare_spectra(a: Spectra, b: Spectra, n_layers: tuple[int, int], names: Sequence[str]) -> pd.DataFrame:
    """eigenspectra_divergence.csv's rows of two models, from their spectra and numbers of layers."""
    rows = divergence_rows(a, b, matching_layers(*n_layers))
    return pd.DataFrame([{"model_a": names[0], "model_b": names[1]} | row for row in rows])


def check_pair(a: Any, b: Any, n_sequences: int, n_components: int) -> None:
    """Raise the ValueErrors of `compare` that need no forward pass."""
    if a.cfg.d_vocab != b.cfg.d_vocab:
        raise ValueError(f"compare: vocabularies of {a.cfg.d_vocab} and {b.cfg.d_vocab}; expected one for both models")
    first, second = (tokenizer_of(model) for model in (a, b))
    if first is not None and second is not None and first.get_vocab() != second.get_vocab():
        raise ValueError(
            "compare: the models' tokenizers differ; expected one for both, so that both read the same tokens"
        )
    if n_sequences < MIN_SEQUENCES:
        raise ValueError(f"compare: {n_sequences} sequences; expected at least {MIN_SEQUENCES}")
    if not 1 <= n_components <= n_sequences - 1:
        raise ValueError(
            f"n_components: got {n_components}; expected 1 … {n_sequences - 1} for {n_sequences} sequences"
        )


def matching_layers(n_a: int, n_b: int) -> list[tuple[int, int]]:
    """Each layer of a with the layer of b at the nearest (layer + 1)/n_layers, the earlier of two as near.

    >>> matching_layers(2, 4)
    [(0, 1), (1, 3)]
    """
    return [(layer, matching_layer(layer, n_a, n_b)) for layer in range(n_a)]


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
    k = min(n_components, *(int(np.linalg.matrix_rank(states, rtol=DEGENERACY)) for states in (x, y)))
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
