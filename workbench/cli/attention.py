"""`workbench attention`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.cli import options
from workbench.cli.cli_args import check_selection, digest, identify, parse_list, parse_settings
from workbench.cli.output import progress, report


def attention(
    ckpt: options.Checkpoint,
    out: options.Out = None,
    layers: options.Layers = None,
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
    """Entropy, mass on position 0, induction score and previous-token score of every head; mean maps of some layers."""
    chosen = parse_list(layers, "--layers")
    from reports.tables import read_table
    from workbench.analyses.attention.statistics import attention as measure
    from workbench.analyses.attention.statistics import check_repeats
    from workbench.data.text_windows import analysis_tokens, window_length
    from workbench.models.load import load
    from workbench.study.analysis_plans import plan_reading

    extra = parse_settings(settings, measure, taken=("seed", "name"))
    check_repeats(extra.get("n_repeated", 0))
    model = load(ckpt, device, dtype)
    check_selection(model, chosen)
    if dry_run:
        length = window_length(model, n_ctx)
        facts = plan_reading(model, n_sequences, length, lambda tokens: measure(model, tokens, chosen, n_repeated=0))
        report(as_json=as_json, facts=facts)
        return
    tokens = analysis_tokens(model, data, n_sequences=n_sequences, n_ctx=n_ctx, seed=seed)
    path = _run(ckpt, model, tokens, {"layers": chosen, "seed": seed} | extra, out or Path("runs/attention"), resume)
    report(as_json=as_json, out=path, table=read_table(path, "attention_stats"))


def _run(ckpt: str, model: Any, tokens: Any, config: dict[str, Any], out: Path, resume: bool) -> Path:
    """The run directory, its table written."""
    from reports.tables import write_table
    from workbench.analyses.attention.patterns import attention_patterns
    from workbench.analyses.attention.statistics import attention as measure
    from workbench.models.weights import weights_sha256
    from workbench.runs import open_run

    name, trained_with = identify(ckpt, model, config["seed"])
    record = {"verb": "attention", "ckpt": ckpt, "model": weights_sha256(model), "tokens": digest(tokens)} | config
    with open_run(out, record, resume=resume, device=model.cfg.device, seed=config["seed"]) as run:
        if not run.is_complete:
            with progress("attention") as tell:
                table = measure(model, tokens, name=name, on_progress=tell, **config)
            write_table(table.assign(seed=trained_with), run.path, "attention_stats")
            maps = attention_patterns(model, tokens, config["layers"], seed=trained_with, name=name)
            write_table(maps, run.path, "attention_patterns")
    return run.out
