"""The hooked model and its configuration, imported on first use: a tokenizer's files need no TransformerLens."""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.models.config import AttnRes, Extensions, ModelConfig, Recurrence, parse_dtype
    from workbench.models.layers import KeyValueCache
    from workbench.models.transformer import HookedLM

_WHERE = MappingProxyType(
    {
        "AttnRes": "workbench.models.config",
        "Extensions": "workbench.models.config",
        "HookedLM": "workbench.models.transformer",
        "KeyValueCache": "workbench.models.layers",
        "ModelConfig": "workbench.models.config",
        "Recurrence": "workbench.models.config",
        "parse_dtype": "workbench.models.config",
    }
)

__all__ = ["AttnRes", "Extensions", "HookedLM", "KeyValueCache", "ModelConfig", "Recurrence", "parse_dtype"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'workbench.models' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_WHERE[name]), name)
    return value
