"""The depth-recurrent model: each mechanism alone and all together, against formulas written out; under analyses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models_for_tests import EVERYTHING, GOLF, RECURRENT, small_config, small_model, tokens_for

from probes import SmallSampleWarning
from workbench.analyses.ablate.ablation import iterate_ablation
from workbench.analyses.ablate.generic import ablate_batch_generic, plan_generic
from workbench.analyses.topology.heads import topology
from workbench.models import Extensions, HookedLM, Recurrence
from workbench.models.checkpoint import save
from workbench.models.load import load
from workbench.models.recurrence import MECHANISMS, RecurrentStream, exit_depth, orthonormal
from workbench.models.transformer import fall_off

BASE = {"n_unique": 2, "n_passes": 3}
ALONE = {
    "attn_scale": {"attn_scale": True},
    "mlp_scale": {"mlp_scale": True},
    "residual_mix": {"residual_mix": True},
    "value": {"value_embed": "value"},
    "embed": {"value_embed": "embed"},
    "resonance": {"resonance": True},
    "carry": {"carry_rank": 4},
    "confidence": {"confidence": True, "exit_gate": "read"},
    "memory": {"memory": True},
    "mirror": {"skips": "mirror"},
    "pairs": {"skips": ((0, 3), (1, 5))},
    "td": {"td_rank": 4},
    "gate": {"exit_gate": "act"},
    "routes": {"n_routes": 3},
    "orthonormal": {"n_routes": 3, "routes": "orthonormal"},
}
# what starts as an identity; the others start with an effect, by their definition
ZERO = (
    "attn_scale", "mlp_scale", "residual_mix", "value", "embed", "confidence", "mirror", "pairs", "routes",
    "orthonormal",
)  # fmt: skip
ORTHONORMAL = RECURRENT["extensions"].model_copy(
    update={"recurrence": EVERYTHING.model_copy(update={"routes": "orthonormal"})}
)


def config(**switches):
    recurrence = Recurrence(**BASE | switches)
    return small_config("recurrent", **GOLF, extensions=Extensions(embed_norm=True, recurrence=recurrence))


def noisy(cfg, seed=0):
    """A model of cfg with weights large enough to matter, about the mechanisms' initial values."""
    model = HookedLM(cfg, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty(parameter.shape).normal_(0, 0.2, generator=generator))
    return model


@pytest.mark.parametrize("name", [*ALONE, "everything"])
def test_the_past_does_not_see_the_future(name):
    model = small_model("recurrent") if name == "everything" else noisy(config(**ALONE[name]))
    model = model.double()
    tokens = tokens_for(model)
    other = tokens.clone()
    other[:, 9] = (other[:, 9] + 1) % model.cfg.d_vocab
    with torch.no_grad():
        before, after = model(tokens), model(other)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize("name", ALONE)
def test_what_starts_at_zero_starts_as_an_identity(name):
    plain, with_it = HookedLM(config()), HookedLM(config(**ALONE[name]))
    for parameter, value in plain.named_parameters():
        assert torch.equal(with_it.get_parameter(parameter), value), "one mechanism does not shift the other weights"
    tokens = tokens_for(plain)
    is_same = torch.allclose(plain(tokens), with_it(tokens), atol=1e-6)
    assert is_same == (name in ZERO)


@pytest.mark.parametrize("name", ALONE)
def test_every_mechanism_changes_the_logits_once_trained(name):
    with_it = noisy(config(**ALONE[name]))
    without = HookedLM(config(), seed=None)
    with torch.no_grad():
        for parameter, value in without.named_parameters():
            value.copy_(with_it.get_parameter(parameter))
    tokens = tokens_for(without)
    assert not torch.allclose(with_it(tokens), without(tokens), atol=1e-3)


# --- gradients


def slope(model, tokens, parameter, direction):
    """d loss along a direction, by central differences."""
    losses = []
    with torch.no_grad():
        for sign in (1, -1):
            parameter.add_(direction, alpha=sign * 1e-6)
            losses.append(float(model(tokens, return_type="loss")))
            parameter.add_(direction, alpha=-sign * 1e-6)
    return (losses[0] - losses[1]) / 2e-6


