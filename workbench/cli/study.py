"""`workbench study`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.cli_args import parse_overrides
from workbench.cli.errors import UsageError, refuse_unused
from workbench.cli.output import progress, report

Reuse = Annotated[
    list[Path] | None,
    typer.Option(
        "--reuse", help="Another study's directory, whose finished jobs of the same content are copied. Repeatable."
    ),
]
Claims = Annotated[
    list[Path] | None,
    typer.Option(
        "--claims",
        help="TOML file of claims to judge beside the published ones. Repeatable.",
        metavar="FILE",
        show_default="the study's",
    ),
]


def study(
    ctx: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(help="Name of a study, or a TOML file.", metavar="[RECIPE]", show_default="janus-nano"),
    ] = None,
    out: options.Out = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", help="Trainings of each model, with seeds 0, 1, …", min=1, show_default="the study's"),
    ] = None,
    device: options.Device = "auto",
    resume: options.Resume = False,
    reuse: Reuse = None,
    claims: Claims = None,
    executor: Annotated[
        str,
        typer.Option("--executor", help="How jobs run: in-process, one at a time; processes or ray, several at once."),
    ] = "in-process",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", help="Jobs at once, by --executor processes.", min=1, show_default="as CPUs allow"),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", help="Address of a running Ray cluster.", show_default="one is started here"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="CPU threads per job.", min=1, show_default="torch's own choice")
    ] = None,
    dry_run: options.DryRun = False,
    settings: options.Settings = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Run a study end to end: train its models, analyse them in every way that it names, draw the report.

    --set train.KEY=VALUE changes the training recipe of every model, --set KEY=VALUE the study itself.
    """
    if executor != "processes":
        refuse_unused(ctx, "jobs", where=f"with --executor {executor}", expected="--executor processes")
    if executor != "ray":
        refuse_unused(ctx, "ray_address", where=f"with --executor {executor}", expected="--executor ray")
    overrides = parse_overrides(settings)
    for option, key, given in (("--seeds", "n_seeds", seeds), ("--claims", "claims", claims)):
        if given is not None and key in overrides:
            raise UsageError(f"set: {key} is given by {option} too; expected one of the two")
    if dry_run:
        _print_plan(recipe, as_json=as_json, seeds=seeds, device=device, overrides=overrides, claims=claims)
        return
    from workbench.study.study import study as run

    path = run(
        recipe,
        out or Path("runs/study"),
        seeds,
        device=device,
        resume=resume,
        overrides=overrides,
        reuse=reuse or (),
        claims=claims,
        executor=executor,
        n_jobs=jobs,
        ray_address=ray_address,
        n_threads=threads,
        command=shlex.join(["workbench", *sys.argv[1:]]),
        show=None if as_json else progress,
    )
    pages = {page: path / f"{page}.html" for page in ("report", "heads", "atlas")}
    report(as_json=as_json, out=path, facts={page: file for page, file in pages.items() if file.is_file()})


def _print_plan(recipe: str | None, *, as_json: bool, **settings: Any) -> None:
    import pandas as pd

    from workbench.study.plan import plan

    facts = plan(recipe, **settings)
    columns = ["recipe", "n_parameters", "n_steps", "n_tokens", "flops", "bytes_on_disk", "bytes_in_memory"]
    table = None if as_json else pd.DataFrame(facts.pop("trainings").values())[columns]
    report(as_json=as_json, facts=facts, table=table)
