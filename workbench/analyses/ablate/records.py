"""What an ablation takes out, what it starts from and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Float64, Int64
from safetensors.torch import save
from torch import Tensor

from workbench.models.block import Attended
from workbench.models.transformer import State

Component = Literal["head", "layer", "mlp"]
COMPONENTS: tuple[str, ...] = get_args(Component)


@dataclass(frozen=True)
class Part:
    """What is taken out together: one head of a layer, all of its heads, or its MLP."""

    layer: int
    component: Component
    head: int = -1
    """-1 unless the component is a head"""

    @property
    def hook(self) -> str:
        """Where it is replaced."""
        return f"blocks.{self.layer}." + ("hook_mlp_out" if self.component == "mlp" else "attn.hook_z")


Replacements = Sequence[Mapping[str, Tensor | None]]
"""What takes an activation's place, by hook name, one mapping a resample: z' of all heads, broadcast to
[batch pos head d_head], or the MLP's output, to [batch pos d_model]; None is zero"""


@dataclass(frozen=True)
class SequenceLosses:
    """Mean loss of each sequence, nats per token: without intervention, and with each part ablated."""

    layers: Int64[Tensor, " row"]
    heads: Int64[Tensor, " row"]
    components: Int64[Tensor, " row"]
    """index into COMPONENTS"""
    base: Float64[Tensor, " sequence"]
    ablated: Float64[Tensor, "row sequence"]
    kl: Float64[Tensor, "row sequence"]
    """mean KL(base‖ablated) of the next-token prediction, nats"""
    estimate: Float64[Tensor, "row sequence"]
    """change of the loss by its gradient alone, nats per token (see `attribution`); nan where not asked for"""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The rows."""
        columns = zip(self.layers.tolist(), self.components.tolist(), self.heads.tolist(), strict=True)
        return tuple(Part(layer, COMPONENTS[component], head) for layer, component, head in columns)  # type: ignore[arg-type]


def losses_of(parts: Sequence[Part], base: Tensor, ablated: Tensor, kl: Tensor, estimate: Tensor) -> SequenceLosses:
    """`SequenceLosses` with the rows `parts`."""
    layers, heads = (torch.tensor([getattr(part, name) for part in parts]) for name in ("layer", "head"))
    components = torch.tensor([COMPONENTS.index(part.component) for part in parts])
    return SequenceLosses(layers, heads, components, base, ablated, kl, estimate)


def to_bytes(losses: Any) -> bytes:
    """A record of tensors (`SequenceLosses`, `PairLosses`) as a safetensors file."""
    return save({name: tensor.contiguous() for name, tensor in asdict(losses).items()})


def join(runs: Sequence[SequenceLosses]) -> SequenceLosses:
    """The losses of several runs of sequences as one."""
    first = runs[0]
    across = {name: torch.cat([getattr(run, name) for run in runs], dim=1) for name in ("ablated", "kl", "estimate")}
    base = torch.cat([run.base for run in runs])
    return SequenceLosses(first.layers, first.heads, first.components, base, **across)


@dataclass(frozen=True)
class CleanPass:
    """What one forward leaves: per layer the state after attention and z; the state after the last layer."""

    mid: Mapping[int, State | Attended]
    z: Mapping[int, Float[Tensor, "batch pos head d_head"]]
    final: State
