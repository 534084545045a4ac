"""`workbench hooks`."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.output import report


def hooks(
    ckpt: options.Checkpoint,
    n_ctx: Annotated[
        int | None,
        typer.Option(
            "--n-ctx",
            help="Length of the sequence that is run.",
            min=2,
            show_default="16, or the model's n_ctx if less",
        ),
    ] = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List a model's hook points, each with its shape and dtype on one sequence."""
    from workbench.data.text_windows import window_length
    from workbench.models.costs import hooked_tensors
    from workbench.models.load import load

    model = load(ckpt, "cpu", dtype)
    found = hooked_tensors(model, window_length(model, min(16, model.cfg.n_ctx) if n_ctx is None else n_ctx))
    rows = [(name, list(x.shape), str(x.dtype).removeprefix("torch.")) for name, x in found.items()]
    if as_json:
        import pandas as pd

        report(as_json=True, table=pd.DataFrame(rows, columns=["name", "shape", "dtype"]))
        return
    width = max(len(name) for name, _, _ in rows)
    for name, shape, kind in rows:
        typer.echo(f"{name:<{width}}  {shape}  {kind}")
