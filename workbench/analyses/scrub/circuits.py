"""Circuits: sets of heads and MLPs, each at all positions or at a named one, as text and as a TOML file has them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from pydantic import Field, ValidationError, field_validator
from torch import Tensor

from workbench.data.pairs import PairTokens
from workbench.runs import read_toml
from workbench.runs.records import Frozen, describe_errors

EVERYTHING, NOTHING, FOUND = "everything", "nothing", "found"
_HEAD = re.compile(r"(\d{1,6})\.(\d{1,6})(?:@(\w{1,60}))?")
_MLP = re.compile(r"(\d{1,6})(?:@(\w{1,60}))?")


@dataclass(frozen=True, order=True)
class Node:
    """A head, or the MLP of a layer, at all positions or at one that the pairs name."""

    layer: int
    head: int
    """-1: the MLP"""
    position: str = ""
    """empty: at all positions"""

    @property
    def is_mlp(self) -> bool:
        """Whether it is an MLP."""
        return self.head < 0

    def __str__(self) -> str:
        part = "mlp" if self.is_mlp else str(self.head)
        return f"{self.layer}.{part}" + (f"@{self.position}" if self.position else "")


Nodes = frozenset[Node]


@dataclass(frozen=True)
class Circuit:
    """A hypothesis: these nodes and no others do a task."""

    name: str
    nodes: Nodes


class NamedCircuit(Frozen):
    """A circuit as a file has it."""

    name: str = Field(description="what its rows are called", pattern=r"^[\w.+-]{1,60}$")
    heads: tuple[str, ...] = Field(default=(), description="LAYER.HEAD or LAYER.HEAD@POSITION each")
    mlps: tuple[str, ...] = Field(default=(), description="LAYER or LAYER@POSITION each")

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name in (EVERYTHING, NOTHING, FOUND):
            raise ValueError(f"got {name!r}, the name of a row of our own; expected another")
        return name

    @field_validator("heads")
    @classmethod
    def _are_heads(cls, heads: tuple[str, ...]) -> tuple[str, ...]:
        for text in heads:
            parse_head(text)
        return heads

    @field_validator("mlps")
    @classmethod
    def _are_mlps(cls, mlps: tuple[str, ...]) -> tuple[str, ...]:
        for text in mlps:
            parse_mlp(text)
        return mlps

    @property
    def nodes(self) -> Nodes:
        """Its nodes."""
        return frozenset([*map(parse_head, self.heads), *map(parse_mlp, self.mlps)])


class NamedCircuits(Frozen):
    """Circuits, as a file has them."""

    circuits: tuple[NamedCircuit, ...] = Field(description="hypotheses", min_length=1, max_length=1000)


def parse_head(text: str) -> Node:
    """The head of "1.4" or "0.2@previous".

    Raises:
        ValueError: any other text.

    >>> str(parse_head("0.2@previous"))
    '0.2@previous'
    """
    if (match := _HEAD.fullmatch(text.strip())) is None:
        raise ValueError(f"got {text!r:.60}; expected LAYER.HEAD or LAYER.HEAD@POSITION, such as 1.4 or 0.2@end")
    return Node(int(match[1]), int(match[2]), match[3] or "")


def parse_mlp(text: str) -> Node:
    """The MLP of "1" or "0@end".

    Raises:
        ValueError: any other text.

    >>> str(parse_mlp("0@end"))
    '0.mlp@end'
    """
    if (match := _MLP.fullmatch(text.strip())) is None:
        raise ValueError(f"got {text!r:.60}; expected LAYER or LAYER@POSITION, such as 1 or 0@end")
    return Node(int(match[1]), -1, match[2] or "")


def read_circuits(file: str | Path) -> tuple[Circuit, ...]:
    """The circuits of a TOML file: tables `[[circuits]]` of name, heads and mlps.

    Raises:
        ValueError: naming the file, for one that is missing or not of this form, for a circuit without nodes, or a name
            given twice.
    """
    if not Path(file).is_file():
        raise ValueError(f"circuits: no file {str(file)!r}; expected a TOML file")
    try:
        named = NamedCircuits.model_validate(read_toml(Path(file), "circuits")).circuits
    except ValidationError as error:
        raise ValueError(f"circuits: {file}: {describe_errors(error)}") from None
    names = [own.name for own in named]
    for own in named:
        if not own.nodes:
            raise ValueError(f"circuits: {file}: {own.name} has no nodes; expected heads or mlps")
        if names.count(own.name) > 1:
            raise ValueError(f"circuits: {file}: got the name {own.name} twice; expected each once")
    return tuple(Circuit(own.name, own.nodes) for own in named)


def check_nodes(where: str, nodes: Iterable[Node], cfg: Any, positions: Collection[str]) -> None:
    """Raise ValueError for a node that the model has not, or at a position that the pairs do not name."""
    for node in sorted(nodes):
        if not 0 <= node.layer < cfg.n_layers:
            raise ValueError(f"{where}: got {node}; expected a layer of 0…{cfg.n_layers - 1}")
        if not node.head < cfg.n_heads:
            raise ValueError(f"{where}: got {node}; expected a head of 0…{cfg.n_heads - 1}")
        if node.position and node.position not in positions:
            known = ", ".join(sorted(positions)) or "none"
            raise ValueError(f"{where}: got {node}; expected no position, or one of the pairs': {known}")


def every_node(cfg: Any, positions: Sequence[str] = ("",)) -> tuple[Node, ...]:
    """All heads and MLPs of a model, at all positions together or at each of these."""
    return tuple(
        Node(layer, head, position)
        for layer in range(cfg.n_layers)
        for head in (*range(cfg.n_heads), -1)
        for position in positions
    )


def node_mask(nodes: Collection[Node], layer: int, n_heads: int, pairs: PairTokens) -> Bool[Tensor, "pair pos part"]:
    """Where the nodes of a layer are: True at their heads, in order, and, last, at the MLP."""
    n_pairs, n_pos = pairs.clean.shape
    mask = torch.zeros(n_pairs, n_pos, n_heads + 1, dtype=torch.bool)
    for node in nodes:
        if node.layer != layer:
            continue
        part = n_heads if node.is_mlp else node.head
        if node.position:
            mask[torch.arange(n_pairs), pairs.positions[node.position], part] = True
        else:
            mask[:, :, part] = True
    return mask
