"""Settings of `attention`."""

from __future__ import annotations

from pydantic import Field

from workbench.extend import Integers, Settings

N_REPEATED = 16  # sequences of repeated random tokens


class AttentionSettings(Settings):
    """Which layers, and on how much made-up text."""

    layers: Integers | None = Field(default=None, description="layers, such as 0,2,5-7; by default all")
    n_repeated: int = Field(
        default=N_REPEATED,
        description="sequences of random tokens, each said twice, for the induction and previous-token scores; 0: none",
        ge=0,
    )
