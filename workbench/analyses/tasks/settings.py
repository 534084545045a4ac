"""Settings that every analysis of pairs of prompts has."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from workbench.extend import Names, Settings


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


class EffectSettings(TaskSettings):
    """Which way activations go from one prompt of a pair to the other, and how sure the effects are."""

    direction: Names = Field(
        default=("denoise",),
        description="denoise (the clean prompt's activation into the corrupt one), noise (the reverse), or both",
    )
    n_bootstrap: int = Field(
        default=2000, description="draws of the intervals over clusters of pairs, and of the test's signs", ge=100
    )

    @field_validator("direction", "position", "site", "into", "senders", "methods", check_fields=False)
    @classmethod
    def _are_named(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names or not all(names) or len(set(names)) < len(names):
            raise ValueError(f"got {','.join(names)!r}; expected names, each once")
        return names

    @field_validator("direction")
    @classmethod
    def _are_directions(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if set(names) - {"denoise", "noise"}:
            raise ValueError(f"got {','.join(names)!r}; expected denoise, noise or denoise,noise")
        return names


POSITION = "at: all (together), each (by itself), numbers, or names that the task gives, such as end"
METRIC: Any = Field(
    default="effect",
    description="the task's own effect; log-probability or probability of the answer; KL from the clean prediction",
)
MEMORY: Any = Field(default=1.0, description="memory to use besides the weights, GiB", ge=0, le=1e6)
