"""SAEs for every head at once: all chosen layers, heads, sparsity coefficients and seeds train as one stack, and stacks
of several hooks, architectures and sizes side by side, from one forward pass of the model a batch of sequences."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from numpy.typing import ArrayLike
from torch import Tensor

from reports.tables import read_table, write_table
from sae.checkpoint import CONFIG_FILE, read_json
from sae.metrics import SAEMetrics, neighbour_cosines
from sae.stack import StackedSAE
from workbench.analyses.sae_train.adequacy import INADEQUATE, inadequate_alarms
from workbench.analyses.sae_train.comparison import pareto_table, stability_table, swept
from workbench.analyses.sae_train.evaluation import (
    CONTROL_TOKENS,
    LeftOut,
    Measured,
    Spliced,
    measure_together,
    random_control,
    splice_sequences,
)
from workbench.analyses.sae_train.plan import CONTROL, SHUFFLE, Plan, make_plans, parse_settings
from workbench.analyses.sae_train.settings import HeadSaeSettings, hooks_of, read_l1
from workbench.analyses.sae_train.shard_activations import (
    ShardActivations,
    check_shards,
    shard_sequences,
    shards_sha256,
)
from workbench.analyses.sae_train.stack_tables import StackRows
from workbench.analyses.sae_train.stack_training import StackTraining
from workbench.data.shards import Shards, open_shards
from workbench.models.activations import CONCATENATED, PER_HEAD, ShuffledActivations
from workbench.models.checks import checked_tokens, device_of
from workbench.models.tokenizer_files import tokenizer_of
from workbench.models.weights import weights_sha256
from workbench.runs import open_run, verify_files
from workbench.runs.resume_state import read_state, write_state
from workbench.training.interrupts import Interrupted, StopRequest, stop_requests

# names within a run directory
STACK, CURVES, ALARMS, STATE = "sae", "sae_curves", "sae_alarms", "train_state.safetensors"
NOT_ITS_OWN = frozenset({"layers", "heads", "l1", "seeds", "shards", "n_eval_tokens"})  # said in other words
CHANGES_NO_SAE = frozenset({"dead_alarm"})
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
) -> tuple[StackedSAE | dict[str, StackedSAE], pd.DataFrame]:
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
    says so: such a dictionary is near-copies of few directions. fvu_over_random is the fvu over that of the random
    dictionary at equal l0, is_adequate whether it is at most .75 and l0 at most d_in / 3 (see `adequacy`).

    With `out`, a run directory is written: sae/ (StackedSAE.load reads it), the table, sae_density.csv, sae_curves.csv
    and sae_alarms.csv; with several l1 or k sae_pareto.csv, with several seeds sae_stability.csv (see
    `sae_comparison`). A run that is interrupted or killed continues with resume = True, bit for bit on the same device
    with the same number of threads. Of faults that its curves show (see `find_alarms`) a warning tells once.

    Several hooks, architectures, expansions or k are as many stacks, one of each combination, and in place of the stack
    a dictionary of them by name is returned. Each is, bit for bit, the stack trained alone: all read the same tokens in
    the same order. Each has a folder of its own in sae/, called `<hook>-<architecture>-<d_sae>`, and `-k<k>` where it
    reads k (`find_stack` finds one); tables hold the rows of all, with the columns hook, architecture, d_sae and k.

    Args:
        model: a HookedLM, or a TransformerLens model: a HookedTransformer or a TransformerBridge.
        tokens: what to train on, or the directory of a `harvest` of this model, whose activations are then read
            instead, in their stored order. A harvest needs held_out, from text that was not harvested.
        layers, heads: all by default.
        l1: sparsity coefficient ≥ 0, or several, which make a sweep. See `HeadSaeSettings.normalize` for their unit. By
            default 2, and 0 for topk, batchtopk and matryoshka, also beside others: k alone makes those sparse, and a
            penalty would only shrink what is kept.
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
    plans = make_plans(
        model, layers, heads, own.l1 if l1 is None else l1, own.seeds if seeds is None else seeds, own
    )  # fmt: skip
    source, held_out = split_tokens(model, tokens, held_out)
    called = str(name or model.cfg.model_name)
    job = HeadSaeJob(model, source, held_out, plans, own, called, model_seed, on_progress or _silent)
    if out is None:
        stacks, _ = job.train(None)
        return by_name(plans, stacks), job.tables(stacks)["sae_training_results"]
    with open_run(out, job.config(), resume=resume, device=str(device_of(model)), seed=plans[0].seeds[0]) as run:
        if not run.is_complete:
            for table, df in measure_in(run.path, job).items():
                write_table(df, run.path, table)
    stacks = [StackedSAE.load(Path(out) / STACK / plan.name) for plan in plans]
    return by_name(plans, stacks), read_table(out, "sae_training_results")


def by_name(plans: Sequence[Plan], stacks: Sequence[StackedSAE]) -> StackedSAE | dict[str, StackedSAE]:
    """The stack, or several by their names."""
    return stacks[0] if len(stacks) == 1 else {plan.name: own for plan, own in zip(plans, stacks, strict=True)}


def measure_in(directory: Path, job: HeadSaeJob) -> dict[str, pd.DataFrame]:
    """All tables of a job; its stacks are saved in the directory, and their state until then. From both it goes on
    after a kill: no step of a stack that is there is trained again."""
    if (directory / STACK).is_dir() and not (directory / STATE).exists():
        stacks = [StackedSAE.load(directory / STACK / plan.name) for plan in job.plans]
        told = {name: read_table(directory, name) for name in (CURVES, ALARMS)}
    else:
        stacks, told = job.train(directory)
        for name, df in told.items():
            write_table(df, directory, name)
        shutil.rmtree(directory / STACK, ignore_errors=True)  # of a run that was killed while it was saved
        for plan, stack in zip(job.plans, stacks, strict=True):
            stack.save(directory / STACK / plan.name)
        (directory / STATE).unlink()
    device = device_of(job.model)
    tables = job.tables([stack.to(device) for stack in stacks])
    curves_alone = told[ALARMS][told[ALARMS]["kind"] != INADEQUATE]  # of a run that was killed after this line
    measured = inadequate_alarms(tables["sae_training_results"], list(curves_alone), job.n_steps)
    told[ALARMS] = join_rows([curves_alone, measured])
    return {**tables, **told}


def join_rows(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all tables; tables without rows add nothing, since they have no dtypes."""
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


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
    """The training of all stacks of a run: their inputs, which one forward pass per batch of sequences gives, and what
    is made of them step by step."""

    model: Any
    tokens: Int[Tensor, "n n_ctx"] | Shards
    held_out: Int[Tensor, "m n_ctx"]
    plans: list[Plan]
    settings: HeadSaeSettings
    name: str
    model_seed: int
    on_progress: Callable[[float], None]

    def __post_init__(self) -> None:
        settings, given = self.settings, self.tokens
        own = {
            "batch_size": settings.batch_size,
            "buffer_tokens": settings.buffer_tokens,
            "positions": self.plans[0].positions,
        }
        groups = {hook: slots for plan in self.plans for hook, slots in plan.groups.items()}
        self._source: ShuffledActivations | ShardActivations
        if isinstance(given, Shards):
            self._source = ShardActivations(given, *groups.values(), device=device_of(self.model), **own)
        else:
            self._source = ShuffledActivations(self.model, given, *groups.values(), **own)
        self._groups = [[list(groups).index(hook) for hook in plan.kind.hooks] for plan in self.plans]
        n_tokens = settings.n_train_tokens or self._source.n_tokens
        if n_tokens < settings.batch_size:
            raise ValueError(
                f"sae_train: {n_tokens} tokens are less than a batch of {settings.batch_size}; "
                f"expected more tokens, or a "
                "smaller batch_size"
            )
        self.n_steps = n_tokens // settings.batch_size
        self._model_sha256 = weights_sha256(self.model)
        has_activations = any(plan.kind.activation is not None for plan in self.plans)
        self._rows = [StackRows(plan, self.name, self.model_seed, has_activations) for plan in self.plans]

    def config(self) -> dict[str, Any]:
        """What the run directory's config.toml says."""
        slots = dict.fromkeys(slot for plan in self.plans for own in plan.groups.values() for slot in own)
        settings = self.settings.model_dump(mode="json", exclude=set(NOT_ITS_OWN | CHANGES_NO_SAE))
        if settings["activation"] is None:  # so that states of versions without it go on
            del settings["activation"]
        return {
            "verb": "sae-train",
            "model": self.name,
            "model_seed": self.model_seed,
            "model_sha256": self._model_sha256,
            "tokens_sha256": None if isinstance(self.tokens, Shards) else _hash(self.tokens),
            "shards_sha256": shards_sha256(self.tokens) if isinstance(self.tokens, Shards) else None,
            "held_out_sha256": _hash(self.held_out),
            "slots": [f"{slot.hook_name}:{slot.column}" for slot in slots],
            # in their order, which is the stack's: a state saved in another belongs to other SAEs
            "l1": list(dict.fromkeys(l1 for plan in self.plans for l1 in plan.l1)),
            "seeds": list(dict.fromkeys(self.plans[0].seeds)),
            "settings": settings,
        }

    def _digest(self) -> str:
        """What a saved state is of: the same settings on the same tokens may be asked for by another text's name."""
        return hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()

    def train(self, directory: Path | None) -> tuple[list[StackedSAE], dict[str, pd.DataFrame]]:
        """(the trained stacks, which read the hooks' activations as they are; sae_curves and sae_alarms of all).

        In a directory the state is saved from time to time and on an interrupt, and training goes on from a state that
        is there. Raises Interrupted, and ValueError for nan activations or a state that is altered or of another
        training.
        """
        stacks = [
            StackTraining(plan, self.settings, self.n_steps, *(self._source.block(0, group) for group in groups))
            for plan, groups in zip(self.plans, self._groups, strict=True)
        ]
        if directory is not None and (directory / STATE).is_file():
            self._load_state(stacks, directory)
        with stop_requests() as request:
            self._run_steps(stacks, directory, request if directory is not None else None)
        about = {
            "model_name": self.name,
            "model_sha256": self._model_sha256,
            "context_size": self.tokens.n_ctx if isinstance(self.tokens, Shards) else self.tokens.shape[1],
            "prepend_bos": begins_with_bos(self.model, self.tokens),
            "n_train_tokens": self.n_steps * self.settings.batch_size,
            "include_special": self.settings.include_special,
        }
        tables = {
            CURVES: self._join(lambda rows, own: rows.curves(own.points), stacks),
            ALARMS: self._join(lambda rows, own: rows.alarms(own.alarms()), stacks),
        }
        return [own.finish(**about) for own in stacks], tables

    def _join(self, make: Callable[[StackRows, Any], pd.DataFrame], given: Sequence[Any]) -> pd.DataFrame:
        """One table of what each stack's rows and the thing given of it make."""
        return join_rows([rows.labelled(make(rows, own)) for rows, own in zip(self._rows, given, strict=True)])

    def _load_state(self, stacks: list[StackTraining], directory: Path) -> None:
        tensors, text = read_state(directory / STATE)
        note = json.loads(text)
        if note["of"] != self._digest():
            raise ValueError(f"sae_train: the state in {directory} is of another training; expected another out")
        for own, points in zip(stacks, note["points"], strict=True):
            prefix = f"{own.plan.name}/"
            state = {name.removeprefix(prefix): of for name, of in tensors.items() if name.startswith(prefix)}
            own.load(state, points)

    def _save_state(self, stacks: list[StackTraining], directory: Path, digest: str) -> None:
        tensors = {f"{own.plan.name}/{name}": of for own in stacks for name, of in own.state().items()}
        write_state(directory / STATE, tensors, json.dumps({"of": digest, "points": [own.points for own in stacks]}))

    def _run_steps(self, stacks: list[StackTraining], directory: Path | None, request: StopRequest | None) -> None:
        n_steps = self.n_steps
        log_every, save_every = max(1, n_steps // N_CURVE_ROWS), max(1, n_steps // N_SAVES)
        digest = self._digest() if directory is not None else ""
        while (done := stacks[0].n_steps_done) < n_steps:
            step = done + 1
            is_logged = step % log_every == 0 or step == n_steps
            for own, groups in zip(stacks, self._groups, strict=True):
                own.step(*(self._source.batch(done, group) for group in groups), is_logged=is_logged)
            if directory is not None and (request or step % save_every == 0 or step == n_steps):
                self._save_state(stacks, directory, digest)
            if request:
                raise Interrupted(
                    f"stopped after step {step} of {n_steps} ({request.reason}); state saved in {directory}; "
                    "go on with --resume"
                )
            self.on_progress(0.7 * step / n_steps)

    def tables(self, stacks: list[StackedSAE]) -> dict[str, pd.DataFrame]:
        """sae_training_results and sae_density of the trained stacks and their controls, on the held-out tokens; of a
        sweep sae_pareto; with several seeds, sae_stability."""
        of_stacks = []  # the trained dictionary, and the random one
        for plan, groups, stack in zip(self.plans, self._groups, stacks, strict=True):
            x, *y = (self._source.block(0, group)[plan.slot_index, :CONTROL_TOKENS] for group in groups)
            of_stacks.append({"trained": stack, "random": random_control(stack, x, plan.generators(CONTROL), *y)})
        parts = [
            Measured(
                plan.slots, plan.slot_index, own, "trained", torch.Generator().manual_seed(SHUFFLE),
                LeftOut(own, plan.slot_index), plan.outs,
            )
            for plan, own in zip(self.plans, of_stacks, strict=True)
        ]  # fmt: skip
        tell = lambda share: self.on_progress(0.7 + 0.1 * share)  # noqa: E731
        metrics = measure_together(self.model, self.held_out, parts, tell, positions=self.plans[0].positions)
        spliced = [
            self._splice(plan, own, number)
            for number, (plan, own) in enumerate(zip(self.plans, of_stacks, strict=True))
        ]
        found = list(zip(of_stacks, parts, metrics, spliced, strict=True))
        results = self._join(lambda rows, own: self._results(rows, *own), found)
        trained = [own["trained"] for own in metrics]
        tables = {"sae_training_results": results, "sae_density": self._join(StackRows.density, trained)}
        if len(left_out := self._join(self._without_blocks, list(zip(parts, spliced, strict=True)))):
            tables["sae_training_results_blocks"] = left_out
        if any(len(group) > 1 for group in swept(results)):
            tables["sae_pareto"] = pareto_table(results)
        if len(set(self.plans[0].seeds)) > 1:
            pairs = list(zip(stacks, trained, strict=True))
            tables["sae_stability"] = self._join(self._stability, pairs)
        return tables

    def _splice(self, plan: Plan, own: dict[str, StackedSAE], number: int) -> Spliced:
        """What the loss is with the reconstructions of one stack, the number-th, and of its random control."""
        n = len(self.plans)
        return splice_sequences(
            self.model,
            evenly_spaced(self.held_out, max(1, self.settings.n_ce_tokens // self.held_out.shape[1])),
            plan.slots,
            plan.slot_index,
            own,
            on_progress=lambda share: self.on_progress(0.8 + 0.2 * (number + share) / n),
            positions=plan.positions,
            outs=plan.outs,
        )

    def _without_blocks(self, rows: StackRows, own: tuple[Measured, Spliced]) -> pd.DataFrame:
        """sae_training_results_blocks of one stack. Blocks of the sequences whose loss is measured, fewer than those
        whose activations are, lie in the same stretches of the text."""
        part, spliced = own
        metrics = part.without_blocks()
        losses = spliced.losses_without_blocks(list(metrics[0]), self.held_out.shape[1]) if metrics else []
        return rows.without_blocks(metrics, losses if len(losses) == len(metrics) else [None] * len(metrics))

    def _results(
        self,
        rows: StackRows,
        own: dict[str, StackedSAE],
        part: Measured,
        metrics: dict[str, SAEMetrics],
        spliced: Spliced,
    ) -> pd.DataFrame:
        """sae_training_results of one stack."""
        losses = spliced.losses(list(own), self.held_out.shape[1])
        found = {
            name: neighbour_cosines(stack.W_dec.detach(), metrics[name].density > 0).cpu()
            for name, stack in own.items()
        }
        found["shuffled"] = found["trained"]  # the same rows
        rows.warn_near_copies(found["trained"])
        assert part.left_out is not None
        return rows.results(metrics, losses, part.left_out, found, self.n_steps * self.settings.batch_size)

    def _stability(self, rows: StackRows, own: tuple[StackedSAE, SAEMetrics]) -> pd.DataFrame:
        stack, metrics = own
        return stability_table(stack, metrics.density).assign(model=self.name, seed=self.model_seed)


def find_stack(
    path: str | Path,
    name: str | None = None,
    *,
    hook: str | None = None,
    architecture: str | None = None,
    d_sae: int | None = None,
    k: float | None = None,
    activation: str | None = None,
) -> StackedSAE:
    """The stack of a run directory of `sae_train`, or of a directory that `StackedSAE.save` wrote.

    Of a run with several stacks, the one of that name (its folder within sae/), or the only one of this hook (as
    `sae_train` was given it), architecture, d_sae, k and activation.

    Raises ValueError if there is none, several fit (all are named), or it is altered.
    """
    path = Path(path)
    folder = path / STACK if (path / STACK).is_dir() else path
    names = [""] if (folder / CONFIG_FILE).is_file() else sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_FILE}"))
    asked = {"hook": hook, "architecture": architecture, "d_sae": d_sae, "k": k}
    asked |= {"activation": activation}
    asked = {key: value for key, value in asked.items() if value is not None}
    fit = [own for own in names if name in (None, own) and asked.items() <= _describe(folder / own, asked).items()]
    if names and len(fit) != 1:
        said = ", ".join(f"{key} {value}" for key, value in (asked | ({} if name is None else {"stack": name})).items())
        there = ", ".join(own or f"{folder.name} alone" for own in names)
        raise ValueError(f"SAEs: {len(fit) or 'none'} of {path} fit {said or 'any stack'}; expected one of {there}")
    if folder != path and fit:
        verify_files(path, lambda own: own.startswith(f"{STACK}/{fit[0]}".rstrip("/") + "/"))
    return StackedSAE.load(folder / fit[0] if fit else folder)


def _describe(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Hook, architecture, d_sae, k and activation of a saved stack; nothing if nothing is asked."""
    if not asked:
        return {}
    record = read_json(folder / CONFIG_FILE)
    source = (record["info"]["sources"] or [{}])[0]
    points = [source.get(key) for key in ("hook_name", "hook_name_out") if source.get(key) or key == "hook_name"]
    names = [str(point or "").split(".", 2)[-1] for point in points]  # without blocks.LAYER
    if names[0] == "attn.hook_z" and source.get("head") is not None:
        names = [PER_HEAD]
    wanted = asked.get("hook")
    hook = ":".join(names)
    # attn.hook_z of all heads has two names
    is_same = wanted is not None and [{CONCATENATED: "attn.hook_z"}.get(own, own) for own in hooks_of(wanted)] == names
    own = {key: record["config"].get(key) for key in ("architecture", "d_sae", "k", "activation")}
    return {"hook": wanted if is_same else hook} | own


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
    """The SAEs of one coefficient and one seed, one for each hook and head: by default those whose features are
    read one by one, which are of `read_l1` and of the seed that was named first.

    Raises ValueError if the stack holds none of them.
    """
    have = [(source.l1 or 0.0, source.seed or 0) for source in stack.info.sources]
    first = next((own for _, own in have), 0)
    wanted = (read_l1(own for own, _ in have) if l1 is None else l1, first if seed is None else seed)
    if wanted not in have:
        raise ValueError(
            f"SAEs: got l1 {wanted[0]:g}, seed {wanted[1]}; expected one of the stack's (l1, seed): {sorted(set(have))}"
        )
    return stack.select([k for k, own in enumerate(have) if own == wanted])


def _hash(tokens: Tensor) -> str:
    return hashlib.sha256(repr(tuple(tokens.shape)).encode() + tokens.contiguous().numpy().tobytes()).hexdigest()


def _silent(share: float) -> None:
    """Nobody watches."""
