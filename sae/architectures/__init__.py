"""The architectures of SAEs: each a file of this folder, and a user's own from plug-ins; known by their names.

`sae/architecture.py` says what such a file holds. Nothing else names an architecture.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from sae.architecture import Architecture

if TYPE_CHECKING:
    from sae.config import SAEConfig

BUILT_IN = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))

_FOUND: dict[str, Architecture] = {}


def architecture_names() -> list[str]:
    """The names of all architectures: the package's and those of loaded plug-ins."""
    return list(dict.fromkeys([*BUILT_IN, *_FOUND]))


def find_architecture(name: str, activation: str | None = None) -> Architecture:
    """The architecture of that name, where it has forms in that of this activation, by default the first.

    Raises:
        ValueError: no such architecture or form; those that there are are named.
    """
    if name in BUILT_IN:
        return _form(importlib.import_module(f"{__name__}.{name}").ARCHITECTURE, activation)
    if not isinstance(name, str) or name not in _FOUND:
        raise ValueError(
            f"architecture: got {name!r:.60}; expected one of {', '.join(architecture_names())}, "
            "or of a plug-in that is loaded (--plugin FILE)"
        )
    return _form(_FOUND[name], activation)


def architecture_of(config: SAEConfig) -> Architecture:
    """What a config's SAE computes: its architecture, in the form that its activation asks for.

    Raises:
        ValueError: no such architecture, or it has no such form.
    """
    return find_architecture(config.architecture, config.activation)


def _form(own: Architecture, activation: str | None) -> Architecture:
    if not own.forms or activation is None:
        return own
    if activation not in own.forms:
        raise ValueError(f"activation: got {activation!r:.60} for {own.name}; expected one of {', '.join(own.forms)}")
    return own.forms[activation]


def register(architecture: Architecture) -> None:
    """Make a plug-in's architecture known by its name.

    Raises:
        ValueError: a name that is taken.
    """
    name = architecture.name
    known = find_architecture(name) if name in BUILT_IN else _FOUND.setdefault(name, architecture)
    if known is not architecture:
        raise ValueError(f"plugin: the architecture {name!r} is taken; expected another name")
