"""`workbench ablate`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli import options
from workbench.cli.cli_args import check_selection, digest, identify, parse_list, parse_settings
from workbench.cli.errors import UsageError, refuse_unused
from workbench.cli.output import progress, report

LOSSES, PAIR_LOSSES = "sequence_losses.safetensors", "pair_losses.safetensors"
COMPONENTS = ("head", "layer", "mlp")
Pairs = Annotated[
    str | None,
    typer.Option(
        "--pairs",
        help="Pairs of heads too: within (all pairs of each layer), or LAYER.HEAD pairs such as 0.1+0.3,2.0+3.1.",
        metavar="LIST",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="Dtype to run in; the error that bfloat16 or float16 brings to the impacts is measured.",
        show_default="float32",
    ),
]


def ablate(
    ctx: typer.Context,
    ckpt: options.Checkpoint,
    out: options.Out = None,
    layers: options.Layers = None,
    heads: options.Heads = None,
    components: Annotated[
        str, typer.Option("--components", help="What to ablate: any of head,layer,mlp.", metavar="LIST")
    ] = "head",
    pairs: Pairs = None,
    kind: Annotated[str, typer.Option("--kind", help="zero, mean or resample.")] = "zero",
    n_resamples: Annotated[
        int, typer.Option("--n-resamples", help="With --kind resample: donor sequences for each sequence.", min=1)
    ] = 1,
    memory_gib: Annotated[
        float, typer.Option("--memory-gib", help="Memory to use besides the weights, GiB.", min=0, max=1e6)
    ] = 1.0,
    data: options.Data = "embedded",
    n_sequences: options.NSequences = 64,
    n_ctx: options.NCtx = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: Dtype = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    settings: options.Settings = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Impact of every head on the loss, with intervals; also of layers, MLPs and pairs of heads."""
    if kind not in ("zero", "mean", "resample"):
        raise UsageError(f"--kind: got {kind!r}; expected zero, mean or resample")
    if kind != "resample":
        refuse_unused(ctx, "n_resamples", where=f"with --kind {kind}", expected="--kind resample")
    chosen = _parse_components(components)
    given_pairs = _parse_pairs(pairs)
    if "head" not in chosen and given_pairs != "within":
        refuse_unused(ctx, "heads", where=f"with --components {components}", expected="head among --components")
    selection = parse_list(layers, "--layers"), parse_list(heads, "--heads")
    from reports.tables import read_table
    from workbench.analyses.ablate.ablation import ablate as function
    from workbench.analyses.ablate.impacts import check_bootstrap
    from workbench.analyses.ablate.pairs import pairs_within_layers
    from workbench.analyses.ablate.precision import in_precision
    from workbench.analyses.plan import plan_ablation
    from workbench.data.text_windows import analysis_tokens, window_length
    from workbench.models.load import load

    taken = ("components", "n_resamples", "memory_budget_bytes", "name", "dtype")
    extra = parse_settings(settings, function, taken)
    limits = {"n_resamples": n_resamples, "memory_budget_bytes": int(memory_gib * (1 << 30))}
    model = load(ckpt, device)
    subject = in_precision(model, dtype)
    check_selection(model, *selection)
    check_bootstrap(extra.get("n_bootstrap", 100))
    wanted: Any = pairs_within_layers(model, *selection) if given_pairs == "within" else given_pairs
    config: dict[str, Any] = {"layers": selection[0], "heads": selection[1], "components": chosen, "pairs": pairs}
    config |= {"kind": kind, "seed": seed, "dtype": dtype} | limits | extra
    if dry_run:
        shape = n_sequences, window_length(model, n_ctx)
        facts = plan_ablation(subject, *shape, *selection, components=chosen, **limits)
        report(as_json=as_json, facts=facts | ({"n_pairs": len(wanted)} if wanted is not None else {}))
        return
    tokens = analysis_tokens(model, data, n_sequences=n_sequences, n_ctx=n_ctx, seed=seed)
    path = _run(ckpt, (model, subject), tokens, config, wanted, out or Path("runs/ablate"), resume)
    report(as_json=as_json, out=path, table=read_table(path, "ablation_results"), facts=_facts(path))


def _parse_components(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",")]
    if set(chosen) - set(COMPONENTS) or len(set(chosen)) < len(chosen):
        raise UsageError(f"--components: got {text!r}; expected some of {','.join(COMPONENTS)}, each once")
    return chosen


def _parse_pairs(text: str | None) -> str | list[tuple[tuple[int, int], tuple[int, int]]] | None:
    """ "within", or the pairs of "0.1+0.3,2.0+3.1" as ((layer, head), (layer, head))."""
    if text is None or text.strip() == "within":
        return text and "within"
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\.(\d{1,6})\s*\+\s*(\d{1,6})\.(\d{1,6})\s*", part)
        if match is None:
            raise UsageError(f"--pairs: got {part.strip()!r}; expected within, or pairs such as 0.1+0.3,2.0+3.1")
        a, b, c, d = map(int, match.groups())
        found.append(((a, b), (c, d)))
    return found


