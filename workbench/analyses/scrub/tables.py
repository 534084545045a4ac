"""What was measured of circuits, as the rows of `scrubbing`, `scrubbing_members` and `scrubbing_heads`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from probes.paired_effects import mean_gap, recovery, sign_flip_test
from workbench.analyses.scrub.circuits import Node
from workbench.analyses.scrub.scrubbing import Ends, Tested
from workbench.analyses.tasks.columns import MEASURED, gap_values

SIGNIFICANT = 0.05  # adjusted p below which a share is not 0, or a head above another
UNDEFINED = "gap_undefined"
LOAD_BEARING, ONE_OF_SEVERAL, NOT_NEEDED = "load-bearing", "one of several", "not needed"


def circuit_row(tested: Tested, seed: int, n_bootstrap: int, status: str = MEASURED) -> dict[str, Any]:
    """A circuit's row of `scrubbing`: its kept share, what its complement keeps, and that of random circuits.

    p = (1 + #{random ≥ circuit})/(1 + #random); nan without random ones.
    """
    ends, nodes = tested.ends, tested.circuit.nodes
    own = np.stack([tested.kept, tested.complement, *tested.random]) - ends.base
    found = recovery(own, ends.gaps, np.random.default_rng([seed, 4]), ends.clusters, n_bootstrap)
    random = found.share[2:]
    is_known = bool(len(random)) and found.gap.is_defined
    return {
        "circuit": tested.circuit.name,
        "kept_share": found.share[0],
        "ci_low": found.low[0],
        "ci_high": found.high[0],
        **gap_values(found.gap),
        "complement_share": found.share[1],
        "complement_low": found.low[1],
        "complement_high": found.high[1],
        "random_mean": random.mean() if is_known else np.nan,
        "random_max": random.max() if is_known else np.nan,
        "p": (1 + (random >= found.share[0]).sum()) / (1 + len(random)) if is_known else np.nan,
        "n_random": len(random),
        "n_heads": sum(not node.is_mlp for node in nodes),
        "n_mlps": sum(node.is_mlp for node in nodes),
        "n_pairs": found.gap.n_pairs,
        "n_clusters": found.gap.n_clusters,
        "pairs": "held out" if tested.is_held_out else "all",
        "status": status if found.gap.is_defined or status != MEASURED else UNDEFINED,
        "members": " ".join(map(str, sorted(nodes))) if nodes and tested.members else "",
    }


def member_rows(tested: Tested, seed: int, n_bootstrap: int) -> list[dict[str, Any]]:
    """A row of `scrubbing_members` for each node of a circuit: kept share of the circuit − that without the node.

    The interval draws clusters with both shares together; p is `sign_flip_test` over the circuit's members.
    """
    if not tested.members or tested.without is None:
        return []
    ends, lost = tested.ends, tested.kept - tested.without
    found = recovery(lost, ends.gaps, np.random.default_rng([seed, 5]), ends.clusters, n_bootstrap)
    without = (tested.without - ends.base).sum(axis=1) / ends.gaps.sum()
    p = sign_flip_test(lost, np.random.default_rng([seed, 6]), ends.clusters)
    return [
        {
            "circuit": tested.circuit.name,
            "member": str(node),
            "layer": node.layer,
            "head": node.head,
            "contribution": found.share[i],
            "ci_low": found.low[i],
            "ci_high": found.high[i],
            "p": p[i] if found.gap.is_defined else np.nan,
            "share_without": without[i] if found.gap.is_defined else np.nan,
        }
        for i, node in enumerate(tested.members)
    ]


def head_rows(
    heads: Sequence[Node], without: Float[np.ndarray, "head pair"], ends: Ends, seed: int, n_bootstrap: int
) -> list[dict[str, Any]]:
    """A row of `scrubbing_heads` for each head: the share of the gap that is lost when it alone is exchanged.

    p: of a necessity of 0, adjusted for all heads. p_above, of the head of the largest necessity alone: the largest of
    the p, adjusted likewise, of its not differing from another head's. That head is load-bearing if both are at most
    .05; a head of p ≤ .05 and positive necessity besides is one of several.
    """
    lost = ends.clean - without
    found = recovery(lost, ends.gaps, np.random.default_rng([seed, 7]), ends.clusters, n_bootstrap)
    p, p_above = np.full(len(heads), np.nan), np.full(len(heads), np.nan)
    if found.gap.is_defined:
        p = sign_flip_test(lost, np.random.default_rng([seed, 8]), ends.clusters)
        top = int(lost.sum(axis=1).argmax())
        others = np.delete(lost[top] - lost, top, axis=0)
        if len(others):
            p_above[top] = sign_flip_test(others, np.random.default_rng([seed, 9]), ends.clusters).max()
    return [
        {
            "layer": head.layer,
            "head": head.head,
            "necessity": found.share[i],
            "ci_low": found.low[i],
            "ci_high": found.high[i],
            "p": p[i],
            "p_above": p_above[i],
            "verdict": _verdict(found.share[i], p[i], p_above[i]),
        }
        for i, head in enumerate(heads)
    ]


def _verdict(share: float, p: float, p_above: float) -> str:
    if np.isnan(share):
        return ""  # no gap to be needed for
    if not (share > 0 and p <= SIGNIFICANT):
        return NOT_NEEDED
    return LOAD_BEARING if p_above <= SIGNIFICANT else ONE_OF_SEVERAL


def unmeasured_rows(ends: Ends, names: Sequence[str], seed: int, n_bootstrap: int, status: str) -> list[dict[str, Any]]:
    """Rows of circuits on a task that the model does not do: the gap, and nothing that is a share of it."""
    gap = mean_gap(ends.gaps, np.random.default_rng([seed, 4]), ends.clusters, n_bootstrap)
    own = {**gap_values(gap), "n_pairs": gap.n_pairs, "n_clusters": gap.n_clusters}
    own |= {"pairs": "all", "status": status, "members": ""}
    return [{"circuit": name} | own for name in names]


def table(rows: Sequence[Mapping[str, Any]], front: Mapping[str, Any], columns: Sequence[str]) -> pd.DataFrame:
    """Rows with what they are of in front, in the order of the columns; missing numbers are nan."""
    return pd.DataFrame([{**front, **row} for row in rows]).reindex(columns=list(columns))
