"""A simulated ledger: models whose true effects and noise are known, judged a thousand times. How often intervals hold
the true effect, and how often each verdict is given, against the rates that Student's t promises."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import scipy

from workbench.data.claims import Claim, read_claims
from workbench.study.claims import judge_claims
from workbench.study.effects import effect_over_seeds, working

# what is said beside them takes most of the time, and is no part of the verdict
SILENT = {"beside": (), "against": (), "remarks": ()}
CLAIMS = {claim.id: claim.model_copy(update=SILENT) for claim in read_claims()}
N_DRAWS, N_SEEDS = 1000, 3
NOISE = 0.05  # standard deviation of a seed's effect, on the working scale
DRAWS = 4 * math.sqrt(0.25 / N_DRAWS)  # four standard errors of a share at most


def tables_of(claim: Claim, effects: np.ndarray, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Tables in which the models of a claim differ, seed by seed, by these effects on its working scale: layers and
    heads of one seed alike, seeds further apart than models are."""
    place = {"layer": [0, 1, 2, 3], "head": [0], "step": [1], **{k: [v] for k, v in claim.measure.where.items()}}
    grid = pd.MultiIndex.from_product(place.values(), names=list(place)).to_frame(index=False)
    rows = []
    for seed, effect in enumerate(effects):
        shared = float(np.exp(rng.normal()))
        treated = shared * math.exp(effect) if claim.scale == "ratio" else shared + effect
        values = {claim.compared.treated: treated, claim.compared.reference: shared}
        if not claim.compared.reference:
            null = claim.compared.null
            values = {claim.compared.treated: null * math.exp(effect) if claim.scale == "ratio" else null + effect}
        for role, value in values.items():
            rows.append(grid.assign(model=role, seed=seed, **{claim.measure.column: value}))
    return {claim.measure.table: pd.concat(rows, ignore_index=True)}


def judged(claim_id: str, true: float, seed: int, n_draws: int = N_DRAWS) -> pd.DataFrame:
    """The rows of the ledger over the draws; seeds' effects are normal around the true one, on the working scale."""
    claim, rng = CLAIMS[claim_id], np.random.default_rng(seed)
    roles = {role: role for role in claim.compared.roles}
    rows = [
        judge_claims(tables_of(claim, rng.normal(true, NOISE, N_SEEDS), rng), roles, [claim]) for _ in range(n_draws)
    ]
    return pd.concat(rows, ignore_index=True)


def excluded(true: float, side: int) -> float:
    """The probability that the interval over three seeds lies wholly on a side of 0: that t, noncentral by the true
    effect over its standard error, lies beyond the quantile."""
    bound, shift = scipy.stats.t.ppf(0.975, N_SEEDS - 1), side * true / (NOISE / math.sqrt(N_SEEDS))
    return float(scipy.stats.nct.sf(bound, N_SEEDS - 1, shift))


# a ratio of two models, a difference of two, a difference from a null, and a ratio to one
@pytest.mark.slow
@pytest.mark.parametrize(
    "claim_id", ["janus-correlation-9", "kotodama-bos-mass", "kotodama-trajectories", "recurrent-exit-depth"]
)
@pytest.mark.parametrize("true", [0.0, -0.1])
def test_the_ledger_is_right_at_the_stated_rate(claim_id: str, true: float) -> None:
    claim = CLAIMS[claim_id]
    rows = judged(claim_id, true, seed=len(claim_id))
    assert set(rows["n"]) == {N_SEEDS}
    bounds = [[working(value, claim.scale) for value in rows[name]] for name in ("ci_low", "ci_high")]
    low, high = np.array(bounds)
    covered = float(((low <= true) & (true <= high)).mean())
    assert 0.93 <= covered <= 0.97
    shares = rows["verdict"].value_counts(normalize=True)
    if claim.margin is not None:
        margin = working(claim.margin, claim.scale)
        assert shares.get("reproduced", 0.0) == ((low >= -margin) & (high <= margin)).mean()
        assert shares.get("reversed", 0.0) <= 0.025 + DRAWS if abs(true) <= margin else True
        return
    assert shares.get("not seen", 0.0) == pytest.approx(1 - excluded(true, 1) - excluded(true, -1), abs=DRAWS)
    assert shares.get("reversed", 0.0) == pytest.approx(excluded(true, 1), abs=DRAWS)
    held = shares.get("reproduced", 0.0) + shares.get("same direction", 0.0)
    assert held == pytest.approx(excluded(true, -1), abs=DRAWS)


@pytest.mark.parametrize("basis", ["paired", "welch"])
@pytest.mark.parametrize("scale", ["ratio", "difference"])
def test_intervals_hold_the_true_effect_in_19_of_20(basis, scale) -> None:
    rng, true, n = np.random.default_rng(3), 0.3, 10_000
    covered = 0
    for _ in range(n):
        noise = rng.normal(0, NOISE, (2, N_SEEDS))
        values = np.exp(noise + [[0.0], [true]]) if scale == "ratio" else 1 + noise + [[0.0], [true]]
        first = dict(enumerate(values[0]))
        second = dict(enumerate(values[1], start=0 if basis == "paired" else 10))
        effect = effect_over_seeds(first, second, scale)
        assert (effect.basis, effect.n) == (basis, N_SEEDS)
        assert effect.bounds is not None
        covered += effect.bounds[0] <= true <= effect.bounds[1]
    # Welch's degrees of freedom are estimated, of three values a little too few: it errs on the wide side
    assert 0.93 <= covered / n <= 0.97


def test_likeness_within_its_margin_is_found_as_often_as_its_interval_fits() -> None:
    claim, rng, n = CLAIMS["kotodama-two-nn"], np.random.default_rng(5), 400
    roles = {role: role for role in claim.compared.roles}
    outside = working(0.2, claim.scale)  # twice the margin
    verdicts = [
        judge_claims(tables_of(claim, rng.normal(outside, 0.01, N_SEEDS), rng), roles, [claim])["verdict"].iloc[0]
        for _ in range(n)
    ]
    assert "reproduced" not in verdicts
    assert verdicts.count("reversed") > 0.9 * n
