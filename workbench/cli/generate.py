"""`workbench generate`."""

from __future__ import annotations

from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.errors import refuse_unused
from workbench.cli.output import report


def generate(
    ctx: typer.Context,
    prompts: Annotated[list[str], typer.Argument(help="Text to continue.", metavar="PROMPT...")],
    ckpt: options.Checkpoint,
    n_samples: Annotated[int, typer.Option("--n-samples", help="Continuations per prompt.", min=1)] = 1,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Tokens to add.", min=1)] = 60,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Sampling temperature; 0 takes the likeliest token.", min=0)
    ] = 0.7,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Sample from this many of the likeliest tokens.", min=1)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Sample from the likeliest tokens that hold this much probability.")
    ] = None,
    seed: options.Seed = 0,
    device: options.Devices = "auto",
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Sample continuations of prompts."""
    if temperature == 0:
        refuse_unused(ctx, "top_k", "top_p", "seed", where="with --temperature 0", expected="a temperature above 0")
    import pandas as pd
    import torch

    from workbench.models.generate import generate as sample
    from workbench.models.load import load
    from workbench.models.tokenizer_files import decode_continuation, stop_ids

    model = load(ckpt, device, dtype)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for prompt in prompts:
        tokens = model.to_tokens(prompt, truncate=False).repeat(n_samples, 1)
        grown = sample(
            model,
            tokens,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            stop_at=stop_ids(model),
            generator=generator,
        )
        read = tokens.shape[1]
        texts = [decode_continuation(model.tokenizer, row[:read], row[read:]) for row in grown.tolist()]
        rows += [{"prompt": prompt, "sample": i, "continuation": text} for i, text in enumerate(texts)]
    if as_json:
        report(as_json=True, table=pd.DataFrame(rows))
        return
    for row in rows:
        typer.echo(f"{row['prompt']}{row['continuation']}\n")
