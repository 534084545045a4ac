"""How alike the heads of a layer are, in three bases, and how many dimensions their outputs fill."""

from __future__ import annotations

import functools
import math
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Float64, Int
from torch import Tensor

from probes import SmallSampleWarning, ranks_of_spectrum
from reports.tables import COLUMNS
from workbench.data.blocks import N_BLOCKS, block_numbers, block_runs, without_each
from workbench.models import HookedLM, ModelConfig
from workbench.models.bridge import GenericConfig
from workbench.models.checks import checked_tokens, choose, device_of, matching_layer, run_hooked
from workbench.models.costs import counted
from workbench.models.geometry import BASES, HeadRedundancy, add_sums, exact, max_abs_cos, mean_abs_cos
from workbench.models.streams import stream
from workbench.models.writes import write_factor

MIN_TOKENS = 4096  # below, ranks of the concatenated z are undefined (nan)
RANKS = ("nuclear_rank", "effective_rank", "stable_rank", "participation_ratio", "rank_utilization")
PAPER_LAYER = (6, 12)  # layer, from 0, of how many: where the paper takes its effective size
SIZES = {"n_parameters": "n_eff", "n_parameters_no_embedding": "n_eff_no_embedding"}
SIZE_COLUMNS = ("layer_a", "layer_b", "n_parameters_no_embedding", "n_eff_no_embedding")  # behind the contract's
MAP_ELEMENTS = 1 << 22  # attention weights of one layer held at once: 32 MiB in float64
BLOCK_BYTES = 1 << 31  # that second moments of blocks may take; a model of more has no topology_stats_blocks
GRAM_TOLERANCE = 1e-8  # relative error of Σσ below which singular values come from the second moment


class ResidualWarning(UserWarning):
    """What heads write to the stream is not known, and their cosines there are left out."""


