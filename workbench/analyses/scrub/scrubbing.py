"""What is measured of circuits on one task: m of every pair under each exchange of nodes, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from probes.paired_effects import mean_gap
from workbench.analyses.scrub.circuits import (
    EVERYTHING,
    FOUND,
    NOTHING,
    Circuit,
    Node,
    check_nodes,
    every_node,
)
from workbench.analyses.scrub.engine import Exchange, Prompts, check_model, exchanged_effects, keeping
from workbench.analyses.scrub.search import (
    Kind,
    lenders,
    random_circuits,
    rank_nodes,
    split_clusters,
    tried_sizes,
    without_each,
)
from workbench.analyses.tasks.jobs import Keep
from workbench.data.pairs import PairTokens
from workbench.models.costs import MEMORY_BUDGET_BYTES

SETS_TOGETHER = 32  # sets whose results are kept as one part, with which a killed run goes on
SIZES_TOGETHER = 8  # circuits that a search tries at once


@dataclass(frozen=True)
class Options:
    """How circuits are put to the test."""

    kind: Kind = "corrupt"
    share: float = 0.8
    """kept share on the training half that a search stops at"""
    by_position: bool = False
    """whether a search takes each named position of a node by itself"""
    n_random: int = 20
    seed: int = 0
    budget: int = MEMORY_BUDGET_BYTES
    """bytes beside the weights"""


@dataclass(frozen=True)
class Ends:
    """m of each pair behind its own prompts: what shares are of."""

    clean: Float64[np.ndarray, " pair"]
    base: Float64[np.ndarray, " pair"]
    """behind the prompt that lends"""
    clusters: Int64[np.ndarray, " pair"]

    @property
    def gaps(self) -> Float64[np.ndarray, " pair"]:
        """clean − base."""
        return self.clean - self.base

    def take(self, rows: np.ndarray) -> Ends:
        """Some of the pairs."""
        return Ends(self.clean[rows], self.base[rows], self.clusters[rows])


@dataclass(frozen=True)
class Tested:
    """One circuit's m under each exchange, on the pairs that it is tested on."""

    circuit: Circuit
    ends: Ends
    kept: Float64[np.ndarray, " pair"]
    complement: Float64[np.ndarray, " pair"]
    """with the circuit exchanged and all else kept"""
    random: Float64[np.ndarray, "draw pair"]
    members: tuple[Node, ...] = ()
    without: Float64[np.ndarray, "member pair"] | None = None
    """of the circuit without each member"""
    is_held_out: bool = False
    """whether these pairs are none of those that it was searched on"""


