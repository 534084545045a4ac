"""The hooked model against itself: causality, hooks, start/stop, loss, cache, random state."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import ARCHITECTURES, small_config, small_model, tokens_for

from workbench.models import Extensions, HookedLM, KeyValueCache, ModelConfig, Recurrence
from workbench.models.attn_residuals import RoutedStream

KINDS = sorted(ARCHITECTURES)
CONFIGS = {kind: small_config(kind) for kind in KINDS}
OF_EACH_HEAD = [kind for kind, cfg in CONFIGS.items() if cfg.use_qk_norm and not cfg.extensions.wide_qk_norm]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("watched", [False, True])
def test_a_later_token_changes_no_earlier_logit(kind, watched):
    model = small_model(kind).double()
    tokens = tokens_for(model)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % model.cfg.d_vocab
    hooks = [("blocks.0.attn.hook_pattern", lambda x, hook: x)] if watched else []
    before, after = (model.run_with_hooks(t, fwd_hooks=hooks) for t in (tokens, changed))
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("kind", KINDS)
def test_watching_everything_leaves_the_logits(kind):
    model = small_model(kind)
    tokens = tokens_for(model)
    plain = model(tokens)
    assert torch.equal(plain, model.run_with_hooks(tokens, fwd_hooks=[]))
    seen, cache = model.run_with_cache(tokens, names_filter=lambda name: True)
    # fused and explicit kernels add up in another order; logits here are of size 10
    torch.testing.assert_close(seen, plain, atol=1e-5 * float(plain.detach().abs().max()), rtol=0)
    assert set(cache) == set(model.hook_dict)
    torch.testing.assert_close(cache["blocks.1.attn.hook_pattern"].sum(-1), torch.ones(2, 4, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_start_and_stop_at_every_layer(kind):
    model = small_model(kind)
    tokens = tokens_for(model)
    logits, losses = model(tokens), model(tokens, return_type="loss", loss_per_token=True)
    for layer in range(model.cfg.n_layers + 1):
        state = model(tokens, stop_at_layer=layer)
        assert torch.equal(model(state, start_at_layer=layer), logits)
        again = model(state, start_at_layer=layer, tokens=tokens, return_type="loss", loss_per_token=True)
        assert torch.equal(again, losses)


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_block_is_where_ablation_enters(kind):
    model = small_model(kind)
    tokens = tokens_for(model)
    state = model(tokens, stop_at_layer=1)
    middle = model.blocks[1].attend(state)
    after = model.blocks[1].feed_forward(middle)
    assert torch.equal(model(after, start_at_layer=2), model(tokens))
    delta = torch.randn(2, 16, 32)
    shifted = model(model.blocks[1].feed_forward(middle + delta), start_at_layer=2)
    hooked = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_attn_out", lambda x, hook: x + delta)])
    torch.testing.assert_close(shifted, hooked, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_cross_entropy_of_the_next_token(kind):
    model = small_model(kind)
    tokens = tokens_for(model)
    logits, loss = model(tokens, return_type="both")
    by_hand = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(loss, by_hand.mean())
    per_token = model(tokens, return_type="loss", loss_per_token=True)
    torch.testing.assert_close(per_token.flatten(), by_hand)
    mask = torch.zeros(2, 15)
    mask[0, 3:7] = 1
    masked = model(tokens, return_type="loss", loss_mask=mask)
    torch.testing.assert_close(masked, by_hand.view(2, 15)[0, 3:7].mean())
    with_z = model(tokens, return_type="loss", z_loss=0.1)
    torch.testing.assert_close(with_z, loss + 0.1 * torch.logsumexp(logits[:, :-1], -1).square().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_key_value_cache_gives_the_same_logits(kind):
    model = small_model(kind)
    tokens = tokens_for(model)
    cache = KeyValueCache(capacity=model.cfg.n_ctx)
    parts = [model(tokens[:, a:b], past_kv_cache=cache) for a, b in ((0, 5), (5, 6), (6, 11), (11, 16))]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="n_ctx = 24"):
        model(tokens[:, :9], past_kv_cache=cache)
    with pytest.raises(ValueError, match="past_kv_cache: got 1 sequences; expected 2, as in earlier calls"):
        model(tokens[:1, :1], past_kv_cache=cache)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_value_cache_serves_the_layers_that_every_call_ran(kind):
    model = small_model(kind)
    tokens, half = tokens_for(model), model.cfg.n_layers // 2
    lower, upper = KeyValueCache(16), KeyValueCache(16)
    parts = []
    for a, b in ((0, 5), (5, 16)):
        state = model(tokens[:, a:b], stop_at_layer=half, past_kv_cache=lower)
        parts.append(model(state, start_at_layer=half, past_kv_cache=upper))
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-5, rtol=1e-5)
    lower.length = upper.length = 15
    with pytest.raises(ValueError, match=f"layer {half} has read 0 of 15 tokens; expected the same start_at_layer"):
        model(tokens[:, 15:], past_kv_cache=lower)
    with pytest.raises(ValueError, match="layer 0 has read 0 of 15 tokens"):
        model(tokens[:, 15:], past_kv_cache=upper)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "recurrent"]
)  # which cuts some gradients: see there
def test_every_parameter_gets_the_gradient_finite_differences_give(kind):
    model = small_model(kind).double()
    tokens = tokens_for(model, batch=1, pos=6)
    model(tokens, return_type="loss").backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        direction = torch.empty(parameter.shape, dtype=torch.float64).normal_(generator=generator)
        step = 1e-5
        with torch.no_grad():
            losses = []
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * step)
                losses.append(float(model(tokens, return_type="loss")))
                parameter.add_(direction, alpha=-sign * step)
        assert parameter.grad is not None, name
        expected = (losses[0] - losses[1]) / (2 * step)
        assert float((parameter.grad * direction).sum()) == pytest.approx(expected, abs=1e-8, rel=1e-5), name


def test_building_leaves_the_global_random_state_and_seeds_decide():
    state = torch.get_rng_state()
    a, b, c = (HookedLM(small_config("janus-v3"), seed=s) for s in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.W_E, b.W_E)
    assert not torch.equal(a.W_E, c.W_E)


def test_initial_deviation_and_residual_writers():
    model = HookedLM(small_config("janus-v3", d_model=256, d_vocab=2000, n_layers=2))
    assert float(model.W_E.detach().std()) == pytest.approx(0.02, rel=0.01)
    assert float(model.W_O.detach().std()) == pytest.approx(0.02 / 2, rel=0.02)  # ÷ √(2·2)


@pytest.mark.parametrize("kind", ["janus-v3", "attn-res"])
def test_hooks_are_gone_after_an_exception(kind):
    model = small_model(kind)

    def fail(x, hook):
        raise RuntimeError("from a hook")

    with pytest.raises(RuntimeError, match="from a hook"):
        model.run_with_hooks(tokens_for(model), fwd_hooks=[("blocks.1.attn.hook_z", fail)])
    assert not any(p.has_hooks() for p in model.hook_points())
    assert not any(p._forward_hooks for p in model.hook_points())


# passes that begin and end with nothing between them and the layers: the stream itself is what the next pass recalls
BARE = {
    "recalled": Recurrence(n_unique=2, n_passes=3, memory=True, skips="mirror", exit_gate="read"),
    "carried": Recurrence(n_unique=2, n_passes=3, carry_rank=4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_in_inference_mode_leaves_nothing_that_gradients_cannot_pass(kind):
    model = small_model(kind)
    with torch.inference_mode():
        model(tokens_for(model))
    model(tokens_for(model), return_type="loss").backward()


@pytest.mark.parametrize("kind", [*KINDS, *BARE])
def test_what_a_hook_writes_in_place_counts_as_what_it_returns(kind):
    bare = {"extensions": Extensions(recurrence=BARE[kind])} if kind in BARE else {}
    model = small_model("recurrent" if bare else kind, **bare).double()
    tokens = tokens_for(model)

    def in_place(tensor, hook):
        tensor[:, 2:5] *= 0.3

    def returned(tensor, hook):
        return in_place(tensor := tensor.clone(), hook) or tensor

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "blocks.*hook_resid_post: a hook edits it, which changes nothing")
        for name in model.hook_dict:
            found, wanted = (model.run_with_hooks(tokens, fwd_hooks=[(name, f)]) for f in (in_place, returned))
            torch.testing.assert_close(found, wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_hook_shapes_with_grouped_keys():
    model = small_model("kotodama")
    _, cache = model.run_with_cache(tokens_for(model), names_filter=lambda n: n.startswith("blocks.0"))
    shapes = {n.split(".", 2)[2]: tuple(t.shape) for n, t in cache.items()}
    assert shapes["attn.hook_q"] == shapes["attn.hook_z"] == (2, 16, 4, 8)
    assert shapes["attn.hook_k"] == shapes["attn.hook_v"] == (2, 16, 2, 8)
    assert shapes["hook_q_input"] == (2, 16, 4, 32)
    assert shapes["hook_k_input"] == (2, 16, 2, 32)
    assert shapes["attn.hook_result"] == (2, 16, 4, 32)
    assert shapes["attn.hook_pattern"] == (2, 4, 16, 16)
    torch.testing.assert_close(cache["blocks.0.attn.hook_result"].sum(2), cache["blocks.0.hook_attn_out"])


@pytest.mark.parametrize("kind", OF_EACH_HEAD)
def test_hooks_of_the_norms_of_queries_and_keys_keep_batch_position_and_head(kind):
    model = small_model(kind)
    cfg, tokens = model.cfg, tokens_for(model)
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.startswith("blocks.1.attn"))
    for which, n_heads in (("q", cfg.n_heads), ("k", cfg.kv_heads)):
        before, name = cache[f"blocks.1.attn.hook_{which}"], f"blocks.1.attn.{which}_norm."
        assert cache[name + "hook_scale"].shape == (2, 16, n_heads, 1)
        scale = (before.square().mean(-1, keepdim=True) + cfg.eps).sqrt()
        torch.testing.assert_close(cache[name + "hook_scale"], scale)
        torch.testing.assert_close(cache[name + "hook_normalized"], before / scale)
    # a position's entry is that position's: silencing its keys is what attention past it loses
    silent = [("blocks.1.attn.k_norm.hook_normalized", lambda x, hook: x.index_fill(1, torch.tensor([9]), 0.0))]
    changed = (model.run_with_hooks(tokens, fwd_hooks=silent) - model(tokens)).detach().abs().amax((0, 2))
    assert float(changed[:9].max()) < 1e-4 < 1e-3 < float(changed[9])


def mask_head(scores, hook):
    """No key is left to head 1."""
    return scores.index_fill(1, torch.tensor([1]), -torch.inf)


def mask_first(scores, hook):
    """No query may look at the first position, so that nothing is left to the first query. An added mask, which hands
    gradients on."""
    return scores + torch.zeros(scores.shape[-1]).index_fill(0, torch.tensor([0]), -torch.inf)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_without_any_key_is_a_head_of_zeros(kind):
    model = small_model(kind)
    tokens = tokens_for(model)
    by_scores = [("blocks.1.attn.hook_attn_scores", mask_head)]
    by_z = [("blocks.1.attn.hook_z", lambda z, hook: z.index_fill(2, torch.tensor([1]), 0.0))]
    found, wanted = (model.run_with_hooks(tokens, fwd_hooks=hooks) for hooks in (by_scores, by_z))
    torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.detach().abs().max()), rtol=1e-5)
    with model.hooks(fwd_hooks=by_scores):
        _, cache = model.run_with_cache(tokens, names_filter="blocks.1.attn.hook_pattern")
    pattern = cache["blocks.1.attn.hook_pattern"]
    assert not pattern[:, 1].any()
    torch.testing.assert_close(pattern[:, [0, 2, 3]].sum(-1), torch.ones(2, 3, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_pass_a_row_without_any_key(kind):
    model = small_model(kind)
    tokens = tokens_for(model)
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_attn_scores", mask_first) for layer in range(3)]):
        model(tokens, return_type="loss").backward()
        assert model.W_E.grad is not None
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_row_is_the_same_with_keys_and_values_kept(kind):
    model = small_model(kind)
    tokens = tokens_for(model)
    cache = KeyValueCache(capacity=16)
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_attn_scores", mask_first) for layer in range(3)]):
        parts = [model(tokens[:, a:b], past_kv_cache=cache) for a, b in ((0, 1), (1, 2), (2, 9), (9, 16))]
        whole = model(tokens)
    assert whole.isfinite().all()
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5 * float(whole.detach().abs().max()), rtol=1e-5)


def test_caching_everything_leaves_out_the_per_head_inputs():
    model = small_model("janus-v3")
    _, cache = model.run_with_cache(tokens_for(model))
    assert "blocks.0.attn.hook_pattern" in cache
    assert "blocks.0.attn.hook_result" not in cache
    assert "blocks.0.hook_q_input" not in cache


@pytest.mark.parametrize("kind", ["janus-v3", "kotodama"])
def test_a_hook_may_lay_queries_out_otherwise(kind):
    model = small_model(kind)
    tokens = tokens_for(model)

    def relaid(q, hook):
        return q.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)  # the same numbers, d_head not innermost

    hooks = [(f"blocks.{layer}.attn.hook_q", relaid) for layer in range(3)]
    torch.testing.assert_close(model.run_with_hooks(tokens, fwd_hooks=hooks), model(tokens), atol=1e-5, rtol=1e-5)


def test_zeroing_the_pattern_equals_zeroing_z():
    model = small_model("kotodama")
    tokens = tokens_for(model)

    def zero_head(x, hook, axis):
        x = x.clone()
        x.select(axis, 2).zero_()
        return x

    by_z = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", lambda x, hook: zero_head(x, hook, 2))])
    by_p = model.run_with_hooks(
        tokens, fwd_hooks=[("blocks.1.attn.hook_pattern", lambda x, hook: zero_head(x, hook, 1))]
    )
    torch.testing.assert_close(by_z, by_p, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(by_z, model(tokens))


BAD_CALLS = {
    "unknown hook": (
        lambda m, t: m.run_with_cache(t, names_filter="blocks.0.attn.hook_zz"),
        "nearest: blocks.0.attn.hook_z",
    ),
    "hook of no layer": (
        lambda m, t: m.run_with_hooks(t, fwd_hooks=[("blocks.7.attn.hook_z", print)]),
        "does not exist",
    ),
    "hook never reached": (
        lambda m, t: m.run_with_cache(t, names_filter=["blocks.2.attn.hook_z"], stop_at_layer=1),
        "did not fire in this run with stop_at_layer = 1",
    ),
    "filter of nothing": (lambda m, t: m.run_with_cache(t, names_filter=lambda n: False), "matches no hook point"),
    "id too large": (lambda m, t: m(t + 60), "expected 0 ≤ id < d_vocab = 61"),
    "id negative": (lambda m, t: m(t - 61), "expected 0 ≤ id"),
    "floats": (lambda m, t: m(t.float()), "expected integers"),
    "one axis": (lambda m, t: m(t[0]), r"expected integers \[batch pos\]"),
    "too long": (lambda m, t: m(t.repeat(1, 2)), "at most n_ctx = 24"),
    "layer": (lambda m, t: m(t, stop_at_layer=9), "layer: got 9; expected −3…3"),
    "return type": (lambda m, t: m(t, return_type="probs"), "expected 'logits', 'loss', 'both' or None"),
    "no tokens": (lambda m, t: m(m(t, stop_at_layer=1), start_at_layer=1, return_type="loss"), "no tokens given"),
    "one token": (lambda m, t: m(t[:, :1], return_type="loss"), "expected at least 2"),
    "no tokenizer": (lambda m, t: m("hello"), "no tokenizer"),
}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_named(case):
    model = small_model("janus-v3")
    call, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message):
        call(model, tokens_for(model))


BAD_CONFIGS = {
    "unknown key": ({"n_layer": 3}, "n_layer"),
    "kv heads": ({"n_key_value_heads": 3}, "does not divide"),
    "rotary": ({"rotary_dim": 7}, "rotary_dim"),
    "activation": ({"act_fn": "swish"}, "act_fn"),
    "boundaries fall": ({"extensions": {"attn_res": {"boundaries": [0, 2, 1]}}}, "rise from 0"),
    "boundaries start": ({"extensions": {"attn_res": {"boundaries": [1]}}}, "rise from 0"),
    "boundary outside": ({"extensions": {"attn_res": {"boundaries": [0, 3]}}}, "below 3"),
    "dtype": ({"dtype": "int8"}, "dtype"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configs_are_named(case):
    changes, message = BAD_CONFIGS[case]
    with pytest.raises(ValueError, match=message):
        small_config("janus-v3", **changes)


def test_config_survives_json():
    for kind in KINDS:
        cfg = small_config(kind, dtype="bfloat16")
        assert ModelConfig.from_json(cfg.to_json()) == cfg


class TestAttentionResiduals:
    def naive(self, model, tokens):
        """Routing by explicit loops over positions and sources, in float64."""
        cfg, x = model.cfg, model.embed.W_E[tokens]
        committed, partial = [], x

        def route(routing):
            sources = [*committed, partial] if partial is not None else list(committed)
            out = torch.zeros_like(x)
            for b in range(x.shape[0]):
                for p in range(x.shape[1]):
                    scores = torch.stack(
                        [
                            (routing.query * routing.w * v[b, p] / (v[b, p].square().mean() + cfg.eps).sqrt()).sum()
                            for v in sources
                        ]
                    )
                    for a, v in zip(torch.softmax(scores, 0), sources, strict=True):
                        out[b, p] += a * v[b, p]
            return out

        for layer, block in enumerate(model.blocks):
            h = route(block.route_attn)
            if layer in cfg.extensions.attn_res.boundaries:
                committed.append(partial)
                partial = torch.zeros_like(x)
            partial = partial + block.attn(block.ln1(h))
            partial = partial + block.mlp(block.ln2(route(block.route_mlp)))
        return model.ln_final(route(model.route_final)) @ model.W_U

    def test_equals_the_naive_loop(self):
        model = small_model("attn-res").double()
        tokens = tokens_for(model, pos=7)
        with torch.no_grad():
            torch.testing.assert_close(model(tokens), self.naive(model, tokens), atol=1e-10, rtol=1e-10)

    def test_zero_queries_give_the_mean_of_the_sources(self):
        model = HookedLM(small_config("attn-res"))
        _, cache = model.run_with_cache(tokens_for(model))
        alpha = cache["blocks.2.hook_route_mlp"]
        assert alpha.shape == (2, 16, 3)  # embedding, first block's sum, the current sum
        torch.testing.assert_close(alpha, torch.full_like(alpha, 1 / 3))
        state = model(tokens_for(model), stop_at_layer=2)
        assert isinstance(state, RoutedStream)
        assert len(state.committed) == 1
        assert torch.equal(state.committed[0], cache["hook_embed"])

    def test_a_boundary_resets_the_sum(self):
        model = small_model("attn-res")
        tokens = tokens_for(model)
        _, cache = model.run_with_cache(tokens)
        state = model.blocks[2].attend(model(tokens, stop_at_layer=2))
        torch.testing.assert_close(state.partial, cache["blocks.2.hook_attn_out"])
        sums = sum(cache[f"blocks.{i}.hook_{s}_out"] for i in (0, 1) for s in ("attn", "mlp"))
        torch.testing.assert_close(state.committed[1], sums, atol=1e-5, rtol=1e-5)

    def test_parameter_count(self):
        with_routing, without = HookedLM(small_config("attn-res")), HookedLM(small_config("kotodama"))
        assert with_routing.n_parameters() - without.n_parameters() == (4 * 3 + 2) * 32

    def test_resid_post_is_what_the_unembedding_would_read(self):
        model = small_model("attn-res")
        tokens = tokens_for(model)
        logits, cache = model.run_with_cache(tokens)
        torch.testing.assert_close(model.ln_final(cache["blocks.2.hook_resid_post"]) @ model.W_U, logits)

    @pytest.mark.parametrize("edit", [lambda x, hook: x * 2, lambda x, hook: x.mul_(2)])
    def test_an_edit_of_resid_post_which_nothing_reads_gets_a_warning(self, edit):
        model = small_model("attn-res")
        with pytest.warns(UserWarning, match=r"blocks.1.hook_resid_post: a hook edits it, which changes nothing"):
            model.run_with_hooks(tokens_for(model), fwd_hooks=[("blocks.1.hook_resid_post", edit)])

    def test_resid_post_may_be_read_by_hooks_that_return_it_or_a_copy(self):
        model = small_model("attn-res")
        hooks = [(f"blocks.{i}.hook_resid_post", (lambda x, hook: x, lambda x, hook: x.clone())[i]) for i in (0, 1)]
        with torch.inference_mode():
            model.run_with_hooks(tokens_for(model), fwd_hooks=hooks)
        logits = model(tokens_for(model))
        torch.testing.assert_close(model.run_with_hooks(tokens_for(model), fwd_hooks=hooks), logits)
        with model.hooks(fwd_hooks=hooks, bwd_hooks=[("blocks.1.hook_resid_post", lambda grad, hook: None)]):
            torch.testing.assert_close(model(tokens_for(model)), logits)
