"""`workbench harvest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.cli_args import check_selection, parse_list, parse_settings
from workbench.cli.errors import UsageError
from workbench.cli.output import progress, report


def harvest(
    ckpt: options.Checkpoint,
    out: options.Out = None,
    hook: Annotated[
        list[str] | None,
        typer.Option(
            "--hook", help="Hook point; with --layers, its name within a block, such as attn.hook_z. Repeatable."
        ),
    ] = None,
    layers: options.Layers = None,
    data: options.Data = "embedded",
    split: Annotated[
        str, typer.Option("--split", help="Part of the text: held_out, or train, which is for training SAEs.")
    ] = "held_out",
    n_sequences: options.NSequences = 64,
    n_ctx: options.NCtx = None,
    store_dtype: Annotated[
        str | None, typer.Option("--store-dtype", help="Dtype of the shards.", show_default="the model's")
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    settings: options.Settings = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Store activations as shuffled, checksummed shards."""
    if layers is None and not hook:
        raise UsageError(
            "harvest: got neither --hook nor --layers; expected hook names, or layers (of whose z is stored)"
        )
    chosen = parse_list(layers, "--layers")
    from workbench.analyses.harvest import harvest as store
    from workbench.data.text_windows import analysis_tokens, window_length
    from workbench.models.load import load
    from workbench.study.analysis_plans import plan_harvest

    extra = parse_settings(settings, store, taken=("seed", "dtype", "resume"))
    model = load(ckpt, device, dtype)
    check_selection(model, chosen)
    hooks = hook or ["attn.hook_z"]
    if layers is not None:
        hooks = [f"blocks.{layer}.{name}" for layer in chosen or range(model.cfg.n_layers) for name in hooks]
    if dry_run:
        length = window_length(model, n_ctx)
        facts = plan_harvest(model, n_sequences, length, hooks, dtype=store_dtype, **extra)
        report(as_json=as_json, facts=facts)
        return
    tokens = analysis_tokens(model, data, n_sequences=n_sequences, n_ctx=n_ctx, split=split, seed=seed)
    with progress("harvest") as tell:
        shards = store(
            model,
            tokens,
            hooks,
            out or Path("runs/harvest"),
            seed=seed,
            dtype=store_dtype,
            resume=resume,
            on_progress=tell,
            **extra,
        )
    facts = {
        "n_tokens": shards.n_tokens,
        "n_shards": len(shards.shards),
        "bytes_on_disk": sum(shard.bytes for shard in shards.shards),
        "hooks": list(shards.hooks),
    }
    report(as_json=as_json, out=shards.path, facts=facts)
