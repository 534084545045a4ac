"""Training by several processes that torchrun started: each reads its rows of every batch, process 0 writes.

DDP (or, when asked, FSDP2) averages the gradients, so that a step is the one that a single process would take with the
same batch. One loss is not a mean over rows: VSM's. Its Gram matrices, and σ, are those of each process's own rows of a
micro-batch; the loss and σ are averaged over processes, as they are over micro-batches.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from workbench.models import HookedLM
from workbench.models.load import resolve_device
from workbench.runs import open_run
from workbench.training.gradients import Gradients
from workbench.training.interrupts import Interrupted, StopRequest, stop_requests
from workbench.training.interventions import make_interventions
from workbench.training.log_sinks import mirror
from workbench.training.objective import Objective, autocast_dtype, weights_dtype
from workbench.training.progress import Meter, progress_meter
from workbench.training.recipe import Recipe, check_room
from workbench.training.sharded_optimizer import ShardedOptimizer, whole
from workbench.training.state import clear_leftovers, step_name
from workbench.training.telemetry import telemetry_columns
from workbench.training.trainer import NonFiniteLoss, StepRecord, Trainer
from workbench.training.training_data import Source, open_feed

PATIENCE = timedelta(hours=1)  # how long the others wait while process 0 evaluates and writes
FAILED, INTERRUPTED = 1, 130  # exit codes, as the command line's


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, seen from one of them."""

    rank: int
    n: int
    device: str
    """this process's own"""
    control: dist.ProcessGroup
    """for words between the processes' CPUs, which no GPU has to be waited for"""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def count(self, is_so: bool) -> int:
        """How many processes say yes; all must ask."""
        votes = torch.tensor(int(is_so))
        dist.all_reduce(votes, group=self.control)
        return int(votes)

    def mean(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Mean over the processes."""
        dist.all_reduce(values)
        return values / self.n

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside in any process ends all of them, and the first that failed says why; the others are silent.

        For work in which no process waits for another.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failed = torch.zeros(self.n, dtype=torch.int64)
        failed[self.rank] = failure is not None
        dist.all_reduce(failed, group=self.control)
        if failure is not None and not failed[: self.rank].any():
            raise failure
        if failed.any():
            raise SystemExit(FAILED)


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """This process among those that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT).

    "auto" and "cuda" mean the GPU of the process's own number on its machine; NCCL joins GPUs, gloo CPUs.

    Raises:
        ValueError: for a device that cannot be had.
    """
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    device = resolve_device(device)
    is_cuda = device.startswith("cuda")
    if is_cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_cuda else "gloo", timeout=PATIENCE)
    try:
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(control, dist.ProcessGroup)
        yield Ranks(dist.get_rank(), dist.get_world_size(), device, control)
    finally:
        dist.destroy_process_group()


def train_together(
    recipe: Recipe,
    out: str | Path,
    config: dict[str, Any],
    *,
    device: str,
    resume: bool,
    progress: bool,
    stop_after: int | None,
    cache: str | Path | None,
    fsdp: bool,
    monitor: str | None = None,
) -> Path:
    """What `train` returns and raises, in every process; `config` holds seed and dtype. Process 0 alone writes `out`.

    An error or interrupt is raised in process 0 (or where alone it happened); the others end with its exit code.
    """
    seed, dtype = config["seed"], config["dtype"]
    with joined(device) as ranks, ExitStack() as stack:
        with ranks.together():
            autocast = autocast_dtype(ranks.device, dtype)
            check_batches(recipe, ranks.n)
            if fsdp:
                check_sharding(recipe)
            check_room(recipe, ranks.device, ranks.n)
            telemetry = telemetry_columns(recipe)
            feed = open_feed(recipe, cache)
        with ranks.together():
            run = None
            if ranks.is_first:
                opened = open_run(out, config, resume=resume, device=ranks.device, seed=seed)
                run = stack.enter_context(opened)
                clear_leftovers(run.path)
        if ranks.count(run is not None and run.is_complete):
            return Path(out)
        directory = run.path if run is not None else Path(f"{out}.partial")
        with ranks.together():
            trainer = ParallelTrainer(
                ranks, fsdp, recipe, telemetry, feed, directory, seed, ranks.device, weights_dtype(dtype), autocast
            )
        with ranks.together():
            if ranks.is_first:
                trainer.remove_old()
        shown = progress and ranks.is_first
        try:
            with stop_requests(is_patient=True) as request, progress_meter(recipe, enabled=shown) as meter:
                with ranks.together():
                    kind = monitor if ranks.is_first else None
                    send_on = stack.enter_context(mirror(kind, directory, config, trainer.position.step))
                trainer.run(request, meter, stop_after, send_on)
        except (Interrupted, NonFiniteLoss) as error:  # of all processes alike
            if ranks.is_first:
                raise
            raise SystemExit(INTERRUPTED if isinstance(error, Interrupted) else FAILED) from None
        with ranks.together():
            stack.close()
    return Path(out)


def check_batches(recipe: Recipe, n: int) -> None:
    """Raise ValueError naming a phase whose micro-batches n processes cannot share equally."""
    for i, phase in enumerate(recipe.phases):
        if phase.batch_size % n:
            raise ValueError(
                f"phases.{i}.batch_size: got {phase.batch_size} for {n} processes; expected a multiple of {n}"
            )


def check_sharding(recipe: Recipe) -> None:
    """Raise ValueError naming an intervention that reads weights outside their block, where none has them whole."""
    for i, phase in enumerate(recipe.phases):
        for own in make_interventions(phase.interventions):
            if own.reads_weights:
                where = f"phases.{i}.interventions.{own.name}"
                raise ValueError(f"fsdp: {where} reads whole weights; expected another intervention, or no --fsdp")


class ParallelTrainer(Trainer):
    """A `Trainer` that is one of several; every process goes through every step, process 0 measures and writes."""

    optimizer: ShardedOptimizer

    def __init__(self, ranks: Ranks, fsdp: bool, *arguments: Any) -> None:
        self.ranks, self.fsdp = ranks, fsdp
        self.rank = ranks.rank
        self.processes = f"{ranks.n} processes, {'FSDP' if fsdp else 'DDP'}"
        super().__init__(*arguments)

    def _prepare(self, model: HookedLM) -> Gradients:
        if self.fsdp:
            shard(model)
            return Gradients(model, self._prescription, self.phase.n_accumulation, self.autocast)
        device_ids = [self.device] if self.device.startswith("cuda") else None
        is_recurrent = model.cfg.extensions.recurrence is not None  # some of its weights are read in some passes only
        call = DistributedDataParallel(model, device_ids=device_ids, find_unused_parameters=is_recurrent)
        return Gradients(model, self._prescription, self.phase.n_accumulation, self.autocast, call)

    def _build_optimizer(self, model: HookedLM) -> ShardedOptimizer:
        return ShardedOptimizer(model, self.phase.optimizer)

    def _open_source(self, index: int) -> Source:
        return Source(self.recipe, index, self.feed, self.seed, self.device, self.ranks.rank, self.ranks.n)

    def _prepare_micro_batch(self, *, is_last: bool) -> None:
        # gradients of the earlier ones stay where they are and go out with the last one's
        if isinstance(self._gradients.call, DistributedDataParallel):
            self._gradients.call.require_backward_grad_sync = is_last
        elif isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(is_last)

    def _clip(self, limit: float) -> Float[Tensor, ""]:
        return whole(super()._clip(limit))

    def _record(self, parts: Sequence[Objective], grad_norm: Float[Tensor, ""]) -> StepRecord:
        own = super()._record(parts, grad_norm)
        values = [torch.as_tensor(v, device=self.device).double() for v in (own.loss, *own.telemetry.values())]
        loss, *telemetry = self.ranks.mean(torch.stack(values)).unbind()
        return StepRecord(loss, grad_norm, dict(zip(own.telemetry, telemetry, strict=True)))

    def _after_step(self, request: StopRequest, meter: Meter) -> None:
        if self.ranks.count(bool(request)) and not request:
            request.reason = "a signal to another process"
        super()._after_step(request, meter)

    def _whole_model(self) -> HookedLM:
        """The model; with FSDP a copy that holds all weights, on every process for as long as it is needed."""
        if not self.fsdp:
            return self.model
        copy = HookedLM(self.model.cfg, seed=None, tokenizer=self.model.own_tokenizer)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                copy.get_parameter(name).copy_(whole(parameter))
        return copy

    # --- what process 0 does for all

    @contextlib.contextmanager
    def _open_log(self, columns: Sequence[str]) -> Iterator[None]:
        with ExitStack() as stack:
            with self.ranks.together():
                if self.ranks.is_first:
                    stack.enter_context(super()._open_log(columns))
            yield

    def _log_row(self, row: dict[str, Any], model: HookedLM, *, with_held_out: bool, with_monitor: bool) -> None:
        with self.ranks.together():
            if self.ranks.is_first:
                super()._log_row(row, model, with_held_out=with_held_out, with_monitor=with_monitor)

    def _write_checkpoint(self, model: HookedLM, optimizer_state: dict[str, Tensor]) -> Path:
        path = self.directory / step_name(self.position.step)
        with self.ranks.together():
            if self.ranks.is_first:
                path = super()._write_checkpoint(model, optimizer_state)
        return path


def shard(model: HookedLM) -> None:
    """Leave `model` this process's part of its weights, gathered block by block while they are used.

    Raises:
        ValueError: for a recurrent model, whose mechanisms and auxiliary losses read weights outside their block.
    """
    if model.cfg.extensions.recurrence is not None:
        raise ValueError("fsdp: got a recurrent model; expected one without recurrence, or DDP (no --fsdp)")
    for parameter in model.parameters():
        # FSDP takes weights in C order alone; as one process lays them out, a projection of all heads needs no copy
        parameter.data = parameter.data.contiguous()
    # it means a routed state's sums, which pass through a block as they are; nothing changes them in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    model.shares_routing = False  # a block is gathered without the queries of the next ones
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