@pytest.mark.parametrize("cut", [None, "memory", "confidence", "orthonormal"])
def test_gradients_are_those_of_finite_differences(cut):
    # memory and confidence look at a stream whose gradient is cut on purpose: with one of them only its own weights,
    # and what lies behind every cut, can be judged by the loss
    alone = {"memory": False, "confidence": False}
    cut, alone = (None, alone | {"routes": cut}) if cut == "orthonormal" else (cut, alone)
    changes = {} if cut else alone
    recurrence = EVERYTHING.model_copy(update=changes)
    extensions = RECURRENT["extensions"].model_copy(update={"recurrence": recurrence})
    model = small_model("recurrent", extensions=extensions).double()
    tokens = tokens_for(model, batch=1, pos=6)
    model(tokens, return_type="loss").backward()
    generator = torch.Generator().manual_seed(3)
    names = [n for n, _ in model.named_parameters() if cut is None or n.startswith(f"mechanisms.{cut}.")]
    assert names
    for name in names:
        parameter = model.get_parameter(name)
        direction = torch.empty(parameter.shape, dtype=torch.float64).normal_(generator=generator)
        if cut is not None:  # the last pass's alone: what an earlier one adds reaches a later cut
            direction[:-1] = 0
        assert parameter.grad is not None, name
        got = float((parameter.grad * direction).sum())
        assert got == pytest.approx(slope(model, tokens, parameter, direction), abs=1e-8, rel=1e-4), name


def test_memory_and_confidence_cut_their_gradients():
    model = noisy(config(memory=True)).double()
    state = model(tokens_for(model), stop_at_layer=2)
    previous = state.start.detach().requires_grad_()
    cut = RecurrentStream(state.x.detach(), start=previous)
    model(cut, start_at_layer=2).sum().backward()
    assert previous.grad is None
    model = noisy(config(confidence=True, exit_gate="read")).double()
    model(tokens_for(model), return_type="loss").backward()
    assert model.get_parameter("mechanisms.exit_gate.weight").grad is None


# --- each formula by hand


def naive(model, tokens):
    """The whole model written out from the specification: full tensors, explicit loops, means over slices."""
    cfg, rec = model.cfg, model.cfg.extensions.recurrence
    of = {n: dict(m.named_parameters()) for n, m in model.mechanisms.items()}
    weights = [dict(block.named_parameters()) for block in model.unique_blocks]
    rms = lambda x: x / (x.square().mean(-1, keepdim=True) + cfg.eps).sqrt()  # noqa: E731
    x = rms(model.embed.W_E[tokens])
    x0, second = x, of["value_embed"]["W_E"][tokens]
    T = tokens.shape[1]
    posts, start, summary, gate, remaining = [], None, None, None, 1.0
    for p in range(rec.n_passes):
        entering, before = x, start
        for t in range(T):
            wave = torch.cos(t * of["resonance"]["frequency"][p]).repeat(2)
            x = torch.cat(
                (x[:, :t], (x[:, t] * (1 + of["resonance"]["strength"][p] * wave))[:, None], x[:, t + 1 :]), 1
            )
        if p:
            s = torch.stack([summary[:, : t + 1].mean(1) for t in range(T)], dim=1)
            c = of["carry"]
            z, h = torch.sigmoid(s @ c["W_Az"] @ c["W_Bz"]), torch.tanh(s @ c["W_Ah"] @ c["W_Bh"])
            x = x + torch.sigmoid(c["gain"][p - 1]) * ((1 - z) * s + z * h)
            x = x + gate[..., None] * of["confidence"]["direction"][p - 1]
            x = x + of["memory"]["strength"][p - 1] * (x - before).abs()
        start = entering
        for i in range(rec.n_unique):
            layer, w = p * rec.n_unique + i, weights[i]
            mirror = cfg.n_layers - 1 - layer
            if mirror < layer:
                x = x + of["skips"]["scale"][layer - cfg.n_layers // 2] * posts[mirror]
            m0, m1 = of["control"]["mix"][layer]
            x = m0 * x + m1 * x0
            h = rms(x) * w["ln1.w"]
            q = torch.einsum("btd,hde->bthe", h, w["attn.W_Q"])
            k = torch.einsum("btd,dr,hre->bthe", h, w["attn.W_K_in"], w["attn.W_K_out"])
            v = torch.einsum("btd,hde->bthe", h + of["value_embed"]["scale"][layer] * second, w["attn._W_V"])
            q = rms(q) * w["attn.q_norm.w"] * w["attn.q_gain"][:, None]
            k = rms(k) * w["attn.k_norm.w"]
            rotary = model.blocks[0].attn.rotary
            q, k = rotary(q), rotary(k).repeat_interleave(2, dim=2)
            scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / cfg.d_head**0.5
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
            z = torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1), v.repeat_interleave(2, dim=2))
            x = x + of["control"]["attn_scale"][layer] * torch.einsum("bthe,hed->btd", z, w["attn.W_O"])
            h = rms(x) * w["ln2.w"]
            D = of["routes"]["W_route"][i]
            if rec.routes == "orthonormal":
                D, R = torch.linalg.qr(D)
                D = D * R.diagonal().sign()
            alpha = (h @ (D / D.norm(dim=0))).softmax(-1)
            out = F.relu(h @ w["mlp.W_in"]).square() @ w["mlp.W_out"]
            x = x + of["control"]["mlp_scale"][layer] * out * (1 + alpha @ of["routes"]["gain"][layer])[..., None]
            if i == rec.n_unique - 1:
                if p:
                    td = of["td"]
                    x = x + torch.sigmoid(td["gain"][p - 1]) * (x @ td["W_A"] @ td["W_B"] - start)
                summary = x
                if p:
                    x = start + remaining[..., None] * (x - start)
                gate = torch.sigmoid(x @ of["exit_gate"]["weight"] + of["exit_gate"]["bias"])
                remaining = remaining * gate
            posts.append(x)
    logits = rms(x) * model.ln_final.w @ model.embed.W_E.T
    return 30 * torch.tanh(logits / 30)


