"""Every example in a docstring gives what it says."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("workbench", "sae", "probes", "reports")
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
WITH_EXAMPLES = [file for file in FILES if ">>> " in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", WITH_EXAMPLES, ids=lambda file: str(file.relative_to(ROOT)))
def test_examples_give_what_they_say(file, capsys) -> None:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted == file.read_text(encoding="utf-8").count(">>> ")
    assert not results.failed, capsys.readouterr().out


def test_every_function_of_probes_has_an_example() -> None:
    import probes

    functions = [getattr(probes, name) for name in probes.__all__ if name[0].islower()]
    assert not [function.__name__ for function in functions if ">>> " not in (function.__doc__ or "")]
