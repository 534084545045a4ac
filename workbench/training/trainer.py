"""One run in one directory: the state of a training, its steps, its log and its checkpoints."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.models import HookedLM
from workbench.models.cross_entropy import perplexity
from workbench.training.boundaries import freeze
from workbench.training.gradients import Gradients, RecordedGradients
from workbench.training.interrupts import Interrupted, StopRequest
from workbench.training.log import TrainLog, write_left_out
from workbench.training.log_sinks import Write
from workbench.training.monitor import measure, monitor_columns
from workbench.training.objective import Objective, block_sums, reproducible
from workbench.training.optimizers import Optimizer
from workbench.training.prescription import Moment, Prescription, seed_of
from workbench.training.progress import Meter
from workbench.training.recipe import Phase, Recipe, phase_model
from workbench.training.schedules import multiplier
from workbench.training.state import (
    Checkpoint,
    Position,
    last_good,
    load_checkpoint,
    random_state,
    remove_old,
    restore_random_state,
    save_checkpoint,
    step_name,
)
from workbench.training.training_data import SEEDS_APART, Feed, Source, judging_batches

LAST_COLUMNS = ("held_out_perplexity",)


class NonFiniteLoss(ValueError):
    """The loss or its gradient became infinite or nan; training stopped, the last good checkpoint is kept."""


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step leaves for the log; tensors on a device until they are read."""

    loss: Float[Tensor, ""] | float
    grad_norm: Float[Tensor, ""] | float
    telemetry: Mapping[str, Float[Tensor, ""] | float] = field(default_factory=dict)
    """of the interventions, `<name>.<key>`"""


