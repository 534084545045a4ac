"""`workbench train`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.cli_args import parse_overrides
from workbench.cli.errors import UsageError, refuse_unused
from workbench.cli.output import report
from workbench.runs import CONFIG

if TYPE_CHECKING:
    from workbench.training import Recipe


def train(
    ctx: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a TOML file.", metavar="RECIPE")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory to write; must not exist yet.", show_default="runs/RECIPE-seedN"),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Text to train on, instead of the recipe's.")] = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Tokenizer, instead of the recipe's.")] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="auto, bfloat16 (autocast), float32 or float64.")] = "auto",
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    fsdp: Annotated[
        bool,
        typer.Option(
            "--fsdp",
            help="Under torchrun: shard weights and optimizer state over the processes. With --dry-run: what each of "
            "1, 2, 4 and 8 GPUs would hold.",
        ),
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            help="How many of the newest checkpoints to keep; --set checkpoint.keep=none keeps all.",
            min=1,
            show_default="the recipe's",
        ),
    ] = None,
    monitor: Annotated[
        str | None, typer.Option("--monitor", help="Also send the log to tensorboard or wandb.", metavar="WHERE")
    ] = None,
    graphs: Annotated[
        bool,
        typer.Option(
            "--graphs/--no-graphs",
            help="On one GPU, replay each micro-batch as a CUDA graph, or launch its kernels one by one. Same numbers.",
        ),
    ] = True,
    settings: options.Settings = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train one model. An interrupt saves the state; --resume continues from it."""
    from workbench.models.load import resolve_device
    from workbench.training import apply_overrides, load_recipe
    from workbench.training import train as run

    overrides = _overrides(settings, {"data.source": data, "data.tokenizer": tokenizer, "checkpoint.keep": keep})
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or not resolve_device(device).startswith("cuda"):
        refuse_unused(ctx, "graphs", where="without a GPU for one process", expected="one process on a CUDA device")
    if dry_run:
        _report_plan(apply_overrides(load_recipe(recipe), overrides), device, dtype, fsdp, as_json)
        return
    target = out or Path("runs") / f"{Path(recipe).stem}-seed{seed}"
    path = run(
        recipe,
        target,
        seed=seed,
        device=device,
        dtype=dtype,
        resume=resume,
        overrides=overrides,
        progress=not as_json,
        fsdp=fsdp,
        monitor=monitor,
        graphs=graphs,
    )
    if int(os.environ.get("RANK", "0")) == 0:  # of the processes of torchrun, one speaks
        report(as_json=as_json, out=path, facts=_learned(path))


def _report_plan(recipe: Recipe, device: str, dtype: str, fsdp: bool, as_json: bool) -> None:
    """What the training would take; with --fsdp, also what each of several GPUs would."""
    import pandas as pd
    import torch

    from workbench.training.boundaries import resolve_boundaries
    from workbench.training.footprint import footprints
    from workbench.training.plan import count_text, plan

    recipe = resolve_boundaries(recipe)
    facts, table = plan(recipe, device=device, dtype=dtype) | count_text(recipe), None
    if fsdp:
        autocast = torch.bfloat16 if dtype in ("auto", "bfloat16") else None  # auto is bfloat16 on a GPU
        table = pd.DataFrame([asdict(footprint) for footprint in footprints(recipe, autocast)])
    report(as_json=as_json, facts=facts, table=table)


def _learned(path: Path) -> dict[str, Any]:
    """The list nearest to the boundaries that a finished run has learned; nothing where there are none."""
    from workbench.models.load import load
    from workbench.training.boundaries import learned_boundaries
    from workbench.training.recipe import load_recipe

    attn_res = load_recipe(path / CONFIG).model.extensions.attn_res
    is_learned = attn_res is not None and attn_res.is_learned
    return {"boundaries": list(learned_boundaries(load(path, device="cpu")))} if is_learned else {}


def _overrides(settings: list[str] | None, options: dict[str, Any]) -> dict[str, Any]:
    """The recipe's keys that --set and options of their own replace. Raises UsageError for a key given both ways."""
    overrides = parse_overrides(settings)
    given = {key: value for key, value in options.items() if value is not None}
    if twice := sorted(overrides.keys() & given):
        raise UsageError(f"set: {twice[0]} is given by its own option too; expected one of the two")
    return overrides | given
