"""Interventions in a run: plug-ins that watch, change and add, what each reports, what is refused before a step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from interventions_for_tests import prescribe
from models_for_tests import small_model, tokens_for

from reports.tables import COLUMNS, read_table
from workbench.extend import Intervention, Settings, Terms
from workbench.models.load import load
from workbench.models.weights import weights_sha256
from workbench.training import Interrupted, NonFiniteLoss, Recipe, train
from workbench.training import interventions as known
from workbench.training.interventions import register
from workbench.training.objective import Batch, held_out_loss, objective
from workbench.training.plan import plan
from workbench.training.prescription import Moment
from workbench.training.recipe import parse_recipe
from workbench.training.telemetry import telemetry_columns
from workbench.training.training_data import judging_batches, open_feed

pytestmark = pytest.mark.usefixtures("cache")
MODEL = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "d_mlp": 24, "n_ctx": 16, "d_vocab": 300}
FOLLOWING = {"kind": "vsm", "controller": {"kind": "proportional", "n_warmup_steps": 2, "every": 1}}


class Watcher(Intervention):
    """Adds a share of the mean square of one activation."""

    class Settings(Settings):
        """Which, and how much."""

        hook: str = "blocks.0.hook_resid_post"
        weight: float = 0.1

    def watch(self, cfg):
        return [self.settings.hook]

    def reduce(self, hook, activation, context):
        return activation.square().mean()

    def schedule(self, step, n_steps):
        return {"share": step / n_steps}

    def terms(self, seen, context):
        (square,) = seen.values()
        return Terms(self.settings.weight * square, {"square": square.detach()})


class Noise(Intervention):
    """Adds noise to what enters the last layer."""

    class Settings(Settings):
        """How much."""

        scale: float = 1.0

    def changes(self, cfg):
        return [f"blocks.{cfg.n_layers - 1}.hook_resid_pre"]

    def change(self, hook, activation, context):
        shape, device = activation.shape, activation.device
        return activation + self.settings.scale * torch.randn(shape, generator=context.generator, device=device)


class Breaking(Intervention):
    """Adds a term that is infinite from step 6 of the run on."""

    def schedule(self, step, n_steps):
        return {"weight": math.inf if step >= 5 else 1.0}

    def watch(self, cfg):
        return ["blocks.0.hook_resid_post"]

    def terms(self, seen, context):
        return Terms(context.scalars["weight"] * seen["blocks.0.hook_resid_post"].square().mean())


class Reading(Intervention):
    """Reads a tensor's value, which none may."""

    def watch(self, cfg):
        return ["blocks.0.hook_resid_post"]

    def terms(self, seen, context):
        return Terms(None, {"mean": torch.tensor(float(seen["blocks.0.hook_resid_post"].mean()))})


class Repeating(Intervention):
    """Reports a number under a key that is taken."""

    class Settings(Settings):
        """Which key."""

        key: str = "loss"

    def watch(self, cfg):
        return ["blocks.0.hook_resid_post"]

    def schedule(self, step, n_steps):
        return {"share": 1.0}

    def terms(self, seen, context):
        square = seen["blocks.0.hook_resid_post"].square().mean()
        return Terms(square, {self.settings.key: square.detach()})


OWN = (Watcher, Noise, Breaking, Reading, Repeating)


@pytest.fixture(autouse=True)
def plug_ins():
    """They are known as long as a test lasts."""
    for own in OWN:
        register(own)
    yield
    for own in OWN:
        known._FOUND.pop(own.kind)


def recipe_of(text: Path, *tables: dict[str, Any], **changes: Any) -> Recipe:
    data = {"source": str(text / "text.jsonl"), "tokenizer": str(text), "held_out_fraction": 0.1}
    phase = {"n_steps": 8, "batch_size": 2, "n_accumulation": 2, "log_every": 1, "eval_every": 4}
    phase |= {"optimizer": {"adamw": {"lr": 3e-3}}, "interventions": list(tables)}
    settings = {
        "name": "tiny",
        "model": MODEL,
        "data": data | {"n_held_out_windows": 4},
        "phases": [phase | changes],
        "monitor": {"every": 0},
        "checkpoint": {"every": 4},
    }
    return parse_recipe(settings)


def run(recipe: Recipe, out: Path, **settings: Any) -> Path:
    return train(recipe, out, device="cpu", dtype="float32", progress=False, **settings)


