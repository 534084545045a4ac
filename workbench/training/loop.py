"""Training: the phases of a recipe one after another, logged, saved, stopped and resumed without a trace."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.models import HookedLM
from workbench.models.load import resolve_device
from workbench.runs import open_run
from workbench.training.boundaries import resolve_boundaries
from workbench.training.interrupts import stop_requests
from workbench.training.log_sinks import mirror
from workbench.training.objective import autocast_dtype, weights_dtype
from workbench.training.progress import progress_meter
from workbench.training.recipe import Recipe, apply_overrides, check_room, load_recipe, phase_model
from workbench.training.telemetry import telemetry_columns
from workbench.training.trainer import Trainer
from workbench.training.training_data import open_feed


def train(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
    progress: bool = True,
    stop_after: int | None = None,
    cache: str | Path | None = None,
    fsdp: bool = False,
    monitor: str | None = None,
    graphs: bool = True,
    **settings: Any,
) -> Path:
    """The run directory `out`, once every phase of the recipe has been trained.

    It holds config.toml, train_log.csv and checkpoints `step_{n}`, the newest named in `latest`. An interrupted or
    killed run leaves `<out>.partial`, which `resume=True` continues; on one device the weights come out bit for bit as
    if it had never stopped.

    Args:
        recipe: a recipe, a name from `recipe_names()`, or a TOML file.
        out: directory that must not exist yet (unless resume).
        seed: for the initial weights and the order of data, ≥ 0.
        device: "auto" (CUDA where there is one), or a torch device.
        dtype: "auto", "float32", "bfloat16" (autocast; the weights stay float32) or "float64".
        resume: continue `<out>.partial`; return at once if the run is finished.
        overrides: settings to replace, as `apply_overrides` takes them.
        progress: show a bar on stderr with rate and time left.
        stop_after: stop, as an interrupt would, after this many steps of this call.
        cache: where packed tokens are kept; the user's cache by default.
        fsdp: under torchrun, shard weights and optimizer state over the processes too (else only data and Muon's work).
        monitor: "tensorboard" or "wandb", to which every row of the log is also sent.
        graphs: on one GPU, record a micro-batch as a CUDA graph and replay it instead of launching its kernels one by
            one: the same numbers, faster.
        settings: further overrides, as keywords: `train(..., **{"phases.0.n_steps": 10})`.

    Raises:
        ValueError: a wrong recipe, override, device or dtype; data that do not fit; a micro-batch that memory cannot
            hold; a directory in the way; a checkpoint that is altered or of something else; a disk that is full.
        NonFiniteLoss: naming the step and the last good checkpoint.
        Interrupted: after SIGINT, SIGTERM or stop_after, with the state saved.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    recipe = resolve_boundaries(apply_overrides(recipe, {**(overrides or {}), **settings}))
    if seed < 0:
        raise ValueError(f"seed: got {seed}; expected 0 or more")
    resolved = recipe.model_dump(mode="json", exclude={"model": {"device"}})
    config = {"verb": "train", "seed": seed, "dtype": dtype, "recipe": resolved}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # set by torchrun
        from workbench.training.parallel import train_together

        return train_together(
            recipe, out, config, device=device, resume=resume, progress=progress, stop_after=stop_after, cache=cache,
            fsdp=fsdp, monitor=monitor,
        )  # fmt: skip
    if fsdp:
        raise ValueError("fsdp: got one process; expected several, started by torchrun")
    device = resolve_device(device)
    autocast = autocast_dtype(device, dtype)
    check_room(recipe, device)
    telemetry = telemetry_columns(recipe)  # an intervention that cannot act on its model leaves nothing behind
    # Data that do not fit leave nothing behind; where something is in the way, that is said first.
    is_new = not Path(out).exists() and not Path(f"{out}.partial").exists()
    feed = open_feed(recipe, cache) if is_new else None
    with open_run(out, config, resume=resume, device=device, seed=seed) as run:
        if run.is_complete:
            return run.out
        feed = feed or open_feed(recipe, cache)
        trainer = Trainer(recipe, telemetry, feed, run.path, seed, device, weights_dtype(dtype), autocast, graphs)
        trainer.remove_old()
        with (
            stop_requests() as request,
            progress_meter(recipe, enabled=progress) as meter,
            mirror(monitor, run.path, config, trainer.position.step) as send_on,
        ):
            trainer.run(request, meter, stop_after, send_on)
    return run.out


def build(recipe: Recipe | str | Path, seed: int = 0) -> HookedLM:
    """The untrained model of a recipe, as its last phase would start it from nothing."""
    recipe = resolve_boundaries(recipe if isinstance(recipe, Recipe) else load_recipe(recipe))
    return HookedLM(phase_model(recipe, len(recipe.phases) - 1), seed)
