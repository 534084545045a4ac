"""`workbench probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.cli_args import digest, identify_all, parse_settings
from workbench.cli.errors import refuse_unused
from workbench.cli.output import progress, report

Concepts = Annotated[
    Path | None,
    typer.Option("--concepts", help="TOML file of your own concept sets, in addition to the built-in ones."),
]
Sets = Annotated[
    str | None,
    typer.Option("--sets", help="Names of sets, such as months,us_states.", metavar="LIST", show_default="all"),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help="Prompt with one {X}, and {category} if wanted. Repeatable; replaces the default three.",
    ),
]
NCtx = Annotated[
    int | None,
    typer.Option("--n-ctx", help="Tokens per window.", min=2, show_default="128, or the model's n_ctx if less"),
]
TAKEN = ("templates", "names", "seeds", "seed")


def probe(
    ctx: typer.Context,
    ckpt: options.Checkpoints,
    out: options.Out = None,
    concepts: Concepts = None,
    sets: Sets = None,
    template: Template = None,
    data: options.Data = "embedded",
    n_sequences: options.NSequences = 64,
    n_ctx: NCtx = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    settings: options.Settings = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Concept geometry by layer: Mantel tests, dimensions, trajectories; intrinsic dimension of text states."""
    from reports.tables import read_table
    from workbench.analyses.probe.probe import check_settings, text_length, text_windows
    from workbench.analyses.probe.probe import probe as measure
    from workbench.analyses.probe.states import TEMPLATES, build_prompts, tokenizer_of
    from workbench.data.concepts import choose_sets, read_concepts
    from workbench.models.load import load
    from workbench.study.analysis_plans import plan_probe

    extra = parse_settings(settings, measure, taken=TAKEN)
    check_settings(**extra)
    reads_text = extra.get("n_points", 1) > 0
    if not reads_text:
        refuse_unused(ctx, "data", "n_sequences", "n_ctx", where="with n_points = 0", expected="n_points above 0")
    offered = read_concepts() + (() if concepts is None else read_concepts(concepts))
    chosen = choose_sets(offered, None if sets is None else [name.strip() for name in sets.split(",")])
    models = [load(path, device, dtype) for path in ckpt]
    templates = tuple(template or TEMPLATES)
    if dry_run:
        n_text = n_sequences * text_length(models[0], n_ctx)
        counts = {name: value for name, value in extra.items() if name.startswith("n_")}
        report(as_json=as_json, facts=plan_probe(models, chosen, n_text, templates=templates, **counts))
        return
    texts = [text_windows(m, data, n_sequences, n_ctx, seed) for m in models if reads_text]
    for model in models:
        build_prompts(tokenizer_of(model), chosen, templates)  # a word without a place is an error before any directory
    config = {"seed": seed, "templates": templates} | extra
    path = _run(ckpt, models, chosen, texts, config, out or Path("runs/probe"), resume)
    table = "concept_mantel" if (path / "concept_mantel.csv").is_file() else "concept_geometry"
    report(as_json=as_json, out=path, table=read_table(path, table))


def _run(
    ckpts: list[str], models: list, chosen: tuple, texts: list, config: dict[str, Any], out: Path, resume: bool
) -> Path:
    """The run directory, all tables of all models written."""
    from reports.tables import write_table
    from workbench.analyses.probe.probe import probe as measure
    from workbench.models.weights import weights_sha256
    from workbench.runs import open_run

    known = identify_all(ckpts, models, config["seed"])
    record = config | {
        "verb": "probe",
        "ckpt": ckpts,
        "model": [weights_sha256(m) for m in models],
        "tokens": [digest(t) for t in texts],
        "concepts": {one.name: one.model_dump(exclude={"name"}, exclude_defaults=True) for one in chosen},
    }
    names, seeds = [name for name, _ in known], [seed for _, seed in known]
    with open_run(out, record, resume=resume, device=models[0].cfg.device, seed=config["seed"]) as run:
        if not run.is_complete:
            with progress("probe") as tell:
                found = measure(models, chosen, texts or None, names=names, seeds=seeds, on_progress=tell, **config)
            for name, table in found.tables().items():
                write_table(table, run.path, name)
    return run.out