def digest(directory: Path) -> str:
    return weights_sha256(load(directory, device="cpu"))


def test_a_plug_in_watches_adds_and_reports():
    model = small_model("janus-v3").double()
    tokens, hook = tokens_for(model), "blocks.1.hook_resid_mid"
    prescription = prescribe(model, {"kind": "watcher", "hook": hook, "weight": 0.5})
    found = objective(model, Batch(tokens), prescription, Moment(0, prescription.start(0)))
    loss, cache = model.run_with_cache(tokens, return_type="loss", names_filter=[hook])
    square = cache[hook].square().mean()
    torch.testing.assert_close(found.total, loss + 0.5 * square)
    torch.testing.assert_close(found.loss, loss.detach())
    assert list(found.telemetry) == ["watcher.loss", "watcher.square"]
    torch.testing.assert_close(found.telemetry["watcher.square"], square.detach())
    assert not any(value.requires_grad for value in found.telemetry.values())
    assert not any(point._forward_hooks for point in model.hook_dict.values())


def test_a_change_acts_where_it_says_and_is_drawn_from_the_seed():
    model = small_model("janus-v3").double()
    batch, hook = Batch(tokens_for(model)), "blocks.2.hook_resid_pre"
    noise = prescribe(model, {"kind": "noise", "scale": 0.5})
    assert noise.may_draw
    generator = torch.Generator()
    losses = []
    for seed in (1, 1, 2):
        generator.manual_seed(seed)
        losses.append(float(objective(model, batch, noise, Moment(0, {}, generator)).loss))
    assert losses[0] == losses[1] != losses[2]
    generator.manual_seed(1)

    def by_hand(activation, hook):
        return activation + 0.5 * torch.randn(activation.shape, generator=generator)

    expected = model.run_with_hooks(batch.tokens, return_type="loss", fwd_hooks=[(hook, by_hand)])
    assert losses[0] == pytest.approx(float(expected.detach()), abs=1e-12)


def test_the_columns_are_known_beforehand_and_filled(text, tmp_path):
    """Two of one kind under names of their own beside a plug-in, each with its own columns."""
    tables = ({**FOLLOWING, "name": "values"}, {"kind": "vsm", "name": "maps", "on": "pattern"}, {"kind": "watcher"})
    recipe = recipe_of(text, *tables, {"kind": "z-loss"})
    columns = telemetry_columns(recipe)
    assert columns == [
        "values.lambda", "maps.lambda", "watcher.share",
        "values.loss", "values.sigma", "maps.loss", "maps.sigma", "watcher.loss", "watcher.square",
    ]  # fmt: skip
    log = read_table(run(recipe, tmp_path / "run"), "train_log")
    n = len(COLUMNS["train_log"])
    assert list(log.columns[n : n + len(columns)]) == columns
    trained = log[log["step"] > 0]
    assert trained[columns].notna().all(axis=None)
    assert log.loc[log["step"] == 0, columns].isna().all(axis=None)
    assert trained["watcher.share"].tolist() == [step / 8 for step in range(8)]
    assert set(trained["maps.lambda"]) == {0.05}
    assert trained["values.lambda"].nunique() > 3
    assert (trained["values.sigma"] != trained["maps.sigma"]).all()


def test_columns_are_those_of_all_phases_each_once(text):
    recipe = recipe_of(text, {"kind": "vsm"}, {"kind": "coherence"})
    (phase,) = recipe.phases
    other = phase.model_copy(update={"name": "other", "interventions": (*phase.interventions[:1], Watcher.Settings())})
    both = recipe.model_copy(update={"phases": (phase, other)})
    assert telemetry_columns(both) == [
        "vsm.lambda", "vsm.loss", "vsm.sigma", "coherence.loss", "coherence.entropy",
        "watcher.share", "watcher.loss", "watcher.square",
    ]  # fmt: skip
    assert telemetry_columns(recipe_of(text)) == []


def test_the_state_of_a_controller_is_kept_in_the_checkpoint(text, tmp_path):
    recipe = recipe_of(text, FOLLOWING, {"kind": "noise", "scale": 0.1})
    whole = run(recipe, tmp_path / "whole")
    for stop in (3, 2, None):
        try:
            cut = run(recipe, tmp_path / "cut", resume=True, stop_after=stop)
        except Interrupted:
            state = json.loads(next((tmp_path / "cut.partial").glob("step_*/train_state.json")).read_text())
            assert set(state["interventions"]) == {"vsm", "noise"}
            assert set(state["interventions"]["vsm"]) == {"weight", "sigma"}
            assert "controller" not in state
    last = "step_00000008"
    for name in ("model.safetensors", "train_state.safetensors", "train_state.json"):
        ours, theirs = ((run_ / last / name).read_bytes() for run_ in (cut, whole))
        if name == "train_state.json":  # the log's digest covers the rates, which are times
            ours, theirs = (json.loads(own)["interventions"] for own in (ours, theirs))
        assert ours == theirs, name


