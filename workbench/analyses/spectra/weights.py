"""The spectra of a model's weights: all singular values of every matrix, their ranks, and what the ranks sum to."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

import probes
from workbench.models.layers import Attention

ATTENTION = ("W_Q", "W_K", "W_V", "W_O")
MLP = ("W_gate", "W_in", "W_out")
KEY = ("model", "seed", "layer", "matrix")
RANKS = ("nuclear_rank", "effective_rank", "stable_rank", "participation_ratio")
Spectra = dict[tuple[int, str], probes.MatrixSpectrum]  # (layer, matrix) -> its spectrum, in the order of depth


class MatrixWarning(UserWarning):
    """A model has other matrices than those that are named here, and these are left out."""


def weight_spectra(model: Any, *, name: str | None = None, seed: int = 0) -> pd.DataFrame:
    """weight_spectra.csv's rows of one model: the four ranks of every layer's matrices, uncentred.

    Heads stand side by side: W_Q, W_K, W_V are [d_model, heads·d_head], W_O is [heads·d_head, d_model]; grouped keys
    and values count once. A matrix that the model has not (W_gate of an ungated MLP) has no row.
    """
    return ranks_table(matrix_spectra(model), name or model.cfg.model_name, seed)


def matrix_spectra(model: Any, on_progress: Callable[[float], None] | None = None) -> Spectra:
    """The spectrum of every weight matrix by (layer, matrix), each from one decomposition in float64."""
    found = {}
    for layer, block in enumerate(model.blocks):
        for name, matrix in weight_matrices(block).items():
            found[layer, name] = probes.matrix_spectrum(matrix.detach().cpu().double().numpy())
        if on_progress is not None:
            on_progress((layer + 1) / len(model.blocks))
    return found


def check_matrices(model: Any, name: str) -> None:
    """Raise ValueError for a model none of whose blocks shows a matrix; warn of those that layers lack: experts have
    several of each, latent attention, convolutions and state spaces have others."""
    shown = [weight_matrices(block) for block in model.blocks]
    if not any(shown):
        raise ValueError(
            f"spectra: {name} shows no weight matrix of attention or an MLP by name; expected one with W_Q … W_out"
        )
    lacking = {
        matrix: layers
        for matrix in ("W_Q", "W_O", "W_in", "W_out")
        if (layers := [layer for layer, own in enumerate(shown) if matrix not in own])
    }
    if lacking:
        said = "; ".join(f"{matrix} in layers {layers}" for matrix, layers in lacking.items())
        warnings.warn(f"spectra: {name} shows no {said}: left out", MatrixWarning, stacklevel=2)


def spectra_tables(spectra: Spectra, name: str, seed: int) -> dict[str, pd.DataFrame]:
    """All tables of one model's spectra, by their names in the column contract."""
    return {
        "weight_spectra": ranks_table(spectra, name, seed),
        "singular_values": singular_values_table(spectra, name, seed),
        "rank_budget": budget_table(spectra, name, seed),
    }


def ranks_table(spectra: Spectra, name: str, seed: int) -> pd.DataFrame:
    """weight_spectra.csv's rows of spectra."""
    return pd.DataFrame(
        [
            (name, seed, layer, matrix, *(getattr(found.ranks, rank) for rank in RANKS), found.ranks.n_singular_values)
            for (layer, matrix), found in spectra.items()
        ],
        columns=pd.Index([*KEY, *RANKS, "n_singular_values"]),
    )


def singular_values_table(spectra: Spectra, name: str, seed: int) -> pd.DataFrame:
    """singular_values.csv's rows: a matrix a row, all its singular values in descending order as a JSON list.

    Written with nine significant digits, which is more than float32 weights hold. One row per value, with all digits of
    a float64, would take 3.5 times the bytes.
    """
    rows = [(name, seed, layer, matrix, as_json(found.singular_values)) for (layer, matrix), found in spectra.items()]
    return pd.DataFrame(rows, columns=pd.Index([*KEY, "singular_values"]))


