"""Learning-rate schedules: known values, and what must hold for every step."""

from __future__ import annotations

import math

import pytest

from workbench.training.schedules import Schedule, check_schedule, constant, cosine, multiplier, wsd


def test_known_values():
    assert [constant(s, n_warmup_steps=4) for s in (0, 1, 3, 4, 100)] == [0.25, 0.5, 1, 1, 1]
    assert constant(0) == 1
    # 4e-4 → 4e-5: floor .1, warm-up 500 of 20,000
    values = {0: 1 / 500, 499: 1.0, 500: 1.0, 10250: 0.55, 20000: 0.1, 25000: 0.1}
    for step, value in values.items():
        assert cosine(step, 20000, n_warmup_steps=500, floor=0.1) == pytest.approx(value, abs=1e-12)
    # warm-up 2,000, stable to 90 %, then 1 − √
    values = {999: 0.5, 2000: 1.0, 41198: 1.0, 45776: 0.0, 41198.4 + 0.25 * 4577.6: 0.5}
    for step, value in values.items():
        assert wsd(step, 45776, n_warmup_steps=2000) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
@pytest.mark.parametrize("n_warmup_steps", [0, 1, 7])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_multipliers_stay_within_bounds_and_fall_after_the_warm_up(kind, n_warmup_steps, floor):
    schedule = Schedule(kind=kind, n_warmup_steps=n_warmup_steps, floor=floor, stable_until=0.5)
    values = [multiplier(schedule, step, 60) for step in range(60)]
    assert all(0 < v <= 1 for v in values)
    after = values[n_warmup_steps:]
    assert all(b <= a + 1e-15 for a, b in zip(after, after[1:], strict=False))
    assert min(after) >= (1.0 if kind == "constant" else floor) - 1e-15


def test_a_shorter_shape_stays_at_its_floor():
    schedule = Schedule(kind="cosine", n_steps=10, floor=0.2)
    assert multiplier(schedule, 10, 100) == multiplier(schedule, 99, 100) == pytest.approx(0.2)
    assert math.isclose(multiplier(schedule, 5, 100), 0.6)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Schedule(kind="cosine", n_steps=11), r"phases.0.schedule.n_steps: got 11; expected at most the phase's 10"),
        (Schedule(n_warmup_steps=11), "n_warmup_steps: got 11; expected at most 10"),
        (Schedule(kind="wsd", n_warmup_steps=6, stable_until=0.5), "before the decay starts, at step 5"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        check_schedule(schedule, 10, "phases.0.schedule")
