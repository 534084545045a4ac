"""Several kinds of SAEs from one pass of the model: each as if it were trained alone, told apart in every table."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_model, tokens_for

from reports.tables import read_table
from sae import TrainConfig
from workbench import runs
from workbench.analyses.harvest.storing import harvest
from workbench.analyses.sae_train.alarms import LEAST_TOKENS, find_alarms
from workbench.analyses.sae_train.comparison import compare_at_matched_l0, pareto_table
from workbench.analyses.sae_train.head_saes import find_stack, sae_train
from workbench.analyses.sae_train.settings import HeadSaeSettings, Kind
from workbench.models.activations import ShuffledActivations, choose_slots
from workbench.models.checks import run_watched

# SAEs of a few steps: their features are what they began as, or copies
pytestmark = pytest.mark.filterwarnings("ignore:sae_train.*near-copies:UserWarning")
QUICK = {"batch_size": 32, "buffer_tokens": 64, "lr": 1e-2, "expansion": 3, "n_ce_tokens": 32, "n_train_tokens": 640}
HOOKS = ("z", "z_concat", "hook_resid_post", "mlp.hook_post")
TABLES = ("sae_training_results", "sae_density", "sae_curves", "sae_stability", "sae_pareto", "sae_alarms")


@pytest.fixture(scope="module")
def model():
    return small_model("janus-v3", n_layers=2)


@pytest.fixture(scope="module")
def tokens(model):
    return tokens_for(model, batch=22, pos=16)


@pytest.fixture(scope="module")
def held_out(model):
    return tokens_for(model, batch=6, pos=16, seed=9)


@pytest.fixture(scope="module")
def together(model, tokens, held_out, tmp_path_factory):
    """A run of several hooks, architectures, sizes and k."""
    out = tmp_path_factory.mktemp("hooks") / "run"
    own = {"hook": ("z", "hook_resid_post"), "architecture": ("relu", "topk"), "expansion": (2, 3), "k": (2, 4)}
    stacks, table = sae_train(
        model, tokens, l1=[0.5, 2.0], seeds=[0, 3], held_out=held_out, out=out, name="m", **QUICK | own
    )
    return out, stacks, table


def assert_same_rows(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found[list(wanted)].reset_index(drop=True), wanted, check_dtype=False)


# --- what is trained


@pytest.mark.parametrize("seed", [0, 5])
def test_groups_hold_the_tokens_that_each_has_by_itself(model, tokens, seed):
    groups = [choose_slots(model.cfg, hook=hook) for hook in HOOKS]
    sizes = {"batch_size": 24, "buffer_tokens": 64, "seed": seed}
    shared = ShuffledActivations(model, tokens, *groups, **sizes)
    alone = [ShuffledActivations(model, tokens, slots, **sizes) for slots in groups]
    for index in (0, 1, 7, 2):
        for group, own in enumerate(alone):
            assert torch.equal(shared.batch(index, group), own.batch(index))


def test_one_forward_feeds_all_hooks(model, tokens, held_out, monkeypatch):
    n_calls = []

    def counted(*given):
        n_calls.append(given)
        return run_watched(*given)

    monkeypatch.setattr("workbench.models.activations.run_watched", counted)
    n = {}
    for hooks in (("hook_resid_post",), ("hook_resid_post", "hook_resid_pre", "hook_mlp_out")):
        n_calls.clear()
        monkeypatch.setattr("workbench.analyses.sae_train.head_saes.splice_sequences", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sae_train(model, tokens, [1], held_out=held_out, hook=hooks, **QUICK)
        watched = [len(given[2]) for given in n_calls]
        n[len(hooks)] = watched.count(len(hooks))
    assert n[1] - 1 == n[3] > 10  # stand-ins are tried a hook at a time


@pytest.mark.parametrize(
    "own",
    [
        Kind("z", "relu", 2, None),
        Kind("z", "topk", 3, 2.0),
        Kind("hook_resid_post", "relu", 3, None),
        Kind("hook_resid_post", "topk", 2, 4.0),
    ],
)
def test_every_stack_is_the_one_trained_alone(model, tokens, held_out, together, tmp_path, own):
    out, stacks, table = together
    alone = {"hook": own.hook, "architecture": own.architecture, "expansion": own.expansion, "k": own.k}
    l1 = [0.5, 2.0] if own.k is None else 0.0
    stack, _ = sae_train(
        model, tokens, l1=l1, seeds=[0, 3], held_out=held_out, out=tmp_path / "r", name="m", **QUICK | alone
    )
    name = own.called(stack.config.d_in)
    files = {p.name: p.read_bytes() for p in (out / "sae" / name).iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "r" / "sae").iterdir()}
    for key, tensor in stacks[name].state_dict().items():
        assert torch.equal(tensor, stack.state_dict()[key])
    for called in TABLES[:4]:
        every, wanted = read_table(out, called), read_table(tmp_path / "r", called)
        is_own = (every["hook"] == own.hook) & (every["architecture"] == own.architecture)
        is_own &= (every["d_sae"] == stack.config.d_sae) & (every["k"].isna() if own.k is None else every["k"] == own.k)
        assert_same_rows(every[is_own], wanted)
    assert set(table["architecture"]) == {"relu", "topk"}


def test_a_harvest_of_several_hooks_is_trained_on_as_each_alone(model, tokens, held_out, tmp_path):
    names = [f"blocks.{layer}.{hook}" for layer in range(2) for hook in ("attn.hook_z", "hook_resid_post")]
    harvest(model, tokens, names, tmp_path / "h", shard_bytes=20_000)
    many, _ = sae_train(model, tmp_path / "h", held_out=held_out, hook=("z_concat", "hook_resid_post"), l1=1.0, **QUICK)
    for name, stack in many.items():
        one, _ = sae_train(model, tmp_path / "h", held_out=held_out, hook=name.split("-")[0], l1=1.0, **QUICK)
        assert all(torch.equal(own, one.state_dict()[key]) for key, own in stack.state_dict().items())


# --- the run directory


def test_a_run_of_several_stacks_is_whole_and_its_rows_are_told_apart(together):
    out, stacks, _ = together
    runs.verify_manifest(out)
    assert {p.name for p in (out / "sae").iterdir()} == set(stacks)
    assert len(stacks) == 2 * 2 * (1 + 2)
    keys = ["model", "seed", "layer", "head", "l1", "sae_seed", "hook", "architecture", "d_sae", "k"]
    more = {
        "sae_training_results": ["dictionary"], "sae_density": ["log10_density_bin"], "sae_curves": ["step"],
        "sae_stability": ["other_seed"], "sae_pareto": [], "sae_alarms": ["step", "kind"],
    }  # fmt: skip
    for name in TABLES:
        own = read_table(out, name)
        by = [key for key in [*keys, *more[name]] if name != "sae_pareto" or key != "sae_seed"]
        assert not own.duplicated(by).any(), name


def test_a_stack_is_found_by_what_it_is(together):
    out, stacks, _ = together
    d_in = 8
    found = find_stack(out, hook="z", architecture="topk", d_sae=2 * d_in, k=4)
    wanted = stacks[f"z-topk-{2 * d_in}-k4"]
    assert torch.equal(found.W_dec, wanted.W_dec)
    for named in (find_stack(out, f"z-topk-{2 * d_in}-k4"), find_stack(out / "sae" / f"z-topk-{2 * d_in}-k4")):
        assert torch.equal(named.W_enc, wanted.W_enc)
    with pytest.raises(ValueError, match=r"SAEs: 2 of .* fit hook z, architecture relu; expected one of .*z-relu-16"):
        find_stack(out, hook="z", architecture="relu")
    with pytest.raises(ValueError, match=r"SAEs: 12 of .* fit any stack; expected one of hook_resid_post-relu"):
        find_stack(out)
    with pytest.raises(ValueError, match=r"SAEs: none of .* fit stack z; expected one of"):
        find_stack(out, "z")


def test_an_altered_stack_is_named_and_others_are_read(together):
    out, stacks, _ = together
    file = out / "sae" / "z-relu-16" / "sae.safetensors"
    data = file.read_bytes()
    try:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ValueError, match=r"z-relu-16"):
            find_stack(out, "z-relu-16")
        assert torch.equal(find_stack(out, "z-relu-24").W_enc, stacks["z-relu-24"].W_enc)
    finally:
        file.write_bytes(data)


# --- sweeps


def test_a_sweep_of_k_has_a_front_of_its_own(together):
    out, _, table = together
    pareto = read_table(out, "sae_pareto")
    assert_same_rows(pareto_table(table), pareto)
    trained = table[table["dictionary"] == "trained"]
    for place, own in pareto.groupby(["layer", "head", "hook", "architecture", "d_sae"]):
        assert len(own) == 2, place
        layer, head, hook, architecture, d_sae = place
        of = trained[
            (trained["hook"] == hook) & (trained["architecture"] == architecture) & (trained["d_sae"] == d_sae)
        ]
        of = of[(of["layer"] == layer) & (of["head"] == head)]
        sweep = "k" if architecture == "topk" else "l1"
        means = of.groupby(sweep)[["l0", "fvu"]].mean()
        for _, point in own.iterrows():
            l0, fvu = means.loc[point[sweep]]
            assert (point["l0"], point["fvu"]) == pytest.approx((l0, fvu))
            others = means.drop(index=point[sweep])
            beaten = ((others["l0"] <= l0) & (others["fvu"] <= fvu)).any()
            assert point["on_front"] == (not beaten)


def test_matched_l0_of_several_stacks_is_that_of_each(together):
    _, _, table = together
    worse = table.assign(model="n", fvu=table["fvu"] + 0.1)
    found = compare_at_matched_l0(pd.concat([table, worse], ignore_index=True), "m", "n")
    assert len(found) == 2 * 2 * 2 * 2  # layers, hooks, architectures, sizes
    known = found["fvu_difference"].dropna()
    assert len(known) == len(found)
    np.testing.assert_allclose(known, 0.1, atol=1e-9)


# --- settings


def test_options_go_to_those_that_read_them(model, tokens, held_out):
    own = {"architecture": ("gated", "matryoshka", "topk"), "k": 2, "widths": (4, 24), "gate_detach": False}
    stacks, _ = sae_train(model, tokens, [1], [0], held_out=held_out, **QUICK | own | {"aux_coefficient": 0.5})
    configs = {stack.config.architecture: stack.config for stack in stacks.values()}
    said = {name: (c.k, c.widths, c.gate_detach, c.aux_coefficient) for name, c in configs.items()}
    assert said == {
        "gated": (None, None, False, None), "matryoshka": (2, (4, 24), None, 0.5), "topk": (2, None, None, None),
    }  # fmt: skip
    assert {s.l1 for s in stacks["z-gated-24"].info.sources} == {2.0}
    assert {s.l1 for s in stacks["z-topk-24-k2"].info.sources} == {0.0}


def test_one_of_a_kind_is_written_as_before():
    said = HeadSaeSettings(hook="z", expansion=4).model_dump(mode="json")
    assert (said["hook"], said["architecture"], said["expansion"], said["k"]) == ("z", "relu", 4, None)
    assert HeadSaeSettings.model_validate(said).kinds == (Kind("z", "relu", 4, None),)
    several = HeadSaeSettings(hook=["z", "z_concat"], architecture="topk,relu", k="2,8", expansion="2-3")
    assert len(several.kinds) == 2 * (2 + 1) * 2
    assert HeadSaeSettings.model_validate(several.model_dump(mode="json")) == several


# --- alarms


def curve(n: int, **changed) -> list[dict]:
    """n logged points of two SAEs, the first of which is as `changed` says from a step on."""
    points = [
        {"step": 10 * (i + 1), "loss": [1.0, 1.0], "l0": [5.0, 5.0], "dead_fraction": [0.1, 0.1]} for i in range(n)
    ]
    for name, (first, value) in changed.items():
        for point in points[first:]:
            point[name][0] = value
    return points


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, []),
        ({"dead_fraction": (0, 0.6)}, [(30, 0, "dead", 0.6)]),
        ({"dead_fraction": (7, 0.5)}, []),
        ({"loss": (7, 3.1)}, [(80, 0, "loss_spike", 3.1)]),
        ({"loss": (4, 9.0)}, [(60, 0, "loss_spike", 9.0)]),  # not at the fifth, which has too few before it
        ({"l0": (6, 0.05)}, [(70, 0, "few_active", 0.05)]),
        ({"l0": (0, 16.0)}, [(60, 0, "all_active", 16.0)]),
        ({"l0": (6, 0.0), "dead_fraction": (8, 1.0)}, [(70, 0, "few_active", 0.0), (90, 0, "dead", 1.0)]),
    ],
)
def test_alarms_are_the_first_step_of_each_fault(changed, wanted):
    config = TrainConfig(n_steps=200, l1_warm_up_steps=50, dead_window=30)
    found = find_alarms(curve(20, **changed), config, 16, 0.5, LEAST_TOKENS // 30 + 1)
    assert [alarm[:4] for alarm in found] == wanted
    few = find_alarms(curve(20, **changed), config, 16, 0.5, LEAST_TOKENS // 30)
    assert [alarm.kind for alarm in few] == [kind for _, _, kind, _ in wanted if kind != "dead"]


def test_a_fault_is_said_once_and_kept(model, held_out, tmp_path):
    tokens = tokens_for(model, batch=400, pos=16)
    own = {"n_resamples": 0, "lr": 0.03, "hook": ("z", "hook_resid_post"), "n_train_tokens": 6000}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sae_train(model, tokens, [0], l1=1e2, held_out=held_out, out=tmp_path / "r", **QUICK | own)
    said = [str(own.message) for own in caught if "features per token are active" in str(own.message)]
    assert [text.split(": ")[1] for text in said] == ["z-relu-24", "hook_resid_post-relu-96"]
    assert all("layer 0" in text and text.endswith("are active; expected a lower l1") for text in said)
    alarms = read_table(tmp_path / "r", "sae_alarms")
    few = alarms[alarms["kind"] == "few_active"]
    assert len(few) == 4 + 1
    curves = read_table(tmp_path / "r", "sae_curves")
    for _, alarm in few.iterrows():
        own = curves[(curves["hook"] == alarm["hook"]) & (curves["head"] == alarm["head"])]
        assert own.loc[own["l0"] < 0.1, "step"].min() == alarm["step"]


def test_a_run_without_faults_has_an_empty_table(together, model, tokens, held_out, tmp_path):
    sae_train(model, tokens, [1], [0], l1=0.5, held_out=held_out, out=tmp_path / "r", **QUICK)
    table = read_table(tmp_path / "r", "sae_alarms")
    assert set(table["kind"]) <= {"inadequate"}  # what is measured at the end, of so short a training
    assert list(table)[-2:] == ["value", "threshold"]


def test_a_loss_that_is_not_finite_names_hook_and_step(model, tokens, held_out):
    own = {"hook": ("z", "hook_resid_post"), "lr": 1e30}
    with pytest.raises(ValueError, match=r"sae_train: z-relu-24: Trainer.step: loss of SAE 0 is .* at step \d+"):
        sae_train(model, tokens, held_out=held_out, l1=1.0, **QUICK | own)
