"""What a study would take, before anything is made: jobs, parameters, tokens, bytes on disk and in memory, seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sae.config import SAESource, StackInfo
from sae.model import StackedSAE
from workbench.analyses.ablate.precision import as_float32
from workbench.analyses.atlas.features import atlas_features, match_features
from workbench.analyses.attention.statistics import attention
from workbench.analyses.evaluate.bits import STRIDE, EncodedText, plan_evaluation
from workbench.analyses.mechanisms.switches import switched_on
from workbench.analyses.probe.probe import text_length
from workbench.analyses.sae_train.settings import FORWARD_TOKENS, START, Plan, estimate, make_plan, stack_config
from workbench.analyses.text_quality.plan import plan_text_quality
from workbench.analyses.topology.heads import read_heads
from workbench.data.batteries import as_batteries, read_prompts
from workbench.data.concepts import read_concepts
from workbench.data.tokenizer import is_local
from workbench.data.tokenizer_files import open_tokenizer
from workbench.memory import planned_bytes
from workbench.models import HookedLM
from workbench.models.activations import collect
from workbench.models.checks import device_of
from workbench.models.load import resolve_device, weights_sha256
from workbench.study.analysis_plans import made_up_tokens, plan_ablation, plan_compare, plan_probe, plan_reading
from workbench.study.job_runners import N_SAE_TOKENS
from workbench.study.jobs import left_out, plan_jobs
from workbench.study.recipe import StudyRecipe, load_study
from workbench.study.study import with_seeds  # what it loads counts among the bytes in memory
from workbench.training.plan import plan as plan_training
from workbench.training.recipe import Recipe, phase_model

MEMORY = ("bytes_in_memory", "bytes_on_device")
BYTES_A_TOKEN = 4  # of English, about: how many tokens a text of so many bytes has
# times that the page holds the atlas's table: as read, joined, as text and its bytes, and as the atlas's numbers
ATLAS_COPIES = 5


def plan(
    recipe: str | Path | StudyRecipe | None = None,
    seeds: int | None = None,
    *,
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Facts about a study by name, before anything is made: jobs; parameters, tokens, bytes and seconds of training.

    Memory is that of the process, at the job that needs most: every kind of job is planned as its own verb plans it,
    on an untrained model of each size. An executor that runs several jobs at once has a process for each, and every one
    may come to take as much. The analyses that need the tokenizer of a hub are left out of it, as nothing is
    downloaded, and so is the text.

    Analyses are not timed; for the Control and Adaptive nano models they take about as long as the trainings. Nor are
    the trainings of a ladder, one for each of its rungs.
    """
    settings = load_study(recipe, with_seeds(overrides, seeds))
    recipes, n_seeds, jobs = settings.train_recipes(), settings.n_seeds, plan_jobs(settings)
    device = resolve_device(device)
    trainings = {own.name: plan_training(own, device=device) for own in recipes}
    found = [*trainings.values(), *_plan_analyses(settings, recipes, device)]
    n_slots = sum(own.model.n_layers * own.model.n_heads for own in recipes) * n_seeds
    return {
        "study": settings.name,
        "n_seeds": n_seeds,
        "n_jobs": len(jobs),
        "n_jobs_by_kind": dict(Counter(job.kind for job in jobs)),
        "left_out": left_out(settings),
        "n_saes": n_slots * len(settings.sae_l1) * len(settings.sae_seeds) * ("saes" in settings.analyses),
        "n_train_tokens": n_seeds * sum(own["n_tokens"] for own in trainings.values()),
        "bytes_on_disk": n_seeds * sum(own["bytes_on_disk"] for own in trainings.values()),
        **{what: max(own[what] for own in found) for what in MEMORY if what in found[0]},
        "seconds_of_training": n_seeds * sum(own["seconds"] for own in trainings.values()),
        "trainings": trainings,
    }


# --- what the analyses take


