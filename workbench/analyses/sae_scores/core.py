"""How faithful SAEs are: what reconstructions keep of activations and of predictions, beside random directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from probes.bootstrap import ratio_limits
from sae.metrics import SAEMetrics
from sae.scores import DENSE, SAEScores, ScoreSums, WeightScores, weight_scores
from sae.stack import StackedSAE, spawn_generators
from workbench.analyses.sae_train.evaluation import (
    BLOCK_TOKENS,
    CONTROL_TOKENS,
    Spliced,
    forward_batches,
    random_control,
    splice_sequences,
)
from workbench.analyses.sae_train.head_saes import evenly_spaced
from workbench.analyses.sae_train.plan import CONTROL
from workbench.models.activations import Positions, Slot, at, collect, special_ids
from workbench.models.checks import device_of
from workbench.models.sae_places import saes_by_hook, stack_slots

TRAINED, RANDOM = "trained", "random"
Tell = Callable[[float], None]


@dataclass(frozen=True)
class Scored:
    """SAEs that are scored, one for each slot, beside random directions as sparse as they are."""

    model: Any
    slots: tuple[Slot, ...]
    dictionaries: dict[str, StackedSAE]
    """`trained` and `random`"""
    positions: Positions

    @property
    def sae(self) -> StackedSAE:
        """The trained ones."""
        return self.dictionaries[TRAINED]

    def keys(self, name: str, seed: int) -> pd.DataFrame:
        """What begins the rows of each SAE: model, seed, layer, head."""
        places = {"layer": [slot.layer for slot in self.slots], "head": [slot.column for slot in self.slots]}
        return pd.DataFrame({"model": name, "seed": seed, **places})

    def about(self) -> pd.DataFrame:
        """What ends them: l1, hook."""
        l1 = [np.nan if source.l1 is None else source.l1 for source in self.sae.info.sources]
        return pd.DataFrame({"l1": l1, "hook": [slot.hook_name for slot in self.slots]})


def open_scored(model: Any, sae: StackedSAE, tokens: Int[Tensor, "n n_ctx"], seed: int = 0) -> Scored:
    """The SAEs and their control, whose bias, scale and sparsity are fitted on CONTROL_TOKENS of the tokens.

    Raises:
        ValueError: SAEs that are not this model's, or two in one place; no token at the positions that count.
    """
    saes_by_hook(model, sae)
    slots = tuple(stack_slots(sae))
    positions = Positions(special_ids(model), bool(sae.info.include_special))
    rows = evenly_spaced(tokens, max(1, CONTROL_TOKENS // tokens.shape[1]))
    found = [at(positions.of(batch), collect(model, batch, slots)) for batch in forward_batches(rows)]
    x = torch.cat(found, dim=1)[:, :CONTROL_TOKENS]
    if not x.shape[1]:
        raise ValueError("tokens: all are special or at position 0; expected others")
    base = torch.Generator().manual_seed(seed)
    generators = [spawn_generators(base, 1, [(CONTROL, slot.layer, slot.column + 1)])[0] for slot in slots]
    # random directions are fitted in float32, as in sae-train
    control = random_control(sae, x.to(sae.W_dec.device), generators)
    return Scored(model, slots, {TRAINED: sae, RANDOM: control}, positions)


@torch.no_grad()
def score_activations(scored: Scored, tokens: Int[Tensor, "n n_ctx"], tell: Tell) -> dict[str, SAEScores]:
    """Scores of each dictionary on all tokens at the positions, from one pass of the model."""
    sums = {name: ScoreSums(own.config, device_of(own)) for name, own in scored.dictionaries.items()}
    batches = forward_batches(tokens)
    for number, batch in enumerate(batches):
        x = at(scored.positions.of(batch), collect(scored.model, batch, scored.slots, number))
        for block in x.split(BLOCK_TOKENS if x.device.type == "cpu" else max(1, x.shape[1]), dim=1):
            for name, own in scored.dictionaries.items():
                sums[name].update(block.to(own.W_dec.device), *own(block.to(own.W_dec.device)))
        tell((number + 1) / len(batches))
    return {name: own.result() for name, own in sums.items()}


def core_table(
    scored: Scored,
    tokens: Int[Tensor, "n n_ctx"],
    *,
    n_splice_tokens: int,
    n_bootstrap: int,
    name: str,
    seed: int,
    bootstrap_seed: int,
    tell: Tell,
) -> pd.DataFrame:
    """sae_core's rows, dictionary by dictionary, SAE by SAE; the losses are of n_splice_tokens of the tokens."""
    scores = score_activations(scored, tokens, lambda share: tell(0.2 * share))
    spliced = splice_sequences(
        scored.model,
        evenly_spaced(tokens, max(1, n_splice_tokens // tokens.shape[1])),
        scored.slots,
        range(len(scored.slots)),
        scored.dictionaries,
        lambda share: tell(0.2 + 0.8 * share),
        positions=scored.positions,
        has_kl=True,
    )
    rng = np.random.default_rng(bootstrap_seed)
    parts = []
    for number, (dictionary, sae) in enumerate(scored.dictionaries.items(), 1):
        own = scores[dictionary]
        columns = {
            "dictionary": dictionary,
            **_kept(spliced, number, rng, n_bootstrap),
            **_of_activations(own),
            **_of_features(own, weight_scores(sae, own.metrics.density)),
            "n_tokens": own.metrics.n_tokens,
            "n_sequences": len(spliced.base),
        }
        parts.append(pd.concat([scored.keys(name, seed).assign(**columns), scored.about()], axis=1))
    return pd.concat(parts, ignore_index=True)


def _kept(spliced: Spliced, number: int, rng: np.random.Generator, n_bootstrap: int) -> dict[str, Any]:
    """What dictionary `number`, from 1, keeps of the predictions: 1 − KL over that of zeroing, and loss recovered."""
    assert spliced.kl is not None
    base = spliced.base.numpy()
    kl_zero, kl_sae = spliced.kl[0].numpy(), spliced.kl[number].numpy()
    ce_zero, ce_sae = spliced.loss[0].numpy(), spliced.loss[number].numpy()
    kl = ratio_scores(kl_zero - kl_sae, kl_zero, rng, n_bootstrap)
    ce = ratio_scores(ce_zero - ce_sae, ce_zero - base, rng, n_bootstrap)
    return {
        "kl_zero": kl_zero.mean(axis=1), "kl_sae": kl_sae.mean(axis=1), "kl_score": kl[0], "kl_low": kl[1],
        "kl_high": kl[2], "ce_base": base.mean(), "ce_zero": ce_zero.mean(axis=1), "ce_sae": ce_sae.mean(axis=1),
        "ce_score": ce[0], "ce_low": ce[1], "ce_high": ce[2],
    }  # fmt: skip


def ratio_scores(
    gains: Float64[np.ndarray, "sae sequence"],
    wholes: Float64[np.ndarray, "sae sequence"],
    rng: np.random.Generator,
    n_bootstrap: int,
) -> tuple[Float64[np.ndarray, " sae"], Float64[np.ndarray, " sae"], Float64[np.ndarray, " sae"]]:
    """(Σ gain / Σ whole over sequences, lower, upper 95 % limit: sequences resampled, both sums of the same ones); nan
    where the whole is 0."""
    found = np.full((3, len(gains)), np.nan)
    for k, (gain, whole) in enumerate(zip(gains, wholes, strict=True)):
        if whole.sum() != 0:
            low, high = ratio_limits(gain[None], whole, rng, n_bootstrap)
            found[:, k] = gain.sum() / whole.sum(), low[0], high[0]
    return found[0], found[1], found[2]


def _of_activations(own: SAEScores) -> dict[str, Any]:
    metrics: SAEMetrics = own.metrics
    return {
        "explained_variance": metrics.explained_variance, "mse": metrics.mse, "cosine": own.cosine,
        "norm_in": own.norm_in, "norm_out": own.norm_out, "norm_ratio": own.norm_ratio,
        "reconstruction_bias": own.reconstruction_bias, "l0": metrics.l0, "l1_norm": own.l1_norm,
    }  # fmt: skip


def _of_features(own: SAEScores, weights: WeightScores) -> dict[str, Any]:
    dense = {}
    for limit in DENSE:
        dense[f"dense_{round(100 * limit)}"] = own.dense(limit)
        dense[f"dense_{round(100 * limit)}_share"] = own.dense_share(limit)
    return {"alive": own.alive, **dense, **weights._asdict()}
