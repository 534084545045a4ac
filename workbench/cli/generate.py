"""`workbench generate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    sae: options.SAEs = None,
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
    monitor: Annotated[
        str | None,
        typer.Option(
            "--monitor",
            help="A monitor that `workbench monitor` wrote: armed on every continuation, it logs where it fires, "
            "stops, ablates or steers, as it was made to. A monitor of a feature needs --sae.",
            metavar="FILE",
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Devices = "auto",
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Sample continuations of prompts."""
    if not steer:
        unused = ("how",) if monitor else ("sae", "how")
        refuse_unused(ctx, *unused, where="no --steer", expected="a --steer, such as --steer 2.1.37:4")
    elif sae is None:
        raise UsageError("--steer: got no --sae; expected the source of its SAEs")
    if temperature == 0:
        refuse_unused(ctx, "top_k", "top_p", "seed", where="with --temperature 0", expected="a temperature above 0")
    rows = _write(
        ckpt, device, dtype, prompts, n_samples, max_new_tokens, seed, monitor, sae, steer or [], how,
        temperature=temperature, top_k=top_k, top_p=top_p,
    )  # fmt: skip
    if as_json:
        import pandas as pd

        report(as_json=True, table=pd.DataFrame(rows))
        return
    for row in rows:
        typer.echo(f"{row['prompt']}{row['continuation']}{_say(row)}\n")


def _write(
    ckpt: str,
    device: str,
    dtype: str | None,
    prompts: list[str],
    n_samples: int,
    max_new_tokens: int,
    seed: int,
    monitor: str | None,
    sae: str | None,
    steer: list[str],
    how: How,
    **settings: Any,
) -> list[dict[str, Any]]:
    """A row for each continuation, with what a monitor saw of it."""
    import torch

    from workbench.models.generate import generate as sample
    from workbench.models.load import load
    from workbench.models.tokenizer_files import decode_continuation, stop_ids

    watched = None if monitor is None else _read_monitor(monitor, sae)
    model = load(ckpt, device, dtype)
    generator = torch.Generator().manual_seed(seed)
    gate = None if watched is None else _open_gate(model, watched, sae)
    rows = []
    with _steering(model, sae if steer else None, steer, how):
        for prompt in prompts:
            tokens = model.to_tokens(prompt, truncate=False).repeat(n_samples, 1)
            given = {"stop_at": stop_ids(model), "generator": generator, "gate": gate, **settings}
            grown = sample(model, tokens, max_new_tokens, **given)
            read, seen = tokens.shape[1], [{}] * n_samples if gate is None else _describe(gate)
            for i, (row, own) in enumerate(zip(grown.tolist(), seen, strict=True)):
                end = read + own["fired_at"] if own.get("action") == "stop" and own["fired_at"] is not None else None
                text = decode_continuation(model.tokenizer, row[:read], row[read:end])
                rows.append({"prompt": prompt, "sample": i, "continuation": text, **own})
    return rows


def _read_monitor(file: str, source: str | None) -> Any:
    """The monitor of a file; of a feature, a source of SAEs must be there."""
    from workbench.models.monitors import Monitor

    own = Monitor.load(file)
    if own.feature is not None and source is None:
        raise UsageError(
            f"--monitor: got no --sae for feature {own.feature} of {own.hook}; expected the source of its SAEs"
        )
    return own


def _open_gate(model: Any, monitor: Any, source: str | None) -> Any:
    """The monitor armed on the model; of a feature with the source's SAEs."""
    from workbench.models.gates import Gate

    if monitor.feature is None:
        return Gate(model, monitor)
    assert source is not None
    from workbench.analyses.sae_train.head_saes import one_a_slot
    from workbench.analyses.sae_train.loading import check_saes, open_saes

    stack = one_a_slot(open_saes(source)).to(model.cfg.device)
    check_saes(model, stack)
    return Gate(model, monitor, stack)


def _describe(gate: Any) -> list[dict[str, Any]]:
    """What the gate saw of each continuation: the action, the new token before which it fired, and its score there."""
    found, rows = gate.firings, []
    for step, pooled in zip(found.step.tolist(), found.pooled.tolist(), strict=True):
        own = (None, None) if step < 0 else (step, pooled)
        rows.append({"action": gate.monitor.action, "fired_at": own[0], "score": own[1]})
    return rows


def _say(row: dict[str, Any]) -> str:
    if "fired_at" not in row:
        return ""
    if row["fired_at"] is None:
        return "\n[monitor: did not fire]"
    return f"\n[monitor: fired before new token {row['fired_at']}, score {row['score']:.3g}; {row['action']}]"


@contextmanager
def _steering(model: Any, source: str | None, wanted: list[str], how: How) -> Iterator[None]:
    """Inside, the model is steered by these features of the source's SAEs, whose constants are measured first."""
    if source is None:
        yield
        return
    from workbench.analyses.sae_train.head_saes import one_a_slot
    from workbench.analyses.sae_train.loading import check_saes, open_saes
    from workbench.data.text_windows import spread_windows
    from workbench.models.steering import measure_constants, parse_steering, steered

    features = [parse_steering(own) for own in wanted]
    stack = one_a_slot(open_saes(source)).to(model.cfg.device)
    check_saes(model, stack)
    tokens = spread_windows(model, None, n_tokens=N_MEASURED)
    measured = [measure_constants(model, stack, feature, tokens) for feature, _ in features]
    with ExitStack() as entered:
        for (feature, alpha), own in zip(features, measured, strict=True):
            entered.enter_context(steered(model, stack, feature, how, alpha, **own._asdict()))
        yield
