"""Frozen records of settings, and the one line that says what is wrong in one."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.runs.settings import shorten

MAX_FAULTS = 5  # that an error names


class Frozen(BaseModel):
    """A record that cannot change and accepts no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


def is_default(value: Any) -> bool:
    """Whether a field added later says nothing: it is then not written, and older records read and hash the same."""
    return value is None or value is False or value in ("both", "free")


def describe_errors(error: ValidationError, known: Collection[str] | type[BaseModel] = ()) -> str:
    """One line for a ValidationError: `field: what is wrong` of the first faults, joined by semicolons; of the `known`
    keys, or those of the record that was validated, the nearest are named for an unknown one."""
    parts = []
    found = error.errors()
    for item in found:
        # a tuple that lost a wrong member is then said to be too short as well
        if item["type"] == "too_short" and any(o["loc"][: len(item["loc"])] == item["loc"] for o in found if o != item):
            continue
        where = shorten(".".join(str(p) for p in item["loc"]))
        if item["type"] == "extra_forbidden":
            is_record = isinstance(known, type)
            near = nearest_key(known, item["loc"]) if is_record else nearest(str(item["loc"][-1]), set(known))
            parts.append(f"unknown key '{where}'{near}")
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


def nearest_key(record: type[BaseModel], location: Sequence[int | str]) -> str:
    """ "; nearest: …" for the last part of a location within a record that has no such key."""
    records = [record]
    for part in location[:-1]:
        records = within(records, part)
    return nearest(str(location[-1]), set().union(*(own.model_fields for own in records)))


def nearest(name: str, known: set[str]) -> str:
    """ "; nearest: …" of the known names; nothing where none is known."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
    return f"; nearest: {', '.join(near[:12])}{' …' if len(near) > 12 else ''}" if near else ""


def within(records: list[type[BaseModel]], part: str | int) -> list[type[BaseModel]]:
    """The records that may stand at `part` of `records`: a field's, those of that `kind`, the same for an index."""
    fields = [r.model_fields[part] for r in records if isinstance(part, str) and part in r.model_fields]
    if fields:
        return [record for field in fields for record in _records(field.annotation)]
    tagged = [r for r in records if "kind" in r.model_fields and r.model_fields["kind"].default == part]
    return tagged or records


def _records(annotation: Any) -> list[type[BaseModel]]:
    """Every record class within a field's annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for argument in get_args(annotation) for record in _records(argument)]
