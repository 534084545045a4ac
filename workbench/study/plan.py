"""What a verb or a study would take, before anything is made: from formulas of configurations and settings alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workbench.data.text_windows import MAX_N_CTX
from workbench.extend import BYTES_PER_TOKEN, Analysis, Cost, Documents, Settings, TextSize
from workbench.models.config import ModelConfig, parse_dtype
from workbench.models.costs import loading_bytes, weights_bytes
from workbench.models.load import load_config, resolve_device, resolve_devices
from workbench.runs.memory import planned_bytes
from workbench.study.claim_checks import collect_checked
from workbench.study.jobs import TRAIN, left_out, plan_jobs
from workbench.study.measuring import Request
from workbench.study.over_training import follow
from workbench.study.recipe import StudyRecipe, load_study
from workbench.study.sizes import check_sizes
from workbench.study.study import with_given  # what it loads counts among the bytes in memory
from workbench.training.plan import plan as plan_training
from workbench.training.recipe import apply_overrides, load_recipe, phase_model

MEMORY = ("bytes_in_memory", "bytes_on_device")


def plan_request(request: Request) -> dict[str, Any]:
    """Facts about a measurement: models, tokens, floating-point operations, bytes in memory and on disk.

    Raises:
        ValueError: a model that is not there or that the analysis does not hold for.
    """
    analysis, device = request.analysis, resolve_devices(request.device)[0]
    subjects, configs, ours = _subjects(request, device)
    groups = [[cfg] for cfg in configs] if analysis.takes in ("model", "recipe") else [configs]
    for group in groups:
        if reason := analysis.requires(*group):
            raise ValueError(f"{analysis.name}: {group[0].model_name} {reason}")
    sizes = [size_of_text(analysis, request.settings, cfg, own) for cfg, own in zip(configs, ours, strict=True)]
    facts: dict[str, Any] = {"n_models": len(request.sources) or len(configs)}
    is_over_training = bool(request.steps or request.revisions)
    if is_over_training:
        facts["n_checkpoints"] = len(configs)
    if analysis.reads is not None:
        facts["n_tokens"] = sum(size.n_tokens for size in sizes)
    if analysis.cost is None:
        return facts
    costs = [analysis.cost(own, request.settings, size) for own, size in zip(subjects, sizes, strict=True)]
    if analysis.takes == "recipe":  # trains one model after another, and loads none
        return facts | describe_cost(sum(costs, Cost()), device)
    if is_over_training:  # one model at a time
        return facts | describe_cost(sum(costs, Cost()), device, loading=max(loading_bytes([cfg]) for cfg in configs))
    return facts | describe_cost(_together(costs, configs), device, loading=loading_bytes(configs))


def _subjects(request: Request, device: str) -> tuple[Sequence[Any], Sequence[ModelConfig], Sequence[bool]]:
    """(what costs are of: configurations of the models as they will be loaded, or recipes; the configurations; whether
    each is a run of ours)."""
    n = request.n_seeds
    if request.analysis.takes == "recipe":
        recipe = apply_overrides(load_recipe(request.recipe), request.overrides)
        return [recipe] * n, [phase_model(recipe, -1)] * n, [True] * n
    if request.steps or request.revisions:
        found = [(own.cfg, own.is_ours) for model in follow(request) for own in model.checkpoints]
    else:
        found = [load_config(source) for source in request.sources]
    changes = {"device": device} | ({} if request.dtype is None else {"dtype": parse_dtype(request.dtype)})
    configs = [cfg.model_copy(update=changes) for cfg, _ in found]
    return configs, configs, [is_ours for _, is_ours in found]


def _together(costs: Sequence[Cost], configs: Sequence[ModelConfig]) -> Cost:
    """One measurement after another, while all the models are there."""
    weights = [weights_bytes(cfg) for cfg in configs]
    held = max(cost.bytes_on_device + sum(weights) - own for cost, own in zip(costs, weights, strict=True))
    return replace(sum(costs, Cost()), bytes_on_device=held)


def size_of_text(analysis: Analysis, settings: Settings, cfg: ModelConfig, is_ours: bool) -> TextSize:
    """How much text the settings ask for, of a model; as much as there may be less of."""
    default = cfg.n_ctx if is_ours else min(cfg.n_ctx, MAX_N_CTX)
    n_ctx = getattr(settings, "n_ctx", None) or min(default, settings.max_n_ctx or default)
    if isinstance(analysis.reads, Documents):
        return TextSize(max(1, getattr(settings, "n_bytes", 0) // BYTES_PER_TOKEN // n_ctx), n_ctx)
    n_sequences, n_tokens = (getattr(settings, name, None) for name in ("n_sequences", "n_tokens"))
    if n_tokens == 0:
        return TextSize(0, n_ctx)
    return TextSize(n_sequences or max(1, (n_tokens or 0) // n_ctx), n_ctx)


def describe_cost(cost: Cost, device: str, *, loading: int = 0) -> dict[str, Any]:
    """A cost as facts; bytes in memory with what the process holds by now, its libraries. loading: bytes that the host
    holds before, while models come out of files."""
    on_host, on_device = int(cost.bytes_in_memory), int(cost.bytes_on_device)
    beside = 0 if device.startswith("cuda") else on_device
    facts: dict[str, Any] = {"flops": cost.flops} if cost.flops else {}
    facts |= {"bytes_on_disk": int(cost.bytes_on_disk)} if cost.bytes_on_disk else {}
    return facts | planned_bytes(device, on_host=max(on_host, loading - beside), on_device=on_device)


def plan(
    recipe: str | Path | StudyRecipe | None = None,
    seeds: int | None = None,
    *,
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    claims: Sequence[str | Path] | str | Path | None = None,
) -> dict[str, Any]:
    """Facts about a study by name, before anything is made: jobs; parameters, tokens, bytes of trainings and analyses.

    Memory is that of the process, at the job that needs most. An executor that runs several jobs at once has a process
    for each, and every one may come to take as much. A ladder's trainings are counted as one of the whole model.
    """
    settings = load_study(recipe, with_given(overrides, seeds, claims))
    collect_checked(settings)
    recipes, n_seeds, jobs = settings.train_recipes(), settings.n_seeds, plan_jobs(settings)
    check_sizes(settings, recipes)
    device = resolve_device(device)
    trainings = {own.name: plan_training(own, device=device) for own in recipes}
    found = [*trainings.values(), *_plan_analyses(settings, {own.name: own for own in recipes}, device)]
    return {
        "study": settings.name,
        "n_seeds": n_seeds,
        "n_jobs": len(jobs),
        "n_jobs_by_kind": dict(Counter(job.kind for job in jobs)),
        "left_out": left_out(settings),
        "n_train_tokens": n_seeds * sum(own["n_tokens"] for own in trainings.values()),
        "bytes_on_disk": n_seeds * sum(own["bytes_on_disk"] for own in trainings.values()),
        **{what: max(own[what] for own in found) for what in MEMORY if what in found[0]},
        "trainings": trainings,
    }


def _plan_analyses(settings: StudyRecipe, recipes: Mapping[str, Any], device: str) -> Sequence[dict[str, Any]]:
    """The facts of each analysis of each model, the same for every seed."""
    facts = []
    for job in plan_jobs(settings.model_copy(update={"n_seeds": 1})):
        if job.kind == TRAIN:
            continue
        analysis = next(own for own in settings.opened_with() if own.name == job.kind)
        own, cfg = settings.settings_of(job.kind), phase_model(recipes[job.model], -1)
        if analysis.cost is not None:
            subject = recipes[job.model] if analysis.takes == "recipe" else cfg.model_copy(update={"device": device})
            cost = analysis.cost(subject, own, size_of_text(analysis, own, cfg, True))
            beside = weights_bytes(cfg) * (len(job.models) - 1)  # of a pair, the other model
            cost = replace(cost, bytes_on_device=cost.bytes_on_device + beside)
            facts.append(describe_cost(cost, device, loading=loading_bytes([cfg] * len(job.models))))
    return facts
