"""Settings of `attention-patterns`."""

from __future__ import annotations

from pydantic import Field, model_validator

from workbench.extend import Integers, Settings

WINDOW = 32  # positions of a mean map
N_SENTENCES = 3  # examples of the text
MIN_TOKENS, MAX_TOKENS = 8, 24  # of an example sentence


class AttentionPatternsSettings(Settings):
    """Which layers, how long mean maps are, and which sentences are shown token by token."""

    layers: Integers | None = Field(
        default=None,
        description="layers, such as 0,2,5-7; by default all, and of mean maps the first, the middle and the last",
    )
    window: int = Field(default=WINDOW, description="tokens of each window that mean maps are of, at most", ge=2)
    sentence: tuple[str, ...] | None = Field(
        default=None,
        description="an example, repeatable; by default sentences of the held-out text, and one of them said twice",
    )
    n_sentences: int = Field(
        default=N_SENTENCES, description="sentences that are taken from the held-out text; 0: no examples", ge=0
    )
    max_tokens: int = Field(default=MAX_TOKENS, description="tokens of an example sentence, at most", ge=2)

    @model_validator(mode="after")
    def _says_something(self) -> AttentionPatternsSettings:
        if any(not own.strip() for own in self.sentence or ()):
            raise ValueError("sentence: got one without a word; expected text")
        return self