class Trainer:
    """One run in one directory: holds everything that a checkpoint holds, and moves it on step by step."""

    processes = "one process"
    """who trains: recorded in a checkpoint, since another number of processes adds up gradients in another order"""

    rank = 0
    """which of the processes this is"""

    def __init__(
        self,
        recipe: Recipe,
        telemetry: Sequence[str],
        feed: Feed,
        directory: Path,
        seed: int,
        device: str,
        weights_dtype: torch.dtype = torch.float32,
        autocast: torch.dtype | None = None,
        graphs: bool = True,
    ) -> None:
        """telemetry: columns of the log that the interventions have (`telemetry_columns`)."""
        self.recipe, self.telemetry, self.feed, self.directory, self.seed = recipe, telemetry, feed, directory, seed
        self.device, self.autocast, self.graphs = device, autocast, graphs
        self._weights_dtype = weights_dtype
        self._window: list[StepRecord] = []  # steps since the last row of the log
        self._scalars: Mapping[str, Mapping[str, float]] = {}  # of the step
        self._log_at: dict[str, Any] | None = None  # length and sha256 of the log at the checkpoint
        self.position = Position()
        checkpoint = load_checkpoint(directory, device)
        if checkpoint is None:
            self._enter(0, None)
        else:
            self._resume(checkpoint)

    def remove_old(self) -> None:
        """Remove the checkpoints beyond those to keep, if an earlier process died before it did."""
        newest = self.directory / step_name(self.position.step)
        if newest.is_dir():
            remove_old(self.directory, newest, self.recipe.checkpoint.keep, self._is_planned)

    def _is_planned(self, step: int) -> bool:
        """Whether a checkpoint is made at this step of the run, interrupted or not."""
        ends = itertools.accumulate(phase.n_steps for phase in self.recipe.phases)
        return step % self.recipe.checkpoint.every == 0 or step in ends

    @property
    def phase(self) -> Phase:
        """The phase that is being trained."""
        return self.recipe.phases[self.position.phase]

    def run(
        self, request: StopRequest, meter: Meter, stop_after: int | None = None, send_on: Write | None = None
    ) -> None:
        """Train all phases to their end, or raise as `train` says; `send_on` gets every row of the log."""
        self._send_on = send_on
        last_step = None if stop_after is None else self.position.step + stop_after
        monitored = monitor_columns(self.recipe.model, self.recipe.monitor)
        columns = (*self.telemetry, *monitored, *LAST_COLUMNS)
        with self._open_log(columns), reproducible(self.device):
            if self.position.step == 0:
                self._write_row(lr=math.nan, with_held_out=True, with_monitor=bool(self.recipe.monitor.every))
            self._reset_clock()
            while True:
                while self.position.phase_step < self.phase.n_steps:
                    self._step()
                    meter.advance(self.position, self._rate())
                    if self.position.step == last_step:
                        request.reason = f"stop_after = {stop_after}"
                    self._after_step(request, meter)
                if self.position.phase + 1 == len(self.recipe.phases):
                    return
                self._enter(self.position.phase + 1, self._whole_model())

    # --- one step

    def _step(self) -> None:
        phase, step = self.phase, self.position.phase_step
        self._lr = self.optimizer.start(step, multiplier(phase.schedule, step, phase.n_steps))
        self._scalars = self._prescription.start(step)
        parts = []
        for i in range(phase.n_accumulation):
            self._prepare_micro_batch(is_last=i + 1 == phase.n_accumulation)
            if self._generator is not None:
                self._generator.manual_seed(seed_of(self.seed, self.position.phase, step, i, self.rank))
            moment = Moment(step, self._scalars, self._generator)
            parts.append(self._gradients(self._source.next_batch(), moment))
        grad_norm = self._clip(phase.clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        record = self._record(parts, grad_norm)
        self._prescription.observe({k: v for k, v in record.telemetry.items() if isinstance(v, Tensor)})
        self._window.append(record)
        n_sequences = phase.batch_size * phase.n_accumulation
        self.position = replace(
            self.position,
            phase_step=step + 1,
            step=self.position.step + 1,
            n_tokens=self.position.n_tokens + n_sequences * self.recipe.model.n_ctx,
        )

    def _after_step(self, request: StopRequest, meter: Meter) -> None:
        phase, step, overall = self.phase, self.position.phase_step, self.position.step
        every = self.recipe.monitor.every
        is_end = step == phase.n_steps
        evaluates = is_end or step % phase.eval_every == 0
        monitors = bool(every) and (is_end or step % every == 0)
        logs = evaluates or monitors or step % phase.log_every == 0
        saves = self._is_planned(overall) or bool(request)
        if logs or saves:
            self._read_window()
        if logs:
            row = self._write_row(self._lr, with_held_out=evaluates, with_monitor=monitors)
            meter.show(row.get("loss", math.nan), row.get("held_out_perplexity"))
        path = self._save() if saves else None
        if logs or saves:
            self._reset_clock()
        if request and not (is_end and self.position.phase + 1 == len(self.recipe.phases)):
            raise Interrupted(
                f"stopped after step {overall} ({request.reason}); state saved in {path}; go on with --resume"
            )

    def _read_window(self) -> None:
        """Bring the window's numbers to the host, and stop at the first that is not finite."""
        fresh = [r for r in self._window if isinstance(r.loss, Tensor)]
        if fresh:
            rows = [[r.loss, r.grad_norm, *r.telemetry.values()] for r in fresh]
            numbers = [torch.as_tensor(v, dtype=torch.float64, device=self.device) for row in rows for v in row]
            values = iter(torch.stack(numbers).tolist())
            read = [StepRecord(next(values), next(values), {k: next(values) for k in r.telemetry}) for r in fresh]
            self._window = self._window[: len(self._window) - len(fresh)] + read
        first = self.position.step - len(self._window) + 1
        for step, record in enumerate(self._window, start=first):
            terms = {
                f"term of the intervention {name}": record.telemetry.get(f"{name}.loss", 0.0)
                for name in self._prescription.interventions
            }
            for what, value in {"loss": record.loss, **terms, "gradient norm": record.grad_norm}.items():
                if not math.isfinite(value):
                    raise NonFiniteLoss(f"train: the {what} is {value} at step {step}; {last_good(self.directory)}")

    # --- what several processes do in another way

    def _prepare(self, model: HookedLM) -> Gradients:
        """What makes the gradients of `model`, which it may change."""
        kind = RecordedGradients if self.graphs and self.device.startswith("cuda") else Gradients
        return kind(model, self._prescription, self.phase.n_accumulation, self.autocast)

    def _build_optimizer(self, model: HookedLM) -> Optimizer:
        return Optimizer(model, self.phase.optimizer)

    def _open_source(self, index: int) -> Source:
        return Source(self.recipe, index, self.feed, self.seed, self.device)

    def _prepare_micro_batch(self, *, is_last: bool) -> None:
        pass

    def _clip(self, limit: float) -> Float[Tensor, ""]:
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True)

    def _record(self, parts: Sequence[Objective], grad_norm: Float[Tensor, ""]) -> StepRecord:
        return StepRecord(
            loss=torch.stack([p.loss for p in parts]).mean(),
            grad_norm=grad_norm,
            telemetry={name: torch.stack([p.telemetry[name] for p in parts]).mean() for name in parts[0].telemetry},
        )

    def _whole_model(self) -> HookedLM:
        """A model that holds all weights: what is measured, saved and taken over by the next phase."""
        return self.model

    # --- what is written

    def _write_row(self, lr: float, *, with_held_out: bool, with_monitor: bool) -> dict[str, Any]:
        position, window = self.position, self._window
        row: dict[str, Any] = {
            "model": self.recipe.name,
            "seed": self.seed,
            "phase": self.phase.name,
            "step": position.step,
            "n_tokens": position.n_tokens,
            "lr": lr,
            "tokens_per_s": self._rate() if window else math.nan,
        }
        if window:
            row |= {f"{name}.{key}": value for name, own in self._scalars.items() for key, value in own.items()}
            row["loss"] = math.fsum(r.loss for r in window) / len(window)
            row["grad_norm"] = math.fsum(r.grad_norm for r in window) / len(window)
            for name in dict.fromkeys(name for r in window for name in r.telemetry):
                row[name] = math.fsum(r.telemetry.get(name, math.nan) for r in window) / len(window)
        model = self._whole_model() if with_held_out or with_monitor else self.model
        self._log_row(row, model, with_held_out=with_held_out, with_monitor=with_monitor)
        self._window = []
        return row

    def _open_log(self, columns: Sequence[str]) -> AbstractContextManager[Any]:
        self._log = TrainLog(self.directory, columns, self._log_at)
        return self._log

    def _log_row(self, row: dict[str, Any], model: HookedLM, *, with_held_out: bool, with_monitor: bool) -> None:
        """Measure `model` and append the row."""
        if with_held_out:
            sums = block_sums(model, self._held_out, self.phase.batch_size)
            row["held_out_loss"] = math.fsum(sums) / len(self._held_out.tokens)
            row["held_out_perplexity"] = perplexity(row["held_out_loss"])
            if self.position.step == sum(own.n_steps for own in self.recipe.phases) and self._held_out.mask is None:
                write_left_out(self.directory, row, sums, len(self._held_out.tokens))
        if with_monitor:
            row |= measure(model, self._probe.tokens, self.recipe.monitor)
        self._log.write(row)
        if self._send_on is not None:
            self._send_on(row)

    def _save(self) -> Path:
        return self._write_checkpoint(self._whole_model(), self.optimizer.state_dict())

    def _write_checkpoint(self, model: HookedLM, optimizer_state: dict[str, Tensor]) -> Path:
        tensors = {f"optimizer/{name}": t for name, t in optimizer_state.items()} | random_state()
        info = {
            "recipe": self.recipe.name,
            "seed": self.seed,
            "processes": self.processes,
            "data": self._source.state_dict(),
            "text": self.feed.checksums,
            "interventions": self._prescription.state_dict(),
            "window": [[r.loss, r.grad_norm, r.telemetry] for r in self._window],
            "log": self._log.sync(),
        }
        keep = self.recipe.checkpoint.keep
        return save_checkpoint(self.directory, self.position, model, tensors, info, keep, self._is_planned)

    # --- phases and resuming

    def _enter(self, index: int, previous: HookedLM | None) -> None:
        """Set up phase `index`: its model (taking over the previous phase's weights), a fresh optimizer, its data."""
        phases = self.recipe.phases
        model = HookedLM(phase_model(self.recipe, index), self.seed + index * SEEDS_APART)
        if previous is not None:
            take_over(
                model,
                previous,
                redraw_tables=phases[index].kind != phases[index - 1].kind,
                reset_routing=phases[index].attn_res == "reset",
            )
            if phases[index].attn_res == "freeze":
                freeze(model)
        self.position = replace(self.position, phase=index, phase_step=0)
        self._set_up(model.to(self.device, self._weights_dtype))

    def _set_up(self, model: HookedLM) -> None:
        phase = self.phase
        self.model = model.train()
        if phase.attn_res == "freeze":
            model.boundaries.requires_grad_(False)
        model.tokenizer = self.feed.tokenizer if phase.kind == "language" else None
        self._prescription = Prescription(phase.interventions, model.cfg, phase.n_steps)
        self._prescription.check_hooks(model)
        self._generator = torch.Generator(self.device) if self._prescription.may_draw else None
        self._gradients = self._prepare(model)
        self.optimizer = self._build_optimizer(model)
        index = self.position.phase
        self._source = self._open_source(index)
        self._held_out, self._probe = judging_batches(self.recipe, index, self.feed, self.device)

    def _resume(self, checkpoint: Checkpoint) -> None:
        file = checkpoint.path / "train_state.json"
        position, info = checkpoint.position, checkpoint.info
        if info.get("recipe") != self.recipe.name or info.get("seed") != self.seed:
            raise ValueError(
                f"checkpoint: {file} is of recipe {info.get('recipe')!r}, seed {info.get('seed')}; "
                f"expected {self.recipe.name!r}, seed {self.seed}"
            )
        if (saved_by := info.get("processes")) != self.processes:
            raise ValueError(
                f"checkpoint: {file} was saved by {saved_by}; got {self.processes}; expected the same again"
            )
        if changed := [part for part, sha256 in self.feed.checksums.items() if info["text"].get(part) != sha256]:
            raise ValueError(
                f"data: the {' and the '.join(changed)} text of {self.recipe.data.source!r}, or its tokenizer, has "
                f"changed since {file} was saved; expected it as it was"
            )
        if position.phase >= len(self.recipe.phases):
            raise ValueError(
                f"checkpoint: {file} is in phase {position.phase}; expected 0 to {len(self.recipe.phases) - 1}"
            )
        wanted = phase_model(self.recipe, position.phase)
        ignored = {"device", "dtype", "tokenizer_name"}
        if checkpoint.model.cfg.model_dump(exclude=ignored) != wanted.model_dump(exclude=ignored):
            raise ValueError(f"checkpoint: {checkpoint.path} holds another architecture; expected the recipe's")
        self.position = position
        self._set_up(checkpoint.model)
        tensors = checkpoint.tensors
        prefix = "optimizer/"
        self.optimizer.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        self._source.load_state_dict(info["data"])
        self._prescription.load_state_dict(info["interventions"])
        self._log_at = info["log"]
        self._window = [StepRecord(*row) for row in info["window"]]
        restore_random_state(tensors)

    # --- time

    def _reset_clock(self) -> None:
        self._clock, self._clock_tokens = time.perf_counter(), self.position.n_tokens

    def _rate(self) -> float:
        """Tokens a second since the clock was reset; evaluation, monitoring and saving are not counted."""
        return (self.position.n_tokens - self._clock_tokens) / max(1e-9, time.perf_counter() - self._clock)


@torch.no_grad()
def take_over(model: HookedLM, previous: HookedLM, *, redraw_tables: bool, reset_routing: bool) -> None:
    """Copy every weight of `previous` that `model` also has into it.

    With `redraw_tables` token embedding and unembedding stay as drawn, with `reset_routing` the routing weights; these
    do so too where `previous` has none. Learned boundaries are no routing: a control that forgets the routing keeps the
    blocks.
    """
    old = dict(previous.named_parameters())
    for name, parameter in model.named_parameters():
        is_table = name.startswith(("embed.", "unembed."))
        is_routing = "route_" in name
        if name not in old or (is_table and redraw_tables) or (is_routing and reset_routing):
            continue
        parameter.copy_(old[name])
