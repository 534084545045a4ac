"""`workbench import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.output import report


def import_model(
    source: Annotated[
        str, typer.Argument(help="Hugging Face folder or hub name, GGUF file, or SAELens folders.", metavar="PATH")
    ],
    out: options.Out = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a model to a checkpoint directory of the workbench, or SAELens's SAEs to a stack."""
    if any(any(Path(source).glob(f"{depth}sae_weights.safetensors")) for depth in ("", "*/")):
        from workbench.analyses.sae_train.interop import import_saes as write
    else:
        from workbench.models.interop import import_model as write

    report(as_json=as_json, out=write(source, out or Path("runs/import")))
