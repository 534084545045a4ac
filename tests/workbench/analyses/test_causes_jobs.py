"""The jobs of `paths` and `attribute`: tables by their contracts, the same from Python, killed and resumed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from models_for_tests import worded_model

import workbench
from reports.tables import COLUMNS, read_table
from workbench.analyses import find_analysis
from workbench.analyses.attribute import attribution
from workbench.analyses.paths import mapping
from workbench.analyses.paths.figures import draw_paths, draw_strongest_paths
from workbench.data.tasks import make_pairs
from workbench.study import measuring

# name -> (settings of a small job, module and function by which its parts are made)
JOBS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "paths": ({"into": ("strongest:1", "logits", "0.mlp")}, mapping, "path_effects"),
    "attribute": ({"direction": ("denoise", "noise")}, attribution, "exchange"),
}
FEW = {"n_pairs": 32, "n_bootstrap": 100}


@pytest.fixture(scope="module")
def model():
    return worded_model("kotodama", n_layers=2, n_ctx=40)


def request_for(model, name: str) -> measuring.Request:
    own = find_analysis(name)
    settings = own.settings.model_validate(FEW | JOBS[name][0])
    return measuring.Request(own, settings, sources=(model,), device="cpu")


@pytest.mark.parametrize("name", JOBS)
def test_a_job_writes_its_tables_and_goes_on_after_a_kill(model, name, tmp_path, monkeypatch) -> None:
    settings, module, function = JOBS[name]
    request = request_for(model, name)
    whole = measuring.measure(request, tmp_path / "whole")
    analysis = find_analysis(name)
    for table in analysis.tables:
        found = read_table(whole, table.name)
        assert list(found.columns[: len(COLUMNS[table.name])]) == list(COLUMNS[table.name])
        assert not found.duplicated(list(table.key)).any()
    assert set(read_table(whole, analysis.tables[0].name)["status"]) == {"task_absent"}  # random weights do no task
    facts = dict(analysis.facts(whole))  # type: ignore[misc]
    assert facts["status"] == "task_absent"

    again = getattr(workbench, name)(model, make_pairs(model, "induction", 32), **settings, n_bootstrap=100)
    again = again if name == "attribute" else {"paths": again}
    for table, own in again.items():
        written = read_table(whole, table)
        drop = ["status", "model"]
        pd.testing.assert_frame_equal(
            own.drop(columns=drop, errors="ignore"), written.drop(columns=drop, errors="ignore"), check_dtype=False
        )

    made, run = itertools.count(), getattr(module, function)

    def dies(*given: Any) -> Any:
        if next(made) == 1:
            raise MemoryError("killed")
        return run(*given)

    monkeypatch.setattr(module, function, dies)
    with pytest.raises(MemoryError):
        measuring.measure(request, tmp_path / "killed")
    calls: list[int] = []
    monkeypatch.setattr(module, function, lambda *given: calls.append(1) or run(*given))
    out = measuring.measure(request, tmp_path / "killed", resume=True)
    n_parts = {"paths": 4, "attribute": 2}[name]  # the strongest, and receivers of layers 0, 1 and the logits
    assert len(calls) == n_parts - 1
    for table in analysis.tables:
        assert (out / f"{table.name}.csv").read_bytes() == (whole / f"{table.name}.csv").read_bytes()
    assert not list(out.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["patch", "paths", "attribute", "scrub", "tasks", "monitor"])
def test_a_file_that_changed_is_another_setting(name: str, tmp_path: Path) -> None:
    """So that a killed run does not go on with parts of other pairs."""
    file = tmp_path / ("own.jsonl" if name == "monitor" else "own.toml")
    key, value = {"tasks": ("tasks", ("ioi", str(file))), "monitor": ("target", str(file))}.get(
        name, ("task", str(file))
    )
    settings = find_analysis(name).settings.model_validate({key: value})
    said = []
    for text in ("one", "other", "one"):
        file.write_text(text)
        said.append(measuring.identify_settings(settings))
    assert said[0] == said[2] != said[1]
    assert set(said[0]) == set(settings.model_dump())
    builtin = find_analysis(name).settings.model_validate({})
    assert measuring.identify_settings(builtin) == builtin.model_dump(mode="json")


def test_paths_are_drawn_with_and_without_a_share(model) -> None:
    pairs = make_pairs(model, "induction", 32)
    table = workbench.paths(model, pairs, n_bootstrap=100, direction=["denoise", "noise"])
    shares = table.assign(recovery=table["effect"], ci_low=table["effect"] - 1, ci_high=table["effect"] + 1)
    for own, title in ((table.assign(recovery=float("nan")), "mean effect"), (shares, "share of the gap")):
        strongest, whole = draw_strongest_paths(own), draw_paths(own)
        assert len(strongest.data) == len(whole.data) == 2
        assert strongest.layout.xaxis.title.text == title  # type: ignore[attr-defined]
        assert whole.layout.coloraxis.colorbar.title.text == title  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", JOBS)
def test_the_cost_is_known_without_the_model(model, name) -> None:
    from workbench.extend import TextSize

    analysis = find_analysis(name)
    settings = analysis.settings.model_validate(FEW | JOBS[name][0])
    few, more = (
        analysis.cost(model.cfg, settings.model_copy(update={"n_pairs": n}), TextSize(1, 2))  # type: ignore[misc]
        for n in (32, 64)
    )
    assert 1.9 < more.flops / few.flops < 2.1
    assert more.bytes_on_device >= few.bytes_on_device > 0
