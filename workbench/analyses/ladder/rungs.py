"""A ladder of trainings: a recurrent model without its mechanisms, then with one more each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch

from workbench.analyses.evaluate.bits import EncodedText, bits_per_byte, encode_text, plan_windows, token_nats
from workbench.models import HookedLM
from workbench.models.checks import as_list
from workbench.models.load import load
from workbench.models.tokenizer_files import tokenizer_of
from workbench.training import Recipe, apply_overrides, load_recipe, train
from workbench.training.interventions import make_interventions

_SWITCH, _LOSS = "model.extensions.recurrence.", "phases.0.interventions."
# rung -> settings that are off below it and the recipe's own from it on, in the order in which they are added
RUNGS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "low-rank K": {"model.extensions.k_rank": None},
        "q gain": {"model.extensions.q_gain": None},
        "spectral init": {"model.extensions.spectral_init": False},
        "attention and MLP scales": {_SWITCH + "attn_scale": False, _SWITCH + "mlp_scale": False},
        "residual mix": {_SWITCH + "residual_mix": False},
        "value embeddings": {_SWITCH + "value_embed": "off"},
        "resonant positions": {_SWITCH + "resonance": False},
        "carry": {_SWITCH + "carry_rank": None},
        "exit gate": {_SWITCH + "exit_gate": "off", _LOSS + "gate-entropy.weight": 0.0},
        "confidence": {_SWITCH + "confidence": False},
        "memory": {_SWITCH + "memory": False},
        "skips": {_SWITCH + "skips": "off"},
        "temporal difference": {_SWITCH + "td_rank": None, _LOSS + "temporal-difference.weight": 0.0},
        "eigenspace routing": {_SWITCH + "n_routes": None, _SWITCH + "routes": "free"},
        "thermodynamic loss": {_LOSS + "thermodynamic.weight": 0.0},
        "compression-aware loss": {_LOSS + "compression.weight": 0.0},
    }
)
BASE = "base"


def ladder_recipes(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """(rung, its recipe): base with everything off, then one mechanism more each time; the last is `recipe` itself."""
    if recipe.model.extensions.recurrence is None:
        raise ValueError(
            f"ladder: {recipe.name} has no model.extensions.recurrence; expected a recurrent model's recipe"
        )
    names = [BASE, *RUNGS]
    rungs = []
    for i, name in enumerate(names):
        off: dict[str, Any] = {}
        # from the last on: what needs another mechanism goes before it does
        for above in reversed(names[i + 1 :]):
            off |= RUNGS[above]
        acting = {own.name for own in make_interventions(recipe.phases[0].interventions)}
        off = {key: v for key, v in off.items() if not key.startswith(_LOSS) or key.split(".")[3] in acting}
        rungs.append((name, apply_overrides(recipe, {**off, "name": f"{recipe.name}-{i:02d}"})))
    return rungs


def ladder(
    recipe: Recipe | str | Path,
    texts: Sequence[str],
    out: str | Path,
    *,
    seeds: Sequence[int] | int = (0, 1, 2),
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The rows of ladder.csv: each rung is trained with each seed into `out`/rungs; its bits per byte on `texts`, and
    the change from the rung below with the same seed.

    A finished training found there is used as it is; an unfinished one is resumed.
    """
    seeds = as_list("seeds", seeds)
    base = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    rungs = ladder_recipes(apply_overrides(base, dict(overrides or {})))
    rows, below, text = [], {}, None
    for i, (rung, own) in enumerate(rungs):
        for k, seed in enumerate(seeds):
            directory = Path(out) / "rungs" / f"{own.name}-seed{seed}"
            train(own, directory, seed=seed, device=device, resume=True, progress=False, cache=cache)
            model = load(directory, device)
            text = text or encode_text(tokenizer_of(model), texts)
            bits = _plain_bits(model, text)
            rows.append(
                {
                    "model": own.name,
                    "seed": seed,
                    "rung": i,
                    "mechanism": rung,
                    "bits_per_byte": bits,
                    "delta_bits": bits - below[seed] if seed in below else float("nan"),
                    "n_parameters": model.n_parameters(),
                    "n_steps": own.phases[0].n_steps,
                    "n_tokens": text.n_scored,
                    "n_bytes": text.n_bytes,
                }
            )
            below[seed] = bits
            if on_progress is not None:
                on_progress((i * len(seeds) + k + 1) / (len(rungs) * len(seeds)))
    return pd.DataFrame(rows)


@torch.no_grad()
def _plain_bits(model: HookedLM, text: EncodedText) -> float:
    nats = token_nats(model, text, plan_windows(len(text.tokens), model.cfg.n_ctx))
    return bits_per_byte(nats, text.n_bytes)
