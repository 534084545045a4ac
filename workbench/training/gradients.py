"""The gradients of a micro-batch: forward and backward, launched kernel by kernel or replayed as one CUDA graph.

A model of this size keeps a GPU busy for microseconds a kernel, and a micro-batch has thousands of them: Python cannot
launch them as fast as they end. A graph records the launches of one micro-batch and repeats them as a whole. They are
the same kernels on the same numbers in the same order, so that what is trained does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.models import HookedLM
from workbench.models.cross_entropy import weighs
from workbench.training.objective import Batch, Objective, objective
from workbench.training.prescription import Moment, Prescription


class Gradients:
    """Called with a micro-batch and its moment, adds the gradients of its share of a step to the weights' `.grad`, and
    returns the parts of its loss."""

    def __init__(
        self,
        model: HookedLM,
        prescription: Prescription,
        n_accumulation: int,
        autocast: torch.dtype | None = None,
        call: Callable[..., Tensor] | None = None,
    ) -> None:
        """n_accumulation: micro-batches of a step. call: called in the model's place, where several processes wrap
        it."""
        self.model, self.prescription, self.n_accumulation = model, prescription, n_accumulation
        self.autocast, self.call = autocast, call

    def __call__(self, batch: Batch, moment: Moment) -> Objective:
        part = objective(self.model, batch, self.prescription, moment, self.autocast, self.call)
        (part.total / self.n_accumulation).backward()
        return part


@dataclass(frozen=True)
class _Recording:
    """A graph, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    moment: Moment
    part: Objective


class RecordedGradients(Gradients):
    """`Gradients` on a CUDA device, recorded at the first micro-batch and replayed from then on.

    The weights must stay where they are in memory and all micro-batches have one shape. `.grad` of a weight may be
    dropped between steps; memory for it is kept here. Where a term comes and goes with its weight, there is a recording
    of each.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._recordings: dict[tuple[bool, ...], _Recording] = {}
        self._kept: list[tuple[Tensor, Tensor]] = []  # a weight that has a gradient, and the memory for it
        # of all recordings: a weight's node in autograd's graph may outlive one, and belongs to its stream
        self._stream = torch.cuda.Stream(self.model.W_E.device)

    def __call__(self, batch: Batch, moment: Moment) -> Objective:
        weighing = tuple(weighs(value) for own in moment.scalars.values() for value in own.values())
        if weighing not in self._recordings:
            self._recordings[weighing] = self._record(batch, moment)
            if moment.generator is not None:  # as if it had not been drawn from to record: a resumed run records anew
                moment.generator.manual_seed(moment.generator.initial_seed())
        recording = self._recordings[weighing]
        self._begin_step()
        recording.batch.tokens.copy_(batch.tokens)
        if batch.mask is not None and recording.batch.mask is not None:
            recording.batch.mask.copy_(batch.mask)
        for name, own in recording.moment.scalars.items():
            for key, value in own.items():
                if isinstance(value, Tensor):
                    value.fill_(moment.scalars[name][key])
        assert isinstance(recording.moment.step, Tensor)
        recording.moment.step.fill_(moment.step)
        recording.graph.replay()  # draws from the generator as it is seeded now
        return _copy(recording.part)  # the next replay writes over it

    def _begin_step(self) -> None:
        """Gradients that were dropped begin at zero, in the memory that the graphs add to."""
        if self._kept and self._kept[0][0].grad is None:
            torch._foreach_zero_([kept for _, kept in self._kept])
            for parameter, kept in self._kept:
                parameter.grad = kept

    def _record(self, batch: Batch, moment: Moment) -> _Recording:
        device = batch.tokens.device
        own = Batch(batch.tokens.clone(), None if batch.mask is None else batch.mask.clone())
        # as wide as the loss: between two scalars the wider decides
        dtype = self.model.W_E.dtype
        scalars = {
            name: {k: torch.zeros((), dtype=dtype, device=device) if weighs(v) else 0.0 for k, v in of.items()}
            for name, of in moment.scalars.items()
        }
        own_moment = Moment(torch.zeros((), dtype=torch.int64, device=device), scalars, moment.generator)
        parameters = list(self.model.parameters())
        before = [p.grad for p in parameters]
        # once as usual, beside the stream that is waited for, as CUDA asks: libraries set themselves up, and it turns
        # out which weights have a gradient at all
        for parameter in parameters:
            parameter.grad = None
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            super().__call__(own, own_moment)
        torch.cuda.current_stream(device).wait_stream(self._stream)
        if not self._kept:
            self._kept = [(p, torch.zeros_like(p)) for p in parameters if p.grad is not None]
        for parameter, kept in self._kept:
            parameter.grad = kept
        graph = torch.cuda.CUDAGraph()
        if moment.generator is not None:
            graph.register_generator_state(moment.generator)
        with torch.cuda.graph(graph, stream=self._stream):  # notes what would run, and runs nothing
            part = super().__call__(own, own_moment)
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad
        return _Recording(graph, own, own_moment, part)


def _copy(part: Objective) -> Objective:
    """The same numbers in memory of their own, with nothing of autograd's."""
    telemetry = {name: value.clone() for name, value in part.telemetry.items()}
    return Objective(part.total.detach().clone(), part.loss.clone(), telemetry)
