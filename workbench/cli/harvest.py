"""`workbench harvest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.errors import UsageError
from workbench.cli.output import progress, report
from workbench.cli.reading import check_selection, open_subject, parse_list


def harvest(
    ckpt: options.Checkpoint,
    out: options.Out = None,
    hook: Annotated[
        list[str] | None,
        typer.Option("--hook", help="Hook point; with --layers, its name within a block (attn.hook_z). Repeatable."),
    ] = None,
    layers: options.Layers = None,
    data: options.Data = "embedded",
    n_sequences: options.NSequences = 64,
    n_ctx: options.NCtx = None,
    store_dtype: Annotated[
        str | None, typer.Option("--store-dtype", help="Of the shards. [default: the model's]")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    resume: options.Resume = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Store activations as shuffled, checksummed shards; a killed run goes on with --resume."""
    from workbench.experiments.harvest import harvest as store

    chosen = parse_list(layers, "--layers")
    names = hook or ["attn.hook_z"]
    if chosen is None and not hook:
        raise UsageError(
            "harvest: got neither --hook nor --layers; want hook names, or layers whose attn.hook_z is stored"
        )
    hooks = names if chosen is None else [f"blocks.{layer}.{name}" for layer in chosen for name in names]
    model, tokens = open_subject(ckpt, device, dtype, data, n_sequences, n_ctx, seed)
    check_selection(model, chosen)
    target = out or Path("runs/harvest")
    with progress("harvest") as tell:
        store(model, tokens, hooks, target, seed=seed, dtype=store_dtype, resume=resume, on_progress=tell)
    facts = {"n_tokens": tokens.numel(), "hooks": ", ".join(hooks)}
    report(as_json=as_json, out=target, facts=facts)
