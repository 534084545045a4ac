"""`workbench export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.errors import UsageError, refuse_unused
from workbench.cli.output import report


def export(
    ctx: typer.Context,
    ckpt: options.Checkpoint,
    to: Annotated[
        str,
        typer.Option(
            "--to", help="transformer-lens, hf (a Hugging Face folder) or sae-lens (--ckpt: a run of sae-train)."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory to write; must not exist yet.", show_default="runs/export-TO"),
    ] = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write a model or SAEs in another library's format, after that library has reproduced their outputs."""
    if to not in ("transformer-lens", "hf", "sae-lens"):
        raise UsageError(f"--to: got {to!r}; expected transformer-lens, hf or sae-lens")
    if to == "sae-lens":
        refuse_unused(ctx, "dtype", where="with --to sae-lens", expected="a model to export")
        from workbench.analyses.sae_train.interop import export_saes

        report(as_json=as_json, out=export_saes(ckpt, (out or Path("runs/export-sae-lens")).absolute()))
        return
    from workbench.models.interop import export as write
    from workbench.models.load import load

    report(as_json=as_json, out=write(load(ckpt, "cpu", dtype), to, out or Path(f"runs/export-{to}")))
