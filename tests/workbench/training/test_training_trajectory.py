"""The zig-zag of tokens' states during training: against the probes' statistic, its nulls, and the log's columns."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models_for_tests import small_model, tokens_for
from scipy import stats

from probes import trajectory_consistency as of_states
from workbench.training import monitor as module
from workbench.training.monitor import MonitorConfig, measure, monitor_columns
from workbench.training.trajectory import COLUMNS, TrajectorySums, consistency_of, trajectory_consistency

approx = partial(pytest.approx, abs=1e-9)
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
    found, seen = trajectory_consistency(model, tokens), states(model, tokens)
    assert found.value == pytest.approx(of_states(seen), abs=1e-9)
    # in float64 the sums of one forward and of three differ by rounding alone
    assert measure(model, tokens, ALL) | dict(zip(COLUMNS, map(approx, found), strict=True)) == measure(
        model, tokens, ALL
    )
    alone = [of_states(own) for own in seen]
    assert found[1:] == pytest.approx(stats.t.interval(0.95, 2, np.mean(alone), stats.sem(alone)), abs=1e-9)


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
            assert trajectory_consistency(model, tokens).value == pytest.approx(sign, abs=1e-5)


def test_what_does_not_move_has_no_cosine():
    model, tokens = small_model("kotodama"), tokens_for(small_model("kotodama"))
    still = [(f"blocks.{layer}.hook_{part}_out", lambda x, hook: 0 * x) for layer in (0, 1) for part in ("attn", "mlp")]
    with model.hooks(fwd_hooks=still):
        assert all(map(math.isnan, trajectory_consistency(model, tokens)))
    assert all(map(math.isnan, trajectory_consistency(small_model("kotodama", n_layers=1), tokens)))
    value, low, high = trajectory_consistency(small_model("kotodama", n_layers=2), tokens[:1])
    assert -1 <= value <= 1
    assert all(map(math.isnan, (low, high))), "one sequence has no interval"


def test_its_column_comes_last_and_only_where_asked():
    cfg = small_model("recurrent").cfg
    assert "trajectory_consistency" not in monitor_columns(cfg, MonitorConfig())
    assert monitor_columns(cfg, ALL)[-4:] == ("exit_depth", *COLUMNS)
    assert "use_trajectory" not in MonitorConfig().model_dump()
    model = small_model("recurrent")
    assert set(measure(model, tokens_for(model), ALL)) >= {"exit_depth", *COLUMNS}


def test_the_monitor_takes_it_from_the_forward_of_the_heads():
    model = small_model("kotodama")
    tokens = tokens_for(model, batch=4)
    n_forwards = []
    counting = [("hook_embed", lambda x, hook: n_forwards.append(len(x)))]
    with model.hooks(fwd_hooks=counting):
        measure(model, tokens, ALL)
    assert n_forwards == [4]


def test_a_value_by_hand():
    """Two sequences of two tokens, position 0 left out: cosines 1 and 0 of one, −1 and nothing of the other."""
    sums = TrajectorySums(small_model("kotodama", n_layers=3).cfg)
    paths = [[(0, 0), (1, 0), (2, 0), (2, 1)], [(0, 0), (0, 2), (0, 1), (0, 1)]]
    for name, step in zip(sums.names, range(4), strict=True):
        state = torch.tensor([[[9.0, 9.0], path[step]] for path in paths])
        sums.add(state, SimpleNamespace(name=name))
    value, low, high = sums.result()
    assert value == pytest.approx(0.0)  # (1 + 0 − 1) / 3
    # residuals 1 and −1, so a standard error of √(2 · 2) / 3, and t of one degree of freedom
    half = stats.t.ppf(0.975, 1) * 2 / 3
    assert (low, high) == pytest.approx((-half, half))


@pytest.mark.parametrize("n", [4, 8, 16])
@pytest.mark.parametrize("is_uneven", [False, True])
def test_its_interval_holds_the_truth_as_often_as_it_says(n, is_uneven):
    """2,000 sets of sequences whose means scatter by .1 about −.2: within 3.5 standard errors (.017) of .95."""
    rng, n_sets = np.random.default_rng(0), 2000
    n_held = 0
    for _ in range(n_sets):
        counts = rng.integers(80, 121, n).astype(float) if is_uneven else np.full(n, 100.0)
        found = consistency_of(rng.normal(-0.2, 0.1, n) * counts, counts)
        n_held += found.low <= -0.2 <= found.high
    assert n_held / n_sets == pytest.approx(0.95, abs=0.017)