def topology(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | Int[np.ndarray, " n_layers"] | int | None = None,
    *,
    seed: int = 0,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The rows of topology_stats.csv: redundancy and rank of each layer, one row per (layer, basis z | pattern |
    residual).

    max_cos and mean_cos are over i ≠ j of |cos| of the heads, flattened over all tokens: of z, of the attention maps,
    of the residual contributions z_h W_O[h] (where a norm stands behind attention, of what it makes of them: over its
    scale at each position, times its weight; of another library's model whose stream does not get z_h W_O[h] these rows
    are left out, with a warning). The ranks are of the concatenated z [tokens, H·d_head], the same in the
    three rows of a layer: nuclear, effective and stable rank uncentred, participation ratio centred, rank_utilization =
    nuclear rank / (H·d_head). They are nan, with a warning, below 4,096 tokens, and for a layer whose z is zero;
    cosines are nan where a head is zero, and in a model of one head.

    Args:
        model: a `HookedLM` or a TransformerLens model.
        layers: all by default; each must have heads.
        seed, name: fill the columns seed and model; name is the config's by default.

    Raises:
        ValueError: layers out of range, none, or without heads; tokens that do not fit.
    """
    return topology_tables(model, tokens, layers, seed=seed, name=name, on_progress=on_progress)[0]


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    n_parameters: int
    """all parameters"""
    n_parameters_no_embedding: int
    """without token and position tables and unembedding"""
    n_layers: int

    @classmethod
    def of(cls, cfg: ModelConfig | GenericConfig) -> Size:
        """The size of a model of this configuration."""
        if isinstance(cfg, GenericConfig):
            return cls(cfg.n_parameters, cfg.n_parameters_no_embedding, cfg.n_layers)
        model = counted(cfg)
        return cls(model.n_parameters(), model.n_parameters(embeddings=False), cfg.n_layers)


def effective_sizes(stats: pd.DataFrame, sizes: Sequence[Size]) -> pd.DataFrame:
    """effective_size.csv's rows, two per ordered pair of models: n_eff = n_parameters of a · utilization_a /
    utilization_b (Belanger 2025, equation 5), the size at which a model that fills its heads as b does would fill as
    many dimensions as a; n_eff_no_embedding is the same of n_parameters_no_embedding.

    The first rows are those of whole models: utilization is the mean over layers of rank_utilization, nan where that of
    a layer is, and layer_a and layer_b are −1. Then come those of the layer that the paper takes, 6 of 12: in each
    model the one nearest to it in depth; none for a pair in whose rows one of these layers is missing.

    Args:
        stats: `topology` of several models, one below the other.
        sizes: of each, in their order there.

    Raises:
        ValueError: another number of sizes than of models in the table.
    """
    of_z = stats[stats["basis"] == "z"].rename(columns={"rank_utilization": "utilization"})
    keys = ["model", "seed"]
    whole = of_z.groupby(keys, sort=False, as_index=False)["utilization"].mean(skipna=False).assign(layer=-1)
    if len(whole) != len(sizes):
        raise ValueError(f"effective_sizes: got {len(sizes)} sizes for {len(whole)} models; expected one for each")
    known = whole[keys].assign(**{name: [getattr(size, name) for size in sizes] for name in SIZES})
    known["layer"] = [matching_layer(*PAPER_LAYER, size.n_layers) for size in sizes]
    at_layer = known[[*keys, "layer"]].merge(of_z[[*keys, "layer", "utilization"]], on=[*keys, "layer"])
    parts = []
    for found in (whole, at_layer):
        first = known.drop(columns="layer").merge(found, on=keys)
        pairs = first.merge(found, how="cross", suffixes=("_a", "_b"))
        pairs = pairs[(pairs["model_a"] != pairs["model_b"]) | (pairs["seed_a"] != pairs["seed_b"])]
        share = pairs["utilization_a"] / pairs["utilization_b"]
        effective = {n_eff: pairs[n] * share for n, n_eff in SIZES.items()}
        parts.append(pairs.assign(**effective)[[*COLUMNS["effective_size"], *SIZE_COLUMNS]])
    return pd.concat(parts, ignore_index=True)


def head_cosines(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | Int[np.ndarray, " n_layers"] | int | None = None,
    *,
    seed: int = 0,
    name: str | None = None,
) -> pd.DataFrame:
    """head_cosines.csv's rows: the cosine of every ordered pair of heads of a layer, itself included, in each basis.

    Arguments and errors as `topology`.
    """
    return topology_tables(model, tokens, layers, seed=seed, name=name)[1]


def topology_tables(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | Int[np.ndarray, " n_layers"] | int | None = None,
    *,
    seed: int = 0,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The tables of `topology` and `head_cosines` from one pass over the tokens, and topology_stats_blocks: the first
    without each block of the sequences (no rows for fewer than 8 sequences, or where a model's second moments of all
    blocks would take more than 2 GiB)."""
    tokens = checked_tokens("topology", model, tokens)
    chosen = choose("layers", layers, model.cfg.n_layers)
    heads = read_heads(model, tokens, chosen, on_progress)
    spectra = _spectra(model, tokens, heads)
    keys = {"model": name or model.cfg.model_name, "seed": seed}
    stats, pairs, left_out = [], [], []
    writers = {layer: _writer(model, layer, blocks[0]) for layer, blocks in heads.items()}
    if unknown := [layer for layer, writer in writers.items() if writer is None]:
        warnings.warn(
            f"topology: what heads write to the stream is not z W_O in layers {unknown} of {keys['model']}; basis "
            "residual left out there",
            ResidualWarning,
            stacklevel=3,
        )
    for layer, blocks in heads.items():
        for number, measured in enumerate(_whole_and_left_out(blocks), start=-1):
            ranks = _ranks(spectra[layer][number + 1], measured) if spectra else dict.fromkeys(RANKS, math.nan)
            for basis in BASES if writers[layer] is not None else BASES[:-1]:
                cos = measured.redundancy.cosines(basis, writers[layer])
                place = keys | {"layer": layer, "basis": basis}
                extremes = {"max_cos": max_abs_cos(cos), "mean_cos": mean_abs_cos(cos)}
                own = place | extremes | ranks | {"n_tokens": measured.redundancy.n_tokens}
                if number >= 0:
                    left_out.append(own | {"block": number})
                    continue
                stats.append(own)
                for i, row in enumerate(cos.tolist()):
                    pairs += [place | {"head_i": i, "head_j": j, "cos": value} for j, value in enumerate(row)]
    return pd.DataFrame(stats), pd.DataFrame(pairs), pd.DataFrame(left_out)


def _whole_and_left_out(blocks: Sequence[LayerHeads]) -> Iterator[LayerHeads]:
    """Yield the sums of all blocks, then those without each one."""
    yield functools.reduce(operator.add, blocks)
    yield from without_each(blocks, operator.add)


class LayerHeads:
    """Running sums of one layer: Gram matrices in all bases, and Σ z."""

    def __init__(self) -> None:
        self.redundancy = HeadRedundancy()
        self.sum: Float64[Tensor, " width"] | None = None

    def add(
        self,
        z: Float[Tensor, "batch pos head d_head"],
        pattern: Float[Tensor, "batch head query key"],
        scale: Float[Tensor, "batch pos 1"] | None = None,
    ) -> None:
        """Count one batch in."""
        self.redundancy.add(z, pattern, scale)
        self.sum = add_sums(self.sum, exact(z).sum((0, 1)).flatten())

    def __add__(self, other: LayerHeads) -> LayerHeads:
        """What both have counted."""
        total = LayerHeads()
        total.redundancy = self.redundancy + other.redundancy
        total.sum = add_sums(self.sum, other.sum)
        return total

    def moment(self) -> Float64[np.ndarray, "width width"]:
        """Σ over tokens of z zᵀ, z all heads laid end to end."""
        assert self.redundancy.moment is not None, "at least one batch was added"
        return rearrange(self.redundancy.moment, "i a j b -> (i a) (j b)").cpu().numpy()

    def centred_participation(self) -> float:
        """tr(C)² / ‖C‖² of the scatter C of z about its mean; nan where z does not vary."""
        assert self.sum is not None, "at least one batch was added"
        total = self.sum.cpu().numpy()
        moment = self.moment()
        scatter = moment - np.outer(total, total) / self.redundancy.n_tokens
        # what a constant z leaves is rounding: n_tokens additions of numbers as large as the moment's trace
        if np.trace(scatter) <= 1e-12 * np.trace(moment):
            return math.nan
        return float(np.trace(scatter) ** 2 / np.sum(scatter**2))


def read_heads(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int],
    on_progress: Callable[[float], None] | None = None,
) -> dict[int, list[LayerHeads]]:
    """Running sums of the heads of each layer over the tokens of each block; one map of one layer is held at a time."""
    numbers = blocks_for(model.cfg, len(tokens), len(layers))
    heads = {layer: [LayerHeads() for _ in range(numbers[-1] + 1)] for layer in layers}
    maps = {layer: f"blocks.{layer}.attn.hook_pattern" for layer in layers}
    outputs = {layer: f"blocks.{layer}.attn.hook_z" for layer in layers}
    scales = _norms_behind(model, layers)
    n_ctx = tokens.shape[1]
    batch_size = max(1, MAP_ELEMENTS // (model.cfg.n_heads * n_ctx**2))
    pending: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}

    def counter(layer: int, what: str) -> Callable[[Tensor, object], None]:
        def count(tensor: Tensor, hook: object) -> None:
            pending[layer][what] = tensor
            if len(pending[layer]) == 2 + (layer in scales):  # whichever this model passes last
                for block, rows in block_runs(numbers[done : done + len(tensor)]):
                    heads[layer][block].add(**{name: own[rows] for name, own in pending[layer].items()})
                pending[layer].clear()

        return count

    hooks = [(maps[layer], counter(layer, "pattern")) for layer in layers]
    hooks += [(outputs[layer], counter(layer, "z")) for layer in layers]
    hooks += [(scale, counter(layer, "scale")) for layer, scale in scales.items()]
    done = 0
    with torch.no_grad():
        for part in tokens.split(batch_size):
            # each layer's map is counted and let go before the next is made
            run_hooked(model, part.to(device_of(model)), hooks, stop_at_layer=max(layers) + 1, return_type=None)
            done += len(part)
            if on_progress is not None:
                on_progress(done / len(tokens))
    return heads


