"""Families of Hugging Face models, one file each, named as the `model_type` of its config.json, and those of plug-ins.

`workbench/models/family.py` says what such a file holds. Nothing else names a family.
"""

from __future__ import annotations

import importlib
import pkgutil

from workbench.models.family import Family
from workbench.runs import shorten

FIRST = ("llama", "qwen2", "qwen3", "gpt2")  # where several families express a model, the plainest writes it
BUILT_IN = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))

_FOUND: dict[str, Family] = {}


def family_names() -> list[str]:
    """Every `model_type` that has a file, in the order in which an export tries them; those of plug-ins last."""
    return list(dict.fromkeys([*FIRST, *BUILT_IN, *_FOUND]))


def find_family(model_type: object, source: str) -> Family:
    """The family of this name.

    Raises:
        ValueError: there is none; `source` and those that there are are named.
    """
    if model_type in BUILT_IN:
        return importlib.import_module(f"{__name__}.{model_type}").FAMILY
    if not isinstance(model_type, str) or model_type not in _FOUND:
        raise ValueError(
            f"{source}: model_type = {shorten(repr(model_type))}; expected one of {', '.join(sorted(family_names()))}"
        )
    return _FOUND[model_type]


def register(family: Family) -> None:
    """Make a plug-in's family known by its `model_type`.

    Raises:
        ValueError: one that is taken.
    """
    if family.model_type in BUILT_IN or _FOUND.setdefault(family.model_type, family) is not family:
        raise ValueError(f"plugin: the family {family.model_type!r} is taken; expected another model_type")
