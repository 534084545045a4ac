"""Head ablation against the naive loop: one whole forward a head, everything else spelled out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for

from workbench.analyses.ablate import ablation
from workbench.analyses.ablate import engine as ablation_engine
from workbench.analyses.ablate import losses as ablation_losses
from workbench.analyses.ablate.ablation import ablate, ablation_table, iterate_ablation, join
from workbench.models.transformer_lens import to_hooked_transformer

# TransformerLens says at every HookedTransformer that the class leaves in 4.0
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
KINDS = sorted(ARCHITECTURES)


def naive(model, tokens, hook_of_head):
    """{(layer, head): (losses [sequence], KL [sequence])} and base losses, by one run_with_hooks a head."""
    with torch.no_grad():
        clean = torch.log_softmax(model(tokens)[:, :-1].double(), -1)
        picked = tokens[:, 1:, None]
        base = -clean.gather(-1, picked).squeeze(-1).mean(1)
        found = {}
        for layer in range(model.cfg.n_layers):
            for head in range(model.cfg.n_heads):
                logits = model.run_with_hooks(tokens, fwd_hooks=[hook_of_head(layer, head)])
                log_p = torch.log_softmax(logits[:, :-1].double(), -1)
                loss = -log_p.gather(-1, picked).squeeze(-1).mean(1)
                kl = (clean.exp() * (clean - log_p)).sum(-1).mean(1)
                found[layer, head] = (loss, kl)
    return base, found


def zero_z(layer, head):
    def hook(z, hook):
        z = z.clone()
        z[:, :, head] = 0
        return z

    return f"blocks.{layer}.attn.hook_z", hook


def zero_pattern(layer, head):
    def hook(pattern, hook):
        pattern = pattern.clone()
        pattern[:, head] = 0
        return pattern

    return f"blocks.{layer}.attn.hook_pattern", hook


def check(losses, base, found, atol):
    torch.testing.assert_close(losses.base, base, atol=atol, rtol=0)
    assert len(losses.layers) == len(found)
    for row, key in enumerate(zip(losses.layers.tolist(), losses.heads.tolist(), strict=True)):
        torch.testing.assert_close(losses.ablated[row], found[key][0], atol=atol, rtol=0)
        torch.testing.assert_close(losses.kl[row], found[key][1], atol=atol, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hook_of_head", [zero_z, zero_pattern])
def test_zero_equals_the_naive_loop(kind, hook_of_head):
    model, tokens = small_model(kind).double(), tokens_for(small_model(kind), 5)
    losses = join(list(iterate_ablation(model, tokens)))
    # float64: only the order of additions differs, losses are of size 10
    check(losses, *naive(model, tokens, hook_of_head), atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_impacts_are_those_of_float64(kind):
    model, tokens = small_model(kind), tokens_for(small_model(kind), 5)
    single, double = ablate(model, tokens), ablate(small_model(kind).double(), tokens)
    np.testing.assert_allclose(single["impact_pct"], double["impact_pct"], atol=1e-4)
    np.testing.assert_allclose(single["kl"], double["kl"], atol=2e-6 * double["base_loss"].max())
    assert (double["impact_pct"].abs() > 1).any(), "the heads of this model matter"


@pytest.mark.parametrize("kind", ["janus-v3", "attn-res"])
def test_mean_is_of_all_tokens_whatever_the_batches(kind):
    model, tokens = small_model(kind).double(), tokens_for(small_model(kind), 5)
    _, cache = model.run_with_cache(tokens)

    def mean_z(layer, head):
        mean = cache[f"blocks.{layer}.attn.hook_z"][:, :, head].mean((0, 1))

        def hook(z, hook):
            z = z.clone()
            z[:, :, head] = mean
            return z

        return f"blocks.{layer}.attn.hook_z", hook

    losses = join(list(iterate_ablation(model, tokens, kind="mean")))
    check(losses, *naive(model, tokens, mean_z), atol=1e-11)


@pytest.mark.parametrize("kind", ["kotodama", "attn-res"])
@pytest.mark.parametrize("seed", [0, 1])
def test_resample_takes_z_of_another_sequence(kind, seed):
    model, tokens = small_model(kind).double(), tokens_for(small_model(kind), 6)
    _, cache = model.run_with_cache(tokens)
    donors = ablation.draw_donors(6, 3, seed)
    runs = []
    for of_step in donors:

        def lent_z(layer, head, of_step=of_step):
            lent = cache[f"blocks.{layer}.attn.hook_z"][of_step, :, head]

            def hook(z, hook):
                z = z.clone()
                z[:, :, head] = lent
                return z

            return f"blocks.{layer}.attn.hook_z", hook

        runs.append(naive(model, tokens, lent_z))
    base = runs[0][0]
    found = {k: tuple(torch.stack([run[1][k][i] for run in runs]).mean(0) for i in (0, 1)) for k in runs[0][1]}
    losses = join(list(iterate_ablation(model, tokens, kind="resample", seed=seed, n_resamples=3)))
    check(losses, base, found, atol=1e-11)


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("seed", range(5))
def test_donors_are_derangements_that_never_repeat(n, seed):
    donors = ablation.draw_donors(n, n - 1, seed)
    for sequence in range(n):
        others = set(range(n)) - {sequence}
        assert set(donors[:, sequence].tolist()) == others
    for row in donors:
        assert sorted(row.tolist()) == list(range(n))


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("architecture", ["janus-small", "kotodama"])
def test_a_transformer_lens_model_gives_the_same_table(architecture, kind):
    model, tokens = small_model(architecture), tokens_for(small_model(architecture), 4)
    ours = ablate(model, tokens, kind=kind, n_bootstrap=200)
    theirs = ablate(to_hooked_transformer(model), tokens, kind=kind, n_bootstrap=200)
    assert list(ours["layer"]) == list(theirs["layer"])
    assert list(ours["head"]) == list(theirs["head"])
    for column in ("base_loss", "ablated_loss", "impact_pct", "stderr", "ci_low", "ci_high", "kl"):
        # two implementations in float32; impacts are up to tens of per cent
        np.testing.assert_allclose(ours[column], theirs[column], atol=1e-4, err_msg=column)


@pytest.mark.parametrize("kind", ["janus-v3", "attn-res", "untied-softcap"])
def test_the_cut_into_batches_and_chunks_does_not_show(kind, monkeypatch):
    model, tokens = small_model(kind).double(), tokens_for(small_model(kind), 7)
    whole = join(list(iterate_ablation(model, tokens)))
    cut = ablation_engine.Sizes(batch_size=2, n_together=4, logits_held=61 * 7)
    monkeypatch.setattr(ablation, "plan_sizes", lambda *args: cut)
    parts = list(iterate_ablation(model, tokens))
    assert [len(p.base) for p in parts] == [2, 2, 2, 1]
    for field in ("base", "ablated", "kl"):
        torch.testing.assert_close(getattr(join(parts), field), getattr(whole, field), atol=1e-12, rtol=0)
    late = list(iterate_ablation(model, tokens, start=4))
    assert torch.equal(join(late).ablated, join(parts[2:]).ablated)


def test_logits_far_from_zero_take_the_shifted_sum():
    model, tokens = small_model("janus-v3"), tokens_for(small_model("janus-v3"), 3)
    with torch.no_grad():
        model.ln_final.w.mul_(100)  # logits of some hundreds: their exponentials overflow float32
    found = ablate(model, tokens, n_bootstrap=100)
    oracle = ablate(model.double(), tokens, n_bootstrap=100)
    np.testing.assert_allclose(found["ablated_loss"], oracle["ablated_loss"], rtol=1e-5)
    np.testing.assert_allclose(found["kl"], oracle["kl"], rtol=1e-4)


def test_a_head_that_writes_nothing_has_no_impact():
    model, tokens = small_model("janus-v3"), tokens_for(small_model("janus-v3"), 4)
    with torch.no_grad():
        model.blocks[1].attn.W_O[2] = 0
    row = ablate(model, tokens, layers=[1], heads=[2]).iloc[0]
    assert abs(row["impact_pct"]) < 1e-5
    assert abs(row["kl"]) < 1e-6
    assert row["ci_low"] <= row["impact_pct"] <= row["ci_high"]


def test_the_table_names_its_rows_and_counts():
    model, tokens = small_model("janus-v3"), tokens_for(small_model("janus-v3"), 4, 10)
    shares = []
    table = ablate(model, tokens, layers=[2, 0], heads=[3, 1], seed=5, name="a", on_progress=shares.append)
    assert list(table.columns[:13]) == [
        "model", "seed", "layer", "head", "kind", "base_loss", "ablated_loss", "impact_pct", "stderr", "ci_low",
        "ci_high", "kl", "n_tokens",
    ]  # fmt: skip
    assert list(zip(table["layer"], table["head"], strict=True)) == [(0, 1), (0, 3), (2, 1), (2, 3)]
    assert set(table["model"]) == {"a"}
    assert set(table["seed"]) == {5}
    assert set(table["n_tokens"]) == {4 * 9}
    assert set(table["n_sequences"]) == {4}
    impact = 100 * (table["ablated_loss"] / table["base_loss"] - 1)
    np.testing.assert_allclose(table["impact_pct"], impact, rtol=1e-9)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_the_same_seed_gives_the_same_table_and_leaves_global_randomness_alone():
    model, tokens = small_model("janus-v3"), tokens_for(small_model("janus-v3"), 6)
    before = torch.get_rng_state()
    first, second = (ablate(model, tokens, kind="resample", seed=3) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.equals(second)
    assert not first.equals(ablate(model, tokens, kind="resample", seed=4))


def test_no_hook_stays_behind():
    model, tokens = small_model("attn-res"), tokens_for(small_model("attn-res"), 2)
    ablate(model, tokens, kind="resample")
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


def test_one_sequence_has_no_interval():
    model, tokens = small_model("janus-v3"), tokens_for(small_model("janus-v3"), 1)
    table = ablate(model, tokens)
    assert table[["stderr", "ci_low", "ci_high"]].isna().all().all()
    assert table["impact_pct"].notna().all()


GOOD = torch.zeros(2, 8, dtype=torch.long)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [3]}, r"layers: got 3; expected 0…2"),
        ({"layers": [-1]}, r"layers: got -1; expected 0…2"),
        ({"layers": []}, r"layers: got an empty selection"),
        ({"heads": [4]}, r"heads: got 4; expected 0…3"),
        ({"heads": []}, r"heads: got an empty selection"),
        ({"heads": [1, 1]}, r"heads: got \[1, 1\]; expected each once"),
        ({"heads": [1.5]}, r"heads: got 1.5; expected 0…3"),
        ({"kind": "median"}, r"kind: got 'median'; expected one of zero, mean, resample"),
        ({"kind": "resample", "n_resamples": 2}, r"n_resamples: got 2 with 2 sequences; expected 1 to the 1 others"),
        ({"kind": "resample", "n_resamples": 0}, r"n_resamples: got 0"),
        (
            {"memory_budget_bytes": 1000},
            r"memory_budget_bytes: got 1000; expected at least \d+ for one head of one sequence",
        ),
        ({"n_bootstrap": 10}, r"n_bootstrap: got 10; expected at least 100"),
        ({"tokens": GOOD[:, :1]}, r"ablate: windows of 1 tokens; expected 2 to the model's n_ctx = 24"),
        ({"tokens": torch.zeros(2, 25, dtype=torch.long)}, r"ablate: windows of 25 tokens; expected 2 to"),
        ({"tokens": GOOD[0]}, r"ablate: tokens are shape \[8\]"),
        ({"tokens": GOOD[:0]}, r"at least one sequence"),
        ({"tokens": GOOD.float()}, r"expected integers"),
        ({"tokens": GOOD + 61}, r"token id 61; expected 0 ≤ id < d_vocab = 61"),
        ({"tokens": GOOD - 1}, r"token id -1"),
        ({"tokens": [[1, 2]]}, r"tokens are list"),
    ],
)
@pytest.mark.parametrize("is_ours", [True, False])
def test_bad_input_is_refused(arguments, message, is_ours):
    model = small_model("janus-v3")
    model = model if is_ours else to_hooked_transformer(model)
    with pytest.raises(ValueError, match=message):
        ablate(model, **{"tokens": GOOD} | arguments)


def test_a_wrong_start_is_refused():
    with pytest.raises(ValueError, match=r"start: got 5; expected a multiple of"):
        iterate_ablation(small_model("janus-v3"), GOOD, start=5)


def test_the_table_of_joined_parts_is_the_table_of_the_whole():
    model, tokens = small_model("janus-v3"), tokens_for(small_model("janus-v3"), 4, 10)
    parts = list(iterate_ablation(model, tokens))
    table = ablation_table(join(parts), 10, kind="zero", seed=0, name="custom")
    assert table.equals(ablate(model, tokens))


@pytest.mark.parametrize("size", [1.0, 50.0, 200.0, -200.0])
def test_the_unshifted_sum_is_noticed_where_it_overflows(size):
    generator = torch.Generator().manual_seed(0)
    x, W = torch.randn(6, 4, generator=generator), torch.randn(4, 9, generator=generator)
    b = torch.full((9,), size)
    b[:3] -= 1
    found = ablation_losses._log_partition(x, W, b, is_tame=True, logits_held=16)
    want = torch.logsumexp((x @ W + b).double(), -1)
    torch.testing.assert_close(found.double(), want, rtol=1e-6, atol=1e-5)