def _facts(path: Path) -> dict[str, Any]:
    """What the tables say in a few words."""
    from reports.tables import read_table

    table: Any = read_table(path, "ablation_results")
    summary: Any = read_table(path, "ablation_summary")
    overall = summary[summary["layer"] == -1].set_index("measure")["value"]
    facts: dict[str, Any] = {}
    if "load_bearing_p" in overall:
        top = table.loc[table[table["head"] >= 0]["impact_pct"].idxmax()]
        facts["top_head"] = f"{top['layer']}.{top['head']}"
        facts["load_bearing_p"] = float(overall["load_bearing_p"])
    if "rank_correlation" in overall:
        facts["estimate_rank_correlation"] = float(overall["rank_correlation"])
    if table["error_pct"].notna().any():
        facts["largest_error_pct"] = float(table["error_pct"].max())
    return facts


def _run(
    ckpt: str, models: tuple[Any, Any], tokens: Any, config: dict[str, Any], pairs: Any, out: Path, resume: bool
) -> Path:
    """The run directory, its tables and its losses of each sequence written."""
    from reports.tables import write_table
    from workbench.analyses.ablate.ablation import ablation_table, check_ablation, rounding_errors, summary_table
    from workbench.analyses.ablate.pairs import check_pairs, join_pairs, pairs_table
    from workbench.models.weights import weights_sha256
    from workbench.runs import open_run

    model, subject = models
    # before there is a directory
    selected = ("layers", "heads", "kind", "components", "n_resamples", "memory_budget_bytes")
    check_ablation(subject, tokens, **{key: config[key] for key in selected})
    if pairs is not None:
        check_pairs(subject, tokens, pairs, **{key: config[key] for key in ("kind", *selected[-2:])})
    name, trained_with = identify(ckpt, model, config["seed"])
    record = {"verb": "ablate", "ckpt": ckpt, "model": weights_sha256(model), "tokens": digest(tokens)} | config
    with open_run(out, record, resume=resume, device=model.cfg.device, seed=config["seed"]) as run:
        if not run.is_complete:
            engine = {k: v for k, v in config.items() if k not in ("n_bootstrap", "pairs", "dtype")}
            with progress(f"{config['kind']} ablation") as tell:
                losses = _losses(run.path, subject, tokens, engine, tell)
            errors = rounding_errors(model, subject, tokens, losses, **engine)
            about: dict[str, Any] = {k: v for k, v in config.items() if k in ("kind", "seed", "n_bootstrap")} | {
                "name": name
            }
            table = ablation_table(losses, tokens.shape[1], **about, dtype=subject.cfg.dtype, errors=errors)
            table = table.assign(seed=trained_with)
            write_table(table, run.path, "ablation_results")
            write_table(summary_table(table, losses, config["seed"]), run.path, "ablation_summary")
            _write(run.path / LOSSES, losses)
            if pairs is not None:
                with progress("pairs of heads") as tell:
                    both = join_pairs(_pair_losses(run.path, subject, tokens, pairs, engine, tell))
                table = pairs_table(both, tokens.shape[1], **about)
                write_table(table.assign(seed=trained_with), run.path, "ablation_pairs")
                _write(run.path / PAIR_LOSSES, both)
            for part in sorted(run.path.glob("part_*.safetensors"), reverse=True):
                part.unlink()
    return run.out


def _losses(directory: Path, model: Any, tokens: Any, engine: dict[str, Any], tell: Callable[[float], None]) -> Any:
    from workbench.analyses.ablate.ablation import iterate_ablation
    from workbench.analyses.ablate.records import SequenceLosses, join

    def go_on(start: int) -> Iterator[Any]:
        return iterate_ablation(model, tokens, start=start, on_progress=tell, **engine)

    return join(_batches(directory, "part_heads", SequenceLosses, len(tokens), go_on))


def _pair_losses(
    directory: Path, model: Any, tokens: Any, pairs: Any, engine: dict[str, Any], tell: Callable[[float], None]
) -> list[Any]:
    from workbench.analyses.ablate.pairs import PairLosses, iterate_pairs

    options = {k: v for k, v in engine.items() if k in ("kind", "seed", "n_resamples", "memory_budget_bytes")}

    def go_on(start: int) -> Iterator[Any]:
        return iterate_pairs(model, tokens, pairs, start=start, on_progress=tell, **options)

    return _batches(directory, "part_pairs", PairLosses, len(tokens), go_on)


def _batches(directory: Path, prefix: str, record: type, n: int, go_on: Callable[[int], Iterator[Any]]) -> list[Any]:
    """Losses of all n sequences, batch by batch, each batch kept as a file: where a killed run goes on."""
    from workbench.runs.resume_state import read_state, write_state

    parts, done = [], 0
    # a file is named for the sequences before it; behind a gap, which a kill leaves among removals, none is taken
    while (file := directory / f"{prefix}_{done:09d}.safetensors").is_file():
        tensors, _ = read_state(file)
        parts.append(record(**tensors))
        done += len(parts[-1].base)
    if done < n:
        for part in go_on(done):
            write_state(directory / f"{prefix}_{done:09d}.safetensors", asdict(part))
            done += len(part.base)
            parts.append(part)
    return parts


def _write(path: Path, losses: Any) -> None:
    from workbench.analyses.ablate.records import to_bytes
    from workbench.runs import atomic_write

    atomic_write(path, to_bytes(losses))
