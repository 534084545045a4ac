"""Effects of features: exact ones against a naive loop, estimates against slopes, the verb and its resume."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for, worded_model
from saes_for_tests import stack_for
from scipy import stats

import workbench
from reports.tables import COLUMNS, read_table
from sae import StackedSAE, set_feature
from sae.architectures import BUILT_IN, find_architecture
from workbench.analyses import find_analysis
from workbench.analyses.ablate.ablation import draw_donors
from workbench.analyses.feature_effects import effects as module
from workbench.analyses.feature_effects.effects import chosen_saes, feature_effects, iterate_effects, strongest
from workbench.analyses.feature_effects.estimates import Estimates, estimate_effects
from workbench.analyses.feature_effects.figures import draw_estimates_and_exact_values, draw_strongest_features
from workbench.models.activations import EVERYWHERE, Positions, choose_slots, special_ids
from workbench.models.sae_places import saes_by_hook
from workbench.study import measuring

KEY = ["layer", "head", "feature"]


def sparse(sae, bias=-0.6):
    """The same SAEs, whose features fire on part of the tokens; the first fires nowhere."""
    with torch.no_grad():
        sae.b_enc.fill_(bias)
        sae.b_enc[:, 0] = -1e6
    return sae


def naive(model, sae, tokens, k, j, value: Any = 0.0, step=1.0, counted=None):
    """[sequence] change of the mean loss with one feature moved `step` of the way to `value`, by a whole forward."""
    source = sae.info.sources[k]
    own = sae.select(k)
    is_counted = torch.ones_like(tokens, dtype=torch.bool) if counted is None else counted

    def edit(x, hook):
        rows = x[:, :, source.head] if source.head is not None else x.flatten(2)
        acts = own.encode(rows.flatten(0, 1))[:, j].view(tokens.shape)
        moved = set_feature(rows, own.W_dec[0, j], acts, acts + step * (value - acts))
        moved = torch.where(is_counted[..., None], moved, rows)
        out = x.clone()
        if source.head is not None:
            out[:, :, source.head] = moved
            return out
        return moved.view(x.shape)

    with torch.no_grad(), warnings.catch_warnings():
        losses = [
            model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=hooks).double().mean(1)
            for hooks in ([], [(source.hook_name, edit)])
        ]
    return losses[1] - losses[0]


@pytest.fixture(scope="module")
def model():
    return small_model("janus-v3").double()


@pytest.fixture(scope="module")
def tokens(model):
    return tokens_for(model, batch=5)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_exact_effects_are_those_of_whole_forwards_and_estimates_their_slopes(kind, monkeypatch) -> None:
    monkeypatch.setattr(module, "TOKENS_TOGETHER", 48)  # three sequences together
    model = small_model(kind).double()
    tokens = tokens_for(model, batch=5)
    sae = sparse(stack_for(model, choose_slots(model.cfg, [0, 2], [1, 3])))
    table: Any = feature_effects(model, sae, tokens, n_exact=4, n_bootstrap=100)
    counted = Positions().of(tokens)
    assert list(table.columns[: len(COLUMNS["feature_effects"])]) == list(COLUMNS["feature_effects"])
    assert len(table) == 4 * sae.config.d_sae
    exact = table[table["delta_loss"].notna()]
    n_firing = (table["density"] > 0).groupby([table["layer"], table["head"]]).sum().clip(upper=4)
    assert exact.groupby(["layer", "head"]).size().tolist() == [n for n in n_firing if n]
    assert len(exact) > 4
    place = {(s.layer, s.head): k for k, s in enumerate(sae.info.sources)}
    for row in exact.itertuples():
        change = naive(model, sae, tokens, place[row.layer, row.head], row.feature, counted=counted)
        assert row.delta_loss == pytest.approx(float(change.mean()), abs=1e-10, rel=1e-8)
        assert row.stderr == pytest.approx(float(change.std()) / 5**0.5, abs=1e-10, rel=1e-8)
        assert row.ci_low <= row.delta_loss <= row.ci_high
        assert row.kl >= -1e-12
    # a recurrent model stops gradients on purpose: there the estimate is what its backward pass says
    for row in table.iloc[:: sae.config.d_sae // 3].itertuples() if kind != "recurrent" else ():
        k = place[row.layer, row.head]
        ends = [naive(model, sae, tokens, k, row.feature, step=step, counted=counted).mean() for step in (1e-5, -1e-5)]
        assert row.estimate == pytest.approx(float(ends[0] - ends[1]) / 2e-5, abs=1e-8)
    dead = table[table["feature"] == 0]
    assert (dead["density"] == 0).all()
    assert (dead["estimate"] == 0).all()
    assert dead["delta_loss"].isna().all()


@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_mlp_out", "z_concat"])
def test_hooks_that_are_read_whole_and_means(model, tokens, hook) -> None:
    sae = sparse(stack_for(model, choose_slots(model.cfg, [1, 2], hook=hook)))
    counted = Positions().of(tokens)
    table: Any = feature_effects(model, sae, tokens, kind="mean", n_exact=12, n_bootstrap=100)
    assert (table["head"] == -1).all()
    assert (table["kind"] == "mean").all()
    for row in table[table["delta_loss"].notna()].itertuples():
        k = [1, 2].index(row.layer)
        name = sae.info.sources[k].hook_name
        x = model.run_with_cache(tokens, names_filter=name, return_cache_object=False)[1][name]
        acts = sae.select(k).encode(x.flatten(2).flatten(0, 1))[:, row.feature].detach()
        mean = float(acts[counted.flatten()].mean())
        change = naive(model, sae, tokens, k, row.feature, value=mean, counted=counted)
        assert row.delta_loss == pytest.approx(float(change.mean()), abs=1e-10, rel=1e-8)
        ends = [naive(model, sae, tokens, k, row.feature, mean, step, counted).mean() for step in (1e-5, -1e-5)]
        assert row.estimate == pytest.approx(float(ends[0] - ends[1]) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("architecture", [name for name in BUILT_IN if not find_architecture(name).reads_pair])
def test_a_feature_of_any_architecture_is_ablated_as_in_the_attached_sae(model, tokens, architecture) -> None:
    k = {"k": 4} if "k" in find_architecture(architecture).options else {}
    sae = stack_for(model, choose_slots(model.cfg, [1], [0, 2]), architecture=architecture, **k)
    with torch.no_grad():
        sae.W_dec *= torch.linspace(0.3, 3, sae.config.d_sae, dtype=sae.dtype)[:, None]  # rows of all norms
    table: Any = feature_effects(model, sae, tokens, n_exact=3, n_bootstrap=100)
    exact = table[table["delta_loss"].notna()]
    assert len(exact) > 3
    with torch.no_grad():
        base = model(tokens, return_type="loss", loss_per_token=True).mean()
    for row in exact.itertuples():
        with torch.no_grad(), workbench.attached(model, sae, features={(row.layer, row.head, row.feature): 0.0}):
            without = model(tokens, return_type="loss", loss_per_token=True).mean()
        assert row.delta_loss == pytest.approx(float(without - base), abs=1e-10, rel=1e-7)


@pytest.mark.parametrize("seed", range(2))
def test_a_source_lends_each_window_another_windows_activations(seed, monkeypatch) -> None:
    """Against whole forwards in which f′ is what the feature is at the same position of the window that lends."""
    monkeypatch.setattr(module, "TOKENS_TOGETHER", 48)
    model = worded_model("janus-v3", n_layers=2).double()
    tokens = tokens_for(model, batch=5)
    tokens[1, 4] = min(special_ids(model))
    sae = sparse(stack_for(model, choose_slots(model.cfg, [1], [0, 2])))
    table: Any = feature_effects(model, sae, tokens, kind="source", n_exact=4, n_bootstrap=100, seed=seed)
    donors = draw_donors(5, 1, seed)[0]
    assert (donors != torch.arange(5)).all()
    counted = Positions(special_ids(model)).of(tokens)
    counted &= counted[donors]
    name = "blocks.1.attn.hook_z"
    z = model.run_with_cache(tokens, names_filter=name, return_cache_object=False)[1][name]
    exact = table[table["delta_loss"].notna()]
    assert len(exact) > 4
    for row in exact.itertuples():
        k = [0, 2].index(row.head)
        acts = sae.select(k).encode(z[:, :, row.head].flatten(0, 1))[:, row.feature].view(tokens.shape).detach()
        change = naive(model, sae, tokens, k, row.feature, value=acts[donors], counted=counted)
        assert row.delta_loss == pytest.approx(float(change.mean()), abs=1e-10, rel=1e-8)
        ends = [naive(model, sae, tokens, k, row.feature, acts[donors], s, counted).mean() for s in (1e-5, -1e-5)]
        assert row.estimate == pytest.approx(float(ends[0] - ends[1]) / 2e-5, abs=1e-8)
    assert (table["kind"] == "source").all()
    with pytest.raises(ValueError, match="kind: got source with 1 window; expected at least two"):
        feature_effects(model, sae, tokens[:1], kind="source", n_bootstrap=100)


def test_special_tokens_are_passed_by_unless_the_saes_know_them() -> None:
    model = worded_model("janus-v3", n_layers=2).double()
    tokens = tokens_for(model, batch=3)
    tokens[:, 4] = min(special_ids(model))
    for knows, positions in ((False, Positions(special_ids(model))), (True, EVERYWHERE)):
        sae = sparse(stack_for(model, choose_slots(model.cfg, [1], [0]), include_special=knows))
        table: Any = feature_effects(model, sae, tokens, n_exact=2, n_bootstrap=100)
        counted = positions.of(tokens)
        for row in table[table["delta_loss"].notna()].itertuples():
            change = naive(model, sae, tokens, 0, row.feature, counted=counted)
            assert row.delta_loss == pytest.approx(float(change.mean()), abs=1e-10, rel=1e-8)
        assert table["density"].max() * int(counted.sum()) == pytest.approx(
            round(table["density"].max() * int(counted.sum()))
        )


def test_only_sequences_in_which_a_feature_fires_are_run(model, tokens, monkeypatch) -> None:
    """A feature that fires in one sequence of five costs one sequence, and changes nothing elsewhere."""
    sae = sparse(stack_for(model, choose_slots(model.cfg, [1], [0])))
    x = model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_z", return_cache_object=False)[1]
    rows = x["blocks.1.attn.hook_z"][:, :, 0]
    pre = (rows - sae.b_dec[0]) @ sae.W_enc[0, :, 5]
    best = pre[:, 1:].amax(dim=1)
    with torch.no_grad():
        sae.b_enc[0, 5] = -float(best.topk(2).values.mean())  # above all sequences but one
    places = saes_by_hook(model, sae)
    run = []
    go_on = module.go_on
    monkeypatch.setattr(module, "go_on", lambda *given: run.append(given[4].tolist()) or go_on(*given))
    value = torch.zeros(1, sae.config.d_sae, dtype=torch.float64)
    (part,) = iterate_effects(model, places, tokens, Positions(), torch.tensor([[0, 5]]), value)
    assert run == [[int(best.argmax())]]
    assert int((part.change != 0).sum()) == 1
    torch.testing.assert_close(part.change[0], naive(model, sae, tokens, 0, 5, counted=Positions().of(tokens)))


def test_what_comes_does_not_depend_on_the_batches(model, tokens, monkeypatch) -> None:
    sae = sparse(stack_for(model, choose_slots(model.cfg, [0, 1])))
    places, found = saes_by_hook(model, sae), []
    features = torch.tensor([[0, 3], [5, 2], [5, 7], [2, 1]])
    value = torch.zeros(8, sae.config.d_sae, dtype=torch.float64)
    for together in (16, 48, 2048):
        monkeypatch.setattr(module, "TOKENS_TOGETHER", together)
        parts = list(iterate_effects(model, places, tokens, Positions(), features, value))
        found.append(module.join_losses(parts))
        later = list(iterate_effects(model, places, tokens, Positions(), features, value, start=len(parts[0].base)))
        assert len(later) == len(parts) - 1
        for own, other in zip(parts[1:], later, strict=True):
            assert torch.equal(own.change, other.change)
    for own in found[1:]:
        torch.testing.assert_close(own.change, found[0].change, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(own.kl, found[0].kl, rtol=1e-9, atol=1e-12)


def test_the_strongest_are_those_that_fire_with_the_largest_estimates() -> None:
    n_active = torch.tensor([[3.0, 0, 1, 2], [0, 0, 0, 1]], dtype=torch.float64)
    estimate = torch.tensor([[0.1, 9, -0.3, 0.2], [1, 1, 1, -1]], dtype=torch.float64)
    found = Estimates(10, n_active, torch.zeros_like(estimate), estimate)
    assert strongest(found, 2).tolist() == [[0, 2], [0, 3], [1, 3]]
    assert strongest(found, 0).shape == (0, 2)


def test_estimates_do_not_depend_on_the_graphs(model, tokens, monkeypatch) -> None:
    from workbench.analyses.feature_effects import estimates

    sae = sparse(stack_for(model, choose_slots(model.cfg)))
    places, found = saes_by_hook(model, sae), []
    for n_tokens, block in ((16, 512), (1024, 3)):
        monkeypatch.setattr(estimates, "GRAPH_TOKENS", n_tokens)
        monkeypatch.setattr(estimates, "BLOCK_TOKENS", block)
        found.append(estimate_effects(model, places, tokens, Positions(), "zero"))
    torch.testing.assert_close(found[0].estimate, found[1].estimate, rtol=1e-9, atol=1e-13)
    assert torch.equal(found[0].n_active, found[1].n_active)


def test_one_sequence_has_no_interval_and_no_exact_features_no_rows_of_them(model, tokens) -> None:
    sae = sparse(stack_for(model, choose_slots(model.cfg, [1])))
    alone: Any = feature_effects(model, sae, tokens[:1], n_exact=1, n_bootstrap=100)
    exact = alone[alone["delta_loss"].notna()]
    assert len(exact)
    assert exact[["stderr", "ci_low", "ci_high"]].isna().all(axis=None)
    none: Any = feature_effects(model, sae, tokens, n_exact=0, n_bootstrap=100)
    assert none["delta_loss"].isna().all()
    assert np.isfinite(none["estimate"]).all()
    assert workbench.feature_effects is feature_effects


def test_figures_show_what_the_table_says(model, tokens) -> None:
    sae = sparse(stack_for(model, choose_slots(model.cfg, [1])))
    table: Any = feature_effects(model, sae, tokens, n_exact=3, n_bootstrap=100, name="a")
    exact = table[table["delta_loss"].notna()]
    strongest_figure: Any = draw_strongest_features(table)
    agreement: Any = draw_estimates_and_exact_values(table)
    shown = next(trace for trace in strongest_figure.data if trace.name == "ablated")
    assert sorted(shown.x) == sorted(exact["delta_loss"])
    assert list(np.abs(shown.x)) == sorted(np.abs(shown.x), reverse=True)
    top = exact.loc[exact["delta_loss"].abs().idxmax()]
    assert shown.text[0] == f"L1 H{top['head']} #{top['feature']}"
    assert sorted(agreement.data[-1].x) == sorted(exact["delta_loss"])
    nothing = table.assign(delta_loss=np.nan)
    empty: Any = draw_strongest_features(nothing)
    assert not len(empty.data[0].x)
    draw_estimates_and_exact_values(nothing)


def test_bad_settings_are_refused(model, tokens) -> None:
    sae = sparse(stack_for(model, choose_slots(model.cfg, [1, 2], [0, 3])))
    of = lambda **more: lambda: feature_effects(model, sae, tokens, **more)  # noqa: E731
    for call, message in (
        (of(n_exact=-1), "n_exact: got -1; expected 0 or more"),
        (of(kind="noise"), "kind: got 'noise'; expected one of zero, mean, source"),
        (of(n_bootstrap=9), "n_bootstrap: got 9; expected at least 100"),
        (of(layers=[0]), "layers: got 0; expected some that the SAEs read: [1, 2]"),
        (of(heads=[1]), "heads: got 1; expected some that the SAEs read: [0, 3]"),
        (of(layers=[7]), "layers: got 7; expected some that the SAEs read"),
        (lambda: feature_effects(torch.nn.Linear(2, 2), sae, tokens), "feature-effects: got a Linear; expected a Hoo"),
        (lambda: chosen_saes(stack_for(model, choose_slots(model.cfg, [1]) [:1]), [1], [1]), "heads: got 1; expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        assert str(caught.value).startswith(message)
    routed = small_model("attn-res").double()
    unread = stack_for(routed, choose_slots(routed.cfg, [1], hook="hook_resid_post"))
    with pytest.raises(ValueError, match=r"got blocks\.1\.hook_resid_post, which nothing reads in this model"):
        feature_effects(routed, unread, tokens_for(routed), n_bootstrap=100)


# --- the job


def request_for(model, tokens, saes, **settings) -> measuring.Request:
    analysis = find_analysis("feature-effects")
    own = analysis.settings.model_validate({"n_bootstrap": 100, "n_exact": 3} | settings)
    needs = {"sae-train": (saes,)}
    return measuring.Request(analysis, own, sources=(model,), needs=needs, tokens=tokens, device="cpu")


def test_a_killed_job_goes_on_to_the_same_table(model, tokens, tmp_path, monkeypatch) -> None:
    """Killed behind the estimates, and behind the first batch of sequences: the estimates are not made again."""
    monkeypatch.setattr(module, "TOKENS_TOGETHER", 32)
    saes = sparse(stack_for(model, choose_slots(model.cfg, [1, 2]))).save(tmp_path / "saes")
    request = request_for(model, tokens, saes, layers=[1])
    whole = measuring.measure(request, tmp_path / "whole")
    iterate = module.iterate_effects
    for n_parts in (0, 1):
        out = tmp_path / f"killed{n_parts}"

        def dies(*given, n_parts=n_parts, **more):
            yield from itertools.islice(iterate(*given, **more), n_parts)
            raise MemoryError("killed")

        monkeypatch.setattr(module, "iterate_effects", dies)
        with pytest.raises(MemoryError):
            measuring.measure(request, out)
        monkeypatch.setattr(module, "iterate_effects", iterate)
        with monkeypatch.context() as again:
            again.setattr("workbench.analyses.feature_effects.estimates.estimate_effects", None)
            measuring.measure(request, out, resume=True)
        table = out / "feature_effects.csv"
        assert table.read_bytes() == (whole / "feature_effects.csv").read_bytes()
        assert not list(out.glob("*.safetensors"))
    rows: Any = feature_effects(model, StackedSAE.load(saes), tokens, [1], n_exact=3, n_bootstrap=100)
    found = read_table(whole, "feature_effects")
    np.testing.assert_allclose(found["delta_loss"], rows["delta_loss"], rtol=1e-12)
    said = find_analysis("feature-effects").facts(whole)  # pyright: ignore[reportOptionalCall]
    top = rows.loc[rows["delta_loss"].abs().idxmax()]
    assert said["top_feature"] == f"1.{top['head']}.{top['feature']}"
    exact = rows[rows["delta_loss"].notna()]
    expected: Any = stats.spearmanr(exact["estimate"], exact["delta_loss"])
    assert said["estimate_rank_correlation"] == pytest.approx(expected.statistic)


def test_bad_saes_are_refused_before_anything_is_made(model, tokens, tmp_path) -> None:
    other = small_model("janus-v3", seed=9).double()
    saes = stack_for(other, choose_slots(other.cfg, [1])).save(tmp_path / "saes")
    with pytest.raises(ValueError, match="check_model: the SAEs belong to"):
        measuring.measure(request_for(model, tokens, saes), tmp_path / "out")
    own = stack_for(model, choose_slots(model.cfg, [1])).save(tmp_path / "own")
    with pytest.raises(ValueError, match="layers: got 2; expected some that the SAEs read"):
        measuring.measure(request_for(model, tokens, own, layers=[2]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
