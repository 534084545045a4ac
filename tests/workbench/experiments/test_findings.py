"""Findings: verdicts by their rule, each effect recomputed by hand, and the opposite of the papers said plainly."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports.page import VERDICTS as SHOWN_VERDICTS
from workbench.experiments.study import findings
from workbench.experiments.study.findings import VERDICTS, Effect, find, judge, matching_layer

CONTROL, ADAPTIVE = "janus-v3-control-nano", "janus-v3-adaptive-nano"
NAMES = {CONTROL: "control", ADAPTIVE: "adaptive"}


def topology(changes: dict[tuple[str, int], float], rank: dict[int, float], seeds=(0,), jitter: float = 0.0):
    """topology_stats of two models: Adaptive's mean_cos of (basis, layer), nuclear_rank of layer changed by a share."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in seeds:
        for model in (CONTROL, ADAPTIVE):
            for layer in range(4):
                for basis in ("z", "pattern", "residual"):
                    cos, own_rank = 0.1 * (layer + 1), 50.0
                    if model == ADAPTIVE:
                        cos *= 1 + changes.get((basis, layer), 0.0) + jitter * rng.normal()
                        own_rank *= 1 + rank.get(layer, 0.0) + jitter * rng.normal()
                    rows.append((model, seed, layer, basis, cos, own_rank))
    return pd.DataFrame(rows, columns=["model", "seed", "layer", "basis", "mean_cos", "nuclear_rank"])


def saes(l0: dict[int, float], fvu: dict[int, float], l1=(2.0,), seeds=(0,)):
    """sae_training_results with Adaptive's l0 and fvu of a layer changed by a share; two heads, controls beside."""
    rows = []
    for seed in seeds:
        for model in (CONTROL, ADAPTIVE):
            for layer in range(4):
                for head in range(2):
                    for coefficient in l1:
                        base_l0, base_fvu = 40.0 / coefficient + head, 0.05 * coefficient
                        if model == ADAPTIVE:
                            base_l0 *= 1 + l0.get(layer, 0.0)
                            base_fvu *= 1 + fvu.get(layer, 0.0)
                        rows.append((model, seed, layer, head, coefficient, base_l0, base_fvu, "trained"))
                        rows.append((model, seed, layer, head, coefficient, 99.0, 9.0, "random"))
    return pd.DataFrame(rows, columns=["model", "seed", "layer", "head", "l1", "l0", "fvu", "dictionary"])


def ablation(control: list[float], adaptive: list[float], error: float, seeds=(0,), scale=(1.0,)):
    """ablation_results: impacts of layer 0's heads, ± 1.96 errors."""
    rows = []
    for seed, factor in zip(seeds, scale, strict=True):
        for model, impacts in ((CONTROL, control), (ADAPTIVE, [factor * i for i in adaptive])):
            for head, impact in enumerate(impacts):
                interval = (impact - 1.96 * error, impact + 1.96 * error)
                rows.append((model, seed, 0, head, "zero", impact, *interval))
                rows.append((model, seed, 0, head, "mean", 1000.0, 999.0, 1001.0))
    return pd.DataFrame(rows, columns=["model", "seed", "layer", "head", "kind", "impact_pct", "ci_low", "ci_high"])


