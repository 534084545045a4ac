"""`workbench ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.errors import UsageError
from workbench.cli.output import progress, report
from workbench.cli.reading import check_selection, digest, identify, parse_list, parse_settings

LOSSES = "sequence_losses.safetensors"


def ablate(
    ckpt: options.Checkpoint,
    out: options.Out = None,
    layers: options.Layers = None,
    heads: options.Heads = None,
    kind: Annotated[str, typer.Option("--kind", help="zero, mean or resample.")] = "zero",
    n_resamples: Annotated[int, typer.Option("--n-resamples", help="Donors a sequence, for resample.", min=1)] = 1,
    memory_gib: Annotated[float, typer.Option("--memory-gib", help="Budget besides the weights, GiB.", min=0)] = 1.0,
    data: options.Data = "embedded",
    n_sequences: options.NSequences = 64,
    n_ctx: options.NCtx = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    settings: options.Settings = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Each head's impact on the loss, with intervals; a killed run goes on with --resume."""
    if kind not in ("zero", "mean", "resample"):
        raise UsageError(f"--kind: got {kind!r}; want zero, mean or resample")
    selection = parse_list(layers, "--layers"), parse_list(heads, "--heads")
    from reports.tables import read_table
    from workbench.experiments.ablation import ablate as function
    from workbench.experiments.ablation import check_ablation
    from workbench.experiments.impacts import check_bootstrap
    from workbench.experiments.plan import plan_ablation
    from workbench.experiments.texts import analysis_tokens, window_length
    from workbench.models.load import load

    extra = parse_settings(settings, function, taken=("n_resamples", "memory_budget_bytes", "name"))
    limits = {"n_resamples": n_resamples, "memory_budget_bytes": int(memory_gib * (1 << 30))}
    model = load(ckpt, device, dtype)
    check_selection(model, *selection)
    check_bootstrap(extra.get("n_bootstrap", 100))
    if dry_run:
        length = window_length(model, n_ctx)
        report(as_json=as_json, facts=plan_ablation(model, n_sequences, length, *selection, **limits))
        return
    tokens = analysis_tokens(model, data, n_sequences=n_sequences, n_ctx=n_ctx, seed=seed)
    check_ablation(model, tokens, *selection, kind, **limits)  # before there is a directory
    config = {"layers": selection[0], "heads": selection[1], "kind": kind, "seed": seed} | limits | extra
    path = _run(ckpt, model, tokens, config, out or Path("runs/ablate"), resume)
    report(as_json=as_json, out=path, table=read_table(path, "ablation_results"))


def _run(ckpt: str, model: Any, tokens: Any, config: dict[str, Any], out: Path, resume: bool) -> Path:
    """The run directory, its table and its losses of each sequence written."""
    from reports.tables import write_table
    from workbench.experiments.ablation import ablation_table, join
    from workbench.models.load import weights_sha256
    from workbench.runs import open_run

    name, trained_with = identify(ckpt, model, config["seed"])
    record = {"verb": "ablate", "ckpt": ckpt, "model": weights_sha256(model), "tokens": digest(tokens)} | config
    with open_run(out, record, resume=resume, device=model.cfg.device, seed=config["seed"]) as run:
        if not run.is_complete:
            table_options = {k: v for k, v in config.items() if k in ("kind", "seed", "n_bootstrap")}
            with progress(f"{config['kind']} ablation") as tell:
                engine = {k: v for k, v in config.items() if k != "n_bootstrap"} | {"on_progress": tell}
                losses = join(_parts(run.path, model, tokens, engine))
            table = ablation_table(losses, tokens.shape[1], name=name, **table_options)
            write_table(table.assign(seed=trained_with), run.path, "ablation_results")
            _write_losses(run.path / LOSSES, losses)
            for part in run.path.glob("part_*.safetensors"):
                part.unlink()
    return run.out


def _parts(directory: Path, model: Any, tokens: Any, engine: dict[str, Any]) -> list[Any]:
    """Losses of all sequences, batch by batch, each batch kept as a file: where a killed run goes on."""
    from safetensors.torch import load_file

    from workbench.experiments.ablation import SequenceLosses, iterate_ablation

    parts = [SequenceLosses(**load_file(file)) for file in sorted(directory.glob("part_*.safetensors"))]
    done = sum(len(part.base) for part in parts)
    if done < len(tokens):
        for part in iterate_ablation(model, tokens, start=done, **engine):
            _write_losses(directory / f"part_{done:09d}.safetensors", part)
            done += len(part.base)
            parts.append(part)
    return parts


def _write_losses(path: Path, losses: Any) -> None:
    from dataclasses import asdict

    from safetensors.torch import save

    from workbench.runs import atomic_write

    atomic_write(path, save({name: tensor.contiguous() for name, tensor in asdict(losses).items()}))
