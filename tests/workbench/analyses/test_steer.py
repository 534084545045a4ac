"""Dose curves against naive loops: pushes, losses, continuations, targets, controls; the job, resumed, and drawn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for, worded_model
from saes_for_tests import stack_for, transcoders_for

import workbench
from reports.tables import COLUMNS, read_table
from sae import StackedSAE, steer
from workbench.analyses import find_analysis
from workbench.analyses.steer import arms as arms_module
from workbench.analyses.steer import dose_curves
from workbench.analyses.steer.arms import (
    NOTHING,
    PROMPT,
    Arm,
    MeasuredText,
    draw_directions,
    held_out_losses,
    plan_arms,
    pushes_of,
    run_arms,
)
from workbench.analyses.steer.figures import draw_cost, draw_cost_and_target_rate, draw_target_rate
from workbench.analyses.steer.tables import Measured, headline, means_and_limits, summarize
from workbench.analyses.steer.tables import dose_curves as curves_of
from workbench.analyses.steer.target import Target, find_target, precedes, read_target
from workbench.analyses.text_quality.counts import words
from workbench.models.activations import Positions, choose_slots, special_ids
from workbench.models.generate import continue_prompts
from workbench.models.layers import KeyValueCache
from workbench.models.steering import Constants, Pushes, place_of_feature, pushed, steered
from workbench.models.tokenizer_files import decode_continuation, stop_ids
from workbench.study import measuring

FORMS: list[Any] = ["norm", "max_act", "clamp", "remove"]
CONSTANTS = Constants(max_act=1.5, mean_norm=2.5)
FEATURE = (1, 2, 5)


@pytest.fixture(scope="module")
def model():
    return worded_model("kotodama", n_layers=2, n_ctx=96).double()


@pytest.fixture(scope="module")
def sae(model):
    return stack_for(model, choose_slots(model.cfg))


@pytest.fixture(scope="module")
def tokens(model):
    tokens = tokens_for(model, batch=12, pos=24)
    tokens[0, 4] = min(special_ids(model))
    return tokens


@pytest.fixture(scope="module")
def text(model, tokens):
    counts = {"n_prompts": 4, "n_windows": 3, "max_new_tokens": 34}
    return dose_curves.measured_text(model, tokens[6:], **counts, temperature=0.7, seed=0)


def arms_of(sae, place, index, n_random=3):
    arms = plan_arms(FORMS, [0.5, -4.0], n_random, has_difference=True)
    row = place.sae.W_dec[0, index].detach()
    directions: Any = {
        "random": draw_directions(n_random, len(row), [0]),
        "difference_of_means": torch.ones(1, len(row)),
    }
    return arms, pushes_of(arms, row, CONSTANTS, directions), directions


# --- pushes


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("alpha", [0.7, -3.0])
def test_a_push_along_the_feature_is_steering_and_sequences_do_not_mix(model, sae, tokens, how, alpha) -> None:
    place, index = place_of_feature(model, sae, FEATURE)
    row = place.sae.W_dec[0, index].detach()
    other = torch.arange(1.0, len(row) + 1, dtype=row.dtype)
    own = Pushes.of(how, alpha, row, torch.stack([row, other]), **CONSTANTS._asdict()).rows(torch.tensor([0, 1, 0]))
    with torch.no_grad():
        with steered(model, sae, FEATURE, how, alpha, **CONSTANTS._asdict()):
            expected = model(tokens[:3])
        with pushed(model, place, index, own):
            found = model(tokens[:3])
            cache = KeyValueCache(tokens.shape[1])
            parts = [model(part, past_kv_cache=cache) for part in tokens[:3].split([1, 6, 1, 16], dim=1)]
            torch.testing.assert_close(torch.cat(parts, dim=1), found, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(found[1], expected[1])
    assert not model.list_hooks()


KINDS: dict[str, Any] = {
    "matryoshka": {"architecture": "matryoshka", "k": 4}, "layer_norm": {"normalize_inputs": "layer_norm"},
    "constant_norm": {"normalize_inputs": "constant_norm_rescale"},
}  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "transcoder"])
@pytest.mark.parametrize("how", FORMS)
def test_any_kind_of_sae_is_pushed_as_it_is_steered(model, tokens, kind, how) -> None:
    if kind == "transcoder":
        sae = transcoders_for(model, [1])
    else:
        sae = stack_for(model, choose_slots(model.cfg, [1], hook="hook_resid_post"), **KINDS[kind])
        sae.W_dec *= torch.linspace(0.3, 3, sae.config.d_sae, dtype=sae.dtype)[:, None]  # rows of all norms
    feature = (1, -1, 5)
    place, index = place_of_feature(model, sae, feature)
    row = sae.directions[0, 5]
    pushes = Pushes.of(how, 0.75, row, row[None], **CONSTANTS._asdict()).rows(torch.zeros(3, dtype=torch.int64))
    with torch.no_grad():
        plain = model(tokens[:3])
        with steered(model, sae, feature, how, 0.75, **CONSTANTS._asdict()):
            expected = model(tokens[:3])
        with pushed(model, place, index, pushes):
            found = model(tokens[:3])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(expected, plain)


@pytest.mark.parametrize("how", FORMS)
def test_every_control_moves_every_activation_as_far_as_the_feature(model, sae, how) -> None:
    place, index = place_of_feature(model, sae, FEATURE)
    arms, pushes, directions = arms_of(sae, place, index)
    x = torch.randn(len(arms), 5, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x[:1].expand_as(x).contiguous()
    moved = (pushes.move(place, index, x, x) - place.read(x))[0].view(len(arms), 5, 8).detach()
    row = place.sae.W_dec[0, index].detach()
    acts = place.sae.encode(x[0, :, 2])[:, index]
    for alpha in (1.0,) if how == "remove" else (0.5, -4.0):
        of = [i for i, arm in enumerate(arms) if arm.form == how and arm.alpha == alpha]
        assert [arms[i].control for i in of] == ["feature", "difference_of_means", *["random"] * 3]
        expected = steer(x[0, :, 2], row, how, alpha, acts=acts, **CONSTANTS._asdict()) - x[0, :, 2]
        torch.testing.assert_close(moved[of[0]], expected)
        torch.testing.assert_close(
            moved[of].norm(dim=2), expected.norm(dim=1).expand(len(of), -1), rtol=1e-9, atol=1e-12
        )
        for i in of[1:]:
            unit = directions[arms[i].control][arms[i].direction].to(row)
            cosines = torch.cosine_similarity(moved[i], unit[None], dim=1).abs()
            torch.testing.assert_close(cosines, torch.ones_like(cosines))
    assert float(moved[arms.index(PROMPT)].norm()) == 0


def test_directions_are_of_length_1_by_their_seed_and_uniform() -> None:
    own = draw_directions(4000, 3, [0, 1])
    torch.testing.assert_close(own.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert torch.equal(own, draw_directions(4000, 3, [0, 1]))
    assert not torch.equal(own, draw_directions(4000, 3, [0, 2]))
    assert float(own.mean(dim=0).abs().max()) < 4 / (3 * 4000) ** 0.5


# --- arms


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_held_out_losses_are_those_of_whole_forwards(kind, monkeypatch) -> None:
    monkeypatch.setattr(arms_module, "TOKENS_TOGETHER", 48)  # three windows together
    model = small_model(kind).double()
    tokens = tokens_for(model, batch=4)
    sae = stack_for(model, choose_slots(model.cfg, [0, 2]))
    feature = (2, 1, 5)
    place, index = place_of_feature(model, sae, feature)
    arms, pushes, directions = arms_of(sae, place, index, n_random=1)
    with torch.no_grad():
        found = held_out_losses(model, place, index, pushes, tokens)
        for arm, own in zip(arms, found, strict=True):
            if arm.control not in ("feature", "prompt"):
                continue
            how: Any = "norm" if arm is PROMPT else arm.form
            with steered(model, sae, feature, how, arm.alpha, **CONSTANTS._asdict()):
                expected = model(tokens, return_type="loss", loss_per_token=True).mean(1)
            torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(found[1], found[0])


def test_continuations_are_those_of_one_arm_and_prompt_at_a_time(model, sae, text, monkeypatch) -> None:
    monkeypatch.setattr(arms_module, "ROWS_TOGETHER", 7)
    place, index = place_of_feature(model, sae, FEATURE)
    arms, pushes, _ = arms_of(sae, place, index, n_random=1)
    found = run_arms(model, place, index, pushes, text)
    assert found.tokens.shape == (len(arms), 4, 34)
    for i, arm in enumerate(arms):
        if arm.control not in ("feature", "prompt"):
            continue
        for j, prompt in enumerate(text.prompts):
            how: Any = "norm" if arm is PROMPT else arm.form
            with steered(model, sae, FEATURE, how, arm.alpha, **CONSTANTS._asdict()):
                (grown,) = continue_prompts(
                    model, [prompt.tolist()], 34, text.uniforms[j : j + 1], temperature=0.7, stop_at=stop_ids(model)
                )
            own = [token for token in found.tokens[i, j].tolist() if token != NOTHING]
            assert own == grown
            whole = torch.cat([prompt, torch.tensor(grown, dtype=torch.int64)])[None]
            with torch.no_grad():
                losses = model(whole, return_type="loss", loss_per_token=True)[0, len(prompt) - 1 :]
            assert float(found.nats[i, j]) == pytest.approx(float(losses.mean()), nan_ok=True)
    assert not torch.equal(found.tokens[0], found.tokens[1 + 3])  # a large push says other things


def test_a_continuation_that_ends_is_cut_and_an_empty_one_has_no_loss(model, sae, text, monkeypatch) -> None:
    every = frozenset(range(0, model.cfg.d_vocab, 3))
    monkeypatch.setattr(arms_module, "stop_ids", lambda model: every)
    place, index = place_of_feature(model, sae, FEATURE)
    arms, pushes, _ = arms_of(sae, place, index, n_random=8)
    found = run_arms(model, place, index, pushes, text)
    kept = found.tokens != NOTHING
    assert not {*found.tokens[kept].tolist()} & every
    assert torch.equal(kept.sum(2) == 0, found.nats.isnan())
    assert 0 < int(found.nats.isnan().sum()) < found.nats.numel()
    assert (kept[:, :, 1:] <= kept[:, :, :-1]).all()


# --- targets


def test_a_target_is_judged_on_the_text_alone() -> None:
    target = Target(("king", "don't"))
    assert target.rate("The KING, kings and king’s Don’t king") == pytest.approx(3 / 7)
    assert target.rate("") == 0
    pattern = Target(pattern=r"new york|\d+")
    assert pattern.rate("In New York he had 10 men") == pytest.approx(2 / 6)
    assert read_target(["King", "king"], None) == Target(("king",))
    assert read_target([], None) is None
    for given, own, message in (
        (["a king"], None, "target: got 'a king'; expected one word"),
        (["7"], None, "target: got '7'; expected one word"),
        (["a"], "b", "target: got words and a pattern"),
        ([], "(", r"pattern: got '('"),
        ([], "a*", "pattern: got 'a*', which matches the empty text"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read_target(given, own)
        assert str(caught.value).startswith(message)


def windows_of(model, sentences, n_ctx=24):
    """A window for each sentence, filled up with its beginning again."""
    found = []
    for sentence in sentences:
        ids = model.to_tokens(sentence, prepend_bos=False)[0].tolist()
        found.append((ids * (1 + n_ctx // len(ids)))[:n_ctx])
    return torch.tensor(found)


@pytest.fixture(scope="module")
def windows(model):
    said = [
        "the wise king spoke to the men of the town",
        "a wise king gave the man a house and",
        "the other men said so to",
    ]
    return windows_of(model, [*said, "every wise old friend knew the house well"])


def test_words_of_a_target_are_those_behind_the_strongest_activations(model, windows) -> None:
    """A feature that fires on every `wise`: the text goes on with `king` in two windows, and with `old` in one."""
    decode = lambda ids: model.tokenizer.decode(ids)  # noqa: E731
    acts = torch.zeros(windows.shape, dtype=torch.float64)
    for i, window in enumerate(windows.tolist()):
        for t in range(len(window)):
            if words(decode(window[: t + 1]))[-1:] == ["wise"] and words(decode(window[: t + 2]))[-1:] != ["wise"]:
                acts[i, t] = 1 + i
    assert int((acts > 0).sum()) >= 3
    counted = torch.ones_like(windows, dtype=torch.bool)
    found = find_target(model.tokenizer, windows, acts, counted)
    assert found == Target(("king",))
    assert find_target(model.tokenizer, windows, torch.zeros_like(acts), counted) is None
    assert find_target(model.tokenizer, windows, acts, torch.zeros_like(counted)) is None


def test_places_before_a_target_are_those_whose_next_token_begins_it(model, windows) -> None:
    target = Target(("king", "house"))
    positions = Positions(special_ids(model))
    found = precedes(model.tokenizer, windows, target, positions)
    assert int(found.sum()) > 3
    for i, t in itertools.product(range(len(windows)), range(1, windows.shape[1] - 1)):
        window = windows[i].tolist()
        before, behind = (len(model.tokenizer.decode(window[:n])) for n in (t + 1, t + 2))
        begins = any(before <= start < behind for start, _ in target.spans(model.tokenizer.decode(window)))
        assert bool(found[i, t]) == begins
    assert not found[:, 0].any()


def test_difference_of_means_is_that_of_a_loop(model, sae, tokens, monkeypatch) -> None:
    monkeypatch.setattr(dose_curves, "MODEL_TOKENS", 60)  # two windows together
    place, _ = place_of_feature(model, sae, FEATURE)
    counted = Positions(special_ids(model)).of(tokens)
    before = counted & (torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    name = "blocks.1.attn.hook_z"
    z = model.run_with_cache(tokens, names_filter=name, return_cache_object=False)[1][name][:, :, 2]
    expected = z[before].mean(0) - z[counted & ~before].mean(0)
    torch.testing.assert_close(
        dose_curves.difference_of_means(model, place, tokens, before, counted), expected.detach()
    )
    nowhere = torch.zeros_like(before)
    assert dose_curves.difference_of_means(model, place, tokens, nowhere, counted) is None


# --- tables


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_means_ranges_and_ranks_over_directions(seed) -> None:
    rng = np.random.default_rng(seed)
    arms = plan_arms(["norm"], [1.0, 2.0, 4.0], 5, has_difference=True)
    shape = (len(arms), 12)
    nats = np.where(rng.random(shape) < 0.1, np.nan, rng.random(shape))
    change = rng.normal(0, 0.01, (len(arms), 8)) + np.array([0.03 * abs(arm.alpha) for arm in arms])[:, None]
    change[0] = 0
    measured = Measured(arms, rng.random(shape), change, nats, rng.integers(0, 2, shape).astype(float))
    summary = summarize(measured, seed)
    np.testing.assert_allclose(summary["target_rate"], measured.target_rate.mean(1))
    np.testing.assert_allclose(summary["continuation_loss"], np.nanmean(nats, axis=1))
    assert (summary["target_low"] < summary["target_rate"]).all()
    np.testing.assert_allclose(summary["gain"], summary["target_rate"] - summary["target_rate"][0], atol=1e-12)
    curves: Any = curves_of(summary)
    assert len(curves) == 1 + 3 * 3
    for alpha in (1.0, 2.0, 4.0):
        of = {arm.control: [] for arm in arms}
        for arm, values in zip(arms, measured.target_rate, strict=True):
            if arm.alpha == alpha:
                of[arm.control].append(values.mean())
        row = curves[(curves["alpha"] == alpha) & (curves["control"] == "random")].iloc[0]
        assert row["target_rate"] == pytest.approx(np.mean(of["random"]))
        assert row["target_low"] == pytest.approx(np.quantile(of["random"], 0.025))
        assert row["n_directions"] == 5
        own = curves[(curves["alpha"] == alpha) & (curves["control"] == "feature")].iloc[0]
        assert own["p"] == pytest.approx((1 + sum(r >= of["feature"][0] for r in of["random"])) / 6)
    assert curves.loc[curves["control"].isin(["random", "prompt"]), "p"].isna().all()
    heads: Any = headline(summary, 0.1)
    assert heads["control"].tolist() == ["prompt", "feature", "difference_of_means", "random"]
    for control in ("feature", "difference_of_means"):
        own, row = summary[summary["control"] == control], heads[heads["control"] == control].iloc[0]
        assert row["alpha"] == max(own.loc[own["loss_high"] <= 0.1, "alpha"]) == 2
        assert row["target_rate"] == own.loc[own["alpha"] == 2, "target_rate"].iloc[0]
    nothing: Any = headline(summary, 0.0)
    assert (nothing["alpha"] == 0).all()
    assert nothing["target_rate"].nunique() == 1


def test_limits_are_of_the_known_values_alone() -> None:
    values = np.array([[1.0, 2, 3, 4, 5], [1, np.nan, 3, 4, 5], [np.nan] * 5])
    mean, low, high = means_and_limits(values, 0)
    assert mean[:2].tolist() == [3, 3.25]
    assert low[1] < 3.25 < high[1]
    assert np.isnan([mean[2], low[2], high[2]]).all()
    alone = means_and_limits(np.array([[1.0, 3, 4, 5]]), 0)
    assert mean[1] == alone[0][0]


# --- the job


def request_for(model, tokens, saes, **settings) -> measuring.Request:
    analysis = find_analysis("steer")
    few = {"n_random": 3, "n_prompts": 3, "n_windows": 3, "max_new_tokens": 6, "alphas": [2.0], "target": ("the",)}
    own = analysis.settings.model_validate(few | settings)
    return measuring.Request(analysis, own, sources=(model,), needs={"sae-train": (saes,)}, tokens=tokens, device="cpu")


@pytest.fixture(scope="module")
def english(model):
    text = (" the king and the queen of the town said that the men had the house of the old friend") * 30
    ids = model.to_tokens(text, truncate=False, prepend_bos=False)[0]
    return ids[: len(ids) // 24 * 24].view(-1, 24)


@pytest.fixture(scope="module")
def saes(sae, tmp_path_factory):
    return sae.save(tmp_path_factory.mktemp("saes") / "saes")


def test_tables_figures_and_python_function(model, english, saes, tmp_path) -> None:
    request = request_for(model, english, saes, feature=("1.2.5", "0.1.3"), forms=FORMS, ask="Kings.")
    out = measuring.measure(request, tmp_path / "out")
    table, heads = (read_table(out, name) for name in ("steering", "steering_headline"))
    assert list(table.columns[: len(COLUMNS["steering"])]) == list(COLUMNS["steering"])
    assert len(table) == 2 * (2 + 4 * 3)
    assert len(heads) == 2 * (2 + 4 * 3)
    pushed_rows = table[table["form"] != "none"]
    assert (table.loc[table["control"] == "prompt", "delta_loss"] == 0).all()
    assert table.loc[table["control"] == "asked", "delta_loss"].isna().all()
    assert pushed_rows["delta_loss"].notna().all()
    for figure in (draw_target_rate, draw_cost, draw_cost_and_target_rate):
        drawn: Any = figure(table)
        names = {trace.name for trace in drawn.data}
        assert {"the feature", "difference of means", "random directions: mean, 95 % range"} <= names
    drawn = draw_target_rate(table)
    first = next(trace for trace in drawn.data if trace.name == "the feature")
    rows = table[(table["feature"] == 5) & (table["form"] == "norm") & (table["control"] == "feature")]
    assert list(first.y) == rows["target_rate"].tolist()
    again = workbench.steer(
        model, tokens=english, needs={"sae-train": [saes]}, feature=("1.2.5",), forms=FORMS, ask="Kings.",
        **{name: getattr(request.settings, name) for name in ("n_random", "n_prompts", "n_windows", "max_new_tokens",
        "alphas", "target")},
    )  # fmt: skip
    own = table[table["feature"] == 5].reset_index(drop=True)
    pd.testing.assert_frame_equal(again["steering"], own, check_dtype=False)


def test_the_default_feature_is_the_strongest_that_has_a_target(model, english, saes) -> None:
    from workbench.analyses.feature_effects.effects import feature_effects

    first, _ = dose_curves.split_text(english)
    sae = StackedSAE.load(saes)
    feature, target = dose_curves.choose_feature(model, sae, first)
    table: Any = feature_effects(model, sae, first, n_exact=0, n_bootstrap=100)
    ranked = table.loc[table["estimate"].abs().sort_values(ascending=False, kind="stable").index]
    tried = []
    for row in ranked.itertuples():
        tried.append((row.layer, row.head, row.feature))
        k = row.layer * model.cfg.n_heads + row.head
        if dose_curves.target_of(model, sae.select([k]), tried[-1], first) is not None:
            break
    assert feature == tried[-1]
    assert target.words
    assert dose_curves.choose_feature(model, sae, first, Target(("the",)))[0] == tried[0]


def test_a_killed_job_goes_on_to_the_same_tables(model, english, saes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dose_curves, "ARMS_TOGETHER", 4)
    request = request_for(model, english, saes)
    whole = measuring.measure(request, tmp_path / "whole")
    run = dose_curves.run_arms
    for n_parts in (0, 2):
        calls = itertools.count()

        def dies(*given, n_parts=n_parts, calls=calls):
            if next(calls) == n_parts:
                raise MemoryError("killed")
            return run(*given)

        out = tmp_path / f"killed{n_parts}"
        monkeypatch.setattr(dose_curves, "run_arms", dies)
        with pytest.raises(MemoryError):
            measuring.measure(request, out)
        made = []
        monkeypatch.setattr(dose_curves, "run_arms", lambda *given, made=made: made.append(1) or run(*given))
        measuring.measure(request, out, resume=True)
        monkeypatch.setattr(dose_curves, "run_arms", run)
        assert len(made) == 6 - n_parts
        for name in ("steering", "steering_headline"):
            assert (out / f"{name}.csv").read_bytes() == (whole / f"{name}.csv").read_bytes()
        assert not list(out.glob("*.safetensors"))


def test_bad_settings_are_refused(model, english, saes, tmp_path) -> None:
    few = english[:3]
    bare = small_model("kotodama", n_layers=2).double()
    for settings, message in (
        ({"feature": ("1.2",)}, "feature: got '1.2'; expected LAYER.HEAD.FEATURE, such as 2.1.37"),
        ({"feature": ("1.2.99",)}, "feature: got 1.2.99; expected LAYER.HEAD.FEATURE of the SAEs"),
        ({"feature": ("1.2.5",), "layers": [1]}, "layers, heads: got some beside --feature"),
        ({"layers": [7]}, "layers: got 7; expected some that the SAEs read"),
        (
            {"max_new_tokens": 90},
            "max_new_tokens: got 90, with the prompt 107 tokens; expected at most the model's",
        ),
        ({"pattern": "a", "target": ("b",)}, "target: got words and a pattern"),
        ({"ask": "king " * 99}, "ask: got "),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            measuring.measure(request_for(model, english, saes, **settings), tmp_path / "out")
        assert str(caught.value).startswith(message), str(caught.value)
    for request, message in (
        (request_for(model, few, saes), "steer: got 3 windows of text; expected at least 4"),
        (request_for(bare, few, stack_for(bare, choose_slots(bare.cfg)).save(tmp_path / "bare")), "steer: "),
    ):
        with pytest.raises(ValueError, match=message):
            measuring.measure(request, tmp_path / "out")
    validate = find_analysis("steer").settings.model_validate
    for bad in ({"alphas": "nan"}, {"alphas": "0,1"}, {"alphas": "1,1"}, {"forms": "push"}, {"forms": "norm,norm"}):
        with pytest.raises(ValueError, match="validation error"):
            validate(bad)


def test_a_control_without_text_is_left_out_and_said(model, english, saes) -> None:
    sae = StackedSAE.load(saes)
    settings: Any = {"forms": ["norm"], "alphas": [1.0], "n_random": 0, "seed": 0}
    with pytest.warns(dose_curves.SteeringWarning, match="difference of means left out"):
        chosen = dose_curves.choose(model, sae, FEATURE, Target(("zebra",)), english, **settings)
    assert [arm.control for arm in chosen.arms] == ["prompt", "feature"]


def test_continuations_are_judged_by_their_text(model, text) -> None:
    grown = model.to_tokens(" the king said", prepend_bos=False)[0].tolist()
    padded = [[*grown, *[NOTHING] * (34 - len(grown))], [7] * 34, [NOTHING] * 34, grown * 20]
    tokens = torch.tensor([[own[:34] for own in padded]])
    results = arms_module.ArmResults(torch.zeros(1, 3).double(), tokens, torch.zeros(1, 4).double())
    found = dose_curves.judge(model, Target(("king",)), [Arm("none", 0.0, "prompt")], results, text)
    said = decode_continuation(model.tokenizer, text.prompts[0].tolist(), grown)
    assert found.target_rate[0, 0] == words(said).count("king") / len(words(said)) > 0
    assert found.target_rate[0, 2] == 0
    assert found.loop_rate[0].tolist() == [0, 1, 0, 1]


def test_text_is_measured_where_nothing_was_chosen(model, tokens) -> None:
    first, second = dose_curves.split_text(tokens)
    assert torch.equal(torch.cat([first, second]), tokens)
    counts = {"n_prompts": 3, "n_windows": 99, "max_new_tokens": 5, "temperature": 0.0}
    own: MeasuredText = dose_curves.measured_text(model, second, **counts, seed=3)
    n_begin = own.prompts.shape[1] - dose_curves.N_PROMPT_TOKENS
    assert torch.equal(own.prompts[:, n_begin:], second[[0, 2, 4], : dose_curves.N_PROMPT_TOKENS])
    assert torch.equal(own.windows, second)
