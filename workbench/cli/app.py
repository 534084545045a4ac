"""`workbench VERB`: the verbs, registered. A verb's module has a function of the module's own name."""

from __future__ import annotations

import importlib
import io
import sys
import warnings
from types import MappingProxyType
from typing import Annotated

import typer

from workbench.cli.errors import describe, exit_code, guarded, show_warning
from workbench.cli.offline import stay_offline
from workbench.runs.allocator import keep_large_blocks

# verb -> its module under workbench.cli, in the order of the help page
VERBS = MappingProxyType(
    {
        "study": "study",
        "train": "train",
        "recipes": "recipes",
        "hooks": "hooks",
        "harvest": "harvest",
        "sae-train": "sae_train",
        "ablate": "ablate",
        "topology": "topology",
        "attention": "attention",
        "evaluate": "evaluate",
        "mechanisms": "mechanisms",
        "ladder": "ladder",
        "probe": "probe",
        "compare": "compare",
        "atlas": "atlas",
        "report": "report",
        "text-quality": "text_quality",
        "generate": "generate",
        "export": "export",
        "import": "import_model",
    }
)

app = typer.Typer(
    name="workbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(version("prescriptive-workbench"))
        raise typer.Exit


@app.callback()
def workbench(
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
