"""`workbench attention`."""

from __future__ import annotations

from pathlib import Path

from workbench.cli import options
from workbench.cli.output import progress, report
from workbench.cli.reading import check_selection, digest, open_subject, parse_list


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
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Entropy, mass on position 0, induction and previous-token scores of every head."""
    from reports.tables import read_table, write_table
    from workbench.experiments.attention import attention as measure
    from workbench.runs import open_run

    chosen = parse_list(layers, "--layers")
    model, tokens = open_subject(ckpt, device, dtype, data, n_sequences, n_ctx, seed)
    check_selection(model, chosen)
    config = {"verb": "attention", "ckpt": ckpt, "layers": chosen, "seed": seed, "tokens": digest(tokens)}
    with open_run(out or Path("runs/attention"), config, resume=resume, seed=seed) as run:
        if not run.is_complete:
            with progress("attention") as tell:
                table = measure(model, tokens, chosen, seed=seed, on_progress=tell)
            write_table(table, run.path, "attention_stats")
    report(as_json=as_json, out=run.out, table=read_table(run.out, "attention_stats"))
