"""SAEs compared: with another seed's, along a sweep of l1, between two models at matched l0."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sae.metrics import match_l0, stability
from sae.stack import StackedSAE, spawn_generators

Frame = Any  # a pandas DataFrame, whose type stubs cannot tell a column from a cell
STACK = ("hook", "architecture", "d_sae", "activation")  # what tells stacks apart besides their sweep
NULL = 4  # stream of the random directions that stability is read against


def stability_table(stack: StackedSAE, density: Float[Tensor, "n_saes d_sae"] | None = None) -> pd.DataFrame:
    """How well each SAE's features are found again in the SAEs of other seeds: a row for every ordered pair of seeds of
    one layer, head and l1; empty for a single seed.

    stability: mean over features of the largest cosine of the decoder row with any of the other seed's; share_above:
    share of features for which it is > .7. stability_random, share_random: the same against as many random directions,
    since the largest of many cosines is far from 0 in few dimensions. With `density` the columns n_alive and
    stability_alive follow, over the features that fire at all: a dead feature lies where it began.

    Raises ValueError for a stack that does not say its SAEs' layers and seeds.
    """
    sources = stack.info.sources
    if not sources or any(source.layer is None or source.seed is None for source in sources):
        raise ValueError(
            "stability: the stack does not say its SAEs' layers and seeds; expected one that sae_train made"
        )
    groups: dict[tuple, list[int]] = {}
    for k, source in enumerate(sources):
        groups.setdefault((source.layer, -1 if source.head is None else source.head, source.l1), []).append(k)
    W_dec = stack.W_dec.detach()
    null = _random_rows(stack)
    rows = []
    for (layer, head, l1), members in groups.items():
        for k, other in permutations(members, 2):
            found, by_chance = (stability(W_dec[k : k + 1], to) for to in (W_dec[other : other + 1], null))
            row = {
                "layer": layer,
                "head": head,
                "l1": l1,
                "sae_seed": sources[k].seed,
                "other_seed": sources[other].seed,
                "n_features": stack.config.d_sae,
                "stability": float(found.mean),
                "share_above": float(found.share_above),
                "stability_random": float(by_chance.mean),
                "share_random": float(by_chance.share_above),
            }
            if density is not None:
                is_alive = density[k].to(W_dec.device) > 0
                row |= {
                    "n_alive": int(is_alive.sum()),
                    "stability_alive": float(found.max_cosine[0][is_alive].nanmean()),
                }
            rows.append(row)
    return pd.DataFrame(rows)


def _random_rows(stack: StackedSAE) -> Float[Tensor, "1 d_sae d_out"]:
    (generator,) = spawn_generators(torch.Generator().manual_seed(0), 1, [(NULL,)])
    shape = (1, stack.config.d_sae, stack.config.d_target)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(stack.W_dec.device)


def pareto_table(results: pd.DataFrame) -> pd.DataFrame:
    """The trade of sparsity for error along a sweep of l1, or of k, from sae_training_results: a row for every trained
    SAE's l1 and k, mean over the SAEs' seeds, by l0. Of several stacks, those of one hook, architecture and d_sae.

    on_front: no other l1 or k of the same model, seed, layer, head and stack has an l0 and an fvu that are both as
    small, and one smaller. A sweep that is not on its front somewhere was trained too short there, or not at all.
    """
    trained = _trained(results)
    keys = ["model", "seed", "layer", "head", *stack_columns(results)]
    by = [*keys, *sweep_columns(results)]
    means = trained.groupby(by, dropna=False)[["l0", "fvu", "ce_recovered", "dead_fraction"]].mean()
    points = means.reset_index().sort_values([*keys, "l0", *sweep_columns(results)], ignore_index=True)
    points["on_front"] = False
    for _, own in points.groupby(keys):
        l0, fvu = own["l0"].to_numpy(), own["fvu"].to_numpy()
        is_as_good = (l0 <= l0[:, None]) & (fvu <= fvu[:, None])
        is_better = (l0 < l0[:, None]) | (fvu < fvu[:, None])
        is_beaten = (is_as_good & is_better).any(axis=1)
        points.loc[own.index, "on_front"] = ~is_beaten & np.isfinite(fvu)
    return points


def stack_columns(results: pd.DataFrame) -> list[str]:
    """Columns of a table that tell its stacks apart: none where it has one."""
    return [name for name in STACK if name in results] if "architecture" in results else []


def sweep_columns(results: pd.DataFrame) -> list[str]:
    """Columns by which the points of a sweep are told apart; k is empty where l1 makes an SAE sparse."""
    return ["l1", "k"] if "architecture" in results else ["l1"]


def swept(results: pd.DataFrame) -> list[pd.DataFrame]:
    """The sweeps of the trained SAEs, one for each stack, or each that differs by k alone: the values of l1 and k."""
    trained, columns = _trained(results), stack_columns(results)
    parts = [own for _, own in trained.groupby(columns)] if columns else [trained]
    return [own[sweep_columns(results)].drop_duplicates() for own in parts]


def compare_at_matched_l0(results: pd.DataFrame, model_a: str, model_b: str, n_points: int = 16) -> pd.DataFrame:
    """fvu and ce_recovered of two models at equal l0, from the sae_training_results of both: a row for every seed and
    layer that both have, and for every hook, architecture and d_sae of several.

    A layer's curves come first, since one model's head h is not the other's: at each l1, or k, the mean of its heads'
    l0 and fvu, and Σ (ce_zero − ce_spliced) / Σ (ce_zero − ce_base) over them, as a mean of the heads' ratios would be
    ruled by those whose removal costs next to nothing. The curves are then read at n_points equal steps of log l0 over
    the range that both sweeps reach (l0_low to l0_high), linear between points and never beyond them; one l1 alone is a
    range of one point. Columns a and b are means over these points, `_difference` is b − a. They are nan where the
    ranges do not meet or zeroing costs nothing; the trailing column `reason` then says so.

    Raises ValueError for a model without a row.
    """
    trained = _trained(results)
    for model in (model_a, model_b):
        if model not in set(trained["model"]):
            have = ", ".join(sorted(set(trained["model"]))) or "none"
            raise ValueError(f"matched l0: the table has no model {model!r}; expected two of {have}")
    curves = _layer_curves(trained)
    rows = []
    a, b = (curves.xs(model, level="model") for model in (model_a, model_b))
    columns = stack_columns(results)
    n = 2 + len(columns)
    for place in sorted({key[:n] for key in a.index} & {key[:n] for key in b.index}):
        of_a, of_b = a.loc[place], b.loc[place]
        row: dict[str, Any] = {"model_a": model_a, "model_b": model_b, "seed": place[0], "layer": place[1]}
        missing = {}
        for measure, called in (("fvu", "fvu"), ("ce_recovered", "loss recovered")):
            matched = match_l0(of_a["l0"], of_a[measure], of_b["l0"], of_b[measure], n_points)
            is_empty = len(matched.l0) == 0
            if measure == "fvu":
                row["l0_low"], row["l0_high"] = (np.nan, np.nan) if is_empty else (matched.l0[0], matched.l0[-1])
            row[f"{measure}_a"] = np.nan if is_empty else float(matched.first.mean())
            row[f"{measure}_b"] = np.nan if is_empty else float(matched.second.mean())
            row[f"{measure}_difference"] = matched.mean_difference
            if is_empty:
                missing[called] = " and ".join(
                    f"{_span(own, measure)} in {name}" for own, name in ((of_a, model_a), (of_b, model_b))
                )
        # one sentence where both measures are missing for one and the same reason
        said = {
            reason: " and ".join(name for name in missing if missing[name] == reason) for reason in missing.values()
        }
        row |= dict(zip(columns, place[2:], strict=True))
        row["reason"] = "; ".join(f"no common l0 for {names}: {reason}" for reason, names in said.items())
        rows.append(row)
    return pd.DataFrame(rows)


def _layer_curves(trained: pd.DataFrame) -> pd.DataFrame:
    """l0, fvu and ce_recovered of a layer's heads together, by model, seed, layer, what tells stacks apart, and l1."""
    parts = trained.assign(
        kept=trained["ce_zero"] - trained["ce_spliced"], cost=trained["ce_zero"] - trained["ce_base"]
    )
    by = ["model", "seed", "layer", *stack_columns(trained), *sweep_columns(trained)]
    groups = parts.groupby(by, dropna=False)
    sums = groups[["kept", "cost"]].sum(min_count=1)
    return groups[["l0", "fvu"]].mean().assign(ce_recovered=sums["kept"] / sums["cost"].where(sums["cost"] > 0))


def _span(curve: Frame, measure: str) -> str:
    """The l0 that a curve reaches with the measure known, in words."""
    l0 = curve.loc[curve[measure].notna() & (curve["l0"] > 0), "l0"]
    if l0.empty:
        return "undefined"
    return f"{l0.min():.4g}" if len(l0) == 1 else f"{l0.min():.4g} to {l0.max():.4g}"


def _trained(results: pd.DataFrame) -> pd.DataFrame:
    return results[results["dictionary"] == "trained"] if "dictionary" in results else results
