"""Settings of `sae-scores`. Loads no torch."""

from __future__ import annotations

from pydantic import Field, field_validator

from workbench.analyses.sae_train.shown import ShownSettings
from workbench.extend import Integers, Names

PARTS = ("core", "probing", "absorption")
MIN_PASSAGES = 5  # of a source: three documents to train on, two to test on


class SaeScoresSettings(ShownSettings):
    """Which SAEs, and which scores on how much text."""

    layers: Integers | None = Field(default=None, description="layers, such as 0,2,5-7; by default all of the SAEs")
    heads: Integers | None = Field(default=None, description="heads, such as 0,2,5-7; by default all of the SAEs")
    parts: Names = Field(default=PARTS, description="some of core, probing, absorption", min_length=1)
    n_splice_tokens: int = Field(default=8192, description="of the held-out tokens, those of KL and loss", ge=2)
    n_passages: int = Field(
        default=150, description="passages of each source of the embedded text, for probing", ge=MIN_PASSAGES
    )
    n_words: int = Field(default=1500, description="words of the tokenizer's vocabulary, for absorption", ge=1)
    n_bootstrap: int = Field(default=2000, description="draws of the intervals", ge=100)

    @field_validator("parts")
    @classmethod
    def _are_parts(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if set(parts) - set(PARTS) or len(set(parts)) < len(parts):
            raise ValueError(f"got {', '.join(parts)}; expected some of {', '.join(PARTS)}, each once")
        return parts
