"""The rows of one stack in the tables: what it was measured to be, its training, its alarms."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reports.tables import COLUMNS
from sae.metrics import SAEMetrics, density_histogram
from workbench.analyses.sae_train.adequacy import fvu_over_random, is_adequate
from workbench.analyses.sae_train.alarms import Alarm
from workbench.analyses.sae_train.evaluation import LeftOut, SpliceLosses, recovered
from workbench.analyses.sae_train.plan import Plan

RARE = 1e-3  # density below which a living feature is rare
DENSE = 0.1  # density above which a feature is dense: it fires on more than every tenth token
NEAR_COPY = 0.9  # cosine with another feature's decoder row above which a feature is its near-copy


@dataclass(frozen=True)
class StackRows:
    """What tables say of one stack."""

    plan: Plan
    model: str
    """the model's name"""
    model_seed: int
    has_activations: bool = False
    """whether of several stacks some have an activation that was asked for"""

    def keys(self) -> dict[str, Any]:
        """What rows of the stack's SAEs, in their order, are told apart by."""
        sources = self.plan.sources
        return {
            "model": self.model,
            "seed": self.model_seed,
            "layer": [slot.layer for slot, _, _ in sources],
            "head": [slot.column for slot, _, _ in sources],
            "l1": [l1 for _, l1, _ in sources],
            "sae_seed": [seed for _, _, seed in sources],
        }

    def labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of the stack's rows, with the columns that tell it from other stacks where there are any."""
        if not self.plan.name:
            return table
        own = {"hook": self.plan.kind.hook, "architecture": self.plan.kind.architecture}
        own |= {"d_sae": self.plan.config.d_sae, "k": torch.nan if self.plan.kind.k is None else self.plan.kind.k}
        if self.has_activations:
            own["activation"] = self.plan.kind.activation or self.plan.kind.architecture
        return table.assign(**own)

    def curves(self, points: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """sae_curves: a row for every SAE and logged step."""
        keys = self.keys()
        n_saes = len(keys["layer"])
        parts = [
            pd.DataFrame(keys | {"step": [point["step"]] * n_saes} | {n: v for n, v in point.items() if n != "step"})
            for point in points
        ]
        return pd.concat(parts, ignore_index=True)

    def alarms(self, alarms: Sequence[Alarm]) -> pd.DataFrame:
        """sae_alarms: a row for every alarm."""
        saes = pd.DataFrame(self.keys()).iloc[[alarm.sae for alarm in alarms]].reset_index(drop=True)
        return saes.join(pd.DataFrame(alarms, columns=list(Alarm._fields)).drop(columns="sae"))

    def results(
        self,
        metrics: Mapping[str, SAEMetrics],
        losses: SpliceLosses,
        left_out: LeftOut,
        neighbours: Mapping[str, Float[Tensor, "n_saes d_sae"]],
        n_train_tokens: int,
    ) -> pd.DataFrame:
        """sae_training_results: a row for every SAE and each of its controls."""
        n_outlying, n_outlying_left_out = left_out.count_outlying()
        ratio = fvu_over_random(metrics["trained"].fvu, metrics["random"].fvu)
        parts = []
        for dictionary, own in metrics.items():
            unknown = torch.full_like(own.l0, torch.nan)
            # of the trained alone: a control is not judged by itself, nor on activations that the random one never saw
            own_ratio = ratio if dictionary == "trained" else torch.full_like(ratio, torch.nan)
            adequate = is_adequate(own.l0, own_ratio, self.plan.config.d_in)
            columns = {
                "d_in": self.plan.config.d_in,
                "d_sae": own.density.shape[1],
                **self._of_text(own, losses, dictionary),
                "n_train_tokens": 0 if dictionary == "random" else n_train_tokens,
                "n_eval_tokens": own.n_tokens,
                "dictionary": dictionary,
                "explained_variance": own.explained_variance,
                "hook": self.plan.kind.hook,
                "n_ce_tokens": losses.n_tokens,
                "ce_zero_stderr": losses.zero_stderr[self.plan.slot_index],
                "ce_spliced_stderr": losses.spliced_stderr.get(dictionary, unknown),
                "fvu_with_special": left_out.fvu.get(dictionary, unknown),
                "n_left_out": left_out.n_left_out,
                "n_outlying": n_outlying,
                "n_outlying_left_out": n_outlying_left_out,
                "neighbour_cosine": neighbours[dictionary].nanquantile(0.5, dim=1),
                "near_copy_share": share_above(neighbours[dictionary], NEAR_COPY),
                "fvu_over_random": own_ratio,
                "is_adequate": adequate,
                "rare_fraction": share_rare(own.density),
                "dense_fraction": share_dense(own.density),
            }
            parts.append(pd.DataFrame(self.keys() | columns))
        table = pd.concat(parts, ignore_index=True)
        first = list(COLUMNS["sae_training_results"])
        return table.reindex(columns=[*first, *(column for column in table if column not in first)])

    def _of_text(self, own: SAEMetrics, losses: SpliceLosses | None, dictionary: str) -> dict[str, Any]:
        """The columns that are averages over held-out text; losses: None where they are unknown."""
        columns: dict[str, Any] = {"l0": own.l0, "mse": own.mse, "fvu": own.fvu, "dead_fraction": own.dead_fraction}
        if losses is None:
            return columns | dict.fromkeys(("ce_base", "ce_spliced", "ce_zero", "ce_recovered"), torch.nan)
        zero = losses.zero[self.plan.slot_index]
        spliced = losses.spliced.get(dictionary, torch.full_like(zero, torch.nan))
        columns |= {"ce_base": losses.base, "ce_spliced": spliced, "ce_zero": zero}
        return columns | {"ce_recovered": recovered(losses.base, zero, spliced)}

    def without_blocks(
        self, metrics: Sequence[Mapping[str, SAEMetrics]], losses: Sequence[SpliceLosses | None]
    ) -> pd.DataFrame:
        """sae_training_results_blocks: a row for every SAE, its random control, and each block of the text; losses:
        None where there are fewer sequences than blocks."""
        about = {"d_sae": self.plan.config.d_sae, "hook": self.plan.kind.hook}
        parts = [
            pd.DataFrame(
                self.keys()
                | {"block": block, "dictionary": name, **self._of_text(own, spliced, name)}
                | {"rare_fraction": share_rare(own.density), **about}
            )
            for block, (of_block, spliced) in enumerate(zip(metrics, losses, strict=True))
            for name, own in of_block.items()
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def density(self, metrics: SAEMetrics) -> pd.DataFrame:
        """sae_density: the bins of every SAE that hold a feature."""
        edges, counts, n_dead = density_histogram(metrics.density)
        labels = ["dead", *(f"{edge:g}" for edge in edges)]
        keys = pd.DataFrame(self.keys())
        parts = []
        for k in range(len(keys)):
            bins = [(label, int(n)) for label, n in zip(labels, [n_dead[k], *counts[k]], strict=True) if n]
            own = pd.DataFrame(bins, columns=["log10_density_bin", "n_features"])
            parts.append(own.assign(**{str(name): value for name, value in keys.iloc[k].items()}))
        return pd.concat(parts, ignore_index=True)

    def warn_near_copies(self, cosines: Float[Tensor, "n_saes d_sae"]) -> None:
        """Warn of SAEs that are near-copies of few directions. cosines: of each feature with the nearest other."""
        median = cosines.nanquantile(0.5, dim=1)
        of = (median > NEAR_COPY).nonzero().flatten().tolist()
        if of:
            slot, l1, _ = self.plan.sources[max(of, key=lambda k: float(median[k]))]
            head = "" if slot.head is None else f", head {slot.head}"
            where = f"sae_train: {self.plan.name}" if self.plan.name else "sae_train"
            warnings.warn(
                f"{where}: in {len(of)} of {len(median)} SAEs more than half of the living features have another "
                f"within a cosine of {NEAR_COPY} (median {float(median[of].max()):.4f} in layer {slot.layer}{head}, l1 "
                f"{l1:g}): near-copies of few directions; expected fewer features (expansion) or a lower l1",
                stacklevel=3,
            )


def share_rare(density: Float[Tensor, "n_saes d_sae"]) -> Float[Tensor, "n_saes"]:
    """Share of each SAE's living features that fire on less than `RARE` of the tokens; nan where none lives."""
    living = torch.where(density > 0, density, torch.nan)
    return torch.where(living.isnan(), torch.nan, (living < RARE).double()).nanmean(dim=1)


def share_dense(density: Float[Tensor, "n_saes d_sae"]) -> Float[Tensor, "n_saes"]:
    """Share of each SAE's living features that fire on more than `DENSE` of the tokens; nan where none lives."""
    return share_above(torch.where(density > 0, density, torch.nan), DENSE)


def share_above(values: Float[Tensor, "n_saes d_sae"], limit: float) -> Float[Tensor, "n_saes"]:
    """Share of each row's values above the limit; those that are nan are left out, nan where all are."""
    return torch.where(values.isnan(), torch.nan, (values > limit).double()).nanmean(dim=1)
