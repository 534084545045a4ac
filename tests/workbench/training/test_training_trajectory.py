"""The zig-zag of tokens' states during training: against the probes' statistic, its nulls, and the log's columns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models_for_tests import small_model, tokens_for

from probes import trajectory_consistency as of_states
from workbench.training import monitor as module
from workbench.training.monitor import MonitorConfig, measure, monitor_columns, trajectory_consistency

ALL = MonitorConfig(use_attention=False, use_ranks=False, use_trajectory=True)


def states(model, tokens) -> np.ndarray:
    _, cache = model.run_with_cache(tokens)
    names = ["hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers))]
    return torch.stack([cache[name] for name in names], dim=2)[:, 1:].detach().double().numpy()


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "attn-res", "attn-res-attention", "recurrent"])
@pytest.mark.parametrize("held", [1, 1 << 23])
def test_it_is_the_probes_statistic_of_every_token(kind, held, monkeypatch):
    monkeypatch.setattr(module, "STATE_ELEMENTS", held)  # one sequence at a time, or all together
    model = small_model(kind).double()
    tokens = tokens_for(model, batch=3)
    assert trajectory_consistency(model, tokens) == pytest.approx(of_states(states(model, tokens)), abs=1e-9)
    assert measure(model, tokens, ALL)["trajectory_consistency"] == trajectory_consistency(model, tokens)


def test_layers_that_repeat_a_step_or_take_it_back():
    model, tokens = small_model("kotodama", n_layers=4), tokens_for(small_model("kotodama"))
    step = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def moving(sign: float):
        # the first layer's output is the step itself, whatever came in; each next one is ± the one before
        names = [f"blocks.{layer}.hook_{part}_out" for layer in range(4) for part in ("attn", "mlp")]
        return [
            (name, lambda x, hook, i=i: torch.zeros_like(x) + (i % 2) * sign ** (i // 2) * step)
            for i, name in enumerate(names)
        ]

    for sign in (1.0, -1.0):
        with model.hooks(fwd_hooks=moving(sign)):
            assert trajectory_consistency(model, tokens) == pytest.approx(sign, abs=1e-5)


def test_what_does_not_move_has_no_cosine():
    model, tokens = small_model("kotodama"), tokens_for(small_model("kotodama"))
    still = [(f"blocks.{layer}.hook_{part}_out", lambda x, hook: 0 * x) for layer in (0, 1) for part in ("attn", "mlp")]
    with model.hooks(fwd_hooks=still):
        assert math.isnan(trajectory_consistency(model, tokens))
    assert math.isnan(trajectory_consistency(small_model("kotodama", n_layers=1), tokens))


def test_its_column_comes_last_and_only_where_asked():
    cfg = small_model("recurrent").cfg
    assert "trajectory_consistency" not in monitor_columns(cfg, MonitorConfig())
    assert monitor_columns(cfg, ALL)[-2:] == ("exit_depth", "trajectory_consistency")
    assert "use_trajectory" not in MonitorConfig().model_dump()
    model = small_model("recurrent")
    assert set(measure(model, tokens_for(model), ALL)) >= {"exit_depth", "trajectory_consistency"}
