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
    import pandas as pd
    import torch

    from workbench.data.text_windows import window_length
    from workbench.models.load import load

    model = load(ckpt, "cpu", dtype)
    tokens = torch.zeros(
        1, window_length(model, min(16, model.cfg.n_ctx) if n_ctx is None else n_ctx), dtype=torch.long
    )
    with torch.no_grad():
        _, shared = model.run_with_cache(tokens, return_cache_object=False)
        # apart: while a head has its own input, the norm before it sees one input a head
        _, per_head = model.run_with_cache(
            tokens, names_filter=lambda name: name not in shared, return_cache_object=False
        )
    cache = dict(per_head) | dict(shared)
    rows = [(name, list(cache[name].shape), str(cache[name].dtype).removeprefix("torch.")) for name in model.hook_dict]
    if as_json:
        report(as_json=True, table=pd.DataFrame(rows, columns=["name", "shape", "dtype"]))
        return
    width = max(len(name) for name, _, _ in rows)
    for name, shape, kind in rows:
        typer.echo(f"{name:<{width}}  {shape}  {kind}")
