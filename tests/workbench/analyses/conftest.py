"""Shared by the tests of trainings that are cut short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sae.train import Trainer


@pytest.fixture
def dying_at_step(monkeypatch) -> Callable:
    """A context in which SAE training is killed before step `stop`, and is seen to have been."""

    @contextmanager
    def dying(stop: int) -> Iterator[None]:
        step = Trainer.step

        def dies(trainer, x):
            if trainer.n_steps_done == stop:
                raise MemoryError("killed")
            return step(trainer, x)

        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "step", dies)
            with pytest.raises(MemoryError):
                yield

    return dying
