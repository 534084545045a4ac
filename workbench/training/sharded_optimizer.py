"""The optimizer of several processes: Muon's work is shared out by matrices, AdamW's state by FSDP where it is on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from workbench.training.optimizers import Optimizer, OptimizerConfig, from_matrix, is_hidden_matrix, to_matrix


class ShardedOptimizer(Optimizer):
    """As `Optimizer`, each process orthogonalising its share of the hidden matrices and sending them to the others.

    Every process must call every method. Gradients must be the same on all of them (DDP), or each weight's and
    gradient's own rows (FSDP). `state_dict` and `load_state_dict` speak of whole tensors, as one process would have
    them, so that a checkpoint has one form.
    """

    def __init__(self, model: nn.Module, cfg: OptimizerConfig) -> None:
        hidden = {n: p for n, p in model.named_parameters() if cfg.muon and is_hidden_matrix(n)}
        self._owner = share_matrices(hidden, dist.get_world_size())
        self._rank = dist.get_rank()
        super().__init__(model, cfg, own={name for name, owner in self._owner.items() if owner == self._rank})

    @torch.no_grad()
    def step(self) -> None:
        """Update every weight that has a gradient."""
        self._adamw.step()
        for name, parameter in self._hidden.items():
            weight = whole(parameter)  # FSDP gathers here, so all processes must
            gradient = None if parameter.grad is None else whole(parameter.grad)
            if (copy := self._copies.get(name)) is not None:
                copy.copy_(to_matrix(name, weight))
                copy.grad = None if gradient is None else to_matrix(name, gradient).contiguous()
        if self._muon is not None:
            self._muon.step()
        for name, matrix in self._from_owners(self._copies).items():
            parameter = self._hidden[name]
            _write(parameter, from_matrix(name, matrix, parameter.shape))
        for copy in self._copies.values():
            copy.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """As `Optimizer`'s, the same on every process."""
        state = {name: whole(value) for name, value in super().state_dict().items()}
        own = {name: dict(self._muon.state[copy]) for name, copy in self._copies.items()} if self._muon else {}
        buffers = {name: moments["momentum_buffer"] for name, moments in own.items() if moments}
        if self._hidden and self._has_stepped():
            for name, buffer in self._from_owners(buffers).items():
                state[f"muon/{name}/momentum_buffer"] = buffer
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict()`'s tensors, of which Muon's go to who owns them."""
        others = {f"muon/{name}/momentum_buffer" for name, owner in self._owner.items() if owner != self._rank}
        super().load_state_dict({name: value for name, value in state.items() if name not in others})

    def _has_stepped(self) -> bool:
        return any(bool(state) for state in self._adamw.state.values())

    def _from_owners(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A matrix for every hidden weight, sent by its owner; one message an owner. Those of `own` are returned."""
        found: dict[str, Tensor] = {}
        for rank in range(dist.get_world_size()):
            names = [name for name, owner in self._owner.items() if owner == rank]
            if not names:
                continue
            shapes = {n: to_matrix(n, self._hidden[n].detach().to("meta")).shape for n in names}
            some = self._hidden[names[0]]
            message = (
                torch.cat([own[n].detach().flatten() for n in names])
                if rank == self._rank
                else torch.empty(sum(s.numel() for s in shapes.values()), dtype=some.dtype, device=some.device)
            )
            dist.broadcast(message, src=rank)
            parts = message.split([shapes[n].numel() for n in names])
            found |= {n: part.view(shapes[n]) for n, part in zip(names, parts, strict=True)}
        return found

    def _whole(self, tensor: Tensor) -> Tensor:
        return whole(tensor)

    def _like(self, parameter: Tensor, whole: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return super()._like(parameter, whole)
        return place_like(parameter, whole)


def share_matrices(hidden: Mapping[str, Tensor], n: int) -> dict[str, int]:
    """Which of n processes takes Muon's step of each hidden matrix."""
    return share_out({name: _work(name, p) for name, p in hidden.items()}, n)


def share_out(work: Mapping[str, float], n: int) -> dict[str, int]:
    """Who of n gets each name, so that their sums of work are nearly equal: the largest first, to who has least."""
    loads, owner = [0.0] * n, {}
    for name in sorted(work, key=lambda name: (-work[name], name)):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += work[name]
    return {name: owner[name] for name in work}


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the processes that hold its parts; itself where it is not sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place_like(sharded: DTensor, tensor: Tensor) -> DTensor:
    """`tensor`, which every process has whole, sharded like the first: each keeps its part and sends nothing."""
    return distribute_tensor(tensor.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


def _write(parameter: Tensor, weight: Tensor) -> None:
    if isinstance(parameter, DTensor):
        parameter.to_local().copy_(place_like(parameter, weight).to_local())
    else:
        parameter.copy_(weight)


def _work(name: str, parameter: Tensor) -> float:
    """What orthogonalising a matrix costs, up to a factor: rows · columns · the shorter side."""
    rows, columns = to_matrix(name, torch.empty(parameter.shape, device="meta")).shape
    return float(rows) * columns * min(rows, columns)
