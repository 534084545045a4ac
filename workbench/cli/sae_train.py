"""`workbench sae-train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli import options
from workbench.cli.cli_args import identify, parse_list, parse_overrides
from workbench.cli.errors import UsageError
from workbench.cli.output import progress, report

N_TOKENS = 1_000_000  # trained on unless told otherwise
DEFAULT_L1 = 2.0
L1 = Annotated[
    str | None,
    typer.Option(
        "--l1",
        help="Sparsity coefficients, such as 1,2,4.",
        metavar="LIST",
        show_default="2; of topk and batchtopk SAEs 0",
    ),
]
NTokens = Annotated[
    int | None,
    typer.Option(
        "--n-tokens",
        help="Tokens to train on.",
        min=1,
        max=2**63 - 1,
        show_default="1,000,000, or as many as --shards has",
    ),
]
IncludeSpecial = Annotated[
    bool,
    typer.Option(
        "--include-special",
        help="Train and measure on position 0 of each window and on special tokens as well.",
        show_default="they are left out",
    ),
]


def sae_train(
    ckpt: options.Checkpoint,
    out: options.Out = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", "--layer", help="Layers, such as 0,2,5-7.", metavar="LIST", show_default="all"),
    ] = None,
    heads: Annotated[str, typer.Option("--heads", help="all, or heads such as 0,2,5-7.", metavar="LIST")] = "all",
    l1: L1 = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Seeds of the SAEs, such as 0-2.", metavar="LIST")] = "0",
    hook: Annotated[
        str,
        typer.Option("--hook", help="z (one SAE per head), z_concat, or a hook of the block such as hook_resid_post."),
    ] = "z",
    normalize: Annotated[
        str,
        typer.Option(
            "--normalize", help="mean_norm (inputs scaled to a common mean norm, folded into the weights) or none."
        ),
    ] = "mean_norm",
    data: options.Data = "embedded",
    shards: Annotated[
        Path | None,
        typer.Option("--shards", help="Train on the activations of a harvest --split train instead of on text."),
    ] = None,
    n_tokens: NTokens = None,
    n_eval_tokens: Annotated[
        int, typer.Option("--n-eval-tokens", help="Held-out tokens to measure on.", min=1)
    ] = 106_496,
    n_ctx: options.NCtx = None,
    include_special: IncludeSpecial = False,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    settings: options.Settings = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train SAEs for every head at once from one pass of the model; --set takes batch_size, lr, expansion and more."""
    from workbench.analyses.sae_train.head_saes import sae_train as run
    from workbench.models.load import load

    overrides = parse_overrides(settings)
    found = _open(shards)
    n_tokens = n_tokens or (N_TOKENS if found is None else found.n_tokens)
    own = {"hook": hook, "normalize": normalize, "n_train_tokens": n_tokens, "include_special": include_special}
    for key, option in zip(own, ("--hook", "--normalize", "--n-tokens", "--include-special"), strict=True):
        if key in overrides:  # or the option's default would silently win
            raise UsageError(f"set: {key} has an option of its own; expected {option}")
    overrides |= own
    chosen_heads = "all" if heads == "all" else parse_list(heads, "--heads")
    chosen = {"layers": parse_list(layers, "--layers"), "heads": chosen_heads, "l1": _coefficients(l1, overrides)}
    chosen["seeds"] = parse_list(seeds, "--seeds")
    model = load(ckpt, device, dtype)
    if dry_run:
        report(as_json=as_json, facts=_plan(model, chosen, overrides, _width(model, n_ctx), found))
        return
    name, model_seed = identify(ckpt, model, 0)
    tokens, held_out = _texts(model, data, n_tokens, n_eval_tokens, n_ctx)
    target = out or Path("runs/sae-train")
    common = {"name": name, "model_seed": model_seed, "held_out": held_out, "out": target, "resume": resume}
    with progress("SAEs") as tell:
        source = tokens if shards is None else shards
        _, table = run(model, source, on_progress=tell, **common, **chosen, **overrides)
    report(as_json=as_json, out=target.absolute(), table=table)


def _open(shards: Path | None):
    """The harvest to train on, if there is one; its index is read before any model is."""
    from workbench.data.shards import open_shards

    return None if shards is None else open_shards(shards)


def _plan(model, chosen: dict, overrides: dict, width: int, shards) -> dict:
    """What `sae_train` would take."""
    from workbench.analyses.sae_train.settings import estimate, make_plan, parse_settings

    own = parse_settings(overrides)
    largest = None if shards is None else max(shard.bytes for shard in shards.shards)
    return estimate(model, make_plan(model, settings=own, **chosen), own, width, largest)


def _coefficients(l1: str | None, overrides: dict) -> list[float]:
    """Those given, or the default's: none beside a k, which alone makes SAEs sparse."""
    if l1 is None:
        return [0.0] if overrides.get("architecture") in ("topk", "batchtopk") else [DEFAULT_L1]
    return _numbers(l1, "--l1")


def _numbers(text: str, what: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{what}: got {text!r}; expected numbers such as 1,2,4") from None


def _texts(model, data: str, n_tokens: int, n_eval_tokens: int, n_ctx: int | None):
    """(windows to train on, windows to measure on): of the text's two parts, as many tokens as asked for, or all."""
    from workbench.data.corpus import as_trained, read_parts
    from workbench.data.tokens import held_out_windows, pack_cached
    from workbench.models.tokenizer_files import separator_text

    if model.tokenizer is None:
        raise ValueError("data: this model has no tokenizer; expected a model with one")
    width = _width(model, n_ctx)
    parts = []
    split = read_parts(as_trained(data, model.trained_on), separator_text(model.tokenizer))
    for part, n in zip(split, (n_tokens, n_eval_tokens), strict=True):
        packed = pack_cached(part, model.tokenizer)
        parts.append(held_out_windows(packed, width, max(1, n // width)))
    return parts


def _width(model, n_ctx: int | None) -> int:
    """Tokens a window: as given, or the model's context, at most 512."""
    from workbench.data.text_windows import MAX_N_CTX

    return n_ctx or min(model.cfg.n_ctx, MAX_N_CTX)
