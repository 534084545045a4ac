"""`workbench export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.errors import UsageError
from workbench.cli.output import report


def export(
    ckpt: options.Checkpoint,
    to: Annotated[str, typer.Option("--to", help="transformer-lens, or hf (a Hugging Face folder).")],
    out: options.Out = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write a model in another library's form; that library must give the same logits before it is put in place."""
    if to not in ("transformer-lens", "hf"):
        raise UsageError(f"--to: got {to!r}; want transformer-lens or hf")
    from workbench.models.interop import export as write
    from workbench.models.load import load

    report(as_json=as_json, out=write(load(ckpt, "cpu", dtype), to, out or Path(f"runs/export-{to}")))
