"""Monitors: pools by hand, gates against naive loops, cached and uncached alike, and files that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from generic_for_tests import ARCHITECTURES as GENERIC
from generic_for_tests import write_folder
from models_for_tests import ARCHITECTURES, small_model, tokens_for
from saes_for_tests import stack_for
from safetensors.torch import save_file

import probes
from workbench.models.activations import choose_slots
from workbench.models.bridge import GenericPathWarning
from workbench.models.gates import Gate
from workbench.models.generate import generate
from workbench.models.load import load
from workbench.models.monitor_sites import find_site
from workbench.models.monitors import Monitor
from workbench.models.weights import weights_sha256

Z = "blocks.1.attn.hook_z"
STREAM = "blocks.1.hook_resid_post"
POOLS: list[Any] = ["max", "mean", "ema"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def head_monitor(threshold=0.2, **changes) -> Monitor:
    weights = torch.randn(8, generator=seeded(5), dtype=torch.float64)
    return Monitor(hook=Z, weights=weights, bias=0.1, threshold=threshold, head=2, **changes)


def halfway(model, monitor, tokens, n_new, **settings) -> Monitor:
    """The monitor with a threshold that half of these continuations pass."""
    quiet = replace(monitor, threshold=1e300, action="log", value=None)
    gate = Gate(model, quiet)
    generate(model, tokens, n_new, gate=gate, **settings)
    highest = quiet.pooled(gate.firings.scores).max(dim=1).values.sort().values
    return replace(monitor, threshold=float(highest[len(highest) // 2 - 1 :][:2].mean()))  # between two, not at one


@pytest.fixture(scope="module")
def model():
    return small_model("kotodama").double()


# --- pools


def test_pools_by_hand():
    scores = torch.tensor([[1.0, 3.0, 2.0, -4.0]], dtype=torch.float64)
    expected = {"max": [1, 3, 3, 3], "mean": [1, 2, 2, 0.5], "ema": [1, 1.5, 1.625, 0.21875]}
    for pool, own in expected.items():
        monitor: Monitor = head_monitor(pool=pool, decay=0.75)
        assert monitor.pooled(scores)[0].tolist() == own
        first = monitor.pooled(scores[:, :2])
        assert monitor.pooled(scores[:, 2:], first[:, -1], 2)[0].tolist() == own[2:]


# --- gates


def naive(model, monitor, tokens, n_new):
    """Greedy continuations, one row and one whole forward at a time, the action by a plain hook."""
    rows, steps = [], []
    for row in tokens:
        own, fired, scores, found = row[None], None, [], []
        for step in range(n_new):
            at = own.shape[1] - 1

            def change(x, hook, fired=fired, at=at, scores=scores, found=found):
                x = x.clone()
                scores.append(float(x[0, at, 2] @ monitor.weights + monitor.bias))
                value = torch.tensor(scores)
                pooled = {"max": value.max(), "mean": value.mean()}[monitor.pool]
                since = at if fired is None and float(pooled) > monitor.threshold else fired
                if since is not None and monitor.action == "ablate":
                    x[0, since:, 2] = monitor.value
                if since is not None and monitor.action == "steer":
                    x[0, since:, 2] += monitor.value
                found.append(since)
                return x

            with torch.no_grad():
                logits = model.run_with_hooks(own, fwd_hooks=[(Z, change)])
            if fired is None and found[-1] is not None:
                steps.append(step)
                fired = found[-1]
                if monitor.action == "stop":
                    break
            own = torch.cat([own, logits[:, -1].argmax(-1)[None]], dim=1)
        if fired is None:
            steps.append(-1)
        rows.append(own[0, len(row) :].tolist())
    return rows, steps


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("action", ["log", "stop", "ablate", "steer"])
def test_a_gate_is_a_loop_with_a_hook(model, action, pool):
    value = torch.full((8,), 2.0, dtype=torch.float64) if action in ("ablate", "steer") else None
    tokens = tokens_for(model, 6, 5)
    monitor = halfway(model, head_monitor(action=action, pool=pool, value=value), tokens, 12, temperature=0)
    rows, steps = naive(model, monitor, tokens, 12)
    assert -1 in steps
    assert max(steps) > 0
    for use_cache in (True, False):
        gate = Gate(model, monitor)
        grown = generate(model, tokens, 12, temperature=0, gate=gate, use_cache=use_cache)
        assert gate.firings.step.tolist() == steps
        for own, expected in zip(grown[:, 5:].tolist(), rows, strict=True):
            assert own[: len(expected)] == expected
    assert not model.list_hooks()


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_with_a_cache_and_without_the_same(kind):
    model = small_model(kind).double()
    tokens = tokens_for(model, 4, 5)
    hook = "blocks.1.hook_mlp_out" if kind.startswith("attn-res") else STREAM  # which nothing reads there
    weights = torch.randn(32, generator=seeded(1), dtype=torch.float64)
    free: list[Any] = []
    monitor = Monitor(hook=hook, weights=weights, bias=0.0, threshold=1e300, pool="ema", decay=0.5)
    gate = Gate(model, monitor)
    generate(model, tokens, 10, generator=seeded(3), gate=gate)
    middle = float(gate.firings.scores.median())
    own = replace(monitor, threshold=middle, action="steer", value=torch.randn(32, generator=seeded(2)).double())
    for use_cache in (True, False):
        gate = Gate(model, own)
        free.append((generate(model, tokens, 10, generator=seeded(3), gate=gate, use_cache=use_cache), gate.firings))
    assert torch.equal(free[0][0], free[1][0])
    assert torch.equal(free[0][1].step, free[1][1].step)
    assert bool(free[0][1].has_fired.any())
    # float64 activations of another batching: a few last digits
    torch.testing.assert_close(free[0][1].scores, free[1][1].scores, rtol=1e-9, atol=1e-9)
    # in one forward of what was written the gate sees and does the same
    whole = Gate(model, own)
    with torch.no_grad(), whole.armed(5):
        model(free[0][0][:, :-1])
    assert torch.equal(whole.firings.step, free[0][1].step)
    torch.testing.assert_close(whole.firings.scores, free[0][1].scores, rtol=1e-9, atol=1e-9)


def test_logging_changes_nothing_and_stopping_only_cuts(model):
    tokens = tokens_for(model, 6, 5)
    plain = generate(model, tokens, 12, generator=seeded(7))
    monitor = halfway(model, head_monitor(), tokens, 12, generator=seeded(7))
    logged = generate(model, tokens, 12, generator=seeded(7), gate=Gate(model, monitor))
    assert torch.equal(plain, logged)
    gate = Gate(model, replace(monitor, action="stop"))
    stopped = generate(model, tokens, 12, generator=seeded(7), gate=gate)
    assert 0 < int(gate.firings.has_fired.sum()) < 6
    for row, (own, step) in enumerate(zip(stopped, gate.firings.step.tolist(), strict=True)):
        n = 12 if step < 0 else step
        assert torch.equal(own[: 5 + n], plain[row, : 5 + n])
        assert bool((own[5 + n :] == own[4 + n]).all())
        assert bool(gate.firings.scores[row, n + 1 :].isnan().all())


def test_a_continuation_that_has_ended_does_not_fire(model):
    tokens = tokens_for(model, 4, 5)
    plain = generate(model, tokens, 12, temperature=0)
    stop = int(plain[0, 7])
    gate = Gate(model, head_monitor(-1e9, pool="mean"))
    generate(model, tokens, 12, temperature=0, gate=gate, stop_at=stop)
    assert gate.firings.step.tolist() == [0] * 4
    late = Gate(model, head_monitor(1e9))
    generate(model, tokens, 12, temperature=0, gate=late, stop_at=stop)
    n = plain[0, 5:].tolist().index(stop) + 1
    assert bool(late.firings.scores[0, :n].isfinite().all())
    assert bool(late.firings.scores[0, n:].isnan().all())


def test_padded_prompts_are_scored_as_alone(model):
    long, short = tokens_for(model, 1, 7), tokens_for(model, 1, 4, seed=1)
    padded = torch.cat([long, torch.cat([torch.zeros(1, 3, dtype=torch.long), short], dim=1)])
    mask = torch.ones_like(padded)
    mask[1, :3] = 0
    gate = Gate(model, head_monitor(0.5))
    generate(model, padded, 6, temperature=0, attention_mask=mask, gate=gate)
    alone = Gate(model, head_monitor(0.5))
    generate(model, short, 6, temperature=0, gate=alone)
    torch.testing.assert_close(gate.firings.scores[1], alone.firings.scores[0], rtol=1e-9, atol=1e-9)


def test_a_feature_is_its_saes_activation_and_is_ablated_with_the_error_kept(model):
    sae = stack_for(model, choose_slots(model.cfg))
    tokens = tokens_for(model, 3, 9)
    site = find_site(model, Z, 2, 5, sae.select([1 * model.cfg.n_heads + 2]))
    assert site.place is not None
    monitor = Monitor(
        hook=Z, head=2, feature=5, weights=torch.ones(1, dtype=torch.float64), bias=0.0, threshold=-1.0,
        action="ablate", value=torch.zeros(1, dtype=torch.float64), sae_sha256=site.sae_sha256,
    )  # fmt: skip
    gate = Gate(model, monitor, sae)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, return_cache_object=False)
        z = cache[Z]
        acts = site.place.sae.encode(z[:, :, 2].reshape(1, -1, z.shape[-1]))[0, :, 5].view(3, 9)
        with gate.armed(1):
            found = model(tokens)
    torch.testing.assert_close(gate.firings.scores, acts.double(), rtol=1e-9, atol=1e-9)
    row = site.place.sae.W_dec[0, 5].detach()

    def ablate(x, hook):
        x = x.clone()
        x[:, :, 2] -= acts[..., None] * row
        return x

    with torch.no_grad():
        expected = model.run_with_hooks(tokens, fwd_hooks=[(Z, ablate)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    other = stack_for(model, choose_slots(model.cfg), seed=3)
    with pytest.raises(ValueError, match="another SAE of"):
        Gate(model, monitor, other)


@pytest.mark.parametrize("pool", POOLS)
def test_armed_false_alarms_are_within_the_stated_rate(model, pool):
    """Threshold from 199 continuations, 1,024 further ones by the same law: exchangeable, α = .1."""
    tokens = torch.randint(0, model.cfg.d_vocab, (199 + 1024, 4), generator=seeded(11))
    monitor: Monitor = head_monitor(1e300, pool=pool)
    gate = Gate(model, monitor)
    generate(model, tokens[:199], 8, generator=seeded(1), gate=gate)
    highest = monitor.pooled(gate.firings.scores).max(dim=1).values.numpy()
    alpha = 0.1
    armed = Gate(model, replace(monitor, threshold=probes.conformal_threshold(highest, alpha)))
    generate(model, tokens[199:], 8, generator=seeded(2), gate=armed)
    n_false = int(armed.firings.has_fired.sum())
    # of one calibration the rate is Beta(20, 180)-distributed about .1, of standard deviation .021, and the count
    # binomial about that, .009: the stated rate lies within three joint standard deviations, .07, below .17
    low, high = probes.binomial_limits(n_false, 1024)
    assert low < alpha + 3 * 0.021
    assert high > alpha - 3 * 0.021
    fired = armed.firings.step[armed.firings.has_fired]
    pooled = monitor.pooled(armed.firings.scores)
    assert bool((pooled[armed.firings.has_fired, fired] > armed.monitor.threshold).all())


# --- files


def test_a_monitor_is_what_was_saved(model, tmp_path):
    monitor = head_monitor(
        action="steer", value=torch.arange(8.0), model_sha256=weights_sha256(model), notes={"alpha": 0.1, "target": "x"}
    )
    file = monitor.save(tmp_path / "m.safetensors")
    again = Monitor.load(file)
    for name in ("weights", "value"):
        assert torch.equal(getattr(again, name), getattr(monitor, name))
    same = {"weights": monitor.weights, "value": monitor.value}
    assert replace(again, **same) == replace(monitor, **same)
    Gate(model, again)


def test_a_model_by_the_generic_path_is_refused(tmp_path):
    about = GENERIC["mixtral"]
    folder = write_folder(tmp_path / "generic", about.config, about.settings)
    with pytest.warns(GenericPathWarning):
        other = load(str(folder), "cpu")
    with pytest.raises(ValueError, match=r"monitor: got .*, a model by the generic path") as caught:
        Gate(other, head_monitor())
    assert len(str(caught.value).splitlines()) == 1


def test_another_model_is_refused(model):
    other = small_model("kotodama", seed=9).double()
    monitor = head_monitor(model_sha256=weights_sha256(model))
    with pytest.raises(ValueError, match=r"monitor: trained on .*; expected the same weights"):
        Gate(other, monitor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook": "blocks.1.hook_nothing"}, "hook 'blocks.1.hook_nothing' does not exist"),
        ({"hook": "blocks.9.attn.hook_z"}, "does not exist"),
        ({"hook": "blocks.1.attn.hook_pattern"}, "an attention map"),
        ({"hook": "ln_final.hook_normalized"}, "shows the last token alone; expected a hook of a block"),
        ({"head": 7}, "got head 7 of blocks.1.attn.hook_z; expected a head below 4"),
        ({"hook": STREAM}, "got head 2 of blocks.1.hook_resid_post; expected none"),
        ({"weights": torch.ones(5)}, "got 5 numbers for blocks.1.attn.hook_z, 8 wide; expected 8"),
        ({"head": None}, "got 8 numbers for blocks.1.attn.hook_z, 32 wide; expected 32"),
        ({"feature": 3, "weights": torch.ones(1)}, "got no SAEs for feature 3"),
    ],
)
def test_a_place_that_the_model_has_not(model, changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Gate(model, replace(head_monitor(), **changes))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["kotodama", "recurrent", "attn-res"])
def test_every_hook_is_scored_or_refused_in_a_line(kind):
    model, refused, n_scored = small_model(kind), [], 0
    tokens = tokens_for(model, 2, 5)
    for hook in (own for own in model.hook_dict if not own.startswith("blocks.") or own.startswith("blocks.1.")):
        try:
            width = find_site(model, hook).width(model)
            gate = Gate(model, Monitor(hook, torch.ones(width), 0.0, 1e300))
            generate(model, tokens, 3, temperature=0, gate=gate)
        except ValueError as error:
            refused.append(str(error))
            continue
        assert gate.firings.scores.shape == (2, 3)
        n_scored += 1
    assert n_scored > 10
    assert any("an attention map" in message for message in refused)
    assert all(len(message.splitlines()) == 1 for message in refused)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": float("nan")}, "threshold"),
        ({"bias": float("inf")}, "bias"),
        ({"decay": 1.0}, "decay"),
        ({"pool": "median"}, "pool"),
        ({"action": "shout"}, "action"),
        ({"head": -1}, "head"),
        ({"weights": torch.tensor([float("nan")] * 8)}, "got weights of shape [8]; expected finite"),
        ({"weights": torch.ones(2, 4)}, "got weights of shape [2, 4]"),
        ({"action": "ablate"}, "got none as value for ablate"),
        ({"value": torch.ones(8)}, "got one as value for log"),
        ({"action": "steer", "value": torch.ones(7)}, "got a value of 7 numbers; expected 8"),
        ({"action": "ablate", "value": torch.ones(8), "head": None}, "got action ablate at all of"),
    ],
)
def test_what_is_no_monitor(changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        replace(head_monitor(), **changes)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def hostile(tmp_path, name):
    """Files of other contents than `save` writes."""
    file = head_monitor().save(tmp_path / "m.safetensors")
    good, data = Monitor.load(file), file.read_bytes()
    n = int.from_bytes(data[:8], "little")
    said = json.loads(json.loads(data[8 : 8 + n])["__metadata__"]["monitor"])
    weights = {"weights": good.weights}

    def write(tensors, **changes):
        save_file(tensors, file, {"monitor": json.dumps(said | changes)})

    ways = {
        "empty": lambda: file.write_bytes(b""),
        "cut": lambda: file.write_bytes(data[:-3]),
        "a flipped bit": lambda: file.write_bytes(data[:-1] + bytes([data[-1] ^ 1])),
        "no JSON": lambda: save_file(weights, file, {"monitor": "{"}),
        "deep JSON": lambda: save_file(weights, file, {"monitor": "[" * 100_000}),
        "no metadata": lambda: save_file(weights, file),
        "a list": lambda: save_file(weights, file, {"monitor": "[1]"}),
        "another format": lambda: write(weights, format="else"),
        "a later version": lambda: write(weights, version=2),
        "an unknown key": lambda: write(weights, code="import os"),
        "nan": lambda: write({"weights": torch.full((8,), float("nan"))}),
        "integers": lambda: write({"weights": torch.ones(8, dtype=torch.long)}),
        "a matrix": lambda: write({"weights": torch.ones(2, 4)}),
        "no weights": lambda: write({"value": torch.ones(8)}),
        "more tensors": lambda: write(weights | {"more": torch.ones(2)}),
        "no numbers": lambda: write({"weights": torch.ones(0)}),
        "a threshold of words": lambda: write(weights, threshold="high"),
        "an infinite threshold": lambda: save_file(
            weights,
            file,
            {"monitor": json.dumps(said).replace(f'"threshold": {said["threshold"]}', '"threshold": NaN')},
        ),
    }
    ways[name]()
    return file


NAMES = [
    "empty", "cut", "a flipped bit", "no JSON", "deep JSON", "no metadata", "a list", "another format",
    "a later version", "an unknown key", "nan", "integers", "a matrix", "no weights", "more tensors", "no numbers",
    "a threshold of words", "an infinite threshold",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, name):
    file = hostile(tmp_path, name)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Monitor.load(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="is not there; expected a file"):
        Monitor.load(tmp_path / "none")


def test_scores_are_the_probes(model):
    x = torch.randn(3, 4, 8, generator=seeded(0), dtype=torch.float64)
    monitor = head_monitor()
    expected = np.einsum("bpd,d->bp", x.numpy(), monitor.weights.numpy()) + 0.1
    np.testing.assert_allclose(monitor.score(x).numpy(), expected, rtol=1e-12)
