"""The interventions: each a file of this folder, and a user's own from plug-ins; known by their kinds.

A file is imported when its kind is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from workbench.extend import Intervention, Settings, interventions_of
from workbench.runs import shorten
from workbench.runs.records import describe_errors

BUILT_IN = tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))

_FOUND: dict[str, type[Intervention]] = {}


def intervention_kinds() -> list[str]:
    """The kinds of all interventions: the package's and those of loaded plug-ins."""
    return list(dict.fromkeys([*BUILT_IN, *_FOUND]))


def find_intervention(kind: str) -> type[Intervention]:
    """The intervention of that kind.

    Raises:
        ValueError: no such kind; the nearest are named.
    """
    if kind in BUILT_IN and kind not in _FOUND:
        module = importlib.import_module(f"{__name__}.{kind.replace('-', '_')}")
        own = interventions_of(module)
        assert [cls.kind for cls in own] == [kind], f"{module.__name__} holds {own}"
        _FOUND[kind] = own[0]
    if kind not in _FOUND:
        kinds = intervention_kinds()
        near = difflib.get_close_matches(kind, kinds, n=3, cutoff=0.4) or kinds
        raise ValueError(f"kind: got {shorten(repr(kind))}; nearest: {', '.join(near)}; --plugin FILE brings others")
    return _FOUND[kind]


def register(intervention: type[Intervention]) -> None:
    """Make a plug-in's intervention known by its kind.

    Raises:
        ValueError: a kind that is taken.
    """
    if intervention.kind in BUILT_IN or _FOUND.setdefault(intervention.kind, intervention) is not intervention:
        raise ValueError(f"plugin: the intervention {intervention.kind!r} is taken; expected another name of the class")


def parse_interventions(tables: Any) -> tuple[Settings, ...]:
    """The settings of a phase's interventions, each of its kind.

    Raises:
        ValueError: no list of tables, one without a kind or of an unknown one, a wrong setting, two of one name.
    """
    if not isinstance(tables, list | tuple):
        raise ValueError(f"got a {type(tables).__name__}; expected tables [[phases.interventions]]")
    found: list[Any] = []
    for i, table in enumerate(tables):
        if isinstance(table, Settings):
            found.append(table)
            continue
        if not isinstance(table, dict) or not isinstance(table.get("kind"), str):
            raise ValueError(f"{i}: has no kind; expected one of {', '.join(intervention_kinds())}")
        try:
            of_kind = find_intervention(table["kind"]).Settings
            found.append(of_kind.model_validate(table))
        except ValidationError as error:
            raise ValueError(f"{i} ({table['kind']}): {describe_errors(error, of_kind)}") from None
        except ValueError as error:
            raise ValueError(f"{i}: {error}") from None
    names = [own.name or own.kind for own in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"got two called {twice!r}; expected a name of its own for each")
    return tuple(found)


def make_interventions(settings: Sequence[Any]) -> list[Intervention]:
    """The interventions of a phase, as they begin it."""
    return [find_intervention(own.kind)(own) for own in settings]
