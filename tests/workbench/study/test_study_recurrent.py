"""Text quality, mechanisms and the ladder as analyses of a study: a recurrent model and a plain one, both tiny."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tomli_w

from reports.tables import read_table
from workbench.analyses.ladder.rungs import BASE, RUNGS, ladder_recipes
from workbench.analyses.text_quality.quality import text_quality
from workbench.data.batteries import read_prompts
from workbench.models.load import load
from workbench.runs import amend_manifest, verify_manifest
from workbench.study.study import study
from workbench.study.tabulate import tabulate
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
        "name": "tiny", "n_seeds": 1, "analyses": ["text-quality", "mechanisms", "ladder"],
        "models": [str(place / "tiny-recurrent.toml"), str(place / "tiny-plain.toml")],
        "settings": {
            "text-quality": {"n_samples": N_SAMPLES, "max_new_tokens": N_NEW},
            "mechanisms": {"n_bytes": 2000}, "ladder": {"n_bytes": 2000},
        },
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
    for name in ("mechanisms", "ladder"):
        assert f"No {name} of tiny-plain: it has no depth recurrence." in said["notes"]
    assert (made / "report.html").is_file()


def test_text_quality_is_tabulated_again_without_its_model(made, tmp_path) -> None:
    job = tmp_path / "job"
    shutil.copytree(made / "text-quality/tiny-plain-seed0", job)
    (job / "text_quality.csv").unlink()
    assert tabulate(job) == ["text_quality"]
    verify_manifest(job)
    table = (made / "text-quality/tiny-plain-seed0/text_quality.csv").read_bytes()
    assert (job / "text_quality.csv").read_bytes() == table
    raw = json.loads((job / "text_quality.json").read_text())
    first = next(item for item in raw["items"] if item["battery"] == "recall")
    first["margin"] += 8.0
    (job / "text_quality.json").write_text(json.dumps(raw))
    amend_manifest(job, ["text_quality.json"])
    before = read_table(job, "text_quality").set_index("measure")["value"]
    tabulate(job)
    after = read_table(job, "text_quality").set_index("measure")["value"]
    n_items = sum(item["battery"] == "recall" for item in raw["items"])
    assert after["recall_margin"] - before["recall_margin"] == pytest.approx(8.0 / n_items)
