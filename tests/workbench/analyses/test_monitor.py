"""The analysis of monitors: a planted direction is found, random labels are not, and the job from end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import worded_model
from typer.testing import CliRunner

import probes
from reports.tables import COLUMNS, read_table
from workbench.analyses import find_analysis
from workbench.analyses.monitor import armed, building, quality
from workbench.analyses.monitor.examples import Tokens, read_windows, text_offsets
from workbench.analyses.monitor.figures import draw_calibration, draw_roc, draw_scores
from workbench.analyses.monitor.stages import Stages
from workbench.data.monitoring import MarkedText, Target, read_target
from workbench.models.gates import Gate
from workbench.models.monitors import Monitor
from workbench.study import measuring


@pytest.fixture(scope="module")
def model():
    return worded_model("kotodama", n_layers=2, n_ctx=96)


def tokens_with(labels, x, seed):
    n = len(labels)
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, 6)).astype(np.float32)
    return Tokens(x, x, noise, rng.integers(0, 30, n), labels, np.arange(n) // 10)


def splits(seed, size):
    """Tokens whose direction 3 is moved by `size` where they are positive."""
    rng, parts = np.random.default_rng(seed), []
    for number, n in enumerate((1200, 400, 400)):
        labels = rng.random(n) < 0.3
        x = rng.normal(size=(n, 8)).astype(np.float32)
        x[:, 3] += size * labels
        parts.append(tokens_with(labels, x, [seed, number]))
    return quality.Splits(*parts)


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_direction_is_found(seed):
    own = splits(seed, 3.0)
    fitted = quality.fit_probes(own, np.random.default_rng(0))
    table: Any = quality.quality_table(own, fitted, 30, np.random.default_rng(0)).set_index("probe")
    # two normals three apart: AUROC Φ(3/√2) = .983; of 120 positives its standard error is about .006
    assert abs(table.loc["logistic", "auroc"] - 0.983) < 0.025
    assert fitted[0].probe is not None
    weights = fitted[0].probe.weights
    assert abs(weights).argmax() == 3
    assert table.loc["logistic", "auroc_low"] > 0.9
    for name in ("embedding", "token_identity", "random_words"):
        assert abs(table.loc[name, "auroc"] - 0.5) < 0.12
    assert table.loc["logistic", "selectivity"] == table.loc["logistic", "auroc"] - table.loc["random_words", "auroc"]
    assert table.loc["logistic", "calibration_error"] < 0.08


@pytest.mark.parametrize("seed", range(3))
def test_random_labels_are_not_found(seed):
    own = splits(seed, 0.0)
    table: Any = quality.quality_table(own, quality.fit_probes(own, np.random.default_rng(0)), 30,
                                       np.random.default_rng(0)).set_index("probe")  # fmt: skip
    # 120 positives and 280 negatives: standard error .032, of which four are .13
    assert abs(table["auroc"] - 0.5).max() < 0.13


def test_token_log_odds_by_hand():
    ids, labels = np.array([0, 0, 0, 2]), np.array([True, False, True, False])
    found = quality.token_log_odds(ids, labels)
    expected = [np.log(2.5 / 1.5), 0.0, np.log(0.5 / 1.5), 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_no_document_is_in_two_parts_and_labels_are_those_of_the_text(model):
    target = read_target("quotation", 120, 400, np.random.default_rng(0))
    windows = read_windows(model, target, 64, np.random.default_rng(1))
    parts = [set(windows.of_part(part).document.tolist()) for part in range(3)]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts))
    for tokens, labels in list(zip(windows.tokens.tolist(), windows.labels.tolist(), strict=True))[:40]:
        text, offsets = text_offsets(model.tokenizer, tokens)
        inside = target.find(text) if target.find else []
        expected = [any(a < end and b > start and b > a for start, end in inside) for a, b in offsets]
        assert labels[:-1] == expected[:-1]  # the last may be cut within a word


def test_offsets_of_bytes_that_make_a_character_together(model):
    ids = model.to_tokens("a日本é“x”", prepend_bos=False)[0].tolist()
    text, offsets = text_offsets(model.tokenizer, ids)
    assert text == "a日本é“x”"
    assert "".join(text[a:b] for a, b in offsets) == text
    assert offsets[-1][1] == len(text)


def test_rows_of_a_gate_by_hand():
    monitor = Monitor("hook_embed", torch.ones(1), 0.0, 1.5)
    scores = np.array([[0, 1, 0.0], [0, 2, 0], [0, 0, 3], [2, 0, 0], [0, 0, np.nan]])
    positive = np.array([[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], dtype=bool)
    found = armed.Continuations(scores, positive, np.zeros(5, dtype=int), np.arange(5), np.array([-1, 1, 2, 0, -1]))
    assert found.is_harmless.tolist() == [True, True, False, False, True]  # the last ended before
    row = armed.gate_row(monitor, "read", found, np.random.default_rng(0))
    assert row["false_alarm_rate"] == pytest.approx(1 / 3)
    assert row["false_per_token"] == pytest.approx(2 / 8)
    assert row["detection_rate"] == 1
    assert row["early_rate"] == 0.5
    assert row["delay"] == 1
    assert (row["n_harmless"], row["n_positive"]) == (3, 2)


def test_what_a_stop_leaves_is_set_against_stops_at_random():
    """Two continuations of three new tokens; the first is stopped before its token 1."""
    monitor = Monitor("hook_embed", torch.ones(1), 0.0, 1.5, action="stop")
    scores, nothing = np.zeros((2, 3)), np.array([-1, -1])
    # step k reads new token k − 1: tokens 0, 1 of the first are positive, and token 2 of the second, which none reads
    positive = np.array([[0, 1, 1], [0, 0, 0]], dtype=bool)
    before = armed.Continuations(scores, positive, np.array([2, 1]), np.arange(2), nothing)
    stopped = np.array([[0, 2, np.nan], [0, 0, 0]])
    after = armed.Continuations(stopped, positive, np.array([1, 1]), np.arange(2), np.array([1, -1]))
    row = armed.effect_columns(monitor, before, after, True, 3, np.random.default_rng(0))
    assert row["target_before"] == pytest.approx(3 / 6)
    assert row["target_after"] == pytest.approx(2 / 6)
    assert row["target_change"] == pytest.approx(-1 / 6)
    # cut behind one token or not at all: the first has 1 or 2, the second 0 or 1
    assert row["target_cut"] == pytest.approx((1 + 2 + 0 + 1) / 2 / 6)
    logged = armed.effect_columns(replace(monitor, action="log"), before, None, True, 3, np.random.default_rng(0))
    assert np.isnan(logged["target_cut"])


FEW = {"n_tokens": 16_000, "n_continuations": 40, "max_new_tokens": 8, "n_window": 48, "alpha": 0.2}


@pytest.mark.parametrize(
    "settings",
    [
        {"hook": "z", "head": 1, "action": "ablate"},
        pytest.param({"action": "steer", "pool": "mean"}, marks=pytest.mark.slow),
    ],
)
def test_tables_figures_and_file(model, tmp_path, settings):
    analysis = find_analysis("monitor")
    own = analysis.settings.model_validate(FEW | settings)
    out = measuring.measure(measuring.Request(analysis, own, sources=(model,), device="cpu"), tmp_path / "out")
    for name in ("monitor", "monitor_gate", "monitor_curves", "monitor_scores"):
        table = read_table(out, name)
        assert list(table.columns[: len(COLUMNS[name])]) == list(COLUMNS[name])
    gate: Any = read_table(out, "monitor_gate").set_index("text")
    assert gate.loc["read", ["delta_loss", "loss_low", "loss_high"]].notna().all()
    assert gate.loc["written", ["target_before", "target_after", "target_change"]].notna().all()
    monitor = Monitor.load(out / "monitor.safetensors")
    assert monitor.threshold == gate.loc["written", "threshold"]
    Gate(model, monitor)
    for draw, name in (
        (draw_roc, "monitor_curves"),
        (draw_calibration, "monitor_curves"),
        (draw_scores, "monitor_scores"),
    ):
        assert draw(read_table(out, name)).data


def test_a_killed_job_goes_on_to_the_same_bytes(model, tmp_path, monkeypatch):
    monkeypatch.setattr(armed, "ROWS_TOGETHER", 20)
    own = find_analysis("monitor").settings.model_validate(FEW | {"hook": "z", "head": 1, "action": "stop"})
    request = measuring.Request(find_analysis("monitor"), own, sources=(model,), device="cpu")
    whole, made, n_allowed = measuring.measure(request, tmp_path / "whole"), [], 0

    def dying(run):
        def one(*given):
            if len(made) == n_allowed:
                raise MemoryError("killed")
            made.append(run)
            return run(*given)

        return one

    monkeypatch.setattr(quality, "fit_probes", dying(quality.fit_probes))
    monkeypatch.setattr(armed, "_continuations", dying(armed._continuations))
    for n_done in (1, 4):  # of seven stages: the probe, two batches each of calibration, before and after
        out, n_allowed = tmp_path / f"killed{n_done}", n_done
        made.clear()
        with pytest.raises(MemoryError):
            measuring.measure(request, out)
        n_allowed = 7
        measuring.measure(request, out, resume=True)
        assert len(made) == 7
        for file in ("monitor", "monitor_gate", "monitor_curves", "monitor_scores"):
            assert (out / f"{file}.csv").read_bytes() == (whole / f"{file}.csv").read_bytes()
        assert [file.name for file in out.glob("*.safetensors")] == ["monitor.safetensors"]
        assert (out / "monitor.safetensors").read_bytes() == (whole / "monitor.safetensors").read_bytes()


def test_a_text_that_changed_since_the_kill_is_measured_afresh(model, tmp_path):
    file = tmp_path / "mine.jsonl"
    (tmp_path / "config.toml").write_text("")  # of a begun run
    analysis = find_analysis("monitor")
    own = analysis.settings.model_validate(FEW | {"target": str(file)})
    found = []
    for start in (0, 4):
        words = "the king and the queen of the town said that the men had the house of the old friend " * 2
        lines = [{"text": f"{i} {words}", "spans": [[start, 40]] if i % 2 else []} for i in range(60)]
        file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
        opened = building.open_monitor(model, own, 0)
        made = Stages(measuring.Job((), own, tmp_path), opened)
        found.append(made._keep("x", lambda start=start: ({"start": torch.tensor(start)}, ""))[0]["start"].item())
    assert found == [0, 4]
    made.remove()
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "ablate"}, "action: got ablate at all of blocks.0.hook_resid_post; expected a head of hook z"),
        ({"layer": 5}, "layer: got 5; expected 0…1"),
        ({"hook": "nothing"}, "hook 'blocks.0.nothing' does not exist"),
        ({"feature": 1}, "feature: got 1 and no sae"),
        ({"hook": "z", "head": 9}, "monitor: got head 9 of blocks.0.attn.hook_z"),
        ({"max_new_tokens": 40}, "max_new_tokens: got 40, with the prompt 64 tokens; expected at most a window's 48"),
        ({"alpha": 0.01}, "validation continuations are harmless; expected at least 99 for alpha = 0.01"),
    ],
)
def test_bad_settings_are_refused(model, tmp_path, settings, message):
    analysis = find_analysis("monitor")
    own = analysis.settings.model_validate(FEW | {"layer": 0} | settings)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        measuring.measure(measuring.Request(analysis, own, sources=(model,), device="cpu"), tmp_path / "out")
    assert message in str(caught.value)


def test_a_probe_of_one_class_is_refused(model, tmp_path):
    file = tmp_path / "one.jsonl"
    text = "the king and the queen of the town said that the men had the house of the old friend"
    file.write_text("\n".join(json.dumps({"text": text, "spans": []}) for _ in range(10)), encoding="utf-8")
    analysis = find_analysis("monitor")
    own = analysis.settings.model_validate(FEW | {"target": str(file)})
    with pytest.raises(ValueError, match=r"one.jsonl has no positive token in the training part"):
        measuring.measure(measuring.Request(analysis, own, sources=(model,), device="cpu"), tmp_path / "out")


@pytest.mark.slow
def test_false_alarms_on_a_models_writing_are_within_the_stated_rate(model):
    """One prompt a document, so that continuations are exchangeable: 150 to calibrate, 1,050 further ones."""
    text = "the king and the queen of the town said that the men had the house of the old friend " * 2
    texts = tuple(MarkedText(str(i), f"{i} {text}", ()) for i in range(1200))
    target = Target("nothing", texts, lambda text: [])
    windows = read_windows(model, target, 48, np.random.default_rng(0))
    weights = torch.randn(32, generator=torch.Generator().manual_seed(0))
    monitor = Monitor("blocks.1.hook_resid_post", weights, 0.0, armed.NEVER)
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(1))
    first, second = windows.take(order[:150]), windows.take(order[150:])
    found = armed.write(model, monitor, None, armed.prompts_of(first, 150), target, 12, 5)
    calibrated = armed.calibrate(monitor, found, 0.1)
    after = armed.write(model, calibrated, None, armed.prompts_of(second, 1050), target, 12, 99_999)
    rate = (after.fired >= 0).mean()
    low, high = probes.binomial_limits(int((after.fired >= 0).sum()), 1050)
    # of one calibration the rate is Beta(15, 136)-distributed about .1, of standard deviation .024
    assert low < 0.1 + 3 * 0.024
    assert high > 0.1 - 3 * 0.024
    assert 0 < rate < 0.2


def test_generate_says_where_a_monitor_fired(model, tmp_path, monkeypatch):
    from workbench.cli.app import app

    weights = torch.randn(32, generator=torch.Generator().manual_seed(0))
    file = Monitor("blocks.1.hook_resid_post", weights, 0.0, -1e9, action="stop").save(tmp_path / "m.safetensors")
    monkeypatch.setattr("workbench.models.load.load", lambda *given: model)
    done = CliRunner().invoke(
        app, ["generate", "the king", "--ckpt", "x", "--monitor", str(file), "--max-new-tokens", "4"]
    )
    assert done.exit_code == 0, done.output
    assert "[monitor: fired before new token 0, score" in done.output