@dataclass(frozen=True)
class _Subject:
    """An untrained model as large as those of some recipes, and what its analyses are to be."""

    model: HookedLM
    settings: StudyRecipe
    n_models: int
    """models of this size, whose features one atlas shows"""

    @property
    def n_ctx(self) -> int:
        """Tokens of a window."""
        return self.model.cfg.n_ctx

    def n_windows(self, n_tokens: int) -> int:
        """Windows that so many tokens are."""
        return max(1, n_tokens // self.n_ctx)


def _plan_analyses(settings: StudyRecipe, recipes: list[Recipe], device: str) -> Iterator[dict[str, Any]]:
    """The facts of every kind of job that analyses a model, for models of each size once."""
    kinds: dict[str, set[str]] = {}
    for job in plan_jobs(settings):
        kinds.setdefault(job.model, set()).add(job.kind)
    sizes: dict[str, list[Recipe]] = {}
    for own in recipes:
        sizes.setdefault(phase_model(own, -1).model_dump_json(exclude={"model_name"}), []).append(own)
    for alike in sizes.values():
        subject = _Subject(_untrained(alike[0], device), settings, len(alike))
        of_alike = set().union(*(kinds[own.name] for own in alike))
        for kind, plan_kind in PLANS.items():
            if kind in of_alike and (subject.model.tokenizer is not None or kind not in TOKENIZED):
                yield plan_kind(subject)


def _untrained(recipe: Recipe, device: str) -> HookedLM:
    """A model as the recipe's last phase leaves it, untrained; with its tokenizer, unless that is on a hub."""
    source = recipe.data.tokenizer
    tokenizer = open_tokenizer(source) if is_local(source) else None
    return HookedLM(phase_model(recipe, -1), 0, tokenizer).to(device).eval()


def _plan_saes(subject: _Subject) -> dict[str, Any]:
    settings, model = subject.settings, subject.model
    own = settings.saes
    if own.n_train_tokens is None:
        own = own.model_copy(update={"n_train_tokens": N_SAE_TOKENS})
    return estimate(model, _sae_plan(subject, settings.sae_l1, settings.sae_seeds), own, subject.n_ctx)


def _sae_plan(subject: _Subject, l1: tuple[float, ...], seeds: tuple[int, ...]) -> Plan:
    return make_plan(subject.model, None, "all", l1, seeds, subject.settings.saes)


def _plan_ablation(subject: _Subject) -> dict[str, Any]:
    n = subject.n_windows(subject.settings.measure.n_ablation_tokens)
    return plan_ablation(as_float32(subject.model), n, subject.n_ctx)


def _plan_topology(subject: _Subject) -> dict[str, Any]:
    model, n = subject.model, subject.n_windows(subject.settings.measure.n_topology_tokens)
    return plan_reading(model, n, subject.n_ctx, lambda tokens: read_heads(model, tokens, range(model.cfg.n_layers)))


def _plan_attention(subject: _Subject) -> dict[str, Any]:
    model, n = subject.model, subject.n_windows(subject.settings.measure.n_topology_tokens)
    return plan_reading(model, n, subject.n_ctx, lambda tokens: attention(model, tokens, n_repeated=0))


def _plan_features(subject: _Subject) -> dict[str, Any]:
    """A batch of the atlas, and its table on the page."""
    stack, tokens = _shown_stack(subject), _a_batch(subject)
    table = atlas_features(subject.model, stack, tokens, n_contexts=subject.settings.measure.n_contexts)
    n_bytes = len(table.to_csv(index=False))
    return planned_bytes(subject.model.cfg.device, on_host=ATLAS_COPIES * n_bytes * subject.n_models)


def _plan_match(subject: _Subject) -> dict[str, Any]:
    """A batch through two models and two stacks."""
    stack, tokens = _shown_stack(subject), _a_batch(subject)
    match_features(subject.model, stack, subject.model, stack, tokens)
    return planned_bytes(subject.model.cfg.device)


def _a_batch(subject: _Subject) -> torch.Tensor:
    return made_up_tokens(subject.model, subject.n_windows(FORWARD_TOKENS), subject.n_ctx)


def _shown_stack(subject: _Subject) -> StackedSAE:
    """Untrained SAEs as pages show them: one for every slot."""
    settings, model = subject.settings, subject.model
    own = _sae_plan(subject, (settings.shown_l1,), settings.sae_seeds[:1])
    d_in = collect(model, made_up_tokens(model, 1, subject.n_ctx), own.slots).shape[2]
    stack = StackedSAE(
        stack_config(settings.saes, len(own.slots), d_in), own.generators(START), device=device_of(model)
    )
    sources = [SAESource(hook_name=slot.hook_name, layer=slot.layer, head=slot.head) for slot in own.slots]
    stack.info = StackInfo(sources=tuple(sources), model_sha256=weights_sha256(model))
    return stack


def _plan_spectra(subject: _Subject) -> dict[str, Any]:
    """Of a model beside another, as those of every model but the first are."""
    return plan_compare((subject.model, subject.model), subject.settings.measure.n_sequences, subject.n_ctx)


def _plan_probe(subject: _Subject) -> dict[str, Any]:
    measure, length = subject.settings.measure, text_length(subject.model, None)
    n_text = max(1, 2 * measure.n_points // length) * length
    n_permutations, n_points = measure.n_permutations, measure.n_points
    return plan_probe([subject.model], read_concepts(), n_text, n_permutations=n_permutations, n_points=n_points)


def _plan_evaluation(subject: _Subject) -> dict[str, Any]:
    model, measure = subject.model, subject.settings.measure
    return plan_evaluation(model, _text(subject), None, min(STRIDE, subject.n_ctx), measure.use_int8)


def _plan_mechanisms(subject: _Subject) -> dict[str, Any]:
    n_times = 1 + len(switched_on(subject.model))
    return plan_evaluation(subject.model, _text(subject), None, None, False, n_times=n_times)


def _text(subject: _Subject) -> EncodedText:
    """As many tokens as the text of bits per byte has, about."""
    n_bytes = subject.settings.measure.n_bytes
    tokens = made_up_tokens(subject.model, 1, n_bytes // BYTES_A_TOKEN + 2)[0]
    return EncodedText(tokens, torch.arange(len(tokens)) > 0, n_bytes)


def _plan_text_quality(subject: _Subject) -> dict[str, Any]:
    measure = subject.settings.measure
    counts = {"n_samples": measure.n_samples, "max_new_tokens": measure.n_new_tokens}
    return plan_text_quality(subject.model, read_prompts(), as_batteries(None, None), **counts)


# kind of job -> what it takes, in the order of jobs; a ladder's trainings are smaller than the model's own
PLANS: Mapping[str, Callable[[_Subject], dict[str, Any]]] = MappingProxyType(
    {
        "saes": _plan_saes,
        "ablation": _plan_ablation,
        "topology": _plan_topology,
        "attention": _plan_attention,
        "probe": _plan_probe,
        "evaluation": _plan_evaluation,
        "text_quality": _plan_text_quality,
        "features": _plan_features,
        "match": _plan_match,
        "spectra": _plan_spectra,
        "mechanisms": _plan_mechanisms,
        "ladder": _plan_mechanisms,
    }
)
TOKENIZED = ("probe", "text_quality")  # read words and prompts of their own
