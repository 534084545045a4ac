"""`workbench evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.cli_args import digest, identify, read_texts
from workbench.cli.output import progress, report


def evaluate(
    ckpt: options.Checkpoint,
    out: options.Out = None,
    data: options.AnyText = "embedded",
    split: options.Split = "held_out",
    max_bytes: options.MaxBytes = None,
    n_ctx: options.WholeNCtx = None,
    stride: Annotated[int, typer.Option("--stride", help="Tokens that each sliding window scores.", min=1)] = 64,
    quantized: Annotated[
        bool,
        typer.Option("--int8/--no-int8", help="Also measure after an int8 + zlib round trip, with its size in bytes."),
    ] = True,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Bits per byte of any text, with plain and sliding windows, before and after int8 quantization."""
    from reports.tables import read_table
    from workbench.analyses.evaluate import encode_text, plan_evaluation
    from workbench.models.load import load

    model = load(ckpt, device, dtype)
    texts = read_texts(data, split, max_bytes, model.trained_on, model.tokenizer)
    encoded = encode_text(model.tokenizer, texts)
    facts = plan_evaluation(model, encoded, n_ctx, stride, quantized)
    if dry_run:
        report(as_json=as_json, facts=facts)
        return
    settings = {"n_ctx": facts["n_ctx"], "stride": stride, "quantized": quantized, "seed": seed}
    record = settings | {"verb": "evaluate", "ckpt": ckpt, "tokens": digest(encoded.tokens)}
    path = _run(ckpt, model, texts, record, out or Path("runs/evaluate"), resume)
    report(as_json=as_json, out=path, table=read_table(path, "evaluation"))


def _run(ckpt: str, model: Any, texts: list[str], record: dict[str, Any], out: Path, resume: bool) -> Path:
    """The run directory, the table and the packed model written."""
    from reports.tables import write_table
    from workbench.analyses.evaluate import evaluate as measure
    from workbench.models.weights import weights_sha256
    from workbench.runs import atomic_write, open_run
    from workbench.training.quantization import pack_model

    name, seed = identify(ckpt, model, record["seed"])
    record = record | {"model": weights_sha256(model)}
    with open_run(out, record, resume=resume, device=model.cfg.device, seed=seed) as run:
        if not run.is_complete:
            settings = {key: record[key] for key in ("n_ctx", "stride", "quantized")}
            with progress(f"bits per byte of {name}") as tell:
                table = measure(model, texts, **settings, seed=record["seed"], name=name, on_progress=tell)
            if record["quantized"]:
                atomic_write(run.path / "model.int8.zlib", pack_model(model))
            write_table(table.assign(seed=seed), run.path, "evaluation")
    return run.out
