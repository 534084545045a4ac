"""The Janus recipes against what was published of their pressure, and against each other."""

from __future__ import annotations

from typing import Any

import pytest

from workbench.training import load_recipe, recipe_names
from workbench.training.interventions import make_interventions
from workbench.training.interventions.vsm import Trapezoid, Vsm

TELEMETRY = 0.225  # step 4,500 of 20,000
SIZES = ("", "-nano")


def weights_of(name: str) -> list[float]:
    """λ of every step of a recipe whose pressure does not depend on what the model does."""
    phase = load_recipe(name).phases[0]
    pressure = make_interventions(phase.interventions)[0]
    assert isinstance(pressure, Vsm)
    return [pressure.schedule(step, phase.n_steps)["lambda"] for step in range(phase.n_steps)]


def differences(first: Any, second: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Paths of the settings that two dumps of recipes do not share, name and description aside."""
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        first, second = dict(enumerate(first)), dict(enumerate(second))
    if not isinstance(first, dict) or not isinstance(second, dict):
        return {} if first == second else {path: (first, second)}
    keys = [key for key in {**first, **second} if key not in ("name", "description")]
    parts = [differences(first.get(key), second.get(key), f"{path}.{key}".lstrip(".")) for key in keys]
    return {key: value for part in parts for key, value in part.items()}


def between(first: str, second: str) -> dict[str, tuple[Any, Any]]:
    return differences(*(load_recipe(name).model_dump(mode="json") for name in (first, second)))


@pytest.mark.parametrize("size", SIZES)
def test_janus_small_is_in_its_release_with_the_pressure_of_the_telemetry(size) -> None:
    weights = weights_of(f"janus-small{size}")
    at = round(TELEMETRY * len(weights))
    assert weights[at] == pytest.approx(0.009, abs=1e-12)
    cfg = load_recipe(f"janus-small{size}").phases[0].interventions[0].controller
    assert isinstance(cfg, Trapezoid)
    assert cfg.release_from < TELEMETRY < cfg.release_to
    assert max(weights) == cfg.peak == 0.15
    # off, up, on, down, off
    moves = [b - a for a, b in zip(weights, weights[1:], strict=False)]
    signs = [1 if move > 0 else -1 if move < 0 else 0 for move in moves]
    assert [sign for i, sign in enumerate(signs) if i == 0 or sign != signs[i - 1]] == [0, 1, 0, -1, 0]


def test_no_pressure_acts_while_the_learning_rate_of_janus_small_warms_up() -> None:
    phase = load_recipe("janus-small").phases[0]
    assert phase.n_steps * phase.interventions[0].controller.ramp_from == phase.schedule.n_warmup_steps == 500


@pytest.mark.parametrize("size", SIZES)
def test_the_schedules_described_earlier_are_named_variants(size) -> None:
    late, rising = weights_of(f"janus-small-late{size}"), weights_of(f"janus-small-sigmoid{size}")
    n = len(late)
    assert (late[round(TELEMETRY * n)], max(late)) == (0.0, 0.15)
    assert rising[round(TELEMETRY * n)] == pytest.approx(0.009, abs=2e-5)
    assert rising == sorted(rising)
    for name in ("late", "sigmoid"):
        assert all(
            path.startswith("phases.0.interventions.0.controller")
            for path in between(f"janus-small{size}", f"janus-small-{name}{size}")
        )


@pytest.mark.parametrize("size", SIZES)
def test_the_controls_of_janus_small_differ_in_one_thing(size) -> None:
    (path,) = between(f"janus-small{size}", f"janus-small-control{size}")
    assert path == "phases.0.interventions"
    assert load_recipe(f"janus-small-control{size}").phases[0].interventions == ()
    uniform = between(f"janus-small{size}", f"janus-small-uniform{size}")
    assert uniform == {"phases.0.interventions.0.steering": (3.0, 0.0)}


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("janus-v3")])
def test_janus_v3_reads_articles_and_the_official_split(name) -> None:
    data = load_recipe(name).data
    if name.endswith("-nano"):
        assert (data.source, data.documents, data.held_out_split) == ("embedded", None, None)
    else:
        assert data.source == "Salesforce/wikitext:wikitext-103-raw-v1"
        assert (data.documents, data.held_out_split) == ("articles", "validation")