def blocks_for(cfg: Any, n_sequences: int, n_layers: int) -> tuple[int, ...]:
    """The block of each sequence; a single one where the second moments of all blocks would take more than
    BLOCK_BYTES."""
    is_held = 8 * N_BLOCKS * n_layers * (cfg.n_heads * cfg.d_head) ** 2 <= BLOCK_BYTES
    return block_numbers(n_sequences) if is_held else (0,) * n_sequences


def _writer(model: Any, layer: int, measured: LayerHeads) -> Float[Tensor, "head d_head d_model"] | None:
    """What z_h is multiplied by on its way to the stream; None where another library's model shows none, or where its
    stream does not get z W_O (a norm stands behind attention)."""
    assert measured.redundancy.moment is not None, "at least one batch was added"
    if isinstance(model, HookedLM):
        block = model.blocks[layer]
        return block.attn.W_O if block.norm_behind is None else block.attn.W_O * getattr(block, block.norm_behind).gain
    wanted = (*measured.redundancy.moment.shape[:2], model.cfg.d_model)
    W_O = getattr(model.blocks[layer].attn, "W_O", None)
    if not isinstance(W_O, Tensor) or tuple(W_O.shape) != wanted or not W_O.is_floating_point():
        return None
    written = lambda change: einsum(change, W_O.detach().to(change), "b p h e, h e d -> b p d")  # noqa: E731
    return None if write_factor(model, layer, "attn.hook_z", written) is None else W_O


