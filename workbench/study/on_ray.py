"""The executor that runs a study's jobs by Ray: several at once on one machine, or on those of a cluster.

Every machine sees the study's directory and the texts under the same paths and has the package installed; nothing but
the description of a job travels. A worker that dies is replaced, and its job goes on from what it left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.study.executors import Ended, Show, Task, describe_error
from workbench.study.jobs import Context
from workbench.study.worker import GRACE_S, N_RETRIES, do_in_worker
from workbench.training.interrupts import Interrupted, stop_requests

POLL_S = 0.2  # seconds that a signal waits at most until it is acted on


class OnRay:
    """Tasks as Ray's, each with n_threads CPUs (and a GPU, where the device is one).

    address: of a running cluster, or none: one is started on this machine, and ended with the study.
    """

    def __init__(self, context: Context, n_jobs: int, address: str | None = None, show: Show | None = None) -> None:
        self._ray, self._context, self._n_jobs = _import_ray(), context, n_jobs
        self._tasks: dict[Any, Task] = {}
        self._n_ended = 0
        self._stack = contextlib.ExitStack()
        self._connect(address)
        # noted, not raised: Ray's own answer to SIGTERM is to abort the process, and an exception that a handler raises
        # while Ray's core waits comes out as a SystemError, or breaks the core's own accounts
        self._request = self._stack.enter_context(stop_requests())
        if self.n_slots == 0:
            self._stack.close()
            gpu = " and a GPU" if self._needs_gpu else ""
            raise ValueError(
                f"ray: no machine has {context.n_threads} CPUs{gpu}; expected fewer --threads, or another one"
            )
        resources = {"num_cpus": context.n_threads, "num_gpus": int(self._needs_gpu)}
        self._remote = self._ray.remote(max_retries=N_RETRIES, **resources)(do_in_worker)
        self._tell: Callable[[float], None] = self._stack.enter_context(show("jobs")) if show else lambda share: None

    def _connect(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self._ray.is_initialized():
            return  # whoever began it ends it
        local: dict[str, Any] = {} if address else {"include_dashboard": False}
        try:
            self._ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise ValueError(f"ray: {address or 'this machine'}: {line}; expected the address of a cluster") from error
        self._stack.callback(self._ray.shutdown)

    @property
    def _needs_gpu(self) -> bool:
        return self._context.device.startswith("cuda")

    @property
    def n_slots(self) -> int:
        """Tasks that the cluster's machines hold at once, as it is now."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        slots = [int(node.get("CPU", 0) // self._context.n_threads) for node in nodes]
        if self._needs_gpu:
            slots = [min(n, int(node.get("GPU", 0))) for n, node in zip(slots, nodes, strict=True)]
        return sum(slots)

    def begin(self, task: Task) -> None:
        """Give the task to Ray."""
        self._tasks[self._remote.remote(task, self._context, str(Path.cwd()))] = task

    def wait(self) -> Ended:
        """The next task that ends. Raises Interrupted where this process or a job was asked to stop."""
        ended: list[Any] = []
        while not ended:
            ended, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=POLL_S)
            if self._request:
                raise Interrupted(f"stopped by {self._request.reason}; go on with --resume")
        (reference,) = ended
        task = self._tasks.pop(reference)
        self._n_ended += 1
        self._tell(self._n_ended / self._n_jobs)
        try:
            error, is_interrupt = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Ended(task, f"its worker failed, {describe_error(error)}")
        if is_interrupt:
            raise Interrupted(error)
        return Ended(task, error)

    def close(self) -> None:
        """Ask running tasks to save their state, and leave Ray."""
        for reference in self._tasks:
            self._ray.cancel(reference)
        if self._tasks:
            self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=GRACE_S)
        self._stack.close()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError("executor: ray is not installed; expected pip install 'prescriptive-workbench[ray]'") from None
    return ray
