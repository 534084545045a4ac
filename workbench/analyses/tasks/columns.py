"""Columns that the tables of effects on pairs of prompts share, and their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.extend import Column

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from jaxtyping import Float, Int

    from probes.paired_effects import Gap, Recovery
    from workbench.data.pairs import PairTokens

MEASURED, ABSENT = "measured", "task_absent"
SHARE = (
    Column("recovery", "Σ effects / Σ gaps; empty where the gap is within 3 standard errors of 0", unit="1"),
    Column("ci_low", unit="1"),
    Column("ci_high", unit="1"),
)
GAP_LIMITS = (Column("gap_low"), Column("gap_high"))
COUNTS = (
    Column("n_pairs", kind="integer"),
    Column("n_clusters", "what the intervals are over", kind="integer"),
    Column("status", "measured; task_absent: the model does not do the task (the gate of `tasks`)", kind="text"),
)


def share_values(found: Recovery) -> dict[str, Float[np.ndarray, " cell"]]:
    """The values of SHARE."""
    return {"recovery": found.share, "ci_low": found.low, "ci_high": found.high}


def gap_values(gap: Gap) -> dict[str, float]:
    """gap, gap_low and gap_high."""
    return {"gap": gap.mean, "gap_low": gap.interval.low, "gap_high": gap.interval.high}


def p_by_site(
    effects: Float[np.ndarray, "cell pair"],
    sites: np.ndarray,
    rng: np.random.Generator,
    clusters: Int[np.ndarray, " pair"],
    n_draws: int,
) -> Float[np.ndarray, " cell"]:
    """p of each mean effect being 0, adjusted for the cells of its site, one map (`probes.sign_flip_test`)."""
    import numpy as np

    from probes.paired_effects import sign_flip_test

    p = np.full(len(effects), np.nan)
    for site in dict.fromkeys(sites.tolist()):
        p[sites == site] = sign_flip_test(effects[sites == site], rng, clusters, n_draws)
    return p


def named(table: pd.DataFrame, pairs: PairTokens, name: str, seed: int) -> pd.DataFrame:
    """The table with what it is of in front: model, seed, task."""
    front: Mapping[str, object] = {"model": name, "seed": seed, "task": pairs.name}
    return table.assign(**front)[[*front, *table]]


def counts(pairs: PairTokens, status: str) -> dict[str, int | str]:
    """The values of COUNTS."""
    return {"n_pairs": len(pairs), "n_clusters": len(pairs.clusters.unique()), "status": status}
