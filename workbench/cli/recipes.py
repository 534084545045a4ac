"""`workbench recipes`."""

from __future__ import annotations

from workbench.cli import options
from workbench.cli.output import report


def recipes(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """List the built-in recipes."""
    import pandas as pd

    from workbench.training import load_recipe, recipe_names

    rows = [(name, load_recipe(name).description) for name in recipe_names()]
    report(as_json=as_json, table=pd.DataFrame(rows, columns=["name", "description"]))
