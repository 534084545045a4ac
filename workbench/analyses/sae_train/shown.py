"""Which SAEs an analysis of a run's SAEs is of. Loads no torch until they are read."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from workbench.extend import Job, Settings


class StackSettings(Settings):
    """Which of several stacks."""

    stack: str | None = Field(
        default=None, description="which of several stacks, as its folder in sae/ is called, such as z-relu-512"
    )


class ShownSettings(StackSettings):
    """Which of several stacks, and of a sweep."""

    l1: float | None = Field(
        default=None,
        description="which l1 of a sweep; by default the nearest to its median, the higher (sparser) of two",
    )


def shown_stack(job: Job, place: int = 0, *, is_checked: bool = True) -> Any:
    """The SAEs that the job's settings name of its model at that place; unless they were checked before, against the
    model.

    Raises ValueError for SAEs that are not there or not the model's, and for several stacks of which none is named.
    """
    from workbench.analyses.sae_train.head_saes import one_a_slot
    from workbench.analyses.sae_train.loading import check_saes, open_saes
    from workbench.models.checks import device_of

    model, own = job.models[place].model, job.settings
    found = open_saes(job.needs["sae-train"][place], own.stack)
    stack = one_a_slot(found, own.l1 if isinstance(own, ShownSettings) else None).to(device_of(model))
    if not is_checked:
        check_saes(model, stack)
    return stack
