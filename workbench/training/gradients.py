"""The gradients of a micro-batch: forward and backward, launched kernel by kernel or replayed as one CUDA graph.

A model of this size keeps a GPU busy for microseconds a kernel, and a micro-batch has thousands of them: Python cannot
launch them as fast as they end. A graph records the launches of one micro-batch and repeats them as a whole. They are
the same kernels on the same numbers in the same order, so that what is trained does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.models import HookedLM
from workbench.models.cross_entropy import Scalar, weighs
from workbench.training.objective import Batch, Objective, objective
from workbench.training.recipe import Phase


class Gradients:
    """Called with a micro-batch, λ and the step of the phase, adds the gradients of its share of a step to the weights'
    `.grad`, and returns the parts of its loss."""

    def __init__(
        self,
        model: HookedLM,
        phase: Phase,
        autocast: torch.dtype | None = None,
        call: Callable[..., Tensor] | None = None,
    ) -> None:
        """call: called in the model's place, where several processes wrap it."""
        self.model, self.phase, self.autocast, self.call = model, phase, autocast, call

    def __call__(self, batch: Batch, weight: Scalar, step: int | Tensor) -> Objective:
        part = objective(self.model, batch, self.phase, weight, self.autocast, step, self.call)
        (part.total / self.phase.n_accumulation).backward()
        return part


@dataclass(frozen=True)
class _Recording:
    """A graph, and the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    weight: Scalar
    step: Tensor
    part: Objective


class RecordedGradients(Gradients):
    """`Gradients` on a CUDA device, recorded at the first micro-batch and replayed from then on.

    The weights must stay where they are in memory and all micro-batches have one shape. `.grad` of a weight may be
    dropped between steps; memory for it is kept here. Where VSM comes and goes with λ, there is a recording of each.
    """

    def __init__(self, model: HookedLM, phase: Phase, autocast: torch.dtype | None = None) -> None:
        super().__init__(model, phase, autocast)
        self._recordings: dict[bool, _Recording] = {}
        self._kept: list[tuple[Tensor, Tensor]] = []  # a weight that has a gradient, and the memory for it
        # of all recordings: a weight's node in autograd's graph may outlive one, and belongs to its stream
        self._stream = torch.cuda.Stream(model.W_E.device)

    def __call__(self, batch: Batch, weight: Scalar, step: int | Tensor) -> Objective:
        is_pressed = weighs(weight)
        if is_pressed not in self._recordings:
            self._recordings[is_pressed] = self._record(batch, is_pressed)
        recording = self._recordings[is_pressed]
        self._begin_step()
        recording.batch.tokens.copy_(batch.tokens)
        if batch.mask is not None and recording.batch.mask is not None:
            recording.batch.mask.copy_(batch.mask)
        if isinstance(recording.weight, Tensor):
            recording.weight.fill_(weight)
        recording.step.fill_(step)
        recording.graph.replay()
        return _copy(recording.part)  # the next replay writes over it

    def _begin_step(self) -> None:
        """Gradients that were dropped begin at zero, in the memory that the graphs add to."""
        if self._kept and self._kept[0][0].grad is None:
            torch._foreach_zero_([kept for _, kept in self._kept])
            for parameter, kept in self._kept:
                parameter.grad = kept

    def _record(self, batch: Batch, is_pressed: bool) -> _Recording:
        device = batch.tokens.device
        own = Batch(batch.tokens.clone(), None if batch.mask is None else batch.mask.clone())
        # as wide as the loss: between two scalars the wider decides
        weight = torch.zeros((), dtype=self.model.W_E.dtype, device=device) if is_pressed else 0.0
        step = torch.zeros((), dtype=torch.int64, device=device)
        parameters = list(self.model.parameters())
        before = [p.grad for p in parameters]
        # once as usual, beside the stream that is waited for, as CUDA asks: libraries set themselves up, and it turns
        # out which weights have a gradient at all
        for parameter in parameters:
            parameter.grad = None
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            super().__call__(own, weight, step)
        torch.cuda.current_stream(device).wait_stream(self._stream)
        if not self._kept:
            self._kept = [(p, torch.zeros_like(p)) for p in parameters if p.grad is not None]
        for parameter, kept in self._kept:
            parameter.grad = kept
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):  # notes what would run, and runs nothing
            part = super().__call__(own, weight, step)
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad
        return _Recording(graph, own, weight, step, part)


def _copy(part: Objective) -> Objective:
    """The same numbers in memory of their own, with nothing of autograd's."""

    def own(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().clone()

    return Objective(part.total.detach().clone(), part.loss.clone(), own(part.vsm), own(part.sigma))
