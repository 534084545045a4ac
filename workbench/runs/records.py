"""Frozen records of settings, and the one line that says what is wrong in one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.runs.settings import shorten

MAX_FAULTS = 5  # that an error names


class Frozen(BaseModel):
    """A record that cannot change and accepts no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


def is_default(value: Any) -> bool:
    """Whether a field added later says nothing: it is then not written, and older records read and hash the same."""
    return value is None or value is False or value in ("both", "free")


def describe_errors(error: ValidationError, known: Collection[str] = ()) -> str:
    """One line for a ValidationError: `field: what is wrong` of the first faults, joined by semicolons; of the `known`
    keys the nearest are named for an unknown one."""
    parts = []
    found = error.errors()
    for item in found:
        # a tuple that lost a wrong member is then said to be too short as well
        if item["type"] == "too_short" and any(o["loc"][: len(item["loc"])] == item["loc"] for o in found if o != item):
            continue
        where = shorten(".".join(str(p) for p in item["loc"]))
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=3, cutoff=0.4) or sorted(known)[:12]
            parts.append(f"unknown key '{where}'" + (f"; nearest: {', '.join(near)}" if near else ""))
            continue
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "union_tag_not_found":
            message = f"has no {item.get('ctx', {})['discriminator']}; expected one, which says what its fields are"
        got: Any = item.get("input")
        shown = f" (got {shorten(repr(got))})" if isinstance(got, str | int | float | bool) else ""
        parts.append(f"{where}: {message}{shown}" if where else message)
    return join_faults(parts)


def join_faults(parts: Sequence[str]) -> str:
    """The first MAX_FAULTS, joined by semicolons, and how many more there are."""
    more = f" and {len(parts) - MAX_FAULTS} more" if len(parts) > MAX_FAULTS else ""
    return "; ".join(parts[:MAX_FAULTS]) + more
