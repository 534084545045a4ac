"""A study of two tiny models at three sizes, end to end: its tables, its page, and how it goes on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w
from studies_for_tests import MODEL, tables_of, tiny, write_place
from typer.testing import CliRunner

from reports.tables import read_table
from workbench.cli.app import app
from workbench.study import job_runners
from workbench.study.job_runners import run_job
from workbench.study.study import study

pytestmark = [
    pytest.mark.filterwarnings("ignore:topology. .* tokens:probes.SmallSampleWarning"),
    pytest.mark.usefixtures("cache"),
]
SIZES = {
    "small": {"model.d_model": 8, "phases.0.n_steps": 2},
    "large": {"model.n_layers": 3, "phases.0.n_steps": 3, "phases.0.interventions.vsm.steering": 1.0},
    "mid": {},
}
ORDER = ["small", "mid", "large"]
WRITTEN = ("ablation_results", "topology_stats", "train_log", "claims", "claims_by_size", "effective_size")
WRITTEN = (*WRITTEN, "size_slopes")


class Killed(BaseException):
    """The end of the process."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = write_place(tmp_path_factory.mktemp("sized"))
    settings = {name: {"n_tokens": 256} for name in ("ablate", "topology")}
    own = tiny(place) | {"analyses": list(settings), "settings": settings, "sizes": SIZES, "n_seeds": 3}
    (place / "tiny.toml").write_text(tomli_w.dumps(own))
    return place


@pytest.fixture(scope="module")
def made(place) -> Path:
    out = place / "made"
    result = CliRunner().invoke(app, ["study", str(place / "tiny.toml"), "--out", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return out


def test_every_model_is_trained_and_opened_at_every_size(made) -> None:
    named = {
        f"tiny-{role}@{size}-seed{seed}" for role in ("control", "adaptive") for size in SIZES for seed in range(3)
    }
    for kind in ("models", "ablate", "topology"):
        assert {path.name for path in (made / kind).iterdir()} == named
    layers = read_table(made, "topology_stats").groupby("model")["layer"].nunique()
    assert layers["tiny-adaptive@large"] == 3
    assert layers["tiny-adaptive@mid"] == MODEL["n_layers"]
    assert read_table(made, "train_log").groupby("model")["step"].max()["tiny-control@small"] == 2


def test_models_are_compared_within_their_size(made) -> None:
    sizes = read_table(made, "effective_size")
    assert set(zip(sizes["model_a"], sizes["model_b"], strict=True)) == {
        (f"tiny-adaptive@{size}", f"tiny-control@{size}") for size in SIZES
    }
    effects = read_table(made, "effects")
    assert set(zip(effects["model_a"], effects["model_b"], strict=True)) == {
        (f"tiny-control@{size}", f"tiny-adaptive@{size}") for size in SIZES
    }


def test_claims_are_judged_at_every_size(made) -> None:
    by_size, slopes = read_table(made, "claims_by_size"), read_table(made, "size_slopes").set_index("claim_id")
    own = by_size[by_size["claim_id"] == "janus-correlation-9"]
    assert own["size"].tolist() == ORDER
    assert own["n_parameters"].is_monotonic_increasing
    assert own["effect"].notna().all()
    assert own["n"].tolist() == [3, 3, 3]
    assert slopes.loc["janus-correlation-9", "n_sizes"] == 3
    ledger = read_table(made, "claims").set_index("claim_id")
    assert ledger.loc["janus-correlation-9", "effect"] == own["effect"].iloc[-1]
    record = json.loads((made / "study.json").read_text())
    assert record["models"][0]["size"] == "small"
    assert record["models"][0]["recipe"] == "tiny-control"
    assert record["roles"] == {"control": "tiny-control", "adaptive": "tiny-adaptive"}
    assert sum(note.startswith("Sizes, in parameters without embeddings: small (") for note in record["notes"]) == 1


def test_the_page_has_the_figure_and_the_slopes(made) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    assert 'id="effects-over-size"' in page
    assert 'id="size-slopes"' in page
    assert "adaptive@large" in page


def test_a_study_of_sizes_goes_on_where_it_stopped(place, made, tmp_path, monkeypatch) -> None:
    def dies(job, context, tell, **rest):
        if job.name == "ablate/tiny-adaptive@mid-seed1":
            raise Killed
        run_job(job, context, tell, **rest)

    monkeypatch.setattr(job_runners, "run_job", dies)
    with pytest.raises(Killed):
        study(place / "tiny.toml", tmp_path / "out", device="cpu")
    monkeypatch.undo()
    out = study(place / "tiny.toml", tmp_path / "out", device="cpu", resume=True)
    assert tables_of(out, WRITTEN) == tables_of(made, WRITTEN)
    before = (out / "report.html").stat().st_mtime_ns
    study(place / "tiny.toml", tmp_path / "out", device="cpu", resume=True)
    assert (out / "report.html").stat().st_mtime_ns == before, "what is whole stays"
