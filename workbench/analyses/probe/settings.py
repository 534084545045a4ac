"""Settings of `probe`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from workbench.extend import Names, Settings

Distance = Literal["euclidean", "cosine"]
TEMPLATES = ("The {category} is {X}", "In the {category} of {X},", "{X}")
N_SEEDS, N_PERMUTATIONS = 5, 5000  # of the tests of sets of years that are done over
MAX_N_CTX = 128  # tokens per window of text: neighbours from many short windows are of more kinds than from a few long


class ProbeSettings(Settings):
    """Which concept sets, in which prompts, and how they are tested."""

    max_n_ctx: ClassVar[int | None] = MAX_N_CTX

    concepts: Path | None = Field(
        default=None, description="TOML file of your own concept sets, in addition to the built-in ones"
    )
    sets: Names | None = Field(default=None, description="names of sets, such as months,us_states; by default all")
    template: tuple[str, ...] = Field(
        default=TEMPLATES,
        description="prompt with one {X}, and {category} if wanted; repeatable, replaces the default three",
    )
    distance: Distance = Field(default="euclidean", description="between mean states; euclidean is uncentred")
    n_permutations: int = Field(
        default=9999, description="permutations of each test of more than 8 items; fewer are enumerated", ge=1
    )
    n_points: int = Field(
        default=4096,
        description="tokens of text whose intrinsic dimension is taken, at most, of twice as many read; 0: none",
        ge=0,
    )
    n_stability_seeds: int = Field(
        default=N_SEEDS,
        description="seeds of permutations with which tests of sets of years are repeated at the middle layer; 0: none",
        ge=0,
    )
    n_stability_permutations: int = Field(
        default=N_PERMUTATIONS, description="permutations of each of these seeds", ge=1
    )
    n_ctx: int | None = Field(
        default=None, description=f"tokens per window; by default {MAX_N_CTX}, or the model's n_ctx if less", ge=2
    )

    @property
    def n_tokens(self) -> int:
        """Tokens of text that are read."""
        return 2 * self.n_points

    @field_validator("n_points")
    @classmethod
    def _has_neighbours(cls, n_points: int) -> int:
        if 0 < n_points < 3:
            raise ValueError(f"got {n_points}; expected at least 3, or 0 for no intrinsic dimension")
        return n_points

    @model_validator(mode="after")
    def _are_read(self) -> ProbeSettings:
        for name in ("data", "n_ctx"):
            if self.n_points == 0 and name in self.model_fields_set:
                raise ValueError(f"{name}: got n_points = 0, with which no text is read; expected n_points above 0")
        return self
