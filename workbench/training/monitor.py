"""Geometry during training: redundancy of the heads, attention statistics, ranks of the weights, on one fixed batch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float64, Int
from pydantic import Field
from torch import Tensor

from probes.ranks import ranks_of_spectrum
from workbench.models import HookedLM, ModelConfig
from workbench.models.config import n_stored_blocks
from workbench.models.costs import forward_bytes, map_bytes
from workbench.models.geometry import HeadRedundancy, bos_mass, exact, head_entropy, mean_abs_cos
from workbench.models.recurrence import exit_depth
from workbench.runs.records import Frozen, is_default
from workbench.training.optimizers import MATRIX_LAYOUT, to_matrix
from workbench.training.trajectory import COLUMNS as TRAJECTORY
from workbench.training.trajectory import TrajectorySums

RANKS = ("nuclear_rank", "stable_rank", "effective_rank")
MAP_ELEMENTS = 1 << 24  # attention weights held at once, per layer: 128 MiB in float64
STATE_ELEMENTS = 1 << 23  # of one layer's states held at once: 64 MiB in float64, three times over
GRAM_LIMIT = 1e-10  # smallest/largest eigenvalue above which σ through the Gram matrix is good to 1e-9 of Σσ


class MonitorConfig(Frozen):
    """Geometry measured during training on one fixed batch of held-out windows."""

    every: int = Field(default=100, description="steps between measurements; 0: never", ge=0)
    n_sequences: int = Field(default=8, description="windows of n_ctx tokens in the batch", ge=1)
    use_attention: bool = Field(default=True, description="attention maps too: sigma_pattern, head entropy, BOS mass")
    use_ranks: bool = Field(default=True, description="nuclear, stable and effective rank of every weight matrix")
    rank_layers: tuple[int, ...] | None = Field(
        default=None,
        description="layers (stored blocks) whose matrices' ranks are measured; none: all",
        exclude_if=is_default,
    )
    use_trajectory: bool = Field(
        default=False,
        description="trajectory_consistency of the tokens' states over layers, with its interval over the windows: "
        "below 0 they zig-zag",
        exclude_if=is_default,
    )


def check_rank_layers(monitor: MonitorConfig, cfg: ModelConfig) -> None:
    """Raise ValueError for a layer that is not stored, or one named twice."""
    layers, n_stored = monitor.rank_layers or (), n_stored_blocks(cfg)
    if len(set(layers)) < len(layers) or not all(0 <= layer < n_stored for layer in layers):
        raise ValueError(
            f"monitor.rank_layers: got {list(layers)}; expected layers from 0 to {n_stored - 1}, each once"
        )


def monitor_columns(cfg: ModelConfig, monitor: MonitorConfig) -> tuple[str, ...]:
    """Names of all numbers of `measure` that are not among train_log.csv's leading columns, per layer."""
    if not monitor.every:
        return ()
    names = ["sigma_z", "sigma_pattern", "sigma_residual"]
    if monitor.use_attention:
        names += ["head_entropy", "head_entropy_std", "bos_mass"]
    stored = [f"{rank}.{matrix}" for matrix in _matrices(cfg) for rank in RANKS] if monitor.use_ranks else []
    recurrence, ranked = cfg.extensions.recurrence, monitor.rank_layers
    ranked = range(n_stored_blocks(cfg)) if ranked is None else sorted(ranked)
    per_layer = tuple(f"{name}.{layer}" for name in names for layer in range(cfg.n_layers))
    per_layer += tuple(f"{name}.{layer}" for name in stored for layer in ranked)
    attn_res = cfg.extensions.attn_res
    if attn_res is not None and attn_res.is_learned:
        per_layer += tuple(f"block_position.{layer}" for layer in range(cfg.n_layers))
    if recurrence is not None and recurrence.exit_gate != "off":
        per_layer += ("exit_depth",)
    return (*per_layer, *TRAJECTORY) if monitor.use_trajectory else per_layer


def _matrices(cfg: ModelConfig) -> list[str]:
    """The hidden matrices that every stored block has whole."""
    extensions = cfg.extensions
    absent = {"W_gate": not cfg.gated_mlp, "W_K": extensions.k_rank is not None, "W_V": extensions.v_rank is not None}
    return [name for name in MATRIX_LAYOUT if not absent.get(name)]


def measure(model: HookedLM, tokens: Int[Tensor, "batch pos"], monitor: MonitorConfig) -> dict[str, float]:
    """Every number of the monitor by its column name; `sigma_{z,pattern,residual}` alone are means over layers.

    tokens: the fixed batch. Runs without gradient, in the weights' own precision, a few sequences at a time so that the
    attention maps held stay small; sums are float64, so the split does not show.
    """
    found = _in_one_forward(model, tokens, monitor)
    gates = [name for name in model.hook_dict if name.endswith("hook_exit_gate")]
    if gates:
        _, cache = model.run_with_cache(tokens, names_filter=gates, return_type=None, return_cache_object=False)
        found["exit_depth"] = float(exit_depth([cache[name].double() for name in gates]).mean())
    if monitor.use_ranks:
        found |= weight_ranks(model, monitor.rank_layers)
    attn_res = model.cfg.extensions.attn_res
    if attn_res is not None and attn_res.is_learned:
        positions = model.boundaries.positions().tolist()
        found |= {f"block_position.{layer}": position for layer, position in enumerate(positions)}
    return found


