"""`workbench ladder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.cli_args import parse_overrides, read_texts
from workbench.cli.output import progress, report


def ladder(
    recipe: Annotated[str, typer.Argument(help="Recipe of a recurrent model.", metavar="RECIPE")] = "recurrent-nano",
    out: options.Out = None,
    n_seeds: Annotated[int, typer.Option("--n-seeds", help="Trainings of each rung, with seeds 0, 1, …", min=1)] = 3,
    max_bytes: options.MaxBytes = 200_000,
    device: options.Device = "auto",
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    settings: options.Settings = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train a recurrent model without its mechanisms, then with one more each time, to see what each is worth."""
    from reports.tables import read_table, write_table
    from workbench.analyses.mechanisms import ladder as climb
    from workbench.analyses.mechanisms import ladder_recipes
    from workbench.data.tokenizer import open_tokenizer
    from workbench.runs import open_run
    from workbench.training import apply_overrides, load_recipe

    own = apply_overrides(load_recipe(recipe), parse_overrides(settings))
    rungs = ladder_recipes(own)
    if dry_run:
        from workbench.training.plan import plan

        cost = plan(own, device=device)
        n = len(rungs) * n_seeds
        facts = {
            "n_trainings": n,
            "rungs": ", ".join(name for name, _ in rungs),
            "seconds_at_most": n * cost["seconds"],
        }
        # one training at a time, the last of them, with every mechanism, the largest
        memory = {what: cost[what] for what in ("bytes_in_memory", "bytes_on_device") if what in cost}
        report(as_json=as_json, facts=facts | {"bytes_on_disk": n * cost["bytes_on_disk"]} | memory)
        return
    texts = read_texts(own.data.source, "held_out", max_bytes, own.data.text, open_tokenizer(own.data.tokenizer))
    resolved = own.model_dump(mode="json", exclude={"model": {"device"}})
    record = {"verb": "ladder", "recipe": resolved, "n_seeds": n_seeds, "max_bytes": max_bytes}
    with open_run(out or Path("runs/ladder"), record, resume=resume, device=device) as run:
        if not run.is_complete:
            with progress("ladder") as tell:
                table = climb(own, texts, run.path, seeds=range(n_seeds), device=device, on_progress=tell)
            write_table(table, run.path, "ladder")
    report(as_json=as_json, out=run.out, table=read_table(run.out, "ladder"))
