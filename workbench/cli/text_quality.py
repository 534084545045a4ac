"""`workbench text-quality`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.cli_args import identify
from workbench.cli.output import progress, report


def text_quality(
    ckpt: options.Checkpoint,
    out: options.Out = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="TOML file of prompts, instead of the built-in ones.")
    ] = None,
    recall: Annotated[
        Path | None,
        typer.Option("--recall", help="TOML file of a recall battery, instead of the built-in one."),
    ] = None,
    battery: Annotated[
        list[Path] | None,
        typer.Option(
            "--battery",
            help="TOML file of a battery of that name, beside the built-in ones; grammar.toml or cause.toml takes the "
            "place of the built-in one, none leaves both out. Repeatable.",
        ),
    ] = None,
    n_samples: Annotated[int, typer.Option("--n-samples", help="Continuations per prompt.", min=1)] = 4,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Tokens per continuation.", min=1)] = 96,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Sampling temperature; 0 takes the likeliest token.", min=0)
    ] = 0.7,
    tagger: Annotated[
        str | None,
        typer.Option(
            "--tagger",
            metavar="NAME_OR_PATH",
            help="spaCy pipeline for the measures that need tagged words, or none.",
            show_default="the small English one",
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measures of sampled continuations, with intervals; recall, grammar and cause, by logits."""
    from reports.tables import read_table
    from workbench.analyses.text_quality.plan import check_batteries, plan_text_quality
    from workbench.analyses.text_quality.quality import choose_tagger
    from workbench.data.batteries import as_batteries, read_batteries, read_prompts, read_recall
    from workbench.models.load import load

    asked = read_prompts() if prompts is None else read_prompts(prompts)
    recalled = read_recall() if recall is None else read_recall(recall)
    others = () if battery == [Path("none")] else read_batteries(battery or ())
    batteries = as_batteries(recalled, others)
    model = load(ckpt, device, dtype)
    check_batteries(model, asked, batteries, max_new_tokens)
    if dry_run:
        facts = plan_text_quality(model, asked, batteries, n_samples=n_samples, max_new_tokens=max_new_tokens)
        report(as_json=as_json, facts=facts)
        return
    if tagger is not None:
        choose_tagger(tagger)  # one that is not there is an error before any directory
    config = {
        "n_samples": n_samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "tagger": tagger,
        "seed": seed,
    }
    path = _run(ckpt, model, (asked, recalled, others), config, out or Path("runs/text-quality"), resume)
    report(as_json=as_json, out=path, table=read_table(path, "text_quality"))


def _run(
    ckpt: str, model: Any, batteries: tuple[Any, Any, Any], config: dict[str, Any], out: Path, resume: bool
) -> Path:
    """The run directory, the table and the continuations written."""
    from reports.tables import write_table
    from workbench.analyses.text_quality.quality import text_quality as measure
    from workbench.models.weights import weights_sha256
    from workbench.runs import atomic_write, open_run

    name, trained_with = identify(ckpt, model, config["seed"])
    record = config | {
        "verb": "text-quality",
        "ckpt": ckpt,
        "model": weights_sha256(model),
        "prompts": {one.kind: one.prompts for one in batteries[0]},
        "recall": {one.kind: one.model_dump(exclude={"kind"}) for one in batteries[1]},
        "batteries": {
            own.name: {one.kind: one.model_dump(exclude={"kind"}) for one in own.sets} for own in batteries[2]
        },
    }
    with open_run(out, record, resume=resume, device=model.cfg.device, seed=config["seed"]) as run:
        if not run.is_complete:
            with progress(f"text quality of {name}") as tell:
                found = measure(model, *batteries, name=name, on_progress=tell, **config)
            atomic_write(run.path / "continuations.jsonl", found.to_jsonl())
            write_table(found.table.assign(seed=trained_with), run.path, "text_quality")
    return run.out
