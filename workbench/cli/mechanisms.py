"""`workbench mechanisms`."""

from __future__ import annotations

from pathlib import Path

from workbench.cli import options
from workbench.cli.cli_args import digest, identify, read_texts
from workbench.cli.output import progress, report


def mechanisms(
    ckpt: options.Checkpoint,
    out: options.Out = None,
    data: options.AnyText = "embedded",
    split: options.Split = "held_out",
    max_bytes: options.MaxBytes = 200_000,
    n_ctx: options.WholeNCtx = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Bits per byte of a recurrent model with each of its mechanisms turned off in turn."""
    from reports.tables import read_table, write_table
    from workbench.analyses.evaluate import encode_text, plan_evaluation
    from workbench.analyses.mechanisms import mechanisms as measure
    from workbench.analyses.mechanisms import switched_on
    from workbench.models.load import load
    from workbench.models.weights import weights_sha256
    from workbench.runs import open_run

    model = load(ckpt, device, dtype)
    found = switched_on(model)
    texts = read_texts(data, split, max_bytes, model.trained_on, model.tokenizer)
    encoded = encode_text(model.tokenizer, texts)
    facts = plan_evaluation(model, encoded, n_ctx, None, False, n_times=1 + len(found))
    if dry_run:
        report(as_json=as_json, facts=facts | {"mechanisms": ", ".join(found)})
        return
    name, own_seed = identify(ckpt, model, seed)
    record = {
        "verb": "mechanisms",
        "ckpt": ckpt,
        "model": weights_sha256(model),
        "tokens": digest(encoded.tokens),
        "n_ctx": facts["n_ctx"],
        "seed": seed,
    }
    with open_run(out or Path("runs/mechanisms"), record, resume=resume, device=model.cfg.device, seed=seed) as run:
        if not run.is_complete:
            with progress(f"mechanisms of {name}") as tell:
                table = measure(model, texts, n_ctx=facts["n_ctx"], seed=seed, name=name, on_progress=tell)
            write_table(table.assign(seed=own_seed), run.path, "mechanisms")
    report(as_json=as_json, out=run.out, table=read_table(run.out, "mechanisms"))
