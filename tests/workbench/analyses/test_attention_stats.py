"""Attention statistics against loops over queries and against heads that are built to be known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models_for_tests import small_model, tokens_for

from workbench.analyses.attention import statistics as attention_module
from workbench.analyses.attention.statistics import attention, repeated_random_tokens
from workbench.models import geometry
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")


def patterns(model, tokens, layer):
    name = f"blocks.{layer}.attn.hook_pattern"
    return model.run_with_cache(tokens, names_filter=name)[1][name].double()


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "attn-res"])
@pytest.mark.parametrize("seed", [0, 1])
def test_statistics_equal_loops_over_queries(kind, seed):
    model = small_model(kind)
    tokens = tokens_for(model, 3, seed=seed)
    table = attention(model, tokens, seed=seed, n_repeated=5)
    twice = repeated_random_tokens(model, 5, 12, seed)
    ceiling = sum(math.log(q + 1) for q in range(16)) / 16
    for row in table.itertuples():
        pattern = patterns(model, tokens, row.layer)[:, row.head]
        entropies, masses = [], []
        for of_sequence in pattern.tolist():
            for q, of_query in enumerate(of_sequence):
                entropies.append(-sum(p * math.log(p) for p in of_query[: q + 1] if p > 0))
                masses += [of_query[0]] if q else []
        again = patterns(model, twice, row.layer)[:, row.head]
        induction = [again[s, 12 + i, i + 1].item() for s in range(5) for i in range(12)]
        previous = [again[s, q, q - 1].item() for s in range(5) for q in range(1, 24)]
        want = [np.mean(v) for v in (entropies, masses, induction, previous)]
        found = [row.entropy, row.bos_mass, row.induction, row.previous_token]
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)  # the map is float32
        np.testing.assert_allclose(row.entropy_share, want[0] / ceiling, rtol=1e-5)
    uniform = np.mean([1 / (q + 1) for q in range(1, 16)])
    np.testing.assert_allclose(table["bos_uniform"], uniform)


def test_readers_agree_with_those_of_training():
    pattern = torch.softmax(torch.randn(3, 4, 9, 9, generator=torch.Generator().manual_seed(0)).tril(), -1)
    torch.testing.assert_close(attention_module.entropy(pattern) / 3, geometry.head_entropy(pattern))
    torch.testing.assert_close(attention_module.bos_mass(pattern) / 3, geometry.bos_mass(pattern))


def fixed_pattern(offset_or_column):
    """Maps [1, 1, 12, 12] that look at one place only: a column, or the key at a distance before the query."""
    pattern = torch.zeros(1, 1, 12, 12)
    for q in range(12):
        key = 0 if offset_or_column == "first" else max(0, q - offset_or_column)
        pattern[0, 0, q, key] = 1
    return pattern


def test_heads_built_to_be_known_score_one_or_nothing():
    first, previous, induction = fixed_pattern("first"), fixed_pattern(1), fixed_pattern(5)
    assert attention_module.bos_mass(first).item() == 1
    assert attention_module.entropy(first).item() == 0
    assert attention_module.previous_token(previous).item() == 1
    assert attention_module.induction(induction).item() == 1
    assert attention_module.induction(previous).item() == 0
    assert attention_module.previous_token(induction).item() == pytest.approx(1 / 11)  # query 1 can see key 0 only


def test_even_attention_is_its_own_ceiling():
    model = small_model("janus-small")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
            block.attn.b_Q.zero_()
    table = attention(model, tokens_for(model, 3))
    np.testing.assert_allclose(table["entropy_share"], 1, rtol=1e-6)
    np.testing.assert_allclose(table["bos_mass"], table["bos_uniform"], rtol=1e-6)


def test_repeated_tokens_are_two_equal_halves_without_special_ones():
    class Special:
        all_special_ids = (0, 5)

    model = small_model("janus-v3")
    model.tokenizer = Special()
    before = torch.get_rng_state()
    tokens = repeated_random_tokens(model, 20, 12, 3)
    assert torch.equal(before, torch.get_rng_state())
    assert tokens.shape == (20, 24)
    assert torch.equal(tokens[:, :12], tokens[:, 12:])
    assert not torch.isin(tokens, torch.tensor([0, 5])).any()
    assert all(len(set(half)) == 12 for half in tokens[:, :12].tolist())
    assert torch.equal(tokens, repeated_random_tokens(model, 20, 12, 3))
    assert not torch.equal(tokens, repeated_random_tokens(model, 20, 12, 4))


def test_the_batches_do_not_show(monkeypatch):
    model = small_model("kotodama").double()
    tokens = tokens_for(model, 7)
    whole = attention(model, tokens, n_repeated=3)
    monkeypatch.setattr(attention_module, "MAP_ELEMENTS", 4 * 16**2 * 2)
    parts = attention(model, tokens, n_repeated=3)
    columns = ["entropy", "bos_mass", "induction", "previous_token"]
    np.testing.assert_allclose(parts[columns], whole[columns], rtol=1e-12)


def test_a_transformer_lens_model_gives_the_same_table():
    model = small_model("janus-small")
    tokens = tokens_for(model, 3)
    ours, theirs = attention(model, tokens), attention(to_hooked_transformer(model), tokens)
    columns = ["entropy", "entropy_share", "bos_mass", "induction", "previous_token"]
    np.testing.assert_allclose(ours[columns], theirs[columns], atol=1e-5)


def test_columns_and_windows_of_one_token():
    model = small_model("janus-v3")
    shares = []
    table = attention(model, tokens_for(model, 3), [2, 1], seed=4, name="a", on_progress=shares.append)
    assert list(table.columns[:9]) == [
        "model", "seed", "layer", "head", "entropy", "entropy_share", "bos_mass", "n_ctx", "n_tokens",
    ]  # fmt: skip
    assert list(zip(table["layer"], table["head"], strict=True)) == [(y, h) for y in (1, 2) for h in range(4)]
    assert set(table["n_ctx"]) == {16}
    assert set(table["n_tokens"]) == {48}
    assert shares[-1] == 1
    single = attention(model, tokens_for(model, 3, 1), n_repeated=0)
    assert (single["entropy"] == 0).all()
    undefined = ["entropy_share", "bos_mass", "bos_uniform", "induction", "previous_token"]
    assert single[undefined].isna().all().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [3]}, "layers: got 3; expected 0…2"),
        ({"n_repeated": -1}, "n_repeated: got -1; expected 0 or more"),
        ({"tokens": torch.zeros(0, 4, dtype=torch.long)}, "at least one sequence"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    model = small_model("janus-v3")
    with pytest.raises(ValueError, match=message):
        attention(model, **{"tokens": tokens_for(model)} | arguments)
