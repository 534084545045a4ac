"""`workbench atlas`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.cli_args import amend_page, check_page, check_tables, digest, identify, open_subject
from workbench.cli.errors import UsageError, refuse_unused
from workbench.cli.output import progress, report


def atlas(
    ctx: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(help="Directory of a study, whose feature_atlas.csv is drawn.", metavar="[DIR]")
    ] = None,
    sae: Annotated[
        list[Path] | None,
        typer.Option("--sae", help="SAEs to describe: a directory that sae-train wrote. Repeatable.", metavar="DIR"),
    ] = None,
    ckpt: Annotated[
        list[str] | None,
        typer.Option("--ckpt", help="The model of each --sae, in the same order.", metavar="MODEL"),
    ] = None,
    l1: Annotated[
        float | None, typer.Option("--l1", help="Which l1 of a sweep to show.", show_default="the lowest")
    ] = None,
    n_contexts: Annotated[int, typer.Option("--n-contexts", help="Contexts per feature.", min=1)] = 8,
    data: options.Data = "embedded",
    n_sequences: options.NSequences = 512,
    n_ctx: options.NCtx = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Page of DIR, or directory of --sae.", show_default="DIR/atlas.html, runs/atlas"),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    resume: options.Resume = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Draw the feature atlas of a study (DIR), or of SAEs and their models: one HTML file that opens offline."""
    from reports.atlas import write_atlas

    if (directory is None) == (not sae):
        raise UsageError("atlas: expected either a study's directory or --sae with --ckpt")
    if directory is not None:
        unread = ("ckpt", "l1", "n_contexts", "data", "n_sequences", "n_ctx", "seed", "device", "dtype", "resume")
        refuse_unused(ctx, *unread, where="with a study's directory", expected="--sae")
        check_tables(directory)
        check_page(out)
        page = write_atlas(directory, out or directory / "atlas.html")
        amend_page(directory, page)
        report(as_json=as_json, out=page)
        return
    stacks, models = sae or [], ckpt or []
    if len(stacks) != len(models):
        raise UsageError(f"atlas: got {len(stacks)} --sae and {len(models)} --ckpt; expected one model for each")
    subjects = [
        (path, *open_subject(name, device, dtype, data, n_sequences, n_ctx, seed))
        for path, name in zip(stacks, models, strict=True)
    ]
    settings = {"l1": l1, "n_contexts": n_contexts, "seed": seed}
    report(as_json=as_json, out=_describe(subjects, models, settings, out or Path("runs/atlas"), resume))


def _describe(
    subjects: list[tuple[Path, Any, Any]], names: list[str], settings: dict[str, Any], out: Path, resume: bool
) -> Path:
    import pandas as pd

    from reports.atlas import write_atlas
    from reports.tables import write_table
    from workbench.analyses.atlas.features import atlas_features
    from workbench.analyses.sae_train.head_saes import find_stack, one_a_slot, stack_sha256
    from workbench.models.checks import device_of
    from workbench.runs import open_run

    loaded = [
        (one_a_slot(find_stack(path), settings["l1"]).to(device_of(model)), model, tokens)
        for path, model, tokens in subjects
    ]
    called = [identify(name, model, 0) for name, (_, model, _) in zip(names, loaded, strict=True)]
    if len({name for name, _ in called}) < len(called):
        called = [(Path(path).name, seed) for path, (_, seed) in zip(names, called, strict=True)]
    if len(set(called)) < len(called):  # several SAEs of one model
        called = [(f"{name} {sae.name}", seed) for (name, seed), (sae, _, _) in zip(called, subjects, strict=True)]
    if len(set(called)) < len(called):
        raise UsageError(f"atlas: got --sae {', '.join(str(sae) for sae, _, _ in subjects)}; expected different names")
    config = settings | {
        "verb": "atlas",
        "models": [name for name, _ in called],
        "saes": [stack_sha256(stack) for stack, _, _ in loaded],
        "tokens": [digest(tokens) for _, _, tokens in loaded],
    }
    with open_run(out, config, resume=resume, seed=settings["seed"]) as run:
        if not run.is_complete:
            parts = []
            for (stack, model, tokens), (name, model_seed) in zip(loaded, called, strict=True):
                with progress(f"features of {name}") as tell:
                    options_ = {
                        "n_contexts": settings["n_contexts"],
                        "name": name,
                        "seed": model_seed,
                        "on_progress": tell,
                    }
                    parts.append(atlas_features(model, stack, tokens, **options_))
            write_table(pd.concat(parts), run.path, "feature_atlas")
            write_atlas(run.path, run.path / "atlas.html")
    return run.out / "atlas.html"
