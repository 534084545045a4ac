"""`workbench import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.errors import refuse_unused
from workbench.cli.output import report


def import_model(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="Hugging Face folder or hub name, GGUF file; or SAEs: SAELens folders, Gemma Scope's params.npz, "
            "RELEASE/ID of SAELens's registry, OWNER/REPO/PATH of the hub.",
            metavar="PATH",
        ),
    ],
    hook: Annotated[
        str | None, typer.Option("--hook", help="Hook that SAEs read, where their files and path do not say.")
    ] = None,
    layer: Annotated[int | None, typer.Option("--layer", help="Layer of --hook.", min=0)] = None,
    norm_scale: Annotated[
        float | None,
        typer.Option("--norm-scale", help="√d_in / E‖x‖ of SAEs that need it and whose files do not hold it."),
    ] = None,
    out: options.Out = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a model to a checkpoint directory of the workbench, or SAEs from elsewhere to a stack."""
    from workbench.models.sae_sources import names_saes

    out = out or Path("runs/import")
    if names_saes(source):
        from workbench.analyses.sae_train.interop import import_saes

        written = import_saes(source, out, hook=hook, layer=layer, norm_scale=norm_scale)
    else:
        refuse_unused(ctx, "hook", "layer", "norm_scale", where="with a model", expected="a source of SAEs")
        from workbench.models.interop import import_model as write

        written = write(source, out)
    report(as_json=as_json, out=written)
