"""`workbench generate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from workbench.cli import options
from workbench.cli.errors import UsageError, refuse_unused
from workbench.cli.output import report

How = Literal["norm", "max_act", "clamp", "remove"]
N_MEASURED = 8192  # held-out tokens that the constants of steering are measured on


def generate(
    ctx: typer.Context,
    prompts: Annotated[list[str], typer.Argument(help="Text to continue.", metavar="PROMPT...")],
    ckpt: options.Checkpoint,
    n_samples: Annotated[int, typer.Option("--n-samples", help="Continuations per prompt.", min=1)] = 1,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Tokens to add.", min=1)] = 60,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Sampling temperature; 0 takes the likeliest token.", min=0)
    ] = 0.7,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Sample from this many of the likeliest tokens.", min=1)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Sample from the likeliest tokens that hold this much probability.")
    ] = None,
    sae: Annotated[
        Path | None, typer.Option("--sae", help="SAEs by which to steer: of sae-train, or its sae/NAME.", metavar="DIR")
    ] = None,
    steer: Annotated[
        list[str] | None,
        typer.Option(
            "--steer",
            help="Push activations along a feature of --sae by ALPHA, from position 1 on; HEAD is all where an SAE "
            "reads a whole hook. Repeatable.",
            metavar="LAYER.HEAD.FEATURE:ALPHA",
        ),
    ] = None,
    how: Annotated[
        How,
        typer.Option(
            "--how",
            help="What ALPHA is a multiple of: norm, the mean length of activations; max_act, the feature's largest "
            "activation; clamp, the same, which its activation is set to; remove takes the direction out, whatever "
            "ALPHA. Lengths and activations are those on held-out text.",
        ),
    ] = "max_act",
    seed: options.Seed = 0,
    device: options.Devices = "auto",
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Sample continuations of prompts."""
    if not steer:
        refuse_unused(ctx, "sae", "how", where="no --steer", expected="a --steer, such as --steer 2.1.37:4")
    elif sae is None:
        raise UsageError("--steer: got no --sae; expected the directory of its SAEs")
    if temperature == 0:
        refuse_unused(ctx, "top_k", "top_p", "seed", where="with --temperature 0", expected="a temperature above 0")
    import pandas as pd
    import torch

    from workbench.models.generate import generate as sample
    from workbench.models.load import load
    from workbench.models.tokenizer_files import decode_continuation, stop_ids

    model = load(ckpt, device, dtype)
    generator = torch.Generator().manual_seed(seed)
    settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    rows = []
    with _steering(model, sae, steer or [], how):
        for prompt in prompts:
            tokens = model.to_tokens(prompt, truncate=False).repeat(n_samples, 1)
            grown = sample(model, tokens, max_new_tokens, stop_at=stop_ids(model), generator=generator, **settings)
            read = tokens.shape[1]
            texts = [decode_continuation(model.tokenizer, row[:read], row[read:]) for row in grown.tolist()]
            rows += [{"prompt": prompt, "sample": i, "continuation": text} for i, text in enumerate(texts)]
    if as_json:
        report(as_json=True, table=pd.DataFrame(rows))
        return
    for row in rows:
        typer.echo(f"{row['prompt']}{row['continuation']}\n")


@contextmanager
def _steering(model: Any, directory: Path | None, wanted: list[str], how: How) -> Iterator[None]:
    """Inside, the model is steered by these features of the directory's SAEs, whose constants are measured first."""
    if directory is None:
        yield
        return
    from workbench.analyses.sae_train.head_saes import find_stack, one_a_slot
    from workbench.data.text_windows import spread_windows
    from workbench.models.steering import measure_constants, parse_steering, steered

    features = [parse_steering(own) for own in wanted]
    stack = one_a_slot(find_stack(directory)).to(model.cfg.device)
    tokens = spread_windows(model, None, n_tokens=N_MEASURED)
    measured = [measure_constants(model, stack, feature, tokens) for feature, _ in features]
    with ExitStack() as entered:
        for (feature, alpha), own in zip(features, measured, strict=True):
            entered.enter_context(steered(model, stack, feature, how, alpha, **own._asdict()))
        yield