def monitor_bytes(cfg: ModelConfig, monitor: MonitorConfig) -> int:
    """What `measure` holds at once beside the model: the maps of a layer and their copy in float64, a batch's states,
    every layer's second moment of z; or all weights of one kind in float64, and their products."""
    if not monitor.every:
        return 0
    n, n_ctx, width = monitor.n_sequences, cfg.n_ctx, cfg.n_heads * cfg.d_head
    maps, moments = 0, 8 * (cfg.n_layers + 4) * width**2
    if monitor.use_attention:
        n = min(n, max(1, MAP_ELEMENTS // (cfg.n_heads * n_ctx**2)))
        maps = map_bytes(cfg, n, n_ctx, copied=8)
    n_ranked = len(monitor.rank_layers) if monitor.rank_layers is not None else n_stored_blocks(cfg)
    ranks = 3 * 8 * n_ranked * cfg.d_model * max(cfg.d_mlp, width) if monitor.use_ranks else 0
    states = 3 * 8 * min(STATE_ELEMENTS, n * n_ctx * cfg.d_model) if monitor.use_trajectory else 0
    return max(maps + moments, ranks, states) + forward_bytes(cfg, n * n_ctx)


def weight_ranks(model: HookedLM, layers: Collection[int] | None = None) -> dict[str, float]:
    """`{rank}.{matrix}.{layer}` for the ranks of every hidden matrix (all heads as one), e.g. `nuclear_rank.W_O.3`;
    in a recurrent model of the unique blocks, as stored. layers: those to measure; None: all.

    Singular values in float64, through the Gram matrix where its condition allows, else by SVD.
    """
    found: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1].lstrip("_") in MATRIX_LAYOUT:
            _, layer, *_, leaf = name.split(".")
            if layers is not None and int(layer) not in layers:
                continue
            found[leaf.lstrip("_")].append((int(layer), to_matrix(name, exact(parameter))))
    ranks = {}
    for matrix, of_layers in found.items():
        spectra = _singular_values(torch.stack([weight for _, weight in of_layers]))
        for (layer, _), spectrum in zip(of_layers, spectra, strict=True):
            ranks_of = ranks_of_spectrum(spectrum.cpu().numpy())
            ranks |= {f"{rank}.{matrix}.{layer}": getattr(ranks_of, rank) for rank in RANKS}
    return ranks


@torch.no_grad()
def _in_one_forward(model: HookedLM, tokens: Int[Tensor, "batch pos"], monitor: MonitorConfig) -> dict[str, float]:
    """Redundancy of the heads, statistics of their maps, and the states' trajectory."""
    cfg, use_attention = model.cfg, monitor.use_attention
    heads = [HeadRedundancy() for _ in range(cfg.n_layers)]
    entropy = [torch.zeros(cfg.n_heads, dtype=torch.float64) for _ in heads]
    bos = [torch.zeros(cfg.n_heads, dtype=torch.float64) for _ in heads]
    hooks: list = []
    for layer in range(cfg.n_layers):
        patterns: list[Tensor] = []

        def keep_pattern(pattern: Tensor, hook: object, layer: int = layer, patterns: list[Tensor] = patterns) -> None:
            patterns.append(pattern)
            entropy[layer] += len(pattern) * head_entropy(pattern).cpu()
            bos[layer] += len(pattern) * bos_mass(pattern).cpu()

        def count(z: Tensor, hook: object, layer: int = layer, patterns: list[Tensor] = patterns) -> None:
            heads[layer].add(z, patterns.pop() if patterns else None)

        if use_attention:
            hooks.append((f"blocks.{layer}.attn.hook_pattern", keep_pattern))
        hooks.append((f"blocks.{layer}.attn.hook_z", count))
    size = max(1, MAP_ELEMENTS // (cfg.n_heads * tokens.shape[1] ** 2)) if use_attention else len(tokens)
    trajectory = TrajectorySums(cfg) if monitor.use_trajectory else None
    if trajectory is not None:
        hooks += [(name, trajectory.add) for name in trajectory.names]
        size = min(size, max(1, STATE_ELEMENTS // (tokens.shape[1] * cfg.d_model)))
    for part in tokens.split(size):
        # the last layer's heads are all that is needed: no unembedding
        model.run_with_hooks(part, return_type=None, fwd_hooks=hooks)
    found = _sigmas(model, heads, use_attention)
    if use_attention:
        for layer in range(cfg.n_layers):
            per_head = entropy[layer] / len(tokens)
            found[f"head_entropy.{layer}"] = float(per_head.mean())
            found[f"head_entropy_std.{layer}"] = float(per_head.std(correction=0))
            found[f"bos_mass.{layer}"] = float(bos[layer].mean() / len(tokens))
    if trajectory is not None:
        found |= dict(zip(TRAJECTORY, trajectory.result(), strict=True))
    return found


def _sigmas(model: HookedLM, heads: Sequence[HeadRedundancy], use_attention: bool) -> dict[str, float]:
    found = {}
    for basis in ("z", "pattern", "residual") if use_attention else ("z", "residual"):
        writers = [model.blocks[layer].attn.W_O.detach() for layer in range(len(heads))]
        values = [mean_abs_cos(h.cosines(basis, W_O)) for h, W_O in zip(heads, writers, strict=True)]
        found |= {f"sigma_{basis}.{layer}": value for layer, value in enumerate(values)}
        found[f"sigma_{basis}"] = math.fsum(values) / len(values)
    return found


def _singular_values(weights: Float64[Tensor, "layer rows cols"]) -> Float64[Tensor, "layer k"]:
    wide = weights if weights.shape[1] <= weights.shape[2] else weights.mT
    eigenvalues = torch.linalg.eigvalsh(wide @ wide.mT)
    spectra = eigenvalues.clamp_min(0).sqrt()
    for i, values in enumerate(eigenvalues):
        if values[0] <= GRAM_LIMIT * values[-1]:
            spectra[i] = torch.linalg.svdvals(weights[i]).flip(0)
    return spectra
