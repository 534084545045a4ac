"""What a study's jobs do: each reads what the jobs before it left on disk and writes one run directory.

The work is a function of (job, context), so that an executor may run it anywhere that sees the directory.
"""

from __future__ import annotations

from collections.abc import Callable

from reports.tables import write_table
from workbench.analyses import find_analysis
from workbench.extend import Job, Settings, Subject
from workbench.models.load import load
from workbench.runs import open_run
from workbench.study.jobs import TRAIN, Context, PlannedJob
from workbench.study.measuring import check, describe_job, identify_settings, measure_job, own_seed
from workbench.training import train

Tell = Callable[[float], None]


def run_job(job: PlannedJob, context: Context, tell: Tell, *, is_shown: bool = False) -> None:
    """Do one job in its directory, or go on with it where it was left; a finished one is checked and left as it is.

    is_shown: a training draws its own bar.
    """
    if job.kind == TRAIN:
        recipe = context.training(job.model)
        settings = {"device": context.device, "resume": True, "progress": is_shown, "cache": context.cache}
        train(recipe, context.directory / job.name, seed=job.seed, **settings)
        return
    analysis = find_analysis(job.kind)
    own = make_job(job, context, context.recipe.settings_of(job.kind), tell)
    check(analysis, own)
    config = {"verb": job.kind, "models": [describe_job(own)], "settings": identify_settings(own.settings)}
    with open_run(context.directory / job.name, config, resume=True, device=own.device, seed=job.seed) as run:
        if not run.is_complete:
            for name, table in measure_job(analysis, own.within(run.path)).items():
                write_table(table, run.path, name)


def make_job(job: PlannedJob, context: Context, settings: Settings, tell: Tell = lambda share: None) -> Job:
    """What the analysis of a planned job is given."""
    analysis = find_analysis(job.kind)
    is_of_recipe = analysis.takes == "recipe"
    subjects = [] if is_of_recipe else [_load(name, seed, context) for name, seed in job.models]
    needs = {
        name: tuple(context.directory / PlannedJob(name, (model,)).name for model in job.models)
        for name in analysis.needs
    }
    return Job(
        tuple(subjects),
        settings,
        context.directory / job.name,
        seed=own_seed(analysis, job.seed),
        needs=needs,
        cache=context.cache,
        device=context.device,
        progress=tell,
        recipe=context.training(job.model) if is_of_recipe else None,
    )


def _load(name: str, seed: int, context: Context) -> Subject:
    path = context.directory / PlannedJob(TRAIN, ((name, seed),)).name
    return Subject(load(path, context.device), name, seed)