def _norms_behind(model: Any, layers: Sequence[int]) -> dict[int, str]:
    """By layer, the hook of what a norm behind attention divides by, where one stands there."""
    if not isinstance(model, HookedLM) or model.cfg.writes_linearly:
        return {}
    return {layer: f"blocks.{layer}.{model.blocks[layer].norm_behind}.hook_scale" for layer in layers}


# --- ranks


def _spectra(
    model: Any, tokens: Tensor, heads: dict[int, list[LayerHeads]]
) -> dict[int, list[Float64[np.ndarray, " k"]]] | None:
    """Singular values of the concatenated z by layer, of all tokens and then without each block, or None, with a
    warning, for too few tokens."""
    if tokens.numel() < MIN_TOKENS:
        warnings.warn(
            f"topology: {tokens.numel()} tokens; expected at least {MIN_TOKENS} for the ranks of z, which are left nan",
            SmallSampleWarning,
            stacklevel=4,
        )
        return None
    spectra = {
        layer: [sigma_of_moment(own.moment(), own.redundancy.n_tokens) for own in _whole_and_left_out(blocks)]
        for layer, blocks in heads.items()
    }
    lost = [layer for layer, found in spectra.items() if any(sigma is None for sigma in found)]
    triangles = _triangles_of_z(model, tokens, lost) if lost else {}
    again = {layer: [_sigma_of_rows(own), *_sigmas_without(own)] for layer, own in triangles.items()}
    return {
        layer: [again[layer][i] if sigma is None else sigma for i, sigma in enumerate(found)]
        for layer, found in spectra.items()
    }


def sigma_of_moment(moment: Float64[np.ndarray, "width width"], n_rows: int) -> Float64[np.ndarray, " width"] | None:
    """Singular values of a matrix of n_rows rows from its second moment; None where that would cost a reported digit.

    An eigenvalue is off by about δ·λ₁, δ = ε·(√n_rows + width); so σᵢ by δ·λ₁/(2σᵢ) while λᵢ ≫ δ·λ₁, and Σσ by the sum
    of these, which must stay below 1e-8 of Σσ: two digits past the six that any table prints.
    """
    values = np.linalg.eigvalsh(moment)
    delta = np.finfo(np.float64).eps * (math.sqrt(n_rows) + len(values))
    if values[0] <= 10 * delta * values[-1]:
        return None
    sigma = np.sqrt(values)
    error = 0.5 * delta * values[-1] * np.sum(1 / sigma) / np.sum(sigma)
    return sigma if error < GRAM_TOLERANCE else None


@torch.no_grad()
def _triangles_of_z(model: Any, tokens: Tensor, layers: Sequence[int]) -> dict[int, list[Float64[Tensor, "k width"]]]:
    """By layer and block, R of a QR decomposition of z carried from batch to batch: what keeps its singular values
    without squaring them."""
    names = {layer: f"blocks.{layer}.attn.hook_z" for layer in layers}
    numbers, done = blocks_for(model.cfg, len(tokens), len(layers)), 0
    found: dict[int, dict[int, Tensor]] = {layer: {} for layer in layers}
    for batch in stream(model, tokens, list(names.values())):
        n = len(next(iter(batch.values())))
        for layer, name in names.items():
            for block, rows in block_runs(numbers[done : done + n]):
                own = exact(rearrange(batch[name][rows], "batch pos head d_head -> (batch pos) (head d_head)")).cpu()
                above = [found[layer][block]] if block in found[layer] else []
                found[layer][block] = torch.linalg.qr(torch.cat([*above, own]), mode="r").R
        done += n
    return {layer: [own[block] for block in sorted(own)] for layer, own in found.items()}


def _sigma_of_rows(parts: Sequence[Float64[Tensor, "k width"]]) -> Float64[np.ndarray, " k"]:
    """Singular values of rows, one part below the other: as many as they are wide, or as there are rows."""
    return torch.linalg.svdvals(torch.cat(list(parts))).numpy()


def _sigmas_without(parts: Sequence[Float64[Tensor, "k width"]]) -> list[Float64[np.ndarray, " k"]]:
    """Singular values without the rows of each part."""
    lists = without_each([[own] for own in parts], operator.add)
    return [_sigma_of_rows(own) for own in lists]


def _ranks(sigma: Float64[np.ndarray, " k"], measured: LayerHeads) -> dict[str, float]:
    found = ranks_of_spectrum(sigma)
    return {
        "nuclear_rank": found.nuclear_rank,
        "effective_rank": found.effective_rank,
        "stable_rank": found.stable_rank,
        "participation_ratio": measured.centred_participation(),
        "rank_utilization": found.nuclear_rank / len(measured.moment()),  # z may be wider than tokens are many
    }
