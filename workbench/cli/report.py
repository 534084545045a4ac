"""`workbench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options, output


def report(
    directory: Annotated[Path, typer.Argument(help="A study's directory, or one with its CSV files.", metavar="DIR")],
    out: Annotated[Path | None, typer.Option("--out", help="The page to write. [default: DIR/report.html]")] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw a study's page from its CSV files alone; a page that is there is replaced."""
    from reports.page import write_report

    output.report(as_json=as_json, out=write_report(directory, out))
