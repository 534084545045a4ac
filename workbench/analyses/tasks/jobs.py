"""What the jobs of analyses of pairs of prompts share: the pairs, whether the task is done, parts kept as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.analyses.tasks.columns import ABSENT, MEASURED

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.data.pairs import PairTokens
    from workbench.extend import Job

Keep = Callable[[str, Callable[[], Mapping[str, Any]]], Mapping[str, Any]]
"""(a part's name, what makes its tensors) -> the tensors, from a file where it has them"""


def open_pairs(job: Job) -> PairTokens:
    """The pairs of prompts that a job's settings ask for, in the first model's vocabulary.

    Raises:
        ValueError: as `make_pairs`.
    """
    from workbench.data.tasks import make_pairs

    own = job.settings
    return make_pairs(job.subject.model, own.task, own.n_pairs, own.pairs_seed, cache=job.cache)


def find_status(job: Job, model: Any, pairs: PairTokens) -> str:
    """measured, or task_absent where the model does not pass the task's gate."""
    import numpy as np

    from workbench.analyses.tasks.gate import gate

    is_done = gate(model, pairs, np.random.default_rng(job.seed), job.settings.n_bootstrap).is_passed
    return MEASURED if is_done else ABSENT


def keeper(directory: Path) -> Keep:
    """What reads a part's tensors from its file, or makes and writes them: a killed run goes on from these."""
    from workbench.runs.resume_state import read_state, write_state

    def keep(name: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        file = directory / f"part_{name}.safetensors"
        if not file.is_file():
            write_state(file, {key: value.contiguous() for key, value in make().items()})
        return read_state(file)[0]

    return keep


def drop_parts(directory: Path) -> None:
    """Remove the parts' files, the last first: those that are left are always the first ones."""
    for file in sorted(directory.glob("part_*.safetensors"), reverse=True):
        file.unlink()
