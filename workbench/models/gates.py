"""A gate: a monitor armed on a model, which reads every token of a continuation and acts from the first at which it
fires."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from sae.stack import StackedSAE
from workbench.models.attached import ReadTokens, reading_tokens
from workbench.models.checks import check_read
from workbench.models.monitor_sites import find_site
from workbench.models.monitors import CHANGES, Monitor
from workbench.models.transformer import check_ours
from workbench.models.weights import weights_sha256


@dataclass(frozen=True)
class Firings:
    """What a gate saw of each continuation."""

    step: Int[Tensor, " batch"]
    """at which it fired: before new token number `step`, from 0, was drawn; −1 where it did not"""
    pooled: Float64[Tensor, " batch"]
    """pooled score there; nan where it did not fire"""
    scores: Float64[Tensor, "batch step"]
    """of every step; nan from the one on at which the continuation had ended"""

    @property
    def has_fired(self) -> Bool[Tensor, " batch"]:
        """Which continuations it fired in."""
        return self.step >= 0


class Gate:
    """A monitor armed on a model, for one batch of continuations after another.

    The state from which a new token is drawn is read at the last token so far, so that step k is the forward before new
    token k; prompts themselves are not scored but for their last token. From the step at which a continuation's pooled
    score passes the threshold, `stop` draws no further token of it (not that of this step either), `ablate` and `steer`
    change the activation at this token and all later ones, and `log` does nothing. Sequences of a batch do not act on
    each other. With a cache, without, and in one forward of a whole text the same.

        gate = Gate(model, Monitor.load("monitor.safetensors"))
        grown = generate(model, tokens, 60, generator=generator, gate=gate)
        gate.firings.step                       # of each row

    Args:
        model: a `HookedLM`, the one that the monitor was trained on.
        sae: the stack that has the monitor's feature, where it reads one.

    Raises:
        ValueError: another model (by the hash of its weights, or the hook's width), a hook that it has not or whose
            value it does not read where it is to be changed, one that its forward does not pass once, an attention map,
            a hook behind the blocks, a head that it has not; no SAE for a feature, or another one.
    """

    def __init__(self, model: Any, monitor: Monitor, sae: StackedSAE | None = None) -> None:
        check_ours("monitor", model)
        self.model, self.monitor = model, monitor
        if monitor.model_sha256 not in (None, found := weights_sha256(model)):
            name = monitor.model_name or "another model"
            raise ValueError(
                f"monitor: trained on {name}, weights {str(monitor.model_sha256)[:12]}…; got a model with "
                f"{found[:12]}…; expected the same weights, in the same dtype"
            )
        self.site = find_site(model, monitor.hook, monitor.head, monitor.feature, sae)
        if self.site.sae_sha256 is not None and monitor.sae_sha256 not in (None, self.site.sae_sha256):
            raise ValueError(f"monitor: got another SAE of {monitor.hook} than it was made with; expected the same one")
        width = self.site.width(model)
        added = len(monitor.value) if monitor.action == "steer" and monitor.value is not None else width
        for n in (added, width if monitor.feature is not None else len(monitor.weights)):
            if n != width:
                raise ValueError(f"monitor: got {n} numbers for {monitor.hook}, {width} wide; expected {width}")
        if monitor.action in CHANGES:
            check_read(model, torch.zeros(1, 2, dtype=torch.long), [monitor.hook])
        self._reading: ReadTokens | None = None
        self._begin(1)

    # --- one batch

    @contextmanager
    def armed(self, n_prompt: int) -> Iterator[Gate]:
        """Inside, every forward of the model is of one batch of prompts, n_prompt tokens long, and of what follows."""
        self._begin(n_prompt)
        with reading_tokens(self.model) as reading, self.model.hooks([(self.monitor.hook, self._pass)]):
            self._reading = reading
            try:
                yield self
            finally:
                self._reading = None

    def _begin(self, n_prompt: int) -> None:
        self._n_prompt = n_prompt
        self._scores: list[Tensor] = []
        self._last: Tensor | None = None
        self._step: Tensor | None = None  # [batch] at which each fired
        self._pooled: Tensor | None = None
        self._has_ended: Tensor | None = None

    def end(self, has_ended: Bool[Tensor, " batch"]) -> None:
        """Say which continuations are over, for reasons of their own: they do not fire any more."""
        self._has_ended = has_ended.clone()

    @property
    def n_steps(self) -> int:
        """Steps that were scored since the gate was armed."""
        return len(self._scores)

    @property
    def stopped(self) -> Bool[Tensor, " batch"]:
        """Which continuations the monitor has ended."""
        if self._step is None:
            raise ValueError(f"monitor: {self.monitor.hook} does not show the last token; expected a hook of a block")
        return (self._step >= 0) if self.monitor.action == "stop" else torch.zeros_like(self._step, dtype=torch.bool)

    @property
    def firings(self) -> Firings:
        """What was seen since the gate was armed."""
        if self._step is None or self._pooled is None:
            raise ValueError("monitor: nothing was read yet; expected a forward while the gate is armed")
        return Firings(self._step.cpu(), self._pooled.cpu(), torch.stack(self._scores, dim=1).cpu())

    def _pass(self, x: Tensor, hook: Any) -> Tensor | None:
        assert self._reading is not None
        first, n = self._reading.n_past, x.shape[1]
        start = self._n_prompt - 1 + len(self._scores)  # the first position that is not scored yet
        if start < first or (self._step is not None and len(self._step) != len(x)):
            raise ValueError(
                f"monitor: got {len(x)} sequences from position {first} on; expected those that the gate was armed "
                f"for, from position {start} at the latest"
            )
        if first + n > start:
            self._take(self.monitor.score(self.site.read(x[:, start - first :])))
        if self.monitor.action not in CHANGES or self._step is None or not bool((self._step >= 0).any()):
            return None
        since = torch.where(self._step >= 0, self._step + self._n_prompt - 1, first + n)
        is_changed = torch.arange(first, first + n, device=x.device) >= since[:, None]
        if not bool(is_changed.any()):
            return None
        assert self.monitor.value is not None
        return self.site.changed(x, is_changed, self.monitor.action, self.monitor.value)

    def _take(self, scores: Float64[Tensor, "batch step"]) -> None:
        """Pool further scores, and note which rows pass the threshold for the first time."""
        if self._step is None or self._pooled is None:
            self._step = torch.full((len(scores),), -1, dtype=torch.long, device=scores.device)
            self._pooled = torch.full_like(scores[:, 0], torch.nan)
        ended = torch.zeros_like(self._step, dtype=torch.bool) if self._has_ended is None else self._has_ended
        ended = ended.to(scores.device)
        pooled = self._pooled
        for own in scores.unbind(1):
            self._last = last = self.monitor.pooled(own[:, None], self._last, len(self._scores))[:, 0]
            fires = (last > self.monitor.threshold) & (self._step < 0) & ~ended
            self._step = self._step.masked_fill(fires, len(self._scores))
            pooled = torch.where(fires, last, pooled)
            self._scores.append(own.masked_fill(ended | self.stopped & ~fires, torch.nan))
        self._pooled = pooled
