"""One rule of text and seeds: the verb on a study's models writes the bytes that the study's own jobs wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
from studies_for_tests import context_of, tiny, write_place
from typer.testing import CliRunner

from workbench.analyses import find_analysis
from workbench.cli.app import app
from workbench.runs import CONFIG, ENV, MANIFEST
from workbench.study import study as module
from workbench.study.jobs import MODELS, PlannedJob, plan_jobs
from workbench.study.study import study

SETTINGS = {
    "ablate": {"n_tokens": 256},
    "atlas": {"n_tokens": 256, "n_contexts": 2},
    "content-share": {
        "n_bytes": 4000, "min_activations": 2, "min_documents": 1, "n_permutations": 19, "n_bootstrap": 100,
    },
    "feature-effects": {"n_tokens": 256, "n_exact": 2, "n_bootstrap": 100},
    "match": {"n_tokens": 256},
    "sae-train": {
        "l1": [0.5, 1.0], "seeds": [3], "expansion": 3, "n_eval_tokens": 512, "n_train_tokens": 512, "batch_size": 64,
        "buffer_tokens": 128, "n_ce_tokens": 64,
    },
    "steer": {
        "n_tokens": 256, "target": ["the"], "forms": ["norm"], "alphas": [2.0], "n_random": 2, "n_prompts": 2,
        "n_windows": 2, "max_new_tokens": 2,
    },
    "sae-scores": {"n_tokens": 256, "n_splice_tokens": 128, "n_bootstrap": 100, "parts": ["core"]},
    "topology": {"n_tokens": 256},
}  # fmt: skip
# what says when and how a run was made, and what is drawn from its tables
RECORDS = (CONFIG, ENV, MANIFEST, "datapackage.json")
pytestmark = pytest.mark.filterwarnings("ignore:topology. .* tokens:probes.SmallSampleWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A study of two tiny models with every one of the analyses."""
    place = write_place(tmp_path_factory.mktemp("study"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(module, "write_report", lambda directory, **given: None)
        patch.setattr(module, "write_heads", lambda directory: None)
        recipe = tiny(place) | {"analyses": list(SETTINGS), "settings": SETTINGS, "roles": {}}
        (place / "every.toml").write_text(tomli_w.dumps(recipe))
        yield study(place / "every.toml", place / "made", seeds=1, device="cpu")


def files_of(directory: Path) -> dict[str, bytes]:
    """Everything that a run left but its records and pages."""
    paths = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if name not in RECORDS and path.suffix != ".html"}


def assert_verb_equals_job(analysis: str, made: Path, out: Path) -> None:
    """The verb of an analysis, on the models of a finished study, writes the files of each of its jobs."""
    record, recipe = find_analysis(analysis), context_of(made).recipe
    jobs = [job for job in plan_jobs(recipe) if job.kind == analysis]
    assert jobs, "the study has such jobs"
    for i, job in enumerate(jobs):
        models = [str(made / PlannedJob("train", (model,)).name) for model in job.models]
        assert all(f"/{MODELS}/" in model for model in models)
        if record.takes == "recipe":
            subjects = [recipe.models[0], "--n-seeds", "1"]
        elif record.takes == "pair":
            subjects = models
        else:
            subjects = [part for model in models for part in ("--ckpt", model)]
        for needed in record.needs:
            for model in job.models:
                subjects += [find_analysis(needed).option, str(made / PlannedJob(needed, (model,)).name)]
        for key, value in recipe.settings.get(analysis, {}).items():
            subjects += ["--set", f"{key}={json.dumps(value)}"]
        directory = out / str(i)
        result = CliRunner().invoke(app, [analysis, *subjects, "--device", "cpu", "--out", str(directory)])
        assert result.exit_code == 0, result.output
        found, wanted = files_of(directory), files_of(made / job.name)
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if found[name] != wanted[name]] == []


@pytest.mark.parametrize("analysis", SETTINGS)
def test_the_verb_writes_what_the_job_wrote(analysis, made, tmp_path) -> None:
    assert_verb_equals_job(analysis, made, tmp_path)
