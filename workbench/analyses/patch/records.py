"""What patching some pairs gives, before it is a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

READINGS = ("effect", "logprob", "kl")


@dataclass(frozen=True)
class Readings:
    """What the last token's prediction says, one entry a prompt, or [cell pair] under interventions."""

    effect: Float64[Tensor, "*cell pair"]
    """the task's measure m"""
    logprob: Float64[Tensor, "*cell pair"]
    """of the answer, nats"""
    kl: Float64[Tensor, "*cell pair"]
    """KL(clean‖this) of the prediction, nats"""


@dataclass(frozen=True)
class LayerReadings:
    """Some pairs patched in one layer, in one direction; rows of cells in the order of `cells_of`."""

    effect: Float64[Tensor, "cell pair"]
    logprob: Float64[Tensor, "cell pair"]
    kl: Float64[Tensor, "cell pair"]
    base: Float64[Tensor, "3 pair"]
    """effect, logprob and kl of the base as it is"""
    source: Float64[Tensor, "3 pair"]
    """and of the other prompt"""


def stacked(readings: Readings) -> Float64[Tensor, "3 pair"]:
    """The three readings of prompts as rows."""
    return torch.stack([readings.effect, readings.logprob, readings.kl])


def join_pairs(parts: Sequence[LayerReadings]) -> LayerReadings:
    """The readings of consecutive pairs as one."""
    names = (*READINGS, "base", "source")
    return LayerReadings(**{name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names})


def join_layers(layers: Sequence[LayerReadings]) -> LayerReadings:
    """The readings of several layers as one, cells of a layer together."""
    of_cells = {name: torch.cat([getattr(own, name) for own in layers]) for name in READINGS}
    return LayerReadings(**of_cells, base=layers[0].base, source=layers[0].source)
