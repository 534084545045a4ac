"""`workbench topology`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.cli import options
from workbench.cli.cli_args import check_selection, digest, identify_all, parse_list
from workbench.cli.output import progress, report


def topology(
    ckpt: options.Checkpoints,
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
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Redundancy of heads and ranks of z, layer by layer; effective sizes where several models are given."""
    chosen = parse_list(layers, "--layers")
    from reports.tables import read_table
    from workbench.analyses.plan import plan_reading
    from workbench.analyses.topology import read_heads
    from workbench.data.text_windows import analysis_tokens, window_length
    from workbench.models.load import load

    models = [load(path, device, dtype) for path in ckpt]
    for model in models:
        check_selection(model, chosen)
    if dry_run:
        every = range(models[0].cfg.n_layers) if chosen is None else chosen
        length = window_length(models[0], n_ctx)
        facts = plan_reading(models[0], n_sequences, length, lambda tokens: read_heads(models[0], tokens, every))
        report(as_json=as_json, facts=facts | {"n_models": len(models)})
        return
    texts = [analysis_tokens(m, data, n_sequences=n_sequences, n_ctx=n_ctx, seed=seed) for m in models]
    path = _run(ckpt, models, texts, {"layers": chosen, "seed": seed}, out or Path("runs/topology"), resume)
    report(as_json=as_json, out=path, table=read_table(path, "topology_stats"))


def _run(ckpts: list[str], models: list, texts: list, config: dict[str, Any], out: Path, resume: bool) -> Path:
    """The run directory, all tables of all models written."""
    import pandas as pd

    from reports.tables import write_table
    from workbench.analyses.topology import Size, effective_sizes, topology_tables
    from workbench.models.weights import weights_sha256
    from workbench.runs import open_run

    known = identify_all(ckpts, models, config["seed"])
    record = config | {
        "verb": "topology",
        "ckpt": ckpts,
        "model": [weights_sha256(m) for m in models],
        "tokens": [digest(t) for t in texts],
    }
    with open_run(out, record, resume=resume, device=models[0].cfg.device, seed=config["seed"]) as run:
        if not run.is_complete:
            pairs = []
            for (name, seed), model, tokens in zip(known, models, texts, strict=True):
                with progress(f"topology of {name}") as tell:
                    found = topology_tables(model, tokens, config["layers"], seed=seed, name=name, on_progress=tell)
                pairs.append(found)
            stats = pd.concat([stats for stats, _ in pairs])
            write_table(stats, run.path, "topology_stats")
            if len(models) > 1:
                sizes = effective_sizes(stats, [Size.of(model) for model in models])
                write_table(sizes, run.path, "effective_size")
            write_table(pd.concat([cosines for _, cosines in pairs]), run.path, "head_cosines")
    return run.out
