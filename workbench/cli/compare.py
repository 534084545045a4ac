"""`workbench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.cli_args import digest, identify, parse_settings
from workbench.cli.output import progress, report

Model = Annotated[str, typer.Argument(help="Run directory, Hugging Face folder or hub name, or GGUF file.")]


def compare(
    a: Model,
    b: Model,
    out: options.Out = None,
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
    """Compare two models of one vocabulary: geometry of their states, spectra of their weights."""
    from reports.tables import read_table
    from workbench.analyses.compare import NO_SHARED_BASIS, check_pair
    from workbench.analyses.compare import compare as measure
    from workbench.data.text_windows import analysis_tokens, window_length
    from workbench.models.load import load
    from workbench.study.analysis_plans import plan_compare

    extra = parse_settings(settings, measure, taken=("names", "seeds", "seed"))
    pair = load(a, device, dtype), load(b, device, dtype)
    check_pair(*pair, n_sequences, extra.get("n_components", 1))
    if dry_run:
        report(as_json=as_json, facts=plan_compare(pair, n_sequences, window_length(pair[0], n_ctx)))
        return
    tokens = analysis_tokens(pair[0], data, n_sequences=n_sequences, n_ctx=n_ctx, seed=seed)
    path = _run((a, b), pair, tokens, {"seed": seed} | extra, out or Path("runs/compare"), resume)
    facts = None if as_json else {"note": NO_SHARED_BASIS}
    report(as_json=as_json, out=path, table=read_table(path, "pc_cosine"), facts=facts)


def _run(
    ckpts: tuple[str, str], pair: tuple[Any, Any], tokens: Any, config: dict[str, Any], out: Path, resume: bool
) -> Path:
    """The run directory, its tables written."""
    from reports.tables import write_table
    from workbench.analyses.compare import compare as measure
    from workbench.models.weights import weights_sha256
    from workbench.runs import open_run

    known = [identify(path, model, config["seed"]) for path, model in zip(ckpts, pair, strict=True)]
    names = [name for name, _ in known] if known[0][0] != known[1][0] else list(ckpts)
    record = config | {
        "verb": "compare",
        "ckpt": list(ckpts),
        "model": [weights_sha256(m) for m in pair],
        "tokens": digest(tokens),
    }
    with open_run(out, record, resume=resume, device=pair[0].cfg.device, seed=config["seed"]) as run:
        if not run.is_complete:
            with progress("compare") as tell:
                found = measure(
                    *pair, tokens, names=(names[0], names[1]), seeds=(known[0][1], known[1][1]), on_progress=tell,
                    **config,
                )  # fmt: skip
            for name, table in found.tables().items():
                write_table(table, run.path, name)
    return run.out
