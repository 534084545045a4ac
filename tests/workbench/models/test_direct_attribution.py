"""Direct logit attribution of architectures of our own: parts that add up, and what is refused."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for

from workbench.models.direct_attribution import direct_logit_attribution


def has_parts(model) -> bool:
    attn_res = model.cfg.extensions.attn_res
    return model.cfg.extensions.recurrence is None and (attn_res is None or not attn_res.is_learned)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_parts_add_up_to_the_logit_difference(kind):
    model = small_model(kind).double()
    tokens = tokens_for(model)
    answers, foils = tokens[:, 0], tokens[:, 1]
    if not has_parts(model):
        with pytest.raises(ValueError, match="expected one whose parts add to sums"):
            direct_logit_attribution(model, tokens, answers, foils)
        return
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=lambda n: n.endswith("hook_resid_post"))
        stream = cache[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
        bias = model.unembed.b_U if model.cfg.extensions.unembed_bias else 0.0
        logits = model.ln_final(stream) @ model.W_U + bias  # ahead of a soft cap
    for position in (-1, 2, torch.tensor([3, 5])):
        found = direct_logit_attribution(model, tokens, answers, foils, position)
        alone = direct_logit_attribution(model, tokens, answers, position=position)
        rows = torch.arange(len(tokens))
        own = [logits[rows, position].gather(1, ids[:, None])[:, 0] for ids in (answers, foils)]
        torch.testing.assert_close(found.effects.sum(0), own[0] - own[1], atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(found.difference, own[0] - own[1], atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(alone.effects.sum(0), own[0], atol=1e-10, rtol=1e-10)
        heads = [part for part in found.parts if part[0] == "head"]
        assert heads == [("head", i, h) for i in range(model.cfg.n_layers) for h in range(model.cfg.n_heads)]


def test_what_is_no_question_is_refused():
    model = small_model("janus-v3")
    tokens = tokens_for(model)
    with pytest.raises(ValueError, match=r"answers: got shape \[1\]; expected one id for each of \d+ sequences"):
        direct_logit_attribution(model, tokens, tokens[:1, 0])
    with pytest.raises(ValueError, match=r"foils: got \[.*\]; expected ids below d_vocab"):
        direct_logit_attribution(model, tokens, tokens[:, 0], tokens[:, 0] + model.cfg.d_vocab)
    with pytest.raises(ValueError, match="position: got 99; expected one of"):
        direct_logit_attribution(model, tokens, tokens[:, 0], position=99)
    with pytest.raises(ValueError, match=r"position: got shape \[3\] .*; expected one integer, or one a sequence"):
        direct_logit_attribution(model, tokens, tokens[:, 0], position=torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("kind", ["normed-twice", "post-normed"])
def test_a_cache_refuses_what_it_would_give_without_the_norm_behind_heads(kind):
    model = small_model(kind)
    _, cache = model.run_with_cache(tokens_for(model))
    for call in (lambda: cache.stack_head_results(layer=1), lambda: cache.stack_neuron_results(layer=1)):
        with pytest.raises(ValueError, match="norms stand behind attention and MLP.*direct_logit_attribution"):
            call()
    parts = cache.decompose_resid(layer=-1)  # sums of what enters the stream, which is right
    torch.testing.assert_close(parts.sum(0), cache["resid_post", -1], atol=1e-4, rtol=1e-4)
