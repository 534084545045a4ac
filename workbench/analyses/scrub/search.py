"""What circuits are tried on and against: pairs that lend, halves of the clusters, sizes that a search tries, and
random circuits of equal size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from workbench.analyses.scrub.circuits import Node, Nodes
from workbench.data.pairs import PairTokens

Kind = Literal["corrupt", "other"]
TRIES = 50  # draws for each random circuit asked for
EACH_UP_TO = 16  # sizes that a search tries one by one; above, each an eighth larger than the one before


def lenders(pairs: PairTokens, kind: Kind, rng: np.random.Generator) -> Int64[Tensor, " pair"]:
    """Which pair's corrupt prompt lends activations to each pair: its own, or another of equal length drawn at random.

    Raises:
        ValueError: other, where a pair is the only one of its length.
    """
    own = torch.arange(len(pairs))
    if kind == "corrupt":
        return own
    by_length = defaultdict(list)
    for row, last in enumerate(pairs.last.tolist()):
        by_length[last].append(row)
    for last, rows in by_length.items():
        if len(rows) < 2:
            raise ValueError(
                f"kind: got other with one pair of {last + 1} tokens; expected two of each length, or corrupt"
            )
        order = rng.permutation(rows)
        own[torch.from_numpy(order)] = torch.from_numpy(np.roll(order, 1))  # a cycle: none lends to itself
    return own


def split_clusters(
    pairs: PairTokens, rng: np.random.Generator
) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " held"]]:
    """Rows of the pairs of half of the clusters, at random, and of the others.

    Raises:
        ValueError: fewer than 4 clusters.
    """
    known = np.unique(pairs.clusters.numpy())
    if len(known) < 4:
        raise ValueError(f"scrub: got pairs in {len(known)} clusters; expected 4 or more, half of them to search on")
    train = rng.permutation(known)[: len(known) // 2]
    is_train = np.isin(pairs.clusters.numpy(), train)
    return torch.from_numpy(np.flatnonzero(is_train)), torch.from_numpy(np.flatnonzero(~is_train))


def tried_sizes(n: int) -> list[int]:
    """Numbers of nodes that a search tries, upwards: 1 to 16, then each an eighth more, and all n.

    >>> tried_sizes(24)
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24]
    """
    sizes = list(range(1, min(n, EACH_UP_TO) + 1))
    while sizes[-1] < n:
        sizes.append(min(n, sizes[-1] + sizes[-1] // 8))
    return sizes


def random_circuits(nodes: Nodes, cfg: Any, n: int, rng: np.random.Generator) -> list[Nodes]:
    """n circuits of as many heads and as many MLPs at the same positions, none of them twice or the circuit itself;
    fewer where drawing finds no more, as of a circuit that is almost all of a model."""
    found: list[Nodes] = []
    for _ in range(TRIES * n):
        if len(found) == n:
            break
        drawn = _draw_circuit(nodes, cfg, rng)
        if drawn != nodes and drawn not in found:
            found.append(drawn)
    return found


def _draw_circuit(nodes: Nodes, cfg: Any, rng: np.random.Generator) -> Nodes:
    found: list[Node] = []
    for position in sorted({node.position for node in nodes}):
        own = [node for node in nodes if node.position == position]
        n_mlps = sum(node.is_mlp for node in own)
        heads = rng.choice(cfg.n_layers * cfg.n_heads, len(own) - n_mlps, replace=False)
        found += [Node(*divmod(int(i), cfg.n_heads), position) for i in heads]
        found += [Node(int(layer), -1, position) for layer in rng.choice(cfg.n_layers, n_mlps, replace=False)]
    return frozenset(found)


def without_each(nodes: Nodes) -> list[tuple[Node, Nodes]]:
    """Each node, in order, with the circuit of the others."""
    return [(node, nodes - {node}) for node in sorted(nodes)]


def rank_nodes(nodes: Sequence[Node], restored: np.ndarray) -> list[Node]:
    """The nodes by Σ over pairs of what each one restores [node pair], most first."""
    return [nodes[i] for i in np.argsort(-restored.sum(axis=1), kind="stable")]