def as_json(values: Float[np.ndarray, " k"]) -> str:
    """Numbers as a JSON list without spaces, nine significant digits each.

    >>> as_json(np.array([2.0, 1 / 3, 1e-12]))
    '[2.0,0.333333333,1e-12]'
    """
    return json.dumps([float(f"{value:.9g}") for value in values], separators=(",", ":"))


def budget_table(spectra: Spectra, name: str, seed: int) -> pd.DataFrame:
    """rank_budget.csv's rows: of each matrix, Σ over layers of its stable rank ‖W‖_F²/σ₁², of all layers and by depth.

    share is a part's Σ over that of all layers; n_layers, how many layers of the part have the matrix: a part without
    any has no row. nan where a matrix is zero.
    """
    n_layers = 1 + max((layer for layer, _ in spectra), default=-1)
    rows = []
    for matrix in dict.fromkeys(matrix for _, matrix in spectra):
        ranks = {layer: found.ranks.stable_rank for (layer, own), found in spectra.items() if own == matrix}
        total = sum(ranks.values())
        for part, layers in depth_parts(n_layers).items():
            own = [ranks[layer] for layer in layers if layer in ranks]
            if own:
                rows.append((name, seed, matrix, part, sum(own), sum(own) / total, len(own)))
    return pd.DataFrame(rows, columns=pd.Index(["model", "seed", "matrix", "part", "stable_rank", "share", "n_layers"]))


def depth_parts(n_layers: int) -> Mapping[str, range]:
    """The layers of each part of the depth: all, the first, middle and last third (a third is max(1, n // 3) layers,
    the middle what the others leave), and the last half, n // 2 layers. Parts that would be empty, or all, are not
    there.

    >>> {part: (layers.start, layers.stop) for part, layers in depth_parts(28).items()}
    {'all': (0, 28), 'early': (0, 9), 'middle': (9, 19), 'late': (19, 28), 'last half': (14, 28)}
    """
    size = max(1, n_layers // 3)
    parts = {
        "early": range(size),
        "middle": range(size, n_layers - size),
        "late": range(n_layers - size, n_layers),
        "last half": range(n_layers - n_layers // 2, n_layers),
    }
    return {"all": range(n_layers)} | {part: own for part, own in parts.items() if 0 < len(own) < n_layers}


def divergence_rows(a: Spectra, b: Spectra, layers: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """eigenspectra_divergence's rows: mean over (layer, matrix) that both have of |Δ nuclear rank| / their mean.

    layers: each layer of a with the layer of b that it is compared with.
    """
    rows = []
    for part, names in (("attention", ATTENTION), ("mlp", MLP), ("all", ATTENTION + MLP)):
        pairs = [
            (a[layer, name].ranks.nuclear_rank, b[other, name].ranks.nuclear_rank)
            for layer, other in layers
            for name in names
            if (layer, name) in a and (other, name) in b
        ]
        values = [2 * abs(first - second) / (first + second) for first, second in pairs]
        rows.append({"part": part, "divergence": float(np.mean(values)) if values else math.nan, "n": len(values)})
    return rows


def weight_matrices(block: Any) -> dict[str, Float[Tensor, "rows cols"]]:
    """The matrices that one layer has, by name, the heads of each side by side."""
    attn, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    heads = {name: w for name in ATTENTION if (w := own_weight(attn, name)) is not None}
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
    return found | {name: w for name in MLP if (w := own_weight(mlp, name)) is not None}


def own_weight(part: Any, name: str) -> Tensor | None:
    """A weight of an attention or an MLP; None where there is none."""
    try:
        found = getattr(part, name, None)
    except NotImplementedError:  # so a bridge says that its attention has no such matrix (latent attention)
        return None
    return found if isinstance(found, Tensor) else None  # the W_gate of experts is a module that routes
