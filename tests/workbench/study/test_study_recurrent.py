"""Text quality, mechanisms and the ladder as analyses of a study: a recurrent model and a plain one, both tiny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import tomli_w

from reports.tables import read_table
from workbench.analyses.mechanisms import BASE, RUNGS, ladder_recipes
from workbench.analyses.text_quality.quality import text_quality
from workbench.data.batteries import read_prompts
from workbench.models.load import load
from workbench.runs import verify_manifest
from workbench.study import plan as study_plan
from workbench.study.recipe import Analysis
from workbench.study.study import study
from workbench.training import load_recipe

SMALL = {
    "n_layers": 2, "d_model": 16, "n_heads": 2, "n_key_value_heads": 1, "d_head": 8, "d_mlp": 16, "n_ctx": 64,
}  # fmt: skip
N_NEW, N_SAMPLES = 4, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The study; its models have the embedded text's tokenizer, for which the prompts are words."""
    place = tmp_path_factory.mktemp("recurrent")
    recurrent = load_recipe("recurrent-nano").model_dump(mode="json", exclude_none=True)
    recurrence = recurrent["model"]["extensions"]["recurrence"] | {"n_unique": 1, "n_passes": 2, "carry_rank": 2}
    recurrence |= {"td_rank": 2, "n_routes": 2}
    recurrent["model"]["extensions"] |= {"k_rank": 2, "recurrence": recurrence}
    recurrent["model"] |= SMALL
    phase = recurrent["phases"][0] | {"n_steps": 1, "batch_size": 2, "eval_every": 1, "log_every": 1}
    phase["optimizer"]["muon"]["n_momentum_steps"] = 1
    phase["schedule"] = {"kind": "constant"}
    recurrent |= {"name": "tiny-recurrent", "phases": [phase]}
    rows = [{"text": prompt * 20} for one in read_prompts() for prompt in one.prompts]
    (place / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recurrent["data"] |= {"source": str(place / "text.jsonl"), "held_out_fraction": 0.3, "n_held_out_windows": 4}
    recurrent.pop("monitor")
    plain = load_recipe("p3-muon-nano").model_dump(mode="json", exclude_none=True)
    plain["model"] |= SMALL | {"n_key_value_heads": 2}
    step = {"n_steps": 1, "batch_size": 2, "eval_every": 1, "log_every": 1, "schedule": {"kind": "constant"}}
    plain |= {"name": "tiny-plain", "phases": [plain["phases"][0] | step], "data": recurrent["data"]}
    plain.pop("monitor")
    for recipe in (recurrent, plain):
        (place / f"{recipe['name']}.toml").write_text(tomli_w.dumps(recipe))
    settings = {
        "name": "tiny", "n_seeds": 1, "analyses": ["text_quality", "mechanisms", "ladder"],
        "models": [str(place / "tiny-recurrent.toml"), str(place / "tiny-plain.toml")],
        "measure": {"n_samples": N_SAMPLES, "n_new_tokens": N_NEW, "n_bytes": 2000},
    }  # fmt: skip
    (place / "study.toml").write_text(tomli_w.dumps(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(place / "cache"))
        return study(place / "study.toml", place / "made", device="cpu")


def test_text_quality_is_merged_with_its_continuations(made) -> None:
    verify_manifest(made)
    names = ["tiny-recurrent", "tiny-plain"]
    table = read_table(made, "text_quality")
    assert list(dict.fromkeys(table["model"])) == names
    model = load(made / "models/tiny-plain-seed0")
    wanted = text_quality(model, n_samples=N_SAMPLES, max_new_tokens=N_NEW, name="tiny-plain")
    own = table[table["model"] == "tiny-plain"].reset_index(drop=True)
    pd.testing.assert_frame_equal(own, wanted.table, check_dtype=False, rtol=1e-9)
    lines = (made / "continuations.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    n = sum(len(one.prompts) for one in read_prompts()) * N_SAMPLES
    assert [json.loads(line)["model"] for line in lines] == [name for name in names for _ in range(n)]
    assert "".join(lines[n:]) == wanted.to_jsonl()


def test_mechanisms_and_ladder_are_the_recurrent_models(made) -> None:
    table = read_table(made, "mechanisms")
    assert set(table["model"]) == {"tiny-recurrent"}
    assert len(table) == 12
    rungs = read_table(made, "ladder")
    recipes = ladder_recipes(load_recipe(made.parent / "tiny-recurrent.toml"))
    assert rungs["mechanism"].tolist() == [BASE, *RUNGS] == [name for name, _ in recipes]
    changes = rungs["bits_per_byte"].diff()
    assert rungs["delta_bits"].tolist()[1:] == pytest.approx(changes.tolist()[1:])
    said = json.loads((made / "study.json").read_text())
    assert any(note.startswith("tiny-plain have no depth recurrence") for note in said["notes"])
    assert (made / "report.html").is_file()


def test_a_plan_counts_the_memory_of_every_kind_of_job(made, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(study_plan.PLANS) == set(get_args(Analysis))
    planned = []

    def told(kind: str, plan_kind):
        def run(subject):
            planned.append((kind, subject.model.cfg.extensions.recurrence is not None))
            facts = plan_kind(subject)
            return facts | {"bytes_in_memory": facts["bytes_in_memory"] + (kind == "spectra") * 10**12}

        return run

    monkeypatch.setattr(study_plan, "PLANS", {kind: told(kind, own) for kind, own in study_plan.PLANS.items()})
    analyses = [kind for kind in get_args(Analysis) if kind != "ablation"]
    overrides = {"analyses": analyses, "measure.n_permutations": 9, "measure.n_points": 64}
    facts = study_plan.plan(made.parent / "study.toml", device="cpu", overrides=overrides)
    assert facts["bytes_in_memory"] > 10**12  # the largest of all, whatever it is of
    plain = {kind for kind, is_recurrent in planned if not is_recurrent}
    recurrent = {kind for kind, is_recurrent in planned if is_recurrent}
    assert "ablation" not in plain | recurrent
    # the first is the reference, which is matched with nothing; the plain one has no mechanisms
    assert set(analyses) - plain == {"mechanisms", "ladder"}
    assert set(analyses) - recurrent == {"match"}
    assert not list(tmp_path.iterdir())
