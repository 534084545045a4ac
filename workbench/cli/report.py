"""`workbench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options, output
from workbench.cli.cli_args import amend_page, check_page, check_tables


def report(
    directory: Annotated[Path, typer.Argument(help="Directory of a study, or of its CSV files.", metavar="DIR")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page to write.", show_default="DIR/report.html")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="An earlier study: say what changed since, beyond seeds.", metavar="OLD"),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw a study's report and the page of its attention heads from its CSV files alone, replacing older ones."""
    from reports.contract import PACKAGE
    from reports.heads import HEADS, write_heads
    from reports.page import write_report
    from workbench.analyses import figures_of_tables

    check_tables(directory)
    check_page(out)
    if against is not None:
        from workbench.runs import amend_manifest
        from workbench.study.against import write_against

        check_tables(against)
        made = write_against(directory, against)
        amend_manifest(directory, [*(path.name for path in made), PACKAGE])
    page = write_report(directory, out, figures_of_tables())
    heads = write_heads(directory, page.with_name(HEADS))
    for written in (page, *([heads] if heads else [])):
        amend_page(directory, written)
    output.report(as_json=as_json, out=page, facts={"heads": heads} if heads else {})
