"""Sampling: with and without the cache, against a plain loop, and what the settings leave to be drawn."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for

from workbench.models.generate import generate


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_is_the_argmax_of_each_whole_forward(kind, use_cache):
    model = small_model(kind).double()
    tokens = tokens_for(model, 3, 5)
    want = tokens
    for _ in range(10):
        want = torch.cat([want, model(want)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate(model, tokens, 10, temperature=0, use_cache=use_cache), want)


@pytest.mark.parametrize("kind", ["kotodama", "attn-res"])
@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 0.5, "top_k": 9, "top_p": 0.9}])
def test_draws_do_not_depend_on_the_cache(kind, settings):
    model = small_model(kind).double()
    tokens = tokens_for(model, 3, 4)
    before = torch.get_rng_state()
    found = [generate(model, tokens, 12, generator=seeded(3), use_cache=c, **settings) for c in (True, False)]
    assert torch.equal(*found)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(found[0], generate(model, tokens, 12, generator=seeded(4), **settings))


def frequencies(model, tokens, n, **settings):
    """How often each token follows the prompt, in n draws."""
    drawn = generate(model, tokens.repeat(n, 1), 1, generator=seeded(), **settings)[:, -1]
    return torch.bincount(drawn, minlength=model.cfg.d_vocab) / n


def expected(probabilities, top_k=None, top_p=None):
    """The distribution left by top-k, then top-p, token by token."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    kept = order[:top_k]
    total = sum(probabilities[i] for i in kept)
    left, so_far = {}, 0.0
    for i in kept:
        if top_p is not None and so_far >= top_p:
            break
        left[i] = probabilities[i] / total
        so_far += left[i]
    return torch.tensor([left.get(i, 0.0) / sum(left.values()) for i in range(len(probabilities))])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 6, "top_p": 0.5}])
def test_draws_follow_the_distribution_that_the_settings_leave(temperature, settings):
    model = small_model("janus-v3")
    tokens = tokens_for(model, 1, 6)
    with torch.no_grad():
        probabilities = torch.softmax(model(tokens)[0, -1] / temperature, -1).tolist()
    found = frequencies(model, tokens, 4000, temperature=temperature, **settings)
    want = expected(probabilities, **settings)
    assert (found[want == 0] == 0).all(), "what is cut off is never drawn"
    # four standard errors of a share among 4,000 draws are at most .032
    torch.testing.assert_close(found, want, atol=0.032, rtol=0)


def test_a_finished_sequence_is_filled_and_the_others_go_on():
    model = small_model("janus-v3")
    tokens = tokens_for(model, 4, 4)
    free = generate(model, tokens, 18, temperature=0)
    stop = int(free[0, 8])
    stopped = generate(model, tokens, 18, temperature=0, stop_at=stop)
    for row_free, row in zip(free.tolist(), stopped.tolist(), strict=True):
        end = row_free.index(stop, 4) if stop in row_free[4:] else len(row)
        assert row[: end + 1] == row_free[: end + 1][: len(row)]
        assert set(row[end + 1 :]) <= {stop}
    single = generate(model, tokens[:1], 18, temperature=0, stop_at=stop)
    assert single.shape[1] == free[0].tolist().index(stop, 4) + 1, "it ends when all have ended"


def test_any_of_several_stops_ends_a_sequence():
    model = small_model("janus-v3")
    tokens = tokens_for(model, 4, 4)
    free = generate(model, tokens, 18, temperature=0).tolist()
    stops = {free[0][8], free[1][6]}
    for row_free, row in zip(free, generate(model, tokens, 18, temperature=0, stop_at=stops).tolist(), strict=True):
        end = next((i for i in range(4, len(row_free)) if row_free[i] in stops), len(row_free))
        assert row[: end + 1] == row_free[: end + 1][: len(row)]
        assert set(row[end + 1 :]) <= {row_free[end] if end < len(row_free) else None}


def test_generation_ends_at_the_context():
    model = small_model("janus-v3")
    assert generate(model, tokens_for(model, 2, 20), 50, temperature=0).shape == (2, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature: got -1.0; expected a finite number, 0 or more"),
        ({"top_k": 0}, "top_k: got 0; expected 1 or more"),
        ({"top_p": 0.0}, "top_p: got 0.0; expected 0 < top_p ≤ 1"),
        ({"top_p": 1.1}, "top_p: got 1.1"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"generator": None}, "no generator given"),
        ({"tokens": torch.zeros(1, 24, dtype=torch.long)}, "the prompt has 24 tokens; expected 1 to 23"),
        ({"tokens": torch.zeros(1, 0, dtype=torch.long)}, "the prompt has 0 tokens"),
        ({"tokens": torch.zeros(5, dtype=torch.long)}, r"the prompts have shape \(5,\); expected \[batch pos\]"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    model = small_model("janus-v3")
    with pytest.raises(ValueError, match=message):
        generate(model, **{"tokens": tokens_for(model), "generator": seeded()} | arguments)