class Scrubber:
    """A model and a task's pairs; each measure is made once and kept.

    Args:
        keep: by name, results of parts of the work.
        tell: gets the share done of the stage at hand, by name.

    Raises:
        ValueError: a model without the hooks, or as `lenders`.
    """

    def __init__(
        self,
        model: Any,
        pairs: PairTokens,
        options: Options,
        keep: Keep = lambda name, make: make(),
        tell: Callable[[str, float], None] = lambda stage, share: None,
    ) -> None:
        check_model(model)
        self.model, self.pairs, self.options, self.keep, self.tell = model, pairs, options, keep, tell
        self.lender = lenders(pairs, options.kind, np.random.default_rng([options.seed, 1]))
        nothing = [Exchange(frozenset())]
        clean = self._effects("clean", pairs.clean, pairs.corrupt[self.lender], nothing)
        base = self._effects("base", pairs.corrupt[self.lender], pairs.clean, nothing)
        self.ends = Ends(clean[0], base[0], pairs.clusters.numpy())

    def is_defined(self, n_bootstrap: int) -> bool:
        """Whether shares of the gap mean something, on all pairs."""
        rng = np.random.default_rng([self.options.seed, 0])
        return mean_gap(self.ends.gaps, rng, self.ends.clusters, n_bootstrap).is_defined

    def test(self, circuit: Circuit, rows: np.ndarray | None = None) -> Tested:
        """A circuit beside its complement, random ones and itself without each member.

        rows: pairs to test it on, which it was not searched on; by default all.

        Raises:
            ValueError: a circuit that names what is not there.
        """
        check_nodes(f"circuits: {circuit.name}", circuit.nodes, self.model.cfg, self.pairs.positions)
        rng = np.random.default_rng([self.options.seed, 2])
        is_control = circuit.name in (EVERYTHING, NOTHING)
        n_random = 0 if is_control else self.options.n_random
        draws = random_circuits(circuit.nodes, self.model.cfg, n_random, rng)
        members = [] if is_control else without_each(circuit.nodes)
        sets = [keeping(circuit.nodes), Exchange(circuit.nodes)]
        sets += [keeping(own) for own in draws] + [keeping(own) for _, own in members]
        found = self._scrubbed(f"circuit_{circuit.name}", sets, rows)
        ends = self.ends if rows is None else self.ends.take(rows)
        n = 2 + len(draws)
        names = tuple(node for node, _ in members)
        return Tested(circuit, ends, found[0], found[1], found[2:n], names, found[n:], rows is not None)

    def controls(self, rows: np.ndarray | None = None) -> list[Tested]:
        """Everything and nothing, tested as circuits."""
        every = frozenset(every_node(self.model.cfg))
        return [self.test(Circuit(EVERYTHING, every), rows), self.test(Circuit(NOTHING, frozenset()), rows)]

    def search(self) -> tuple[Circuit, np.ndarray]:
        """The circuit found on half of the clusters, and the rows of the others.

        Nodes are ranked by what each restores alone (its activation on the clean prompt put into the run of the prompt
        that lends); the smallest set of the first k that keeps the share asked for is taken.
        """
        halves = split_clusters(self.pairs, np.random.default_rng([self.options.seed, 3]))
        train, held = (rows.numpy() for rows in halves)
        own, pairs = self.ends.take(train), self.pairs
        positions = sorted(pairs.positions) if self.options.by_position else [""]
        nodes = every_node(self.model.cfg, positions)
        sets = [Exchange(frozenset([node])) for node in nodes]
        restored = self._effects("nodes", pairs.corrupt[self.lender], pairs.clean, sets, train) - own.base
        ranked, sizes = rank_nodes(nodes, restored), tried_sizes(len(nodes))
        for start in range(0, len(sizes), SIZES_TOGETHER):
            some = sizes[start : start + SIZES_TOGETHER]
            kept = self._scrubbed(f"search_{start:05d}", [keeping(frozenset(ranked[:k])) for k in some], train)
            for k, m in zip(some, kept, strict=True):
                if (m - own.base).sum() >= self.options.share * own.gaps.sum():
                    return Circuit(FOUND, frozenset(ranked[:k])), held
        return Circuit(FOUND, frozenset(ranked)), held  # under a gap that is not above 0

    def without_heads(self, heads: Sequence[Node]) -> Float64[np.ndarray, "head pair"]:
        """m of every pair with one head exchanged and all else as it follows, each head in turn.

        Raises:
            ValueError: a head that is not there.
        """
        check_nodes("heads", heads, self.model.cfg, self.pairs.positions)
        return self._scrubbed("heads", [Exchange(frozenset([head])) for head in heads])

    def _scrubbed(self, stage: str, sets: Sequence[Exchange], rows: np.ndarray | None = None) -> np.ndarray:
        return self._effects(stage, self.pairs.clean, self.pairs.corrupt[self.lender], sets, rows)

    def _effects(
        self, stage: str, base: Tensor, source: Tensor, sets: Sequence[Exchange], rows: np.ndarray | None = None
    ) -> np.ndarray:
        prompts = Prompts(base, source, self.pairs)
        if rows is not None:
            at = torch.from_numpy(rows)
            prompts = Prompts(base[at], source[at], self.pairs.take(at))
        parts = []
        for start in range(0, len(sets), SETS_TOGETHER):
            some = sets[start : start + SETS_TOGETHER]

            def make(some: Sequence[Exchange] = some) -> dict[str, Tensor]:
                return {"m": exchanged_effects(self.model, prompts, some, self.options.budget)}

            parts.append(self.keep(f"{stage}_{start // SETS_TOGETHER:04d}", make)["m"])
            self.tell(stage, min(1.0, (start + len(some)) / len(sets)))
        return torch.cat(parts).numpy()
