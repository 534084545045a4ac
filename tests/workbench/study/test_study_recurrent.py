"""Text quality, mechanisms and the ladder as analyses of a study: a recurrent model and a plain one, both tiny."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from reports.tables import read_table
from workbench.analyses.ladder.rungs import BASE, RUNGS, ladder_recipes
from workbench.analyses.text_quality.quality import text_quality
from workbench.data.batteries import read_prompts
from workbench.models.load import load
from workbench.runs import amend_manifest, verify_manifest
from workbench.study.tabulate import tabulate_run
from workbench.training import load_recipe

N_NEW, N_SAMPLES = 4, 2


@pytest.fixture(scope="module")
def made(recurrent_study) -> Path:
    """The study."""
    return recurrent_study


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
    for name in ("mechanisms", "ladder"):
        assert f"No {name} of tiny-plain: it has no depth recurrence." in said["notes"]
    assert (made / "report.html").is_file()


def test_text_quality_is_tabulated_again_without_its_model(made, tmp_path) -> None:
    job = tmp_path / "job"
    shutil.copytree(made / "text-quality/tiny-plain-seed0", job)
    (job / "text_quality.csv").unlink()
    assert tabulate_run(job) == ["text_quality"]
    verify_manifest(job)
    table = (made / "text-quality/tiny-plain-seed0/text_quality.csv").read_bytes()
    assert (job / "text_quality.csv").read_bytes() == table
    raw = json.loads((job / "text_quality.json").read_text())
    first = next(item for item in raw["items"] if item["battery"] == "recall")
    first["margin"] += 8.0
    (job / "text_quality.json").write_text(json.dumps(raw))
    amend_manifest(job, ["text_quality.json"])
    before = read_table(job, "text_quality").set_index("measure")["value"]
    tabulate_run(job)
    after = read_table(job, "text_quality").set_index("measure")["value"]
    n_items = sum(item["battery"] == "recall" for item in raw["items"])
    assert after["recall_margin"] - before["recall_margin"] == pytest.approx(8.0 / n_items)
