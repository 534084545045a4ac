"""What several verbs share: the pairs of --set, and pages drawn anew in a finished directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.cli.errors import UsageError


def parse_overrides(settings: Sequence[str] | None) -> dict[str, Any]:
    """The KEY=VALUE pairs of --set; values are read as TOML reads them.

    Raises:
        UsageError: no pair, or a key given twice.
    """
    from workbench.training.recipe import parse_override

    found: dict[str, Any] = {}
    for text in settings or []:
        try:
            key, value = parse_override(text)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if key in found:
            raise UsageError(f"set: {key} is given twice; expected it once")
        found[key] = value
    return found


def check_tables(directory: Path) -> None:
    """Raise ValueError naming a table, or study.json, that is not what the run in this directory wrote."""
    from workbench.runs import verify_files

    verify_files(directory, lambda name: "/" not in name and (name.endswith(".csv") or name == "study.json"))


def check_page(out: Path | None) -> None:
    """Raise ValueError for a place of a page where something else is."""
    if out is not None and out.exists() and not (out.is_file() and out.suffix.lower() in (".html", ".htm")):
        raise ValueError(f"out: {out} exists and is no page; expected a new file, or an older page's, ending in .html")


def amend_page(directory: Path, page: Path) -> None:
    """Note a page drawn anew in the manifest of the run that it lies in, whichever way it leads there."""
    from workbench.runs import amend_manifest

    if page.resolve().is_relative_to(directory.resolve()):
        amend_manifest(directory, [page.resolve().relative_to(directory.resolve()).as_posix()])