def by_title(rows: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    return {row["finding"]: row for row in rows}


@pytest.fixture
def tables():
    return {
        "topology_stats": topology({("z", 2): -0.9, ("residual", 2): -0.2}, {1: -0.1, 3: -0.5}),
        "sae_training_results": saes({0: -0.2, 3: 0.3}, {0: 0.2, 3: -0.3}),
        "ablation_results": ablation([1.84, 0.4], [0.9, 0.5], 0.02),
    }


# --- layers and verdicts


def test_layers_correspond_by_the_pressure_on_them() -> None:
    assert matching_layer(9, 12) == 9
    assert matching_layer(6, 12) == 6
    assert matching_layer(9, 4) == 2  # 10/12 = .833: .75 is nearer than 1
    assert matching_layer(6, 4) == 1  # 7/12 = .583: .5 is nearer than .75
    assert matching_layer(9, 1) == 0
    assert matching_layer(2, 2) == 0  # 3/12 = .25 is nearer to .5
    assert matching_layer(8, 2) == 0  # 9/12 = .75 is as near to .5 as to 1: the earlier


@pytest.mark.parametrize(
    ("changes", "published", "verdict"),
    [
        ((), -0.6, "not measured"),
        ((math.nan,), -0.6, "not measured"),
        ((-0.95,), -0.6, "same direction"),  # one seed never reproduces
        ((-0.151,), -0.6, "same direction"),
        ((-0.149,), -0.6, "not seen"),
        ((0.0,), -0.6, "not seen"),
        ((0.151,), -0.6, "reversed"),
        ((0.149,), -0.6, "not seen"),
        ((-0.5, -0.4), -0.6, "same direction"),
        ((-0.5, 0.1), -0.6, "not seen"),  # the seeds disagree
        ((-0.5, -0.5, -0.5), -0.6, "reproduced"),
        ((-0.61, -0.5, -0.55), -0.6, "reproduced"),
        ((-0.2, -0.21, -0.19), -0.6, "same direction"),  # a third of the published effect
        ((-0.6, 0.5, -0.1), -0.6, "not seen"),  # the interval holds 0
        ((0.2, 0.21, 0.19), -0.6, "reversed"),
        ((0.09, 0.1, 0.08), 0.09, "reproduced"),
    ],
)
def test_verdicts(changes, published, verdict) -> None:
    assert judge(Effect(changes), published) == verdict


def test_an_interval_of_the_measure_itself_decides_where_seeds_are_few() -> None:
    assert judge(Effect((-0.5,), (-0.9, 0.1)), 1.54) == "not seen"
    assert judge(Effect((-0.5,), (-0.9, -0.1)), 1.54) == "reversed"
    assert judge(Effect((1.5,), (0.5, 2.5)), 1.54) == "same direction"
    # with three seeds only the interval over seeds counts
    assert judge(Effect((1.5, 1.5, 1.6), (-9, 9)), 1.54) == "reproduced"


def test_the_interval_over_seeds_is_students() -> None:
    changes = (-0.5, -0.3, -0.6, -0.45)
    low, high = Effect(changes).bounds()
    half = stats.t.ppf(0.975, 3) * stats.sem(changes)
    assert (low, high) == pytest.approx((np.mean(changes) - half, np.mean(changes) + half))
    assert Effect((-0.5, -0.3)).bounds() is None


def test_every_verdict_is_one_that_the_page_draws() -> None:
    assert set(VERDICTS) <= set(SHOWN_VERDICTS)


# --- what is measured


def test_the_rows_say_what_the_tables_hold(tables) -> None:
    rows = by_title(find(tables, CONTROL, ADAPTIVE, NAMES))
    assert list(rows) == [
        "Heads of a deep layer correlate less",
        "Rank expands mid-network",
        "Early layers need fewer active features",
        "Deep layers need more active features",
        "One head becomes load-bearing",
    ]
    assert all(set(row) == {"finding", "published", "measured", "verdict", "why"} for row in rows.values())
    first = rows["Heads of a deep layer correlate less"]
    assert first["published"] == "−60.3 % at layer 9 of 12"
    assert first["measured"] == (
        "mean |cos| on z −90.0 % (1 seed: no interval) at layer 2 of 4; on the residual contributions −20.0 %; "
        "on the attention maps +0.0 %"
    )
    assert first["verdict"] == "same direction"
    assert "only 22 % of the fall is left; most is one of basis" in first["why"]
    rank = rows["Rank expands mid-network"]
    assert rank["measured"].startswith(
        "nuclear rank of z −10.0 % (1 seed: no interval) at layer 1 of 4; −50.0 % at the"
    )
    assert rank["verdict"] == "reversed"
    assert "takes directions away" in rank["why"]


def test_l0_is_read_beside_fvu(tables) -> None:
    rows = by_title(find(tables, CONTROL, ADAPTIVE, NAMES))
    early, deep = rows["Early layers need fewer active features"], rows["Deep layers need more active features"]
    assert early["measured"] == "l0 −20.0 % (1 seed: no interval) at layer 0 of 4, l1 2; fvu +20.0 %"
    assert early["verdict"] == "same direction"
    assert early["why"].startswith("Fewer features are active and more variance is left over")
    assert deep["measured"].startswith("l0 +30.0 %")
    assert deep["why"].startswith("More features are active and less variance is left over")
    both_better = tables | {"sae_training_results": saes({0: -0.2}, {0: -0.2})}
    why = by_title(find(both_better, CONTROL, ADAPTIVE))["Early layers need fewer active features"]["why"]
    assert why.startswith("Not a trade of sparsity for error: fewer features leave less over")


def test_a_sweep_adds_the_comparison_at_matched_l0(tables) -> None:
    # Adaptive's curve is Control's with every fvu a quarter lower: so it is at any l0
    swept = tables | {"sae_training_results": saes({}, dict.fromkeys(range(4), -0.25), l1=(1.0, 2.0, 4.0))}
    early = by_title(find(swept, CONTROL, ADAPTIVE))["Early layers need fewer active features"]
    assert early["measured"].endswith("l1 2; fvu −25.0 %")
    assert early["why"].endswith("At matched l0, along the sweep of l1, fvu is −25.0 %.")
    # curves that never meet in l0 are not compared
    apart = tables | {"sae_training_results": saes({0: -0.99}, {}, l1=(1.0, 2.0, 4.0))}
    assert "matched" not in by_title(find(apart, CONTROL, ADAPTIVE))["Early layers need fewer active features"]["why"]


def test_the_top_head_is_a_ratio_with_the_intervals_of_both(tables) -> None:
    row = by_title(find(tables, CONTROL, ADAPTIVE, NAMES))["One head becomes load-bearing"]
    low, high = (0.9 - 1.96 * 0.02) / (1.84 + 1.96 * 0.02), (0.9 + 1.96 * 0.02) / (1.84 - 1.96 * 0.02)
    assert row["measured"] == (
        "0.49 × (control L0H0 1.84 %; adaptive L0H0 0.90 %); "
        f"1 seed: 95 % interval over sequences {low:.2f} to {high:.2f}"
    )
    assert row["verdict"] == "reversed"
    assert "4.60 × in control and 1.80 × in adaptive" in row["why"]
    noisy = tables | {"ablation_results": ablation([1.84, 0.4], [0.9, 0.5], 0.8)}
    assert by_title(find(noisy, CONTROL, ADAPTIVE))["One head becomes load-bearing"]["verdict"] == "not seen"
    useless = tables | {"ablation_results": ablation([0.01, 0.0], [0.9, 0.5], 0.1)}
    assert by_title(find(useless, CONTROL, ADAPTIVE))["One head becomes load-bearing"]["verdict"] == "not seen"


@pytest.mark.parametrize("sign", [1, -1])
def test_three_seeds_can_reproduce_or_reverse_everything(sign) -> None:
    seeds = (0, 1, 2)
    ratios = (2.5, 2.6, 2.4) if sign > 0 else (0.5, 0.45, 0.55)
    tables = {
        "topology_stats": topology(
            {("z", 2): -0.6 * sign, ("residual", 2): -0.5 * sign}, {1: 0.09 * sign}, seeds, jitter=0.001
        ),
        "sae_training_results": pd.concat(
            [
                saes({0: (-0.12 + d) * sign, 3: (0.25 + d) * sign}, {}, seeds=(s,))
                for s, d in zip(seeds, (0, 0.01, 0.02), strict=True)
            ]
        ),
        "ablation_results": ablation([1.0, 0.4], [1.0, 0.2], 0.5, seeds, ratios),
    }
    rows = find(tables, CONTROL, ADAPTIVE, NAMES)
    assert {row["verdict"] for row in rows} == {"reproduced" if sign > 0 else "reversed"}
    assert all("3 seeds: 95 % interval over seeds" in row["measured"] for row in rows)
    why = by_title(rows)["Heads of a deep layer correlate less"]["why"]
    assert ("falls too, by 83 % of it" if sign > 0 else "do not fall even there") in why


def test_a_fall_that_is_all_basis_is_said_to_be() -> None:
    tables = {"topology_stats": topology({("z", 2): -0.9, ("residual", 2): 0.05}, {})}
    why = by_title(find(tables, CONTROL, ADAPTIVE))["Heads of a deep layer correlate less"]["why"]
    assert "became no less alike at all, so the fall is one of basis" in why


def test_missing_tables_models_and_columns_are_not_measured(tables) -> None:
    for name in tables:
        for lacking in ({}, {name: tables[name].iloc[:0]}, {name: tables[name][tables[name]["model"] == CONTROL]}):
            rest = {key: value for key, value in tables.items() if key != name} | lacking
            rows = find(rest, CONTROL, ADAPTIVE)
            assert len(rows) == 5
            assert {row["verdict"] for row in rows} <= set(VERDICTS)
            assert "not measured" in {row["verdict"] for row in rows}
    assert {row["verdict"] for row in find({}, CONTROL, ADAPTIVE)} == {"not measured"}
    no_column = tables | {"topology_stats": tables["topology_stats"].drop(columns="nuclear_rank")}
    assert by_title(find(no_column, CONTROL, ADAPTIVE))["Rank expands mid-network"]["verdict"] == "not measured"


def test_a_reference_of_zero_gives_no_ratio() -> None:
    pair = findings.Pair({}, CONTROL, ADAPTIVE, "control", "adaptive")
    df = pd.DataFrame({"model": [CONTROL, ADAPTIVE], "seed": [0, 0], "x": [0.0, 1.0]})
    assert not pair.change(df, "x").known
    assert math.isnan(pair.change(df, "x").mean)
