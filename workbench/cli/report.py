"""`workbench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options, output
from workbench.cli.reading import check_tables


def report(
    directory: Annotated[Path, typer.Argument(help="Directory of a study, or of its CSV files.", metavar="DIR")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page to write.", show_default="DIR/report.html")
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw a study's report from its CSV files alone, replacing an older one."""
    from reports.page import write_report
    from workbench.runs import amend_manifest

    check_tables(directory)
    if out is not None and out.exists() and not (out.is_file() and out.suffix.lower() in (".html", ".htm")):
        raise ValueError(f"out: {out} exists and is no page; want a new file, or an older page's, ending in .html")
    page = write_report(directory, out)
    if page.resolve().is_relative_to(directory.resolve()):  # whichever way it leads there
        amend_manifest(directory, [page.resolve().relative_to(directory.resolve()).as_posix()])
    output.report(as_json=as_json, out=page)
