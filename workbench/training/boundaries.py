"""Where attention residuals commit, read off a trained model: layers of like stable rank make a block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.models import HookedLM
from workbench.models.load import load
from workbench.training.monitor import weight_ranks

FORM = "profile:N:MODEL"


def segment(profile: Sequence[float], n_blocks: int) -> tuple[int, ...]:
    """First layers of the n_blocks runs of layers with the least Σ_blocks Σ_layers (x − mean of the block)².

    Exact, by dynamic programming over (blocks, last layer): O(n_blocks·L²). Of equal sums the one whose last blocks
    start earliest.

    Raises:
        ValueError: for fewer layers than blocks, no block, or a profile with a number that is not finite.
    """
    n = len(profile)
    if not 1 <= n_blocks <= n:
        raise ValueError(f"boundaries: got {n_blocks} blocks for {n} layers; want 1 to {n}")
    if not all(map(math.isfinite, profile)):
        raise ValueError(f"boundaries: got the profile {list(profile)}; want finite numbers")
    spread = [[_spread(profile[i:j]) for j in range(n + 1)] for i in range(n)]
    # least[j]: the least sum over the layers before j in so many blocks, and the boundaries that give it
    least: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] + [(math.inf, ())] * n
    for _ in range(n_blocks):
        least = [(math.inf, ())] + [
            min(
                ((least[i][0] + spread[i][j], (*least[i][1], i)) for i in range(j)),
                key=lambda found: (found[0], found[1][::-1]),
            )
            for j in range(1, n + 1)
        ]
    return least[n][1]


def stable_rank_profile(model: HookedLM) -> list[float]:
    """Per layer the mean over its hidden matrices (q, k, v, o, gate, in, out) of the stable rank ‖W‖_F²/σ₁²."""
    ranks = weight_ranks(model)
    of_layers = [
        [value for name, value in ranks.items() if name.startswith("stable_rank.") and name.endswith(f".{layer}")]
        for layer in range(model.cfg.n_layers)
    ]
    return [math.fsum(values) / len(values) for values in of_layers]


def with_profile(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe's nested settings with `attn_res.boundaries = "profile:N:MODEL"` made the N boundaries of that model.

    MODEL: a run directory, or whatever `load` takes. All other settings come back as they are.

    Raises:
        ValueError: for another form, a model that cannot be read, or one of another depth.
    """
    text = _at(settings, "model", "extensions", "attn_res", "boundaries")
    if not isinstance(text, str):
        return settings
    word, _, rest = text.partition(":")
    n_blocks, _, source = rest.partition(":")
    if word != "profile" or not n_blocks.isdecimal() or not source:
        raise ValueError(f"attn_res.boundaries: got {text!r}; want a list of layers, or {FORM}")
    model, n_layers = load(source, device="cpu"), _at(settings, "model", "n_layers")
    if model.cfg.n_layers != n_layers:
        raise ValueError(f"attn_res.boundaries: {source} has {model.cfg.n_layers} layers; want {n_layers}")
    found = {"boundaries": segment(stable_rank_profile(model), int(n_blocks))}
    extensions = settings["model"]["extensions"]
    attn_res = {**extensions["attn_res"], **found}
    return {**settings, "model": {**settings["model"], "extensions": {**extensions, "attn_res": attn_res}}}


def _at(settings: Any, *keys: str) -> Any:
    for key in keys:
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings


def _spread(values: Sequence[float]) -> float:
    if not values:
        return math.inf  # a block holds a layer
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values)
