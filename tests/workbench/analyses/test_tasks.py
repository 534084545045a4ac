"""The gate against whole forwards of one prompt at a time and TransformerLens; the verb's table; tasks elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, worded_model
from saes_for_tests import stack_for

from reports.tables import COLUMNS, read_table
from workbench.analyses import find_analysis
from workbench.analyses.feature_effects.pairs import open_pairs, pair_effects
from workbench.analyses.tasks.figures import draw_tasks
from workbench.analyses.tasks.gate import gate, last_logits
from workbench.data.tasks import make_pairs, task_names
from workbench.models.activations import Positions, choose_slots, special_ids
from workbench.models.sae_places import saes_by_hook
from workbench.study import measuring


def naive(model, prompt, answer, foil):
    logits = model(prompt[None])[0, -1].detach()
    return float(logits[answer] - logits[foil])


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_the_gate_is_that_of_single_forwards(kind, monkeypatch) -> None:
    monkeypatch.setattr("workbench.analyses.tasks.gate.NUMBERS_TOGETHER", 61 * 24 * 5)  # five prompts at once
    model = small_model(kind).double()
    pairs = make_pairs(model, "induction", n_pairs=32)
    found = gate(model, pairs)
    ids = pairs.answers[:, 0].tolist(), pairs.foils[:, 0].tolist()
    for m, prompts in ((found.clean, pairs.clean), (found.corrupt, pairs.corrupt)):
        wanted = [naive(model, *row) for row in zip(prompts, *ids, strict=True)]
        assert m.tolist() == pytest.approx(wanted, abs=1e-4)  # logits are kept in float32, some tens large
    assert found.accuracy == sum(m > 0 for m in found.clean) / 32
    assert found.gap.mean == pytest.approx((found.clean - found.corrupt).mean())
    assert found.gap.n_clusters == 16


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_gate_is_that_of_transformer_lens_logits() -> None:
    import workbench

    model = worded_model("kotodama", n_ctx=48)
    other = workbench.to_hooked_transformer(model)
    pairs = make_pairs(model, "agreement")
    logits = other(pairs.clean)[torch.arange(len(pairs)), pairs.last].detach()
    wanted = [float(row[a] - row[b]) for row, a, b in zip(logits, pairs.answers[:, 0], pairs.foils[:, 0], strict=True)]
    assert gate(model, pairs).clean.tolist() == pytest.approx(wanted, abs=1e-3)
    assert gate(other, pairs).clean.tolist() == pytest.approx(wanted, abs=1e-3)


def measured(tmp_path, model, **settings):
    analysis = find_analysis("tasks")
    own = analysis.settings.model_validate({"n_bootstrap": 100, **settings})
    return measuring.measure(measuring.Request(analysis, own, sources=(model,), device="cpu"), tmp_path / "out")


def test_the_job_writes_a_row_for_each_task(tmp_path) -> None:
    model = worded_model("janus-v3", n_layers=1, n_ctx=48)
    table: pd.DataFrame = read_table(measured(tmp_path, model), "tasks")
    assert list(table["task"]) == task_names()
    assert list(table.columns[: len(COLUMNS["tasks"])]) == list(COLUMNS["tasks"])
    row = table[table["task"] == "induction"].iloc[0]
    assert (row["n_pairs"], row["n_clusters"], row["chance"]) == (128, 64, 0.5)
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    lacking = table[table["task"] == "colour_binding"].iloc[0]
    assert lacking["status"].startswith("not available: task colour_binding: got 0 pairs in 0 clusters; expected at")
    assert math.isnan(lacking["accuracy"])
    assert lacking["n_pairs"] == 0
    assert set(table["status"].str.split(":").str[0]) <= {"present", "task_absent", "not available"}
    traces: Any = draw_tasks(table).data
    assert len(traces[1].x) == table["accuracy"].notna().sum()


def test_bad_tasks_end_a_job_before_it_begins(tmp_path) -> None:
    model = worded_model("janus-v3", n_layers=1)
    with pytest.raises(
        ValueError, match="task: got 'inductoin'; expected a TOML file or a built-in task; nearest: indu"
    ):
        measured(tmp_path, model, tasks="ioi,inductoin")
    for settings in ({"n_pairs": 33}, {"n_pairs": 30}, {"pairs_seed": -1}, {"tasks": ""}):
        with pytest.raises(ValueError, match="n_pairs|pairs_seed|task"):
            measured(tmp_path, model, **settings)


def test_effects_of_features_are_over_the_clusters_of_a_task() -> None:
    model = worded_model("janus-v3", n_layers=2).double()
    sae = stack_for(model, choose_slots(model.cfg, [1], [0]))
    pairs, value = open_pairs(model, "agreement"), torch.zeros(1, sae.config.d_sae, dtype=torch.float64)
    given = (model, sae, saes_by_hook(model, sae), pairs, Positions(special_ids(model)), value)
    table = pair_effects(*given, name="m", seed=0, n_exact=1, n_bootstrap=100)
    row = table[table["delta"].notna()].iloc[0]
    assert row["n_pairs"] == len(pairs)
    m = pairs.effect(last_logits(model, pairs.clean, pairs.last))
    means = [float(m[pairs.clusters == cluster].mean()) for cluster in pairs.clusters.unique()]
    assert row["base_difference"] == pytest.approx(sum(means) / len(means), abs=1e-4)
    with pytest.raises(ValueError, match="pairs: greater_than is measured by probabilities; expected a task of one"):
        open_pairs(model, "greater_than")
