"""SAEs for every head at once: all chosen layers, heads, sparsity coefficients and seeds train as one stack, from one
forward pass of the model a batch of sequences."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from reports.tables import COLUMNS, read_table, write_table
from sae.config import SAESource, StackInfo
from sae.metrics import SAEMetrics, density_histogram, neighbour_cosines
from sae.stack import StackedSAE
from sae.train import StepStats, Trainer
from workbench.analyses.sae_train.comparison import pareto_table, stability_table
from workbench.analyses.sae_train.evaluation import (
    CONTROL_TOKENS,
    LeftOut,
    SpliceLosses,
    measure,
    random_control,
    recovered,
    splice,
)
from workbench.analyses.sae_train.plan import (
    CONTROL,
    RESAMPLE,
    SHUFFLE,
    START,
    Plan,
    make_plan,
    parse_settings,
    stack_config,
    train_config,
)
from workbench.analyses.sae_train.settings import HeadSaeSettings, shown_l1
from workbench.analyses.sae_train.shard_activations import (
    ShardActivations,
    check_shards,
    shard_sequences,
    shards_sha256,
)
from workbench.data.shards import Shards, open_shards
from workbench.models.activations import ShuffledActivations
from workbench.models.checks import checked_tokens, device_of
from workbench.models.tokenizer_files import tokenizer_of
from workbench.models.weights import weights_sha256
from workbench.runs import open_run, verify_files
from workbench.runs.resume_state import read_state, write_state
from workbench.training.interrupts import Interrupted, StopRequest, stop_requests

STACK, CURVES, STATE = "sae", "sae_curves", "train_state.safetensors"  # names within a run directory
NOT_ITS_OWN = frozenset({"layers", "heads", "l1", "seeds", "shards", "n_eval_tokens"})  # said in other words
NEAR_COPY = 0.9  # cosine with another feature's decoder row above which a feature is its near-copy
N_SAVES, N_CURVE_ROWS = 10, 100  # times that a run with a directory saves its state; points of a curve


def sae_train(
    model: Any,
    tokens: Int[Tensor, "n_sequences n_ctx"] | str | Path,
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | str = "all",
    l1: Sequence[float] | ArrayLike | None = None,
    seeds: Sequence[int] | ArrayLike | None = None,
    out: str | Path | None = None,
    *,
    held_out: Int[Tensor, "n_held_out n_ctx"] | None = None,
    name: str | None = None,
    model_seed: int = 0,
    resume: bool = False,
    on_progress: Callable[[float], None] | None = None,
    **settings: Any,
) -> tuple[StackedSAE, pd.DataFrame]:
    """The trained stack, and the table sae_training_results with a row for every SAE and each of its controls.

    SAEs are ordered by layer, head, l1 and seed; `stack.info.sources` says which is which. They take the hook's
    activations as they are (with normalize = "mean_norm" the scale is folded into the weights at the end). Rows
    have `dictionary` = trained, random (as sparse as the trained one) or shuffled (the trained one on shuffled
    activations, of which 32,768 tokens are measured; its losses are nan, as it stands for no activation of the model),
    and the trailing columns
    explained_variance, sae_seed, hook, n_ce_tokens, ce_zero_stderr and ce_spliced_stderr (of ce_zero − ce_base and
    ce_spliced − ce_base, paired over sequences), fvu_with_special, n_left_out, n_outlying and n_outlying_left_out.

    Trained, measured and replaced are activations at all positions of a window but the first and those of special
    tokens (with include_special: at all), since most models rest their attention on these and their activations are
    many times as long as others: a mean or an fvu with them would say little of anything else. fvu_with_special is the
    fvu of all held-out activations, the n_left_out at those positions among them; n_outlying counts those of them that
    are longer than three times the median, n_outlying_left_out how many of these are at the positions left out.
    neighbour_cosine is the median, over features that fire on held-out tokens, of the cosine of a decoder row with the
    nearest other's, near_copy_share the share of them for which it is above .9. Where more than half are, a warning
    says so: such a dictionary is near-copies of few directions.

    With `out`, a run directory is written: sae/ (StackedSAE.load reads it), the table, sae_density.csv, sae_curves.csv;
    with several l1 sae_pareto.csv, with several seeds sae_stability.csv (see `sae_comparison`). A run that is
    interrupted or killed continues with resume = True, bit for bit on the same device with the same number of threads.

    Args:
        model: a HookedLM, or a TransformerLens model: a HookedTransformer or a TransformerBridge.
        tokens: what to train on, or the directory of a `harvest` of this model, whose activations are then read
            instead, in their stored order. A harvest needs held_out, from text that was not harvested.
        layers, heads: all by default.
        l1: sparsity coefficient ≥ 0, or several, which make a sweep. See `HeadSaeSettings.normalize` for their unit. By
            default 2, and 0 for topk, batchtopk and matryoshka: k alone makes those sparse, and a penalty would only
            shrink what is kept.
        seeds: one or several, by default 0, for the initial weights of the SAEs and for resampling. The order of tokens
            is the same for all, so that an SAE comes out the same whatever it is trained together with.
        held_out: what to measure on; by default the last tenth of `tokens`, which is then not trained on.
        name, model_seed: fill the columns model and seed; the name in the model's config by default.
        on_progress: called with the share done, 0 to 1.
        settings: the other fields of `HeadSaeSettings`; with n_train_tokens = None, which is the default here, as many
            tokens are trained on as are given.

    Raises:
        ValueError: an unknown or unfit setting, an l1 other than 0 beside a k, layers or heads out of range, tokens
            that do not fit the model, too few of them, nan activations (hook and batch named), a directory in the way,
            or shards that are altered (shard named), of another model, or of held-out text.
        Interrupted: after SIGINT or SIGTERM, with `out`; the state is saved.
    """
    if unread := sorted(NOT_ITS_OWN & settings.keys()):
        raise ValueError(f"sae_train: got {', '.join(unread)}; expected tokens and held_out, which say it")
    shards = {"shards": tokens} if isinstance(tokens, str | Path) else {}
    own = parse_settings({"n_train_tokens": None} | settings | shards)
    plan = make_plan(
        model, layers, heads, own.l1 if l1 is None else l1, own.seeds if seeds is None else seeds, own
    )  # fmt: skip
    source, held_out = split_tokens(model, tokens, held_out)
    called = str(name or model.cfg.model_name)
    job = HeadSaeJob(model, source, held_out, plan, own, called, model_seed, on_progress or _silent)
    if out is None:
        stack, _ = job.train(None)
        return stack, job.tables(stack)["sae_training_results"]
    with open_run(out, job.config(), resume=resume, device=str(device_of(model)), seed=plan.seeds[0]) as run:
        if not run.is_complete:
            for table, df in measure_in(run.path, job).items():
                write_table(df, run.path, table)
    return StackedSAE.load(Path(out) / STACK), read_table(out, "sae_training_results")


def measure_in(directory: Path, job: HeadSaeJob) -> dict[str, pd.DataFrame]:
    """All tables of a job; its stack is saved in the directory, and its state until then. From both it goes on after a
    kill: no step of a stack that is there is trained again."""
    if (directory / STACK).is_dir() and not (directory / STATE).exists():
        stack, curves = StackedSAE.load(directory / STACK), read_table(directory, CURVES)
    else:
        stack, curves = job.train(directory)
        write_table(curves, directory, CURVES)
        stack.save(directory / STACK, overwrite=True)
        (directory / STATE).unlink()
    return {**job.tables(stack.to(device_of(job.model))), CURVES: curves}


def split_tokens(
    model: Any, tokens: Int[Tensor, "n n_ctx"] | str | Path, held_out: Int[Tensor, "m n_ctx"] | None
) -> tuple[Int[Tensor, "n_train n_ctx"] | Shards, Int[Tensor, "n_eval n_ctx"]]:
    """(tokens or shards to train on, tokens to measure on): as given, or the last tenth of the tokens held out.

    Raises ValueError for tokens that do not fit the model, a single sequence or shards with none held out, and shards
    that `check_shards` refuses.
    """
    if held_out is not None:
        held_out = checked_tokens("sae_train: held_out", model, held_out, min_ctx=2)
    if isinstance(tokens, str | Path):
        if held_out is None:
            raise ValueError(f"sae_train: got shards in {tokens} and no held_out; expected tokens to measure on")
        shards = open_shards(tokens)
        check_shards(shards, weights_sha256(model), held_out)
        return shards, held_out
    tokens = checked_tokens("sae_train", model, tokens, min_ctx=2)
    if held_out is not None:
        return tokens, held_out
    if len(tokens) < 2:
        raise ValueError("sae_train: got 1 sequence and no held_out; expected at least 2, or held_out")
    n = max(1, len(tokens) // 10)
    return tokens[:-n], tokens[-n:]


@dataclass
class HeadSaeJob:
    """One training of one stack: its inputs, and what is made of them step by step."""

    model: Any
    tokens: Int[Tensor, "n n_ctx"] | Shards
    held_out: Int[Tensor, "m n_ctx"]
    plan: Plan
    settings: HeadSaeSettings
    name: str
    model_seed: int
    on_progress: Callable[[float], None]

    def __post_init__(self) -> None:
        settings, given = self.settings, self.tokens
        own = {
            "batch_size": settings.batch_size,
            "buffer_tokens": settings.buffer_tokens,
            "positions": self.plan.positions,
        }
        self._source: ShuffledActivations | ShardActivations
        if isinstance(given, Shards):
            self._source = ShardActivations(given, self.plan.slots, device=device_of(self.model), **own)
        else:
            self._source = ShuffledActivations(self.model, given, self.plan.slots, **own)
        n_tokens = settings.n_train_tokens or self._source.n_tokens
        if n_tokens < settings.batch_size:
            raise ValueError(
                f"sae_train: {n_tokens} tokens are less than a batch of {settings.batch_size}; "
                f"expected more tokens, or a "
                "smaller batch_size"
            )
        self.train_config = train_config(settings, n_tokens // settings.batch_size, len(self.plan.slot_index))
        self._model_sha256 = weights_sha256(self.model)

    def config(self) -> dict[str, Any]:
        """What the run directory's config.toml says."""
        slots = [[slot.hook_name, slot.column] for slot in self.plan.slots]
        return {
            "verb": "sae-train",
            "model": self.name,
            "model_seed": self.model_seed,
            "model_sha256": self._model_sha256,
            "tokens_sha256": None if isinstance(self.tokens, Shards) else _hash(self.tokens),
            "shards_sha256": shards_sha256(self.tokens) if isinstance(self.tokens, Shards) else None,
            "held_out_sha256": _hash(self.held_out),
            "slots": [f"{name}:{column}" for name, column in slots],
            # in their order, which is the stack's: a state saved in another belongs to other SAEs
            "l1": list(dict.fromkeys(self.plan.l1)),
            "seeds": list(dict.fromkeys(self.plan.seeds)),
            "settings": self.settings.model_dump(mode="json", exclude=set(NOT_ITS_OWN)),
        }

    def _digest(self) -> str:
        """What a saved state is of: the same settings on the same tokens may be asked for by another text's name."""
        return hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()

    def train(self, directory: Path | None) -> tuple[StackedSAE, pd.DataFrame]:
        """(the trained stack, which reads the hook's activations as they are; its training curves).

        In a directory the state is saved from time to time and on an interrupt, and training goes on from a state that
        is there. Raises Interrupted, and ValueError for nan activations or a state that is altered or of another
        training.
        """
        first = self._source.block(0)
        scale = input_scale(first) if self.settings.normalize == "mean_norm" else torch.ones(len(first), 1, 1)
        scale = scale.to(first.device)
        config = stack_config(self.settings, len(self.plan.slot_index), first.shape[2])
        sae = StackedSAE(config, self.plan.generators(START), device=first.device)
        trainer = Trainer(
            sae, self.train_config, self.plan.l1, self.plan.generators(RESAMPLE), input_index=self.plan.slot_index
        )
        curves: list[dict[str, Any]] = []
        if directory is not None and (directory / STATE).is_file():
            tensors, text = read_state(directory / STATE)
            note = json.loads(text)
            if note["of"] != self._digest():
                raise ValueError(f"sae_train: the state in {directory} is of another training; expected another out")
            trainer.load_state_dict(tensors)
            curves = note["curves"]
        with stop_requests() as request:
            self._run_steps(trainer, scale, curves, directory, request if directory is not None else None)
        stack = fold_scale(sae, scale[self.plan.slot_index, 0, 0])
        stack.info = self._info()
        return stack, self.curves(curves)

    def _run_steps(
        self,
        trainer: Trainer,
        scale: Tensor,
        curves: list[dict[str, Any]],
        directory: Path | None,
        request: StopRequest | None,
    ) -> None:
        n_steps = self.train_config.n_steps
        log_every, save_every = max(1, n_steps // N_CURVE_ROWS), max(1, n_steps // N_SAVES)
        digest = self._digest() if directory is not None else ""
        while (step := trainer.n_steps_done) < n_steps:
            stats = trainer.step(self._source.batch(step) * scale)
            if stats.step % log_every == 0 or stats.step == n_steps:
                curves.append(_curve_point(stats, trainer.sae.config.d_sae))
            if directory is not None and (request or stats.step % save_every == 0 or stats.step == n_steps):
                write_state(directory / STATE, trainer.state_dict(), json.dumps({"of": digest, "curves": curves}))
            if request:
                raise Interrupted(
                    f"stopped after step {stats.step} of {n_steps} ({request.reason}); state saved in {directory}; "
                    "go on with --resume"
                )
            self.on_progress(0.7 * stats.step / n_steps)

    def tables(self, stack: StackedSAE) -> dict[str, pd.DataFrame]:
        """sae_training_results and sae_density of a trained stack and its controls, on the held-out tokens; with
        several l1, sae_pareto; with several seeds, sae_stability."""
        first = self._source.block(0)
        x = first[self.plan.slot_index, :CONTROL_TOKENS]
        dictionaries = {"trained": stack, "random": random_control(stack, x, self.plan.generators(CONTROL))}
        shuffler = torch.Generator().manual_seed(SHUFFLE)
        left_out = LeftOut(dictionaries, self.plan.slot_index)
        metrics = measure(
            self.model,
            self.held_out,
            self.plan.slots,
            self.plan.slot_index,
            dictionaries,
            generator=shuffler,
            on_progress=lambda share: self.on_progress(0.7 + 0.1 * share),
            positions=self.plan.positions,
            left_out=left_out,
        )
        n_sequences = max(1, self.settings.n_ce_tokens // self.held_out.shape[1])
        losses = splice(
            self.model,
            evenly_spaced(self.held_out, n_sequences),
            self.plan.slots,
            self.plan.slot_index,
            dictionaries,
            on_progress=lambda share: self.on_progress(0.8 + 0.2 * share),
            positions=self.plan.positions,
        )
        found = {
            name: neighbour_cosines(own.W_dec.detach(), metrics[name].density > 0).cpu()
            for name, own in dictionaries.items()
        }
        found["shuffled"] = found["trained"]  # the same rows
        self._warn_near_copies(found["trained"])
        results = self._results(metrics, losses, left_out, found)
        tables = {"sae_training_results": results, "sae_density": self._density(metrics["trained"])}
        if len(set(self.plan.l1)) > 1:
            tables["sae_pareto"] = pareto_table(results)
        if len(set(self.plan.seeds)) > 1:
            found = stability_table(stack, metrics["trained"].density)
            tables["sae_stability"] = found.assign(model=self.name, seed=self.model_seed)
        return tables

    def _warn_near_copies(self, cosines: Float[Tensor, "n_saes d_sae"]) -> None:
        median = cosines.nanquantile(0.5, dim=1)
        of = (median > NEAR_COPY).nonzero().flatten().tolist()
        if of:
            slot, l1, _ = self.plan.sources[max(of, key=lambda k: float(median[k]))]
            head = "" if slot.head is None else f", head {slot.head}"
            warnings.warn(
                f"sae_train: in {len(of)} of {len(median)} SAEs more than half of the living features have another "
                f"within a cosine of {NEAR_COPY} (median {float(median[of].max()):.4f} in layer {slot.layer}{head}, l1 "
                f"{l1:g}): near-copies of few directions; expected fewer features (expansion) or a lower l1",
                stacklevel=3,
            )

    def curves(self, points: list[dict[str, Any]]) -> pd.DataFrame:
        """The training curves: a row for every SAE and logged step."""
        keys = self._keys()
        n_saes = len(keys["layer"])
        parts = [pd.DataFrame(keys | {"step": [point["step"]] * n_saes} | _columns(point)) for point in points]
        return pd.concat(parts, ignore_index=True)

    def _info(self) -> StackInfo:
        sources = [
            SAESource(hook_name=slot.hook_name, layer=slot.layer, head=slot.head, l1=l1, seed=seed)
            for slot, l1, seed in self.plan.sources
        ]
        return StackInfo(
            sources=tuple(sources),
            model_name=self.name,
            model_sha256=self._model_sha256,
            context_size=self.tokens.n_ctx if isinstance(self.tokens, Shards) else self.tokens.shape[1],
            prepend_bos=begins_with_bos(self.model, self.tokens),
            n_train_tokens=self.train_config.n_steps * self.settings.batch_size,
            include_special=self.settings.include_special,
        )

    def _keys(self) -> dict[str, Any]:
        sources = self.plan.sources
        return {
            "model": self.name,
            "seed": self.model_seed,
            "layer": [slot.layer for slot, _, _ in sources],
            "head": [slot.column for slot, _, _ in sources],
            "l1": [l1 for _, l1, _ in sources],
            "sae_seed": [seed for _, _, seed in sources],
        }

    def _results(
        self,
        metrics: dict[str, SAEMetrics],
        losses: SpliceLosses,
        left_out: LeftOut,
        neighbours: dict[str, Float[Tensor, "n_saes d_sae"]],
    ) -> pd.DataFrame:
        n_outlying, n_outlying_left_out = left_out.count_outlying()
        zero = losses.zero[self.plan.slot_index]
        n_trained = self.train_config.n_steps * self.settings.batch_size
        parts = []
        for dictionary, own in metrics.items():
            unknown = torch.full_like(zero, torch.nan)
            spliced = losses.spliced.get(dictionary, unknown)
            columns = {
                "d_in": self._source.d_in,
                "d_sae": own.density.shape[1],
                "l0": own.l0,
                "mse": own.mse,
                "fvu": own.fvu,
                "dead_fraction": own.dead_fraction,
                "ce_base": losses.base,
                "ce_spliced": spliced,
                "ce_zero": zero,
                "ce_recovered": recovered(losses.base, zero, spliced),
                "n_train_tokens": 0 if dictionary == "random" else n_trained,
                "n_eval_tokens": own.n_tokens,
                "dictionary": dictionary,
                "explained_variance": own.explained_variance,
                "hook": self.settings.hook,
                "n_ce_tokens": losses.n_tokens,
                "ce_zero_stderr": losses.zero_stderr[self.plan.slot_index],
                "ce_spliced_stderr": losses.spliced_stderr.get(dictionary, unknown),
                "fvu_with_special": left_out.fvu.get(dictionary, unknown),
                "n_left_out": left_out.n_left_out,
                "n_outlying": n_outlying,
                "n_outlying_left_out": n_outlying_left_out,
                "neighbour_cosine": neighbours[dictionary].nanquantile(0.5, dim=1),
                "near_copy_share": share_above(neighbours[dictionary], NEAR_COPY),
            }
            parts.append(pd.DataFrame(self._keys() | columns))
        table = pd.concat(parts, ignore_index=True)
        first = list(COLUMNS["sae_training_results"])
        return table.reindex(columns=[*first, *(column for column in table if column not in first)])

    def _density(self, metrics: SAEMetrics) -> pd.DataFrame:
        edges, counts, n_dead = density_histogram(metrics.density)
        labels = ["dead", *(f"{edge:g}" for edge in edges)]
        keys = pd.DataFrame(self._keys())
        parts = []
        for k in range(len(keys)):
            bins = [(label, int(n)) for label, n in zip(labels, [n_dead[k], *counts[k]], strict=True) if n]
            own = pd.DataFrame(bins, columns=["log10_density_bin", "n_features"])
            parts.append(own.assign(**{str(name): value for name, value in keys.iloc[k].items()}))
        return pd.concat(parts, ignore_index=True)


def share_above(values: Float[Tensor, "n_saes d_sae"], limit: float) -> Float[Tensor, "n_saes"]:
    """Share of each row's values above the limit; those that are nan are left out, nan where all are."""
    return torch.where(values.isnan(), torch.nan, (values > limit).double()).nanmean(dim=1)


def input_scale(x: Float[Tensor, "slot tokens d_in"]) -> Float[Tensor, "slot 1 1"]:
    """√d_in / mean‖x‖ of every slot; 1 where all of it is zero."""
    mean_norm = x.norm(dim=-1).mean(dim=1)
    return torch.where(mean_norm > 0, x.shape[2] ** 0.5 / mean_norm, 1.0).view(-1, 1, 1)


def fold_scale(sae: StackedSAE, scale: Float[Tensor, "n_saes"]) -> StackedSAE:
    """The stack that does on x what `sae` does on scale·x, its reconstruction over scale; the activations are the same
    or, where decoder rows stay at norm 1, themselves over scale."""
    with torch.no_grad():
        folded = sae.architecture.fold_scale(sae.config, sae.tensors, scale)
    return StackedSAE.from_tensors(sae.config, folded, sae.info)


def find_stack(path: str | Path) -> StackedSAE:
    """The stack of a run directory of `sae_train`, or of a directory that `StackedSAE.save` wrote.

    Raises ValueError if there is none, or it is altered.
    """
    path = Path(path)
    if not (path / STACK).is_dir():
        return StackedSAE.load(path)
    verify_files(path, lambda name: name.startswith(f"{STACK}/"))
    return StackedSAE.load(path / STACK)


def begins_with_bos(model: Any, tokens: Int[Tensor, "n n_ctx"] | Shards) -> bool:
    """Whether every sequence, of shards those of the first, begins with the BOS of the model's tokenizer."""
    bos = getattr(tokenizer_of(model), "bos_token_id", None)
    if bos is None:
        return False
    own = shard_sequences(tokens, tokens.shards[0]) if isinstance(tokens, Shards) else tokens
    return bool((own[:, 0] == bos).all())


def evenly_spaced(tokens: Int[Tensor, "n n_ctx"], n: int) -> Int[Tensor, "m n_ctx"]:
    """At most n of the sequences, evenly spaced over them."""
    n = min(n, len(tokens))
    return tokens[torch.arange(n) * len(tokens) // n]


def one_a_slot(stack: StackedSAE, l1: float | None = None, seed: int | None = None) -> StackedSAE:
    """The SAEs of one coefficient and one seed, one for each hook and head: by default those that pages show, which are
    of `shown_l1` and of the seed that was named first.

    Raises ValueError if the stack holds none of them.
    """
    have = [(source.l1 or 0.0, source.seed or 0) for source in stack.info.sources]
    first = next((own for _, own in have), 0)
    wanted = (shown_l1(own for own, _ in have) if l1 is None else l1, first if seed is None else seed)
    if wanted not in have:
        raise ValueError(
            f"SAEs: got l1 {wanted[0]:g}, seed {wanted[1]}; expected one of the stack's (l1, seed): {sorted(set(have))}"
        )
    return stack.select([k for k, own in enumerate(have) if own == wanted])


def _curve_point(stats: StepStats, d_sae: int) -> dict[str, Any]:
    return {
        "step": stats.step,
        "loss": stats.loss.tolist(),
        "l0": stats.l0.tolist(),
        "dead_fraction": (stats.n_dead / d_sae).tolist(),
    }


def _hash(tokens: Tensor) -> str:
    return hashlib.sha256(repr(tuple(tokens.shape)).encode() + tokens.contiguous().numpy().tobytes()).hexdigest()


def _columns(point: dict[str, Any]) -> dict[str, list[float]]:
    return {name: values for name, values in point.items() if name != "step"}


def _silent(share: float) -> None:
    """Nobody watches."""
