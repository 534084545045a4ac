"""CSV in, HTML out: the column contract, figures, the study's page and the feature atlas. Imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.tables import find_tables, read_table, write_table

__all__ = ["find_tables", "read_table", "write_table"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'reports' has no attribute {name!r}")
    return getattr(importlib.import_module("reports.tables"), name)