@pytest.mark.parametrize("extensions", [RECURRENT["extensions"], ORTHONORMAL], ids=["free", "orthonormal"])
def test_everything_together_equals_the_formulas(extensions):
    model = small_model("recurrent", extensions=extensions).double()
    tokens = tokens_for(model, pos=11)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), naive(model, tokens), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "spread"),
    [(torch.float64, 1.0), (torch.float64, 1e-4), (torch.float32, 1.0), (torch.float32, 1e-4), (torch.bfloat16, 1.0)],
)
def test_orthonormal_directions_span_what_the_columns_span(dtype, spread):
    """Also where the columns are nearly parallel, which one pass of Gram–Schmidt loses orthogonality to."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(24, 1, generator=generator, dtype=torch.float64)
    W = (common * (spread < 1) + spread * torch.randn(24, 4, generator=generator, dtype=torch.float64)).to(dtype)
    D = orthonormal(W)
    assert D.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(D.T.double() @ D.double(), torch.eye(4, dtype=torch.float64), rtol=0, atol=8 * eps)
    Q, R = torch.linalg.qr(W.double())
    slack = (1.0 if spread == 1 else 1 / spread) * eps  # the basis of nearly parallel columns shakes with their digits
    if slack < 0.1:
        torch.testing.assert_close(D.double(), Q * R.diagonal().sign(), rtol=0, atol=40 * slack)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(orthonormal(W), D)


def test_default_routes_are_written_as_before():
    assert "routes" not in Recurrence(**BASE, n_routes=3).model_dump()
    assert Recurrence(**BASE, n_routes=3, routes="orthonormal").model_dump()["routes"] == "orthonormal"


def test_the_mirror_of_the_skips_and_the_order_of_their_scales():
    skips = small_model("recurrent").mechanisms["skips"]
    assert skips.source_of == {3: 2, 4: 1, 5: 0}
    assert Recurrence(n_unique=3, n_passes=3, skips="mirror").skip_sources(9) == {5: 3, 6: 2, 7: 1, 8: 0}


def test_halted_tokens_stand_still_and_depth_counts_passes():
    model = noisy(config(exit_gate="act"))
    with torch.no_grad():
        model.get_parameter("mechanisms.exit_gate.weight").zero_()
        model.get_parameter("mechanisms.exit_gate.bias").fill_(-100.0)  # everything halts after the first pass
    tokens = tokens_for(model)
    _, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(cache["blocks.5.hook_resid_post"], cache["blocks.1.hook_resid_post"])
    assert not torch.allclose(cache["blocks.4.hook_resid_post"], cache["blocks.1.hook_resid_post"])
    gates = [torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[1.0, 0.5, 1.0]])]
    assert exit_depth(gates).tolist() == [[3.0, 1.75, 1.0]]


def test_the_published_value_embedding_is_added_to_the_embedding():
    model = noisy(config(value_embed="embed"))
    tokens = tokens_for(model)
    rows = model.embed.W_E[tokens] + model.get_parameter("mechanisms.value_embed.W_E")[tokens]
    expected = rows / (rows.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    torch.testing.assert_close(model.embed_state(tokens).x, expected)


def test_spectral_init_keeps_directions_and_norm():
    W = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    shaped = fall_off(W)
    sigma = torch.linalg.svdvals(shaped)
    torch.testing.assert_close(sigma / sigma[0], torch.arange(1, 9) ** -0.5)
    torch.testing.assert_close(shaped.norm(), W.norm())
    assert float((torch.linalg.svd(W).Vh[0] @ torch.linalg.svd(shaped).Vh[0]).abs()) == pytest.approx(1, abs=1e-5)
    model = HookedLM(small_config("recurrent", d_vocab=2000))
    assert float(model.W_E.detach().square().mean().sqrt()) == pytest.approx(0.1 / 32**0.5, rel=0.02)


# --- one set of weights under many layers


def test_weights_are_stored_once_and_each_layer_is_a_whole_block():
    model = small_model("recurrent")
    names = [name for name, _ in model.named_parameters()]
    assert not any(name.startswith("blocks.") for name in names)
    assert {n.split(".")[1] for n in names if n.startswith("unique_blocks.")} == {"0", "1"}
    assert {n.split(".")[1] for n in names if n.startswith("mechanisms.")} == set(MECHANISMS)
    assert model.blocks[4].attn.W_Q is model.blocks[0].attn.W_Q is not model.blocks[1].attn.W_Q
    assert model.n_parameters() == sum(p.numel() for p in model.parameters())
    assert model.W_O.shape == (6, 4, 8, 32)
    assert model.W_K.shape == (6, 4, 32, 8)  # the product of its factors, repeated to all heads


def test_writers_count_as_their_layer_scales_them():
    model = small_model("recurrent")
    _, cache = model.run_with_cache(
        tokens_for(model), names_filter=["blocks.3.attn.hook_z", "blocks.3.hook_attn_out", "blocks.3.attn.hook_result"]
    )
    written = torch.einsum("bthe,hed->bthd", cache["blocks.3.attn.hook_z"], model.blocks[3].attn.W_O)
    torch.testing.assert_close(written, cache["blocks.3.attn.hook_result"])
    torch.testing.assert_close(written.sum(2), cache["blocks.3.hook_attn_out"])
    stored = model.get_parameter("unique_blocks.1.attn.W_O")
    scale = model.get_parameter("mechanisms.control.attn_scale")[3]
    torch.testing.assert_close(model.blocks[3].attn.W_O, stored * scale)


def test_hooks_of_a_mechanism_exist_where_it_acts():
    hooks = set(small_model("recurrent").hook_dict)
    for index in range(3):
        assert f"pass.{index}.hook_resonance" in hooks
        for name in ("carry", "confidence", "memory", "td"):
            assert (f"pass.{index}.hook_{name}" in hooks) == (index > 0)
        assert (f"pass.{index}.hook_exit_gate" in hooks) == (index < 2)
    assert not any(h.startswith("pass.") for h in HookedLM(config()).hook_dict)


@pytest.mark.parametrize(
    "name", ["pass.1.hook_carry", "pass.2.hook_memory", "pass.0.hook_resonance", "blocks.4.hook_skip"]
)
def test_hooks_of_mechanisms_show_and_steer(name):
    model = small_model("recurrent").double()
    tokens = tokens_for(model)
    delta = torch.full((2, 16, 32), 0.1, dtype=torch.float64)
    doubled = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook: x + delta)])
    assert not torch.allclose(doubled, model(tokens))
    _, cache = model.run_with_cache(tokens, names_filter=name)
    assert cache[name].shape == (2, 16, 32)


def test_save_and_load(tmp_path):
    model = small_model("recurrent")
    save(model, tmp_path)
    again = load(tmp_path, device="cpu")
    tokens = tokens_for(model)
    assert torch.equal(again(tokens), model(tokens))
    assert again.cfg == model.cfg
    assert again.blocks[4].attn.W_Q is again.blocks[0].attn.W_Q


def test_export_refuses_with_the_reason(tmp_path):
    from workbench.models.interop import export

    for to in ("transformer-lens", "hf"):
        with pytest.raises(ValueError, match="depth recurrence"):
            export(small_model("recurrent"), to, tmp_path / to)


# --- analyses


def test_ablation_equals_the_naive_loop():
    model = small_model("recurrent").double()
    tokens = tokens_for(model, batch=4, pos=12)
    found = list(iterate_ablation(model, tokens))
    sizes = plan_generic(model.cfg, 12, 6, 4, 1 << 30)
    parts = found[0].parts
    hooks = dict.fromkeys(part.hook for part in parts)
    with torch.no_grad():
        looped = ablate_batch_generic(model, tokens, parts, [hooks], sizes, False, lambda n_done: None)
    torch.testing.assert_close(torch.cat([f.base for f in found]), looped.base)
    torch.testing.assert_close(torch.cat([f.ablated for f in found], 1), looped.ablated)


def test_topology_reads_effective_layers():
    model = small_model("recurrent")
    tokens = tokens_for(model, batch=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSampleWarning)
        table = topology(model, tokens)
    assert sorted(set(table["layer"])) == list(range(6))
    _, cache = model.run_with_cache(tokens, names_filter="blocks.4.attn.hook_z")
    z = cache["blocks.4.attn.hook_z"].detach()
    residual = torch.einsum("bthe,hed->hbtd", z, model.blocks[4].attn.W_O.detach()).flatten(1).double()
    cos = F.normalize(residual, dim=1) @ F.normalize(residual, dim=1).T
    expected = float((cos.abs().sum() - 4) / 12)
    row = table[(table["layer"] == 4) & (table["basis"] == "residual")]
    np.testing.assert_allclose(row["mean_cos"], expected, rtol=1e-5)


# --- faults

BAD = {
    "passes": ({"n_passes": 2}, "2 unique blocks × 2 passes are 4 effective layers; expected n_layers = 6"),
    "carry rank": ({"carry_rank": 33}, "carry_rank: got 33; expected at most d_model = 32"),
    "td rank": ({"td_rank": 40}, "td_rank: got 40; expected at most d_model = 32"),
    "routes": ({"n_routes": 33}, "n_routes: got 33"),
    "routes of nothing": ({"routes": "orthonormal"}, 'got "orthonormal" without routes; expected n_routes'),
    "skip forward": ({"skips": ((4, 2),)}, "got a skip from layer 4 to 2; expected 0 ≤ source < target < 6"),
    "skip outside": ({"skips": ((0, 6),)}, "expected 0 ≤ source < target < 6"),
    "two into one": ({"skips": ((0, 5), (1, 5))}, "at most one into each layer"),
    "confidence without gate": ({"confidence": True}, "the exit gate, which is off"),
}


@pytest.mark.parametrize("case", BAD)
def test_parts_that_do_not_fit_are_named(case):
    changes, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_more_that_does_not_fit():
    with pytest.raises(ValueError, match="acts between passes, and n_passes = 1"):
        Recurrence(n_unique=6, n_passes=1, memory=True)
    with pytest.raises(ValueError, match="k_rank: got 17; expected at most 16"):
        small_config("recurrent", extensions=Extensions(k_rank=17))
    with pytest.raises(ValueError, match="use_qk_norm is false"):
        small_config("janus-v3", extensions=Extensions(q_gain=1.5))
    with pytest.raises(ValueError, match="even width"):
        small_config("recurrent", d_model=33, extensions=Extensions(recurrence=Recurrence(**BASE, resonance=True)))
    model = small_model("recurrent")
    with pytest.raises(ValueError, match="got a Tensor; expected a state from stop_at_layer"):
        model(torch.zeros(1, 4, 32), start_at_layer=2)
