"""`workbench topology`."""

from __future__ import annotations

from pathlib import Path

from workbench.cli import options
from workbench.cli.output import progress, report
from workbench.cli.reading import check_selection, digest, open_subject, parse_list


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
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Redundancy of heads on z, pattern and residual, and ranks of z, for each layer."""
    import pandas as pd

    from reports.tables import read_table, write_table
    from workbench.experiments.topology import topology_tables
    from workbench.runs import open_run

    chosen = parse_list(layers, "--layers")
    subjects = [(name, *open_subject(name, device, dtype, data, n_sequences, n_ctx, seed)) for name in ckpt]
    for _, model, _ in subjects:
        check_selection(model, chosen)
    names = [model.cfg.model_name if len(ckpt) == 1 else Path(path).name for path, model, _ in subjects]
    config = {
        "verb": "topology",
        "ckpt": ckpt,
        "layers": chosen,
        "seed": seed,
        "tokens": [digest(t) for *_, t in subjects],
    }
    with open_run(out or Path("runs/topology"), config, resume=resume, seed=seed) as run:
        if not run.is_complete:
            stats, cosines = [], []
            for (_, model, tokens), name in zip(subjects, names, strict=True):
                with progress(f"topology of {name}") as tell:
                    parts = topology_tables(model, tokens, chosen, seed=seed, name=name, on_progress=tell)
                stats.append(parts[0])
                cosines.append(parts[1])
            write_table(pd.concat(stats), run.path, "topology_stats")
            write_table(pd.concat(cosines), run.path, "head_cosines")
    report(as_json=as_json, out=run.out, table=read_table(run.out, "topology_stats"))
