"""Encode, decode and start of a stack against a naive loop over SAEs, tokens and features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from stacks_for_tests import KINDS, random_stack, seeded
from torch import Tensor

from sae import SAEConfig, SAESource, StackedSAE, StackInfo, geometric_median, spawn_generators


@torch.no_grad()
def naive_encode(sae: StackedSAE, x: Tensor) -> Tensor:
    config = sae.config
    acts = torch.zeros(*x.shape[:2], config.d_sae, dtype=x.dtype)
    for s in range(x.shape[0]):
        for t in range(x.shape[1]):
            inputs = x[s, t] - sae.b_dec[s] if config.apply_b_dec_to_input else x[s, t]
            if config.architecture == "gated":
                for f in range(config.d_sae):
                    product = float(inputs @ sae.W_enc[s, :, f])
                    size = product * float(sae.r_mag[s, f].exp()) + float(sae.b_mag[s, f])
                    acts[s, t, f] = max(size, 0.0) if product + float(sae.b_gate[s, f]) > 0 else 0.0
                continue
            pre = [float(inputs @ sae.W_enc[s, :, f] + sae.b_enc[s, f]) for f in range(config.d_sae)]
            if config.architecture == "matryoshka":
                pre = [z * float(norm) for z, norm in zip(pre, sae.W_dec[s].norm(dim=-1), strict=True)]
            for f, z in enumerate(pre):
                if config.architecture == "relu":
                    acts[s, t, f] = max(z, 0.0)
                elif config.architecture == "topk":
                    is_kept = sum(other > z for other in pre) < int(config.k)
                    acts[s, t, f] = max(z, 0.0) if is_kept else 0.0
                else:
                    threshold = float(sae.threshold[s, f] if config.architecture == "jumprelu" else sae.threshold[s, 0])
                    acts[s, t, f] = z if z > threshold else 0.0
    return acts


@pytest.mark.parametrize(("architecture", "k"), KINDS)
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_encode_and_decode_equal_the_naive_loop(architecture, k, apply_b_dec_to_input):
    sae = random_stack(architecture, k, apply_b_dec_to_input=apply_b_dec_to_input)
    x = torch.randn(3, 7, 5, generator=seeded(5), dtype=torch.float64)
    expected = naive_encode(sae, x)
    acts, recon = sae(x)
    # float64 sums of 5 to 11 terms
    torch.testing.assert_close(acts, expected, rtol=1e-12, atol=1e-12)
    norms = sae.W_dec.norm(dim=-1, keepdim=True) if architecture == "matryoshka" else torch.ones(3, 1, 1)
    naive_recon = torch.stack([expected[s] @ (sae.W_dec / norms)[s] + sae.b_dec[s] for s in range(3)])
    torch.testing.assert_close(recon, naive_recon, rtol=1e-12, atol=1e-12)
    assert (expected > 0).any()
    assert (expected == 0).any()
    with torch.no_grad():  # another path; of such odd shapes it need not have the same bits
        torch.testing.assert_close(sae.encode(x), acts, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(sae.decode(acts), recon, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("architecture", "k"), KINDS)
def test_a_sae_of_a_stack_has_the_bits_it_has_alone(architecture, k):
    sae = random_stack(architecture, k, dtype=torch.float32, d_in=64, d_sae=512)
    x = torch.randn(3, 100, 64, generator=seeded(5))
    acts, recon = sae(x)
    for s in range(3):
        one = sae.select([s])
        own_acts, own_recon = one(x[s])
        assert own_acts.shape == (100, 512)
        assert torch.equal(own_acts, acts[s])
        assert torch.equal(own_recon, recon[s])
        assert torch.equal(one(x[s : s + 1])[0][0], acts[s])
    with torch.no_grad():
        assert all(map(torch.equal, sae(x), (acts, recon)))


def test_gradients_flow_through_encode_and_decode():
    sae = random_stack()
    x = torch.randn(3, 7, 5, generator=seeded(5), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: sae(t)[1], (x,))


def test_input_is_cast_to_the_parameters_dtype():
    sae = random_stack(dtype=torch.float32)
    x = torch.randn(3, 7, 5, generator=seeded(5)).bfloat16()
    assert torch.equal(sae.encode(x), sae.encode(x.float()))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_start(seed):
    config = SAEConfig(n_saes=4, d_in=8, d_sae=32, decoder_init_norm=0.3)
    sae = StackedSAE(config, seeded(seed), dtype=torch.float64)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.full((4, 32), 0.3, dtype=torch.float64))
    assert torch.equal(sae.W_enc, sae.W_dec.transpose(1, 2))
    assert sae.W_enc.is_contiguous()
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()
    # directions are uniform: their mean is of order 1/sqrt(n rows · d_in); 5 standard errors
    assert sae.W_dec.mean(dim=(0, 1)).abs().max() < 5 * 0.3 / (8 * 128) ** 0.5
    again = StackedSAE(config, seeded(seed), dtype=torch.float64)
    assert torch.equal(again.W_dec, sae.W_dec)
    assert not torch.equal(StackedSAE(config, seeded(seed + 1), dtype=torch.float64).W_dec, sae.W_dec)
    narrow = StackedSAE(config, seeded(seed))
    assert torch.equal(narrow.W_dec, sae.W_dec.float())


def test_start_of_one_sae_does_not_depend_on_the_others():
    few = StackedSAE(SAEConfig(n_saes=2, d_in=8, d_sae=16), seeded(3))
    many = StackedSAE(SAEConfig(n_saes=5, d_in=8, d_sae=16), seeded(3))
    assert torch.equal(few.W_dec, many.W_dec[:2])
    keys = [(9, 0, 0), (9, 3, 0), (2, 3, 1)]
    streams = spawn_generators(seeded(3), 3, keys)
    alone = spawn_generators(seeded(3), 1, keys[1:2])
    stack = StackedSAE(SAEConfig(n_saes=3, d_in=8, d_sae=16), streams)
    one = StackedSAE(SAEConfig(n_saes=1, d_in=8, d_sae=16), alone)
    assert torch.equal(one.W_dec[0], stack.W_dec[1])
    assert not torch.equal(stack.W_dec[0], stack.W_dec[1])


def test_building_a_stack_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    StackedSAE(SAEConfig(n_saes=2, d_in=8, d_sae=16), seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_b_dec_starts_at_mean_or_geometric_median_of_its_input_slot():
    data = torch.randn(2, 200, 6, generator=seeded(1), dtype=torch.float64) ** 3 + 4
    for kind, centre in (("mean", data.mean(dim=1)), ("geometric_median", geometric_median(data))):
        config = SAEConfig(n_saes=3, d_in=6, d_sae=8, b_dec_init=kind)
        sae = StackedSAE(config, seeded(), data=data, input_index=[1, 0, 1], dtype=torch.float64)
        torch.testing.assert_close(sae.b_dec.detach(), centre[[1, 0, 1]])


def test_geometric_median_minimises_the_summed_distance():
    # the median of three points whose triangle has no angle ≥ 120° sees every pair under 120° (Fermat point)
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.3, 0.9]], dtype=torch.float64)
    point = geometric_median(triangle, n_iterations=1000)
    rays = torch.nn.functional.normalize(triangle - point, dim=-1)
    torch.testing.assert_close(
        (rays @ rays.T)[0, 1:], torch.tensor([-0.5, -0.5], dtype=torch.float64), atol=1e-6, rtol=0
    )
    # one far point does not move it as it moves the mean; in one dimension it is the median
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0], [1e6]], dtype=torch.float64)
    assert abs(float(geometric_median(line, n_iterations=2000)) - 2) < 1e-3
    assert torch.equal(geometric_median(torch.ones(4, 3)), torch.ones(3, dtype=torch.float64))
    # the mean, where it starts, is a token: it leaves it, unless that is the median
    line = torch.tensor([[-3.0], [0.0], [1.0], [1.0], [1.0]])
    assert float(geometric_median(line)) == pytest.approx(1, abs=1e-6)
    cross = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert torch.equal(geometric_median(cross), torch.zeros(2, dtype=torch.float64))


def test_without_a_generator_nothing_looks_trained():
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=4, d_sae=8))
    assert all(bool(t.isnan().all()) for t in sae.state_dict().values())


def test_select_copies_the_saes_and_their_sources():
    sources = tuple(SAESource(hook_name="blocks.1.attn.hook_z", layer=1, head=h) for h in range(3))
    sae = random_stack()
    sae.info = StackInfo(sources=sources, model_name="m")
    part = sae.select([2, 0])
    assert [source.head for source in part.info.sources] == [2, 0]
    assert part.info.model_name == "m"
    assert torch.equal(part.W_enc[0], sae.W_enc[2])
    with torch.no_grad():
        part.W_enc.zero_()
    assert sae.W_enc[2].any()


@pytest.mark.parametrize(
    "fields",
    [
        {"n_saes": 0},
        {"d_in": 0},
        {"d_sae": 0},
        {"architecture": "magic"},
        {"k": 3},
        {"architecture": "topk"},
        {"architecture": "topk", "k": 0},
        {"architecture": "topk", "k": 2.5},
        {"architecture": "topk", "k": 17},
        {"architecture": "matryoshka"},
        {"architecture": "matryoshka", "k": 2, "widths": (4, 4, 16)},
        {"architecture": "matryoshka", "k": 2, "widths": (8, 4, 16)},
        {"architecture": "matryoshka", "k": 2, "widths": (0, 16)},
        {"architecture": "matryoshka", "k": 2, "widths": (4, 8)},
        {"architecture": "matryoshka", "k": 2, "widths": ()},
        {"architecture": "matryoshka", "k": 2, "gate_detach": False},
        {"architecture": "gated", "k": 2},
        {"widths": (4, 16)},
        {"architecture": "batchtopk", "k": -1},
        {"use_unit_norm_decoder": True},
        {"decoder_init_norm": 0.0},
        {"decoder_init_norm": float("nan")},
        {"threshold_init": -0.1},
        {"bandwidth": 0.0},
        {"b_dec_init": "median"},
        {"d_head": 64},
    ],
)
def test_config_refuses(fields):
    with pytest.raises(ValidationError):
        SAEConfig(**({"n_saes": 2, "d_in": 8, "d_sae": 16} | fields))


def test_config_is_frozen():
    config = SAEConfig(n_saes=2, d_in=8, d_sae=16)
    with pytest.raises(ValidationError):
        config.d_in = 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda sae: sae.encode(torch.zeros(2, 7, 5)), r"encode: x has shape \(2, 7, 5\); expected \(3, tokens, 5\)"),
        (lambda sae: sae.encode(torch.zeros(3, 7, 4)), "encode: x has shape"),
        (lambda sae: sae.encode(torch.zeros(7, 5)), "encode: x has shape"),
        (lambda sae: sae.encode(torch.zeros(3, 7, 5, dtype=torch.int64)), "floating-point"),
        (lambda sae: sae.decode(torch.zeros(3, 7, 5)), r"decode: acts has shape .* expected \(3, tokens, 11\)"),
        (lambda sae: sae.select([]), "select"),
        (lambda sae: sae.select([3]), r"expected at least one index in \[0, 3\)"),
        (lambda sae: sae.select([-1]), "select"),
        (lambda sae: StackedSAE(sae.config, [seeded()]), "got 1 generators"),
        (lambda sae: StackedSAE(sae.config, info=StackInfo(sources=(SAESource(),))), "1 sources; expected 3"),
        (lambda sae: spawn_generators(seeded(), 2, [(1,)]), "keys"),
        (lambda sae: spawn_generators(seeded(), 2, [(1,), (1,)]), "distinct"),
        (lambda sae: spawn_generators(seeded(), 1, [(-1,)]), "≥ 0"),
    ],
)
def test_bad_inputs_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_stack())


@pytest.mark.parametrize(
    ("data", "input_index", "message"),
    [
        (None, None, "data has shape None"),
        (torch.zeros(2, 4, 7), None, "data has shape"),
        (torch.zeros(2, 0, 8), None, "data has shape"),
        (torch.zeros(3, 4, 8), None, "input_index: got None"),
        (torch.zeros(2, 4, 8), [0], "input_index"),
        (torch.zeros(2, 4, 8), [0, 2], r"expected 2 slots in \[0, 2\)"),
        (torch.full((2, 4, 8), torch.nan), None, "nan or inf"),
    ],
)
def test_bad_start_data_is_named(data, input_index, message):
    config = SAEConfig(n_saes=2, d_in=8, d_sae=16, b_dec_init="mean")
    with pytest.raises(ValueError, match=message):
        StackedSAE(config, seeded(), data=data, input_index=input_index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("b_enc"), "tensors: got"),
        (lambda t: t.update(W_gate=t["W_enc"]), "tensors: got"),
        (lambda t: t.update(W_enc=t["W_dec"]), r"tensor W_enc has shape \(3, 11, 5\); expected \(3, 5, 11\)"),
        (lambda t: t.update(b_dec=t["b_dec"].float()), "tensor b_dec is torch.float32"),
        (lambda t: t["b_enc"].fill_(np.inf), "tensor b_enc has 33 nan or inf"),
        (lambda t: t["threshold"].fill_(-1), "tensor threshold has a minimum of -1"),
    ],
)
def test_bad_tensors_are_named(change, message):
    sae = random_stack("jumprelu")
    tensors = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    change(tensors)
    with pytest.raises(ValueError, match=message):
        StackedSAE.from_tensors(sae.config, tensors)
