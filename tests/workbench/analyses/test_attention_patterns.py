"""Mean maps of heads without position 0, against loops over sequences and queries."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from models_for_tests import small_model, tokens_for

from workbench.analyses.attention_patterns import patterns as module
from workbench.analyses.attention_patterns.patterns import attention_patterns
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "attn-res", "recurrent"])
def test_maps_against_loops(kind, monkeypatch):
    model = small_model(kind)
    tokens = tokens_for(model, 5)
    monkeypatch.setattr(module, "MAP_ELEMENTS", 4 * 10 * 10 * 2)  # two sequences a batch
    table = attention_patterns(model, tokens, range(model.cfg.n_layers), window=10, seed=3, name="m")
    assert table[["layer", "head"]].to_numpy().tolist() == [
        [layer, head] for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)
    ]
    assert set(table["n_ctx"]) == {10}
    assert set(table["n_sequences"]) == {5}
    assert set(zip(table["model"], table["seed"], strict=True)) == {("m", 3)}
    for row in table.itertuples():
        name = f"blocks.{row.layer}.attn.hook_pattern"
        maps = model.run_with_cache(tokens[:, :10], names_filter=name)[1][name][:, row.head].double().numpy()
        shares, left = json.loads(row.pattern), []
        assert [len(keys) for keys in shares] == list(range(1, 10))
        for q in range(1, 10):
            total = sum(1 - own[q, 0] for own in maps)
            left.append(total / 5)
            for k in range(1, q + 1):
                assert shares[q - 1][k - 1] == pytest.approx(sum(own[q, k] for own in maps) / total, abs=6e-4)
            assert sum(shares[q - 1]) == pytest.approx(1, abs=6e-3)
        assert row.rest == pytest.approx(np.mean(left), rel=1e-4)


def test_by_default_the_first_the_middle_and_the_last_layer():
    tokens = torch.zeros(2, 6, dtype=torch.int64)
    for n_layers, layers in ((1, [0]), (2, [0, 1]), (4, [0, 1, 3]), (6, [0, 2, 5])):
        table = attention_patterns(small_model("janus-v3", n_layers=n_layers), tokens)
        assert list(dict.fromkeys(table["layer"])) == layers
    assert set(table["n_ctx"]) == {6}


def test_a_head_that_rests_on_position_0_alone_has_no_map():
    model = small_model("janus-v3")
    hook = model.blocks[0].attn.hook_pattern

    def rest_on_the_first(pattern, hook):
        pattern = pattern.clone()
        pattern[:, 1] = 0.0
        pattern[:, 1, :, 0] = 1.0
        return pattern

    hook.add_hook(rest_on_the_first)
    table = attention_patterns(model, tokens_for(model, 3), [0], window=4)
    assert table["rest"].tolist()[1] == 0
    assert json.loads(table["pattern"][1]) == [[None], [None, None], [None, None, None]]
    assert None not in json.loads(table["pattern"][0])[2]


def test_a_transformer_lens_model_gives_the_same():
    model = small_model("kotodama")
    tokens = tokens_for(model, 3)
    ours, theirs = attention_patterns(model, tokens), attention_patterns(to_hooked_transformer(model), tokens)
    for a, b in zip(ours["pattern"], theirs["pattern"], strict=True):
        for row, other in zip(json.loads(a), json.loads(b), strict=True):
            np.testing.assert_allclose(row, other, atol=1.1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, "window: got 1; expected at least 2"),
        ({"layers": [9]}, "layers: got 9"),
        ({"tokens": torch.zeros(2, 1, dtype=torch.int64)}, "windows of 1 tokens; expected 2 to"),
    ],
)
def test_bad_input_is_refused(settings, message):
    model = small_model("janus-v3")
    with pytest.raises(ValueError, match=message):
        attention_patterns(model, **{"tokens": tokens_for(model)} | settings)


def test_pages_and_analyses_mean_the_same_middle():
    from reports import lineage
    from workbench.models.checks import middle_layer

    assert middle_layer(28) == 14
    assert [middle_layer(n) for n in range(1, 99)] == [lineage.middle_layer(n) for n in range(1, 99)]
