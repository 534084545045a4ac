"""The interval of one seed: read from the twins, paired by block, judged as the measure's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probes.jackknife import jackknife_interval
from workbench.data.claims import read_claims
from workbench.study.claims import judge_claims
from workbench.study.effects import working

ROLES = {"control": "a", "adaptive": "b"}
CLAIMS = {claim.id: claim for claim in read_claims()}


def tables(seeds=(0,), shift=-0.5, n_blocks=16, noise=0.05):
    """topology_stats of two models of 4 layers and its twin: values of b are those of a times exp(shift), nearly."""
    rng = np.random.default_rng(0)
    rows, twin = [], []
    for seed in seeds:
        text = rng.normal(0, 0.3, (n_blocks, 4))  # what both models share
        for name, by in (("a", 0.0), ("b", shift)):
            logs = by + text + rng.normal(0, noise, (n_blocks, 4))
            for layer in range(4):
                place = {"model": name, "seed": seed, "layer": layer, "basis": "z"}
                means = [np.exp(np.delete(logs[:, layer], i).mean()) for i in range(n_blocks)]
                rows.append(place | {"nuclear_rank": np.exp(logs[:, layer].mean())})
                twin += [place | {"block": i, "nuclear_rank": mean} for i, mean in enumerate(means)]
    return {"topology_stats": pd.DataFrame(rows), "topology_stats_blocks": pd.DataFrame(twin)}


def judged(given):
    (row,) = judge_claims(given, ROLES, [CLAIMS["janus-rank"]]).to_dict("records")
    return row


def test_the_interval_is_the_jackknife_of_paired_effects() -> None:
    given = tables()
    row, twin = judged(given), given["topology_stats_blocks"]
    at = twin[twin["layer"] == int(row["source_rows"].split()[0].removeprefix("layer="))]
    a, b = (at[at["model"] == name]["nuclear_rank"].to_numpy() for name in "ab")
    wanted = jackknife_interval(working(row["effect"], "ratio"), np.log(b / a))
    np.testing.assert_allclose([working(row[c], "ratio") for c in ("ci_low", "ci_high")], wanted, rtol=1e-9)
    assert (row["interval"], row["n"], row["verdict"]) == ("own", 1, "reversed")
    assert "1 seed: 95 % interval over the text alone" in row["measured"]
    alone = jackknife_interval(0.0, np.log(b))
    assert wanted.high - wanted.low < 0.5 * (alone.high - alone.low), "what both share of the text cancels"


def test_one_seed_never_reproduces_and_three_need_no_blocks() -> None:
    assert judged(tables(shift=0.5))["verdict"] == "same direction"
    row = judged(tables(seeds=(0, 1), shift=0.5))
    assert (row["verdict"], row["n"], row["interval"]) == ("same direction", 2, "own")
    assert judged(tables(seeds=(0, 1, 2), shift=0.5))["interval"] == "paired"


def test_what_several_models_give_together_has_an_interval_too() -> None:
    given = tables()
    compared = CLAIMS["kotodama-losses"].compared.model_copy(update={"among": ("control", "adaptive")})
    claim = CLAIMS["janus-rank"].model_copy(update={"compared": compared, "scale": "difference", "beside": ()})
    (row,) = judge_claims(given, ROLES, [claim]).to_dict("records")
    twin = given["topology_stats_blocks"]
    at = twin[twin["layer"] == int(row["source_rows"].split()[0].removeprefix("layer="))]
    a, b = (at[at["model"] == name]["nuclear_rank"].to_numpy() for name in "ab")
    wanted = jackknife_interval(row["effect"], np.abs(a - b))
    np.testing.assert_allclose([row["ci_low"], row["ci_high"]], wanted, rtol=1e-9)
    assert row["interval"] == "own"


@pytest.mark.parametrize(("noise", "verdict"), [(0.01, "same direction"), (4.0, "not seen")])
def test_of_a_measure_that_jumps_blocks_are_drawn(noise, verdict) -> None:
    rng = np.random.default_rng(1)
    impacts = np.array([0.2, 0.1, 1.0, 0.9])  # the top head lies at depth .625, nearly at .875
    of_block = impacts + rng.normal(0, noise, (16, 4))
    of_block += impacts - of_block.mean(axis=0)
    place = {"model": "b", "seed": 0, "kind": "zero", "head": 0}
    rows = [place | {"layer": layer, "impact_pct": own} for layer, own in enumerate(impacts)]
    twin = [
        place | {"layer": layer, "block": i, "impact_pct": np.delete(of_block[:, layer], i).mean()}
        for i in range(16)
        for layer in range(4)
    ]
    given = {"ablation_results": pd.DataFrame(rows), "ablation_results_blocks": pd.DataFrame(twin)}
    (row,) = judge_claims(given, ROLES, [CLAIMS["janus-top-head-depth"]]).to_dict("records")
    assert (row["effect"], row["interval"], row["verdict"]) == (pytest.approx(0.125), "own", verdict)
    if verdict == "not seen":
        shares = of_block[rng.integers(16, size=(20_000, 16))].mean(axis=1).argmax(axis=1)
        low, high = np.quantile((shares + 0.5) / 4 - 0.5, [0.025, 0.975])
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda twin: None,
            "The study has no topology_stats_blocks.csv, which is not written of fewer than 8 sequences",
        ),
        (lambda twin: twin[twin["block"] < 7], "Without one of the blocks of text"),
        (lambda twin: twin[(twin["model"] == "a") | (twin["block"] < 9)], "Without one of the blocks of text"),
        (lambda twin: twin[twin["model"] == "a"], "Without one of the blocks of text"),
        (lambda twin: twin.assign(nuclear_rank=np.nan), "Without one of the blocks of text"),
    ],
)
def test_without_whole_twins_there_is_no_interval(change, why) -> None:
    given = tables()
    twin = change(given.pop("topology_stats_blocks"))
    row = judged(given | ({} if twin is None else {"topology_stats_blocks": twin}))
    assert (row["verdict"], row["interval"]) == ("not enough seeds", "none")
    assert why in row["why"]


def test_weights_have_no_interval_over_text() -> None:
    claim = next(own for own in CLAIMS.values() if own.measure.table == "weight_spectra" and own.compared.reference)
    matrix = claim.measure.where["matrix"]
    names = [matrix] if isinstance(matrix, str) else list(matrix)
    rows = [(m, 0, layer, w, 2.0 + layer) for m in "ab" for layer in range(4) for w in names]
    table = pd.DataFrame(rows, columns=["model", "seed", "layer", "matrix", "nuclear_rank"])
    roles = {claim.compared.reference: "a", claim.compared.treated: "b"}
    (row,) = judge_claims({"weight_spectra": table}, roles, [claim]).to_dict("records")
    assert row["verdict"] == "not enough seeds"
    assert "weight_spectra.csv is of weights alone, which no other text would change" in row["why"]
