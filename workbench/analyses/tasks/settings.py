"""Settings that every analysis of pairs of prompts has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from workbench.extend import Job, Settings

if TYPE_CHECKING:
    from workbench.data.pairs import PairTokens


class PairCounts(Settings):
    """How many pairs, and which."""

    n_pairs: int = Field(
        default=128, description="pairs of prompts, at most, mirrors included; even", ge=32, multiple_of=2
    )
    pairs_seed: int = Field(default=0, description="seed of the pairs: the same for every model and seed", ge=0)


class TaskSettings(PairCounts):
    """Which pairs of prompts."""

    task: str = Field(
        default="induction", description="a built-in task (`workbench tasks` measures them all) or a TOML file"
    )


def open_pairs(job: Job) -> PairTokens:
    """The pairs of prompts that a job's settings ask for, in the first model's vocabulary.

    Raises:
        ValueError: as `make_pairs`.
    """
    from workbench.data.tasks import make_pairs

    own = job.settings
    return make_pairs(job.subject.model, own.task, own.n_pairs, own.pairs_seed, cache=job.cache)
