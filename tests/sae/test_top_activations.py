"""The streaming top-k against sorting every activation at once."""

from __future__ import annotations

import pytest
import torch
from stacks_for_tests import seeded

from sae import SAEConfig, TopActivations


def naive_top(acts: torch.Tensor, k: int):
    """(values, tokens) of each feature: positive activations by value, then by token."""
    n_saes, _, d_sae = acts.shape
    values, tokens = torch.zeros(n_saes, d_sae, k), torch.full((n_saes, d_sae, k), -1)
    for s in range(n_saes):
        for f in range(d_sae):
            ranked = sorted((-float(a), t) for t, a in enumerate(acts[s, :, f]) if a > 0)[:k]
            for rank, (value, token) in enumerate(ranked):
                values[s, f, rank], tokens[s, f, rank] = -value, token
    return values, tokens


@pytest.mark.parametrize("batch", [1, 3, 50, 400])
@pytest.mark.parametrize("k", [1, 4, 20])
@pytest.mark.parametrize("levels", [None, 3])
def test_streamed_top_equals_a_full_sort(batch, k, levels):
    """With three levels of height most activations tie: the earlier token is kept."""
    acts = torch.randn(2, 400, 6, generator=seeded(k)).relu()
    if levels:
        acts = (acts * levels).ceil().clamp_max(levels)
    acts[0, :, 2] = 0
    acts[1, 5:, 3] = 0
    top = TopActivations(SAEConfig(n_saes=2, d_in=4, d_sae=6), k)
    for start in range(0, 400, batch):
        top.update(acts[:, start : start + batch])
    values, tokens = naive_top(acts, k)
    assert torch.equal(top.values, values)
    assert torch.equal(top.tokens, tokens)
    assert top.n_tokens == 400


def test_bfloat16_activations_and_an_empty_batch():
    acts = torch.randn(1, 100, 3, generator=seeded()).relu().bfloat16()
    top = TopActivations(SAEConfig(n_saes=1, d_in=4, d_sae=3), 5)
    top.update(acts[:, :0])
    top.update(acts)
    values, tokens = naive_top(acts.float(), 5)
    assert torch.equal(top.values, values)
    assert torch.equal(top.tokens, tokens)


@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 5, 4), (5, 3)])
def test_bad_shapes_are_named(shape):
    top = TopActivations(SAEConfig(n_saes=1, d_in=4, d_sae=3), 5)
    with pytest.raises(ValueError, match=r"acts has shape .*expected \(1, tokens, 3\)"):
        top.update(torch.zeros(shape))


def test_nan_and_bad_k_are_named():
    top = TopActivations(SAEConfig(n_saes=2, d_in=4, d_sae=3), 5)
    acts = torch.zeros(2, 4, 3)
    acts[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"acts of SAE \[1\] have nan"):
        top.update(acts)
    with pytest.raises(ValueError, match="k is 0"):
        TopActivations(SAEConfig(n_saes=1, d_in=4, d_sae=3), 0)