def test_a_change_resumes_to_the_same_weights_and_is_not_measured(text, tmp_path):
    recipe = recipe_of(text, {"kind": "noise", "scale": 3.0})
    whole, plain = run(recipe, tmp_path / "whole"), run(recipe_of(text), tmp_path / "plain")
    for stop in (1, 4):
        with pytest.raises(Interrupted):
            run(recipe, tmp_path / "cut", resume=stop != 1, stop_after=stop)
    cut = run(recipe, tmp_path / "cut", resume=True)
    assert digest(cut) == digest(whole) != digest(plain)
    assert digest(run(recipe, tmp_path / "other", seed=1)) != digest(whole)
    changed, unchanged = (read_table(of, "train_log").set_index("step") for of in (whole, plain))
    assert changed["held_out_loss"][0] == unchanged["held_out_loss"][0]
    assert changed["loss"][1] != unchanged["loss"][1]
    held_out, _ = judging_batches(recipe, 0, open_feed(recipe), "cpu")
    measured = held_out_loss(load(whole, device="cpu"), held_out, batch_size=2)
    assert changed["held_out_loss"][8] == pytest.approx(measured, rel=1e-6)


def test_a_term_that_is_not_finite_is_named_with_its_step_and_the_last_good_state(text, tmp_path):
    said = r"the term of the intervention breaking is inf at step 6; the last good checkpoint is .*step_00000004"
    with pytest.raises(NonFiniteLoss, match=said):
        run(recipe_of(text, {"kind": "z-loss"}, {"kind": "breaking"}), tmp_path / "run")
    assert digest(tmp_path / "run.partial")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"kind": "watcher", "hook": "blocks.0.hook_resid_pots"},
            "phases.0: watcher: got the hook 'blocks.0.hook_resid_pots', which the model has not; "
            "nearest: .*blocks.0.hook_resid_post",
        ),
        ({"kind": "watcher", "name": "mine", "hook": "x"}, "mine: got the hook 'x', which the model has not; nearest:"),
        ({"kind": "reading"}, "phases.0: interventions reading: fail on tensors without numbers"),
    ],
)
def test_what_cannot_act_on_the_model_is_refused_and_leaves_nothing_behind(text, tmp_path, table, message):
    recipe = recipe_of(text, table)
    with pytest.raises(ValueError, match=message):
        telemetry_columns(recipe)
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_names_a_hook_that_the_model_has_not(text):
    with pytest.raises(ValueError, match="got the hook 'x', which the model has not"):
        plan(recipe_of(text, {"kind": "watcher", "hook": "x"}), device="cpu", dtype="float32")


@pytest.mark.parametrize(("key", "message"), [("loss", "reports 'loss'"), ("share", "repeating.share is scheduled")])
def test_a_key_that_is_taken_is_refused_before_a_step(text, tmp_path, key, message):
    with pytest.raises(ValueError, match=message):
        run(recipe_of(text, {"kind": "repeating", "key": key}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_two_that_set_the_same_option_are_refused_before_a_step(text, tmp_path):
    recipe = recipe_of(text, {"kind": "z-loss"}, {"kind": "z-loss", "name": "second"})
    with pytest.raises(ValueError, match="phases.0: second: sets z_loss, which another sets; expected one of them"):
        run(recipe, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_kinds_are_unique():
    register(Watcher)  # the same one again
    other = type("Watcher", (Intervention,), {})
    for taken in (other, type("Vsm", (Intervention,), {})):
        with pytest.raises(
            ValueError, match=f"plugin: the intervention '{taken.kind}' is taken; expected another name"
        ):
            register(taken)


def test_the_state_of_other_interventions_is_refused():
    model = small_model("janus-v3")
    prescription = prescribe(model, FOLLOWING)
    with pytest.raises(ValueError, match=r"interventions: got the state of \['noise'\]; expected \['vsm'\]"):
        prescription.load_state_dict({"noise": {}})
