"""Families of Hugging Face models, one file each, named as the `model_type` of its config.json.

`workbench/models/family.py` says what such a file holds. Nothing else names a family.
"""

from __future__ import annotations

import importlib
import pkgutil

from workbench.models.family import Family
from workbench.runs import shorten

FIRST = ("llama", "qwen2", "qwen3", "gpt2")  # where several families express a model, the plainest writes it


def family_names() -> list[str]:
    """Every `model_type` that has a file, in the order in which an export tries them."""
    names = {module.name for module in pkgutil.iter_modules(__path__)}
    return [*FIRST, *sorted(names - set(FIRST))]


def find_family(model_type: object, source: str) -> Family:
    """The family of this name.

    Raises:
        ValueError: there is none; `source` and those that there are are named.
    """
    if model_type not in family_names():
        raise ValueError(
            f"{source}: model_type = {shorten(repr(model_type))}; expected one of {', '.join(sorted(family_names()))}"
        )
    return importlib.import_module(f"{__name__}.{model_type}").FAMILY
