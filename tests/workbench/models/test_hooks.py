"""Our hook interface beside TransformerLens's, call by call, and what we add: names that are checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import hook_calls_for_tests as calls
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for
from transformer_lens import ActivationCache

from workbench.models import hooks
from workbench.models.hooks import MAPS


@pytest.fixture(scope="module")
def theirs():
    return dict(calls.answers(calls.of_transformer_lens()))


@pytest.mark.parametrize("name", calls.CALLS)
def test_every_call_answers_as_transformer_lens_does(name, theirs):
    [ours] = [answer for own, answer in calls.answers(hooks, [name]) if own == name]
    assert ours == theirs[name]


@pytest.mark.slow
def test_every_call_answers_as_transformer_lens_4_does(tmp_path):
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "lens")]
    subprocess.run([*install, "transformer-lens>=4,<5"], check=True, capture_output=True, timeout=600)
    # in front of the 3.x that is installed beside this test
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "lens")}
    script = [sys.executable, calls.__file__]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said.pop("version").startswith("4.")
    assert said == dict(calls.answers(hooks))


def test_a_cache_is_transformer_lens_s():
    model = small_model("janus-v3")
    _, cache = model.run_with_cache(tokens_for(model))
    assert isinstance(cache, ActivationCache)
    assert cache["resid_post", 1].shape == (2, 16, 32)
    _, plain = model.run_with_cache(tokens_for(model), return_cache_object=False)
    assert type(plain) is dict
    assert set(plain) == set(cache)


def test_without_transformer_lens_a_cache_is_a_dictionary(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    model = small_model("janus-v3")
    _, cache = model.run_with_cache(tokens_for(model), names_filter="hook_embed")
    assert type(cache) is dict
    assert list(cache) == ["hook_embed"]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_positions_are_sliced_at_every_hook(kind):
    model = small_model(kind)
    tokens = tokens_for(model)
    for names in (None, lambda name: name.endswith(hooks.PER_HEAD_INPUTS)):
        _, whole = model.run_with_cache(tokens, names_filter=names, return_cache_object=False)
        _, part = model.run_with_cache(tokens, names_filter=names, pos_slice=(3, 7), return_cache_object=False)
        assert set(part) == set(whole)
        for name, activation in whole.items():
            axis = 2 if name.endswith(MAPS) else 1
            assert torch.equal(part[name], activation.narrow(axis, 3, 4)), name


def test_wrong_names_name_the_nearest():
    model = small_model("janus-v3")
    with pytest.raises(ValueError, match=r"hook 'blocks.1.attn.hook_zz' does not exist; nearest: blocks.1.attn.hook_z"):
        model.add_hook("blocks.1.attn.hook_zz", lambda x, hook: None)
    with pytest.raises(ValueError, match="the name filter matches no hook point"), model.hooks([(str.isdigit, print)]):
        pass
    with pytest.raises(ValueError, match="does not exist"):
        model.list_hooks("hook_none")
    assert not any(p.has_hooks() for p in model.hook_points())
    assert model.context_level == 0


def test_a_batch_is_not_dropped():
    model = small_model("janus-v3")
    with pytest.raises(ValueError, match="remove_batch_dim: got a batch of 2 at hook_embed; expected 1"):
        model.run_with_cache(tokens_for(model), remove_batch_dim=True)


def test_backward_hooks_that_would_never_run_are_said():
    model = small_model("janus-v3")
    with pytest.warns(UserWarning, match="backward hooks are removed before a backward pass can run"):
        model.run_with_hooks(tokens_for(model), bwd_hooks=[("hook_embed", lambda grad, hook: None)])
