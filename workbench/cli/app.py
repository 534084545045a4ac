"""`workbench VERB`: the verbs, registered. A verb's module has a function of the module's own name."""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from types import MappingProxyType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from workbench.cli.errors import USAGE, describe, exit_code, guarded, show_warning
from workbench.cli.offline import stay_offline
from workbench.runs.allocator import keep_large_blocks

# verb -> its module under workbench.cli; the verbs of analyses are made from their records
VERBS = MappingProxyType(
    {
        "study": "study",
        "train": "train",
        "recipes": "recipes",
        "hooks": "hooks",
        "report": "report",
        "tabulate": "tabulate",
        "generate": "generate",
        "export": "export",
        "import": "import_model",
    }
)
HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


class Verbs(TyperGroup):
    """The verbs of the command line; that of an analysis is made when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs in the order of the help page."""
        from workbench.analyses import analysis_names

        return list(dict.fromkeys([*VERBS, *analysis_names()]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The verb of that name; None where there is none."""
        if cmd_name not in self.commands and cmd_name in self.list_commands(ctx):
            from workbench.analyses import find_analysis
            from workbench.cli.verbs import make_verb

            single = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
            single.command(cmd_name)(make_verb(find_analysis(cmd_name)))
            self.commands[cmd_name] = typer.main.get_command(single)
        return self.commands.get(cmd_name)


app = typer.Typer(
    name="workbench",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=HELP,
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(version("prescriptive-workbench"))
        raise typer.Exit


def _load_plugins(sources: list[str]) -> list[str]:
    from workbench.analyses import load_plugin

    try:
        for source in sources:
            load_plugin(source)
    except ValueError as error:
        typer.echo(describe(error), err=True)
        raise typer.Exit(USAGE) from None
    return sources


@app.callback()
def workbench(
    plugin: Annotated[
        list[str],
        typer.Option(
            "--plugin",
            help="Python file, or importable module, with analyses and interventions of your own. Repeatable.",
            metavar="FILE",
            is_eager=True,
            callback=_load_plugins,
        ),
    ] = [],  # noqa: B006 - Typer copies it
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", help="Refuse every connection: a hub name is taken from the local cache, or refused."
        ),
    ] = False,
) -> None:
    """Train small language models under interventions on their geometry, then open them up."""
    if offline:
        stay_offline()


for _verb, _module in VERBS.items():
    _function = getattr(importlib.import_module(f"workbench.cli.{_module}"), _module)
    app.command(_verb)(guarded(_function))


def main() -> None:
    """The console script: exits with 0 done, 1 failed, 2 usage, 130 interrupted."""
    keep_large_blocks()
    warnings.showwarning = show_warning
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # no letter that it lacks shall undo what a verb has done
    try:
        app()
    except OSError as error:  # of a page of help that could not be written
        typer.echo(describe(error), err=True)
        sys.exit(exit_code(error))
