"""Steering against the formulas put in by hand, with a cache and without, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models_for_tests import small_model, tokens_for, worded_model
from saes_for_tests import stack_for

import workbench
from sae import steer
from workbench.models import generate as generation
from workbench.models.activations import Positions, choose_slots, special_ids
from workbench.models.attached import attached
from workbench.models.layers import KeyValueCache
from workbench.models.steering import measure_constants, parse_steering, steered

Z1 = "blocks.1.attn.hook_z"
CONSTANTS: Any = {"max_act": 1.5, "mean_norm": 2.5}
WAYS: list[Any] = ["norm", "max_act", "clamp", "remove"]


@pytest.fixture(scope="module")
def model():
    return worded_model("kotodama", n_layers=2).double()


@pytest.fixture(scope="module")
def tokens(model):
    tokens = tokens_for(model, pos=10)
    tokens[0, 4] = min(special_ids(model))
    return tokens


@pytest.fixture(scope="module")
def sae(model):
    return stack_for(model, choose_slots(model.cfg))


@pytest.mark.parametrize("how", WAYS)
def test_it_is_the_formula_from_position_1_on(model, tokens, sae, how) -> None:
    k = 4 + 2  # head 2 of layer 1
    counted = Positions(special_ids(model)).of(tokens)
    assert int((~counted).sum()) == 3

    def push(z, hook):
        own = z[:, :, 2]
        acts = sae.select(k).encode(own.flatten(0, 1))[:, 5].view(own.shape[:2])
        new = steer(own, sae.W_dec[k, 5], how, 0.8, acts=acts, **CONSTANTS)
        out = z.clone()
        out[:, :, 2] = torch.where(counted[..., None], new, own)
        return out

    with torch.no_grad():
        expected = model.run_with_hooks(tokens, fwd_hooks=[(Z1, push)])
        with steered(model, sae, (1, 2, 5), how, 0.8, **CONSTANTS):
            torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)
            cache = KeyValueCache(tokens.shape[1])
            parts = [model(part, past_kv_cache=cache) for part in tokens.split([1, 4, 1, 4], dim=1)]
            torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(expected, model(tokens))
    assert not model.list_hooks()


@pytest.mark.parametrize("how", WAYS)
def test_generation_with_a_cache_is_that_without(model, tokens, sae, how) -> None:
    with steered(model, sae, (0, 1, 3), how, 3.0, **CONSTANTS), steered(model, sae, (1, 0, 7), how, -2.0, **CONSTANTS):
        grown = [generation.generate(model, tokens, 10, temperature=0, use_cache=use) for use in (True, False)]
        assert torch.equal(*grown)
        uniforms = torch.rand(2, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        apart = generation.continue_prompts(model, [tokens[0, :4].tolist(), tokens[1, :9].tolist()], 10, uniforms)
        alone = [
            generation.continue_prompts(model, [prompt.tolist()], 10, uniforms[i : i + 1])[0]
            for i, prompt in enumerate((tokens[0, :4], tokens[1, :9]))
        ]
        assert apart == alone
    assert not torch.equal(grown[0], generation.generate(model, tokens, 10, temperature=0))


def test_no_push_changes_nothing_and_a_clamp_is_a_feature_set(model, tokens, sae) -> None:
    with torch.no_grad():
        plain = model(tokens)
        for how in ("norm", "max_act"):
            with steered(model, sae, (1, 2, 5), how, 0.0, **CONSTANTS):
                torch.testing.assert_close(model(tokens), plain, rtol=0, atol=1e-12)
        with attached(model, sae, features={(1, 2, 5): 0.8 * 1.5}):
            expected = model(tokens)
        with steered(model, sae, (1, 2, 5), "clamp", 0.8, max_act=1.5):
            torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


def test_constants_are_those_of_a_loop(model, tokens, sae) -> None:
    found = measure_constants(model, sae, (1, 2, 5), tokens)
    z = model.run_with_cache(tokens, names_filter=Z1, return_cache_object=False)[1][Z1][:, :, 2]
    own = z[Positions(special_ids(model)).of(tokens)]
    assert found.mean_norm == pytest.approx(own.norm(dim=-1).mean().item())
    assert found.max_act == pytest.approx(float(sae.select(6).encode(own)[:, 5].max().detach()))
    whole = measure_constants(model, sae, (1, 2, 5), tokens, include_special=True)
    assert whole.mean_norm == pytest.approx(z.norm(dim=-1).mean().item())


def test_bad_steering_is_refused(model, tokens, sae) -> None:
    of = lambda *given, **more: lambda: steered(model, sae, *given, **more).__enter__()  # noqa: E731
    other = small_model("janus-v3", n_layers=2).double()
    for call, message in (
        (of((0, 0, 0), "max_act", float("nan"), max_act=1.0), "alpha: got nan; expected a finite number"),
        (of((0, 0, 0), "clamp", 1.0), "max_act: got None with how = 'clamp'; expected"),
        (of((0, 0, 0), "norm", 1.0, mean_norm=0.0), "mean_norm: got 0.0 with how = 'norm'"),
        (of((0, 0, 12), "remove"), "feature: got 0.0.12; expected LAYER.HEAD.FEATURE of the SAEs, with"),
        (of((0, -1, 0), "remove"), "feature: got 0.-1.0; expected LAYER.HEAD.FEATURE of the SAEs"),
        (lambda: steered(other, sae, (0, 0, 0), "remove").__enter__(), "check_model: the SAEs belong to"),
        (lambda: steered(torch.nn.Linear(2, 2), sae, (0, 0, 0), "remove").__enter__(), "steered: got a Linear"),
        (lambda: measure_constants(model, sae, (0, 0, 0), tokens[:, :1]), "steering: got no token but special"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        assert str(caught.value).startswith(message)
    for text in ("", "1.2:3", "1.2.3", "1.2.3:", "1.2.3:x", "a.2.3:1", "1.-1.3:1"):
        with pytest.raises(ValueError, match="expected LAYER.HEAD.FEATURE:ALPHA"):
            parse_steering(text)
    assert workbench.steered is steered
