"""What a study's jobs do: each reads what the jobs before it left on disk and writes one run directory.

The work is a function of (job, recipe, directory), so that an executor may run it anywhere that sees the directory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Int64
from torch import Tensor

from reports.tables import write_table
from sae.stack import StackedSAE
from workbench.analyses.ablate.ablation import ablation_table, iterate_ablation, summary_table
from workbench.analyses.ablate.precision import as_float32
from workbench.analyses.ablate.records import join, to_bytes
from workbench.analyses.atlas.features import atlas_features, match_cells, match_features
from workbench.analyses.attention.patterns import attention_patterns
from workbench.analyses.attention.statistics import attention
from workbench.analyses.compare import N_COMPONENTS, check_pair, compare_spectra, compare_states
from workbench.analyses.evaluate import STRIDE, evaluate
from workbench.analyses.mechanisms import ladder, mechanisms
from workbench.analyses.probe.probe import probe, text_length
from workbench.analyses.sae_train.head_saes import find_stack, one_a_slot, sae_train
from workbench.analyses.spectra import matrix_spectra, spectra_tables
from workbench.analyses.text_quality.quality import text_quality
from workbench.analyses.topology import topology_tables
from workbench.data.corpus import read_parts
from workbench.data.tokenizer import open_tokenizer
from workbench.data.tokens import held_out_windows
from workbench.models import HookedLM
from workbench.models.load import load
from workbench.models.tokenizer_files import separator_text
from workbench.models.weights import weights_sha256
from workbench.runs import Run, atomic_write, open_run
from workbench.study.jobs import Context, Job
from workbench.study.recipe import StudyRecipe
from workbench.training import train
from workbench.training.recipe import DataConfig, Phase, Recipe
from workbench.training.training_data import Feed, open_feed

MATCH, CONTINUATIONS = "match.csv", "continuations.jsonl"
N_SAE_TOKENS = 1 << 20  # that SAEs are trained on unless the study says how many
MATCH_TOKENS = 16_384  # held-out tokens that features of two models are matched on
Tell = Callable[[float], None]

# kind -> the study's settings that its result depends on, beside the models and seeds that it reads
SETTINGS: dict[str, tuple[str, ...]] = {
    "train": (),
    "saes": ("sae_l1", "sae_seeds", "saes", "measure.n_eval_tokens"),
    "ablation": ("measure.n_ablation_tokens",),
    "topology": ("measure.n_topology_tokens",),
    "attention": ("measure.n_topology_tokens",),
    "features": ("measure.n_atlas_tokens", "measure.n_contexts", "sae_l1", "sae_seeds", "saes"),
    "match": ("sae_l1", "sae_seeds", "saes"),
    "spectra": ("measure.n_sequences",),
    "probe": ("measure.n_permutations", "measure.n_points"),
    "evaluation": ("measure.n_bytes", "measure.use_int8"),
    "text_quality": ("measure.n_samples", "measure.n_new_tokens"),
    "mechanisms": ("measure.n_bytes",),
    "ladder": ("measure.n_bytes",),
}


def run_job(job: Job, context: Context, tell: Tell, *, is_shown: bool = False) -> None:
    """Do one job in its directory, or go on with it where it was left; a finished one is checked and left as it is.

    is_shown: a training draws its own bar.
    """
    if job.kind == "train":
        _train(job, context, is_shown)
    elif job.kind == "saes":
        _train_saes(job, context, tell)
    elif job.kind == "ladder":
        with open_run(context.directory / job.path, _config(job, context), resume=True, seed=job.seed) as run:
            if not run.is_complete:
                _climb(job, context, run, tell)
    else:
        work = {
            "ablation": _ablate,
            "topology": _measure_topology,
            "attention": _measure_attention,
            "features": _describe_features,
            "match": _match,
            "spectra": _measure_spectra,
            "probe": _probe,
            "evaluation": _evaluate,
            "text_quality": _continue_prompts,
            "mechanisms": _turn_off,
        }[job.kind]
        model = _load(job, context)
        config = _config(job, context) | {"weights_sha256": weights_sha256(model)}
        with open_run(context.directory / job.path, config, resume=True, device=model.cfg.device, seed=job.seed) as run:
            if not run.is_complete:
                work(job, context, model, run, tell)


def _config(job: Job, context: Context) -> dict[str, Any]:
    """What a job's config.toml says."""
    config = {"verb": job.kind, "model": job.model, "others": list(job.others), "seed": job.seed}
    return config | {"settings": settings_of(job, context.recipe)}


def settings_of(job: Job, recipe: StudyRecipe) -> dict[str, Any]:
    """The study's settings that a job's result depends on."""
    dump, found = recipe.model_dump(mode="json"), {}
    for path in SETTINGS[job.kind]:
        head, _, rest = path.partition(".")
        found[rest or head] = dump[head][rest] if rest else dump[head]
    return found


# --- what jobs read


