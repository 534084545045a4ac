"""What of the Kotodama lineage a study compares: the steps from one model to the next, and its 2 × 2."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from workbench.runs import read_toml


@cache
def read_lineage() -> Mapping[str, Any]:
    """`step`: a list of name, reference and treated model; `two_by_two`: cell -> model, and terms as stated."""
    return read_toml(Path(__file__).with_name("lineage.toml"), "lineage")
