"""`workbench tabulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.output import report


def tabulate(
    directory: Annotated[Path, typer.Argument(help="Directory of a study, or of an analysis.", metavar="DIR")],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make tables again from saved losses and states, without a model; of a study its pages too."""
    from workbench.runs import read_config

    if read_config(directory).get("verb") == "study":
        from workbench.study.study import tabulate_study

        made = tabulate_study(directory)
    else:
        from workbench.study.tabulate import tabulate_run

        made = tabulate_run(directory)
    report(as_json=as_json, out=directory, facts={"tables": made})
