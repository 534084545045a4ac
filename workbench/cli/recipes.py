"""`workbench recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.output import report


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Print this one in full, as TOML that can be run.", show_default="list all")
    ] = None,
    study: Annotated[bool, typer.Option("--study", help="Of studies.")] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the built-in recipes, or print one in full: what its base says and what it changes, as one file."""
    if study:
        from workbench.study.recipe import load_study as load
        from workbench.study.recipe import study_names as names
    else:
        from workbench.training import load_recipe as load
        from workbench.training import recipe_names as names
    if name is None:
        import pandas as pd

        rows = [(known, load(known).description) for known in names()]
        report(as_json=as_json, table=pd.DataFrame(rows, columns=["name", "description"]))
        return
    whole = load(name).model_dump(mode="json", exclude_none=True)
    if as_json:
        report(as_json=True, facts=whole)
        return
    import tomli_w

    typer.echo(tomli_w.dumps(whole), nl=False)