def train_recipe(job: Job, context: Context) -> Recipe:
    """The training recipe of a job's model."""
    return next(own for own in context.trainings if own.name == job.model)


def _load(job: Job, context: Context, name: str = "") -> HookedLM:
    """The trained model of a job, or the model called `name` of the same seed."""
    trained = Job("train", name or job.model, job.seed)
    return load(context.directory / trained.path, context.device)


def tokens_of(
    job: Job, context: Context, split: str, n_tokens: int, n_ctx: int | None = None
) -> Int64[Tensor, "n n_ctx"]:
    """Windows of a model's text, evenly spaced: n_tokens of the held-out part or of what it was trained on."""
    recipe = train_recipe(job, context)
    feed = read_feed(recipe, context.cache)
    length = n_ctx or recipe.model.n_ctx
    return held_out_windows(feed.train if split == "train" else feed.held_out, length, max(1, n_tokens // length))


def read_feed(recipe: Recipe, cache: Path | None) -> Feed:
    """`open_feed`, remembered: reading and checking the text again for every job would cost more than some jobs."""
    readable = Recipe(name="feed", model=recipe.model, data=recipe.data, phases=(Phase(n_steps=1, batch_size=1),))
    return _remembered_feed(readable.model_dump_json(), cache)


@functools.lru_cache(maxsize=4)
def _remembered_feed(recipe: str, cache: Path | None) -> Feed:
    return open_feed(Recipe.model_validate_json(recipe), cache)


def texts_of(job: Job, context: Context) -> list[str]:
    """The held-out documents of a model's text: the beginning of each, the same share of all, n_bytes together."""
    data = train_recipe(job, context).data
    return list(_held_out_texts(data.model_dump_json(), context.recipe.measure.n_bytes))


@functools.lru_cache(maxsize=1)
def _held_out_texts(settings: str, n_bytes: int) -> tuple[str, ...]:
    data = DataConfig.model_validate_json(settings)
    held_out = read_parts(data.text, separator_text(open_tokenizer(data.tokenizer)))[1]
    texts = [document.text for document in held_out]
    share = min(1.0, n_bytes / sum(len(text.encode()) for text in texts))
    return tuple(part for text in texts if (part := text[: int(len(text) * share)]))


def shown_stack(job: Job, context: Context, name: str = "") -> StackedSAE:
    """The SAEs that pages show of a job's model: one per head, at the shown l1, of the first seed."""
    saes = Job("saes", name or job.model, job.seed)
    stack = find_stack(context.directory / saes.path).to(context.device)
    return one_a_slot(stack, context.recipe.shown_l1, context.recipe.sae_seeds[0])


# --- what jobs do


def _train(job: Job, context: Context, is_shown: bool) -> None:
    train(
        train_recipe(job, context),
        context.directory / job.path,
        seed=job.seed,
        device=context.device,
        resume=True,
        progress=is_shown,
        cache=context.cache,
    )


def _train_saes(job: Job, context: Context, tell: Tell) -> None:
    recipe = context.recipe
    model = _load(job, context)
    n_train = recipe.saes.n_train_tokens or N_SAE_TOKENS
    sae_train(
        model,
        tokens_of(job, context, "train", n_train),
        l1=recipe.sae_l1,
        seeds=recipe.sae_seeds,
        out=context.directory / job.path,
        held_out=tokens_of(job, context, "held_out", recipe.measure.n_eval_tokens),
        name=job.model,
        model_seed=job.seed,
        resume=True,
        on_progress=tell,
        **recipe.saes.model_dump(),
    )


def _ablate(job: Job, context: Context, model: HookedLM, run: Run, tell: Tell) -> None:
    tokens = tokens_of(job, context, "held_out", context.recipe.measure.n_ablation_tokens)
    losses = join(list(iterate_ablation(as_float32(model), tokens, seed=job.seed, on_progress=tell)))
    table = ablation_table(losses, tokens.shape[1], kind="zero", seed=job.seed, name=job.model)
    write_table(table, run.path, "ablation_results")
    write_table(summary_table(table, losses, job.seed), run.path, "ablation_summary")
    atomic_write(run.path / "sequence_losses.safetensors", to_bytes(losses))


def _measure_topology(job: Job, context: Context, model: HookedLM, run: Run, tell: Tell) -> None:
    tokens = tokens_of(job, context, "held_out", context.recipe.measure.n_topology_tokens)
    stats, cosines = topology_tables(model, tokens, seed=job.seed, name=job.model, on_progress=tell)
    write_table(stats, run.path, "topology_stats")
    write_table(cosines, run.path, "head_cosines")


def _measure_attention(job: Job, context: Context, model: HookedLM, run: Run, tell: Tell) -> None:
    tokens = tokens_of(job, context, "held_out", context.recipe.measure.n_topology_tokens)
    table = attention(model, tokens, seed=job.seed, name=job.model, on_progress=tell)
    write_table(table, run.path, "attention_stats")
    write_table(attention_patterns(model, tokens, seed=job.seed, name=job.model), run.path, "attention_patterns")


def _describe_features(job: Job, context: Context, model: HookedLM, run: Run, tell: Tell) -> None:
    recipe = context.recipe
    table = atlas_features(
        model,
        shown_stack(job, context),
        tokens_of(job, context, "held_out", recipe.measure.n_atlas_tokens),
        n_contexts=recipe.measure.n_contexts,
        name=job.model,
        seed=job.seed,
        on_progress=tell,
    )
    write_table(table, run.path, "feature_atlas")


def _match(job: Job, context: Context, model: HookedLM, run: Run, tell: Tell) -> None:
    """match.csv: model, other, layer, head, feature, match of every feature, in both directions."""
    (reference,) = job.others
    own, theirs = shown_stack(job, context), shown_stack(job, context, reference)
    tokens = tokens_of(job, context, "held_out", MATCH_TOKENS)
    found = match_features(model, own, _load(job, context, reference), theirs, tokens, tell)
    parts = []
    for matches, name, other in ((found[0], job.model, reference), (found[1], reference, job.model)):
        keys = [
            (name, other, source.layer, -1 if source.head is None else source.head, feature)
            for source in own.info.sources
            for feature in range(own.config.d_sae)
        ]
        part = pd.DataFrame(keys, columns=["model", "other", "layer", "head", "feature"])
        parts.append(part.assign(match=match_cells(matches, other)))
    atomic_write(run.path / MATCH, pd.concat(parts).to_csv(index=False, lineterminator="\n"))


def _measure_spectra(job: Job, context: Context, model: HookedLM, run: Run, tell: Tell) -> None:
    """The tables of the model's own spectra; what `compare` says of it and each of the models beside it."""
    own = matrix_spectra(model)
    for table, rows in spectra_tables(own, job.model, job.seed).items():
        write_table(rows, run.path, table)
    if not job.others:
        return
    tokens = tokens_of(job, context, "held_out", context.recipe.measure.n_sequences * model.cfg.n_ctx)
    states, spectra = [], []
    for i, name in enumerate(job.others):
        other, pair = _load(job, context, name), (name, job.model)
        check_pair(other, model, len(tokens), N_COMPONENTS)
        states.append(compare_states(other, model, tokens, n_components=N_COMPONENTS, names=pair, seed=job.seed))
        n_layers = (other.cfg.n_layers, model.cfg.n_layers)
        spectra.append(compare_spectra(matrix_spectra(other), own, n_layers, pair))
        tell((i + 1) / len(job.others))
    for table, parts in (("pc_cosine", states), ("eigenspectra_divergence", spectra)):
        write_table(pd.concat(parts, ignore_index=True), run.path, table)


def _probe(job: Job, context: Context, model: HookedLM, run: Run, tell: Tell) -> None:
    measure = context.recipe.measure
    n_ctx = text_length(model, None)
    tokens = tokens_of(job, context, "held_out", 2 * measure.n_points, n_ctx) if measure.n_points else None
    found = probe(
        [model],
        tokens=tokens,
        n_permutations=measure.n_permutations,
        n_points=measure.n_points,
        names=[job.model],
        seeds=[job.seed],
        on_progress=tell,
    )
    for name, table in found.tables().items():
        write_table(table, run.path, name)


def _evaluate(job: Job, context: Context, model: HookedLM, run: Run, tell: Tell) -> None:
    use_int8 = context.recipe.measure.use_int8
    texts = texts_of(job, context)
    stride = min(STRIDE, model.cfg.n_ctx)
    table = evaluate(model, texts, stride=stride, quantized=use_int8, seed=job.seed, name=job.model, on_progress=tell)
    write_table(table, run.path, "evaluation")


def _turn_off(job: Job, context: Context, model: HookedLM, run: Run, tell: Tell) -> None:
    table = mechanisms(model, texts_of(job, context), seed=job.seed, name=job.model, on_progress=tell)
    write_table(table, run.path, "mechanisms")


def _continue_prompts(job: Job, context: Context, model: HookedLM, run: Run, tell: Tell) -> None:
    measure = context.recipe.measure
    found = text_quality(
        model,
        n_samples=measure.n_samples,
        max_new_tokens=measure.n_new_tokens,
        seed=job.seed,
        name=job.model,
        on_progress=tell,
    )
    atomic_write(run.path / CONTINUATIONS, found.to_jsonl())
    write_table(found.table, run.path, "text_quality")


def _climb(job: Job, context: Context, run: Run, tell: Tell) -> None:
    """The ladder of one seed, its trainings in the job's own directory."""
    table = ladder(
        train_recipe(job, context),
        texts_of(job, context),
        run.path,
        seeds=[job.seed],
        device=context.device,
        cache=context.cache,
        on_progress=tell,
    )
    write_table(table, run.path, "ladder")
