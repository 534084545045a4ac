"""`workbench ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.errors import UsageError
from workbench.cli.output import progress, report
from workbench.cli.reading import check_selection, digest, open_subject, parse_list

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
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Each head's impact on the loss, with intervals; a killed run goes on with --resume."""
    if kind not in ("zero", "mean", "resample"):
        raise UsageError(f"--kind: got {kind!r}; want zero, mean or resample")
    from reports.tables import read_table, write_table
    from workbench.experiments.ablation import ablation_table, join
    from workbench.runs import open_run

    selection = parse_list(layers, "--layers"), parse_list(heads, "--heads")
    model, tokens = open_subject(ckpt, device, dtype, data, n_sequences, n_ctx, seed)
    check_selection(model, *selection)
    config = {
        "verb": "ablate",
        "ckpt": ckpt,
        "layers": selection[0],
        "heads": selection[1],
        "kind": kind,
        "n_resamples": n_resamples,
        "memory_gib": memory_gib,
        "seed": seed,
        "tokens": digest(tokens),
    }
    with open_run(out or Path("runs/ablate"), config, resume=resume, device=model.cfg.device, seed=seed) as run:
        if not run.is_complete:
            with progress(f"{kind} ablation") as tell:
                settings = {"kind": kind, "seed": seed, "n_resamples": n_resamples, "on_progress": tell}
                settings["memory_budget_bytes"] = int(memory_gib * (1 << 30))
                losses = join(_parts(run.path, model, tokens, selection, settings))
            _write_losses(run.path / LOSSES, losses)
            for part in run.path.glob("part_*.safetensors"):
                part.unlink()
            table = ablation_table(losses, tokens.shape[1], kind=kind, seed=seed, name=model.cfg.model_name)
            write_table(table, run.path, "ablation_results")
    report(as_json=as_json, out=run.out, table=read_table(run.out, "ablation_results"))


def _parts(directory: Path, model: Any, tokens: Any, selection: tuple[Any, Any], settings: dict[str, Any]) -> list[Any]:
    """Losses of all sequences, batch by batch, each batch kept as a file: where a killed run goes on."""
    from safetensors.torch import load_file

    from workbench.experiments.ablation import SequenceLosses, iterate_ablation

    parts = [SequenceLosses(**load_file(file)) for file in sorted(directory.glob("part_*.safetensors"))]
    done = sum(len(part.base) for part in parts)
    if done < len(tokens):
        for part in iterate_ablation(model, tokens, *selection, start=done, **settings):
            _write_losses(directory / f"part_{done:09d}.safetensors", part)
            done += len(part.base)
            parts.append(part)
    return parts


def _write_losses(path: Path, losses: Any) -> None:
    from dataclasses import asdict

    from safetensors.torch import save

    from workbench.runs import atomic_write

    atomic_write(path, save({name: tensor.contiguous() for name, tensor in asdict(losses).items()}))
