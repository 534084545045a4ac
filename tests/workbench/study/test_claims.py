"""The ledger: each claim on tables whose answer is known in closed form, with decoys in the rows not to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports.lineage import middle_layer
from reports.tables import COLUMNS, read_table, write_table
from workbench.analyses.sae_train.settings import shown_l1
from workbench.data.claims import Claim, read_claims
from workbench.models.checks import matching_layer
from workbench.study.claim_checks import check_claim
from workbench.study.claims import TRAILING, judge_claims
from workbench.study.measures import choose_layers
from workbench.study.verdicts import VERDICTS
from workbench.training import recipe_names

CLAIMS = {claim.id: claim for claim in read_claims()}
ROLES = (
    "control", "adaptive", "pattern-vsm", "uniform-vsm", "p1-adamw", "p3-muon", "nca-002", "p3-attnres", "nca-attnres",
    "lang-baseline", "lang-ddv1", "ddv1-reset", "nca-shuffled", "pattern-uniform", "recurrent",
)  # fmt: skip
MODELS = {role: f"{role}-tiny" for role in ROLES}
JITTER = (-0.02, 0.0, 0.02)  # of the seeds, on the claim's working scale: their mean is 0
LOSSES = ("janus-loss", "janus-maps-loss", "kotodama-muon-loss")


@dataclass(frozen=True)
class Rows:
    """Where a claim must read in models of six layers: said here again, and not by the code under test."""

    layers: tuple[int, ...]
    keys: tuple[dict[str, Any], ...] = ({},)
    decoys: tuple[dict[str, Any], ...] = ()
    is_spread: bool = False
    """the measure is a standard deviation over the rows"""


# "9 of 12" is layer 4 of six, "6 of 12" and "14 of 28" are layer 2, "3 of 12" is layer 1
TRAINED, ATTENTION = {"dictionary": "trained"}, ("W_Q", "W_K", "W_V", "W_O")
SAES = (
    {**TRAINED, "l1": 1.0},
    {**TRAINED, "l1": 4.0},
    {"dictionary": "random", "l1": 2.0},
    TRAINED | {"head": -1, "l1": 2.0},
)
READ = {
    **{
        f"janus-correlation-{published}": Rows((own,), ({"basis": "z"},), ({"basis": "residual"}, {"basis": "pattern"}))
        for published, own in ((3, 1), (6, 2), (9, 4))
    },
    "janus-rank": Rows((2,), ({"basis": "z"},), ({"basis": "residual"},)),
    "janus-rank-utilization": Rows((2,), ({"basis": "z"},), ({"basis": "residual"},)),
    "janus-l0-3": Rows((1,), ({**TRAINED, "l1": 2.0},), SAES),
    "janus-l0-9": Rows((4,), ({**TRAINED, "l1": 2.0},), SAES),
    **dict.fromkeys(LOSSES, Rows((), ({"step": 9},), ({"step": 3},))),
    "janus-redundancy": Rows(tuple(range(6)), ({"basis": "pattern"},), ({"basis": "z"}, {"basis": "residual"})),
    "kotodama-muon-spectra": Rows(tuple(range(6)), tuple({"matrix": m} for m in ATTENTION), ({"matrix": "W_in"},)),
    "kotodama-nca-entropy": Rows((0,), is_spread=True),
    "kotodama-nca-output-rank": Rows((0,), ({"matrix": "W_O"},), ({"matrix": "W_Q"},)),
    "kotodama-bos-mass": Rows((2,)),
    "kotodama-attnres-collapse": Rows((2,)),
    "kotodama-years": Rows((2,), ({"set": "years_1990"},), ({"set": "years_1800"}, {"set": "digits"})),
    "kotodama-two-nn": Rows((5,)),
    "kotodama-trajectories": Rows(
        (), ({"measure": "trajectory_consistency", "lag": 1},), ({"measure": "lag_decay", "lag": 2},)
    ),
}  # fmt: skip


def plant(claim_id: str, model: str, seed: int, value: float) -> list[dict[str, Any]]:
    """Rows of one model and seed on which the claim's measure is exactly value; others hold nonsense that differs from
    model to model."""
    rows, read = [], READ[claim_id]
    column = CLAIMS[claim_id].measure.column
    nonsense = 3.0 + 7 * len(model) + 13 * seed
    for layer in range(-1, 6) if read.layers else (None,):
        place = {} if layer is None else {"layer": layer}
        for keys in read.keys:
            for head in (0, 1):  # heads, or sets
                is_read = layer is None or layer in read.layers
                shared = 5 + value * (1, -1)[head] if read.is_spread else value
                number = shared if is_read else nonsense * (head + 2)
                rows.append({"model": model, "seed": seed, "head": head} | place | keys | {column: number})
        for keys in read.decoys:
            rows.append({"model": model, "seed": seed, "head": 0} | place | keys | {column: nonsense})
    return rows


def spread_of(claim_id: str) -> float:
    """How far the seeds lie apart, well within a margin of likeness."""
    return 1e-3 if claim_id in LOSSES else JITTER[2]


def planted(claim_id: str, effect: float, seeds=(0, 1, 2), base: float = 0.4, jitter=None) -> dict[str, pd.DataFrame]:
    """Tables on which the claim's effect, averaged over seeds, is exactly `effect`, in the claim's own unit."""
    claim, rows = CLAIMS[claim_id], []
    jitter = jitter or (-spread_of(claim_id), 0.0, spread_of(claim_id))
    for index, seed in enumerate(seeds):
        noise = jitter[index % len(jitter)]
        low = base * (1 + 0.1 * seed)  # seeds differ more than models do: pairing takes that out
        if not claim.compared.reference:
            low = claim.compared.null
        treated = low * (1 + effect) * math.exp(noise) if claim.scale == "ratio" else low + effect + noise
        if claim.compared.reference:
            rows += plant(claim_id, MODELS[claim.compared.reference], seed, low)
        rows += plant(claim_id, MODELS[claim.compared.treated], seed, treated)
    return {claim.measure.table: pd.DataFrame(rows)}


def row_of(claim_id: str, tables: dict[str, pd.DataFrame], roles=MODELS) -> dict[str, Any]:
    df = judge_claims(tables, roles, [CLAIMS[claim_id]])
    assert len(df) == 1
    return df.iloc[0].to_dict()


# --- every claim, by its rows


@pytest.mark.parametrize("claim_id", READ)
def test_a_published_effect_is_reproduced(claim_id) -> None:
    claim = CLAIMS[claim_id]
    row = row_of(claim_id, planted(claim_id, claim.effect))
    assert row["verdict"] == "reproduced"
    assert row["effect"] == pytest.approx(claim.effect, abs=1e-9)
    assert (row["n"], row["interval"]) == (3, "paired")
    assert row["ci_low"] < row["effect"] < row["ci_high"]
    half = 4.302652729749464 * spread_of(claim_id) / math.sqrt(3)  # t(.975, 2), by the seeds' standard deviation
    centre = math.log1p(claim.effect) if claim.scale == "ratio" else claim.effect
    limits = [math.expm1(centre + s * half) if claim.scale == "ratio" else centre + s * half for s in (-1, 1)]
    assert [row["ci_low"], row["ci_high"]] == pytest.approx(limits)


@pytest.mark.parametrize("claim_id", [claim_id for claim_id in READ if CLAIMS[claim_id].direction != "agrees"])
def test_the_opposite_is_reversed_and_nothing_is_not_seen(claim_id) -> None:
    claim = CLAIMS[claim_id]
    opposite = 1 / (1 + claim.effect) - 1 if claim.scale == "ratio" else -claim.effect
    assert row_of(claim_id, planted(claim_id, opposite))["verdict"] == "reversed"
    assert row_of(claim_id, planted(claim_id, 0.0))["verdict"] == "not seen"
    third = (1 + claim.effect) ** (1 / 3) - 1 if claim.scale == "ratio" else claim.effect / 3
    tight = planted(claim_id, third, jitter=(-1e-4, 0.0, 1e-4))
    assert row_of(claim_id, tight)["verdict"] == "same direction"


@pytest.mark.parametrize("claim_id", READ)
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_fewer_than_three_seeds_are_not_enough(claim_id, seeds) -> None:
    row = row_of(claim_id, planted(claim_id, CLAIMS[claim_id].effect, seeds, jitter=(0.0,)))
    assert row["verdict"] == "not enough seeds"
    assert row["effect"] == pytest.approx(CLAIMS[claim_id].effect, abs=1e-9)
    assert row["n"] == len(seeds)
    assert math.isnan(row["ci_low"])
    assert f"({len(seeds)} seed" in row["measured"]
    assert "no interval" in row["measured"]


def test_likeness_needs_an_interval_within_the_margin() -> None:
    assert row_of("kotodama-two-nn", planted("kotodama-two-nn", 0.02))["verdict"] == "reproduced"
    assert row_of("kotodama-two-nn", planted("kotodama-two-nn", 0.08))["verdict"] == "not seen"
    assert row_of("kotodama-two-nn", planted("kotodama-two-nn", 0.3))["verdict"] == "reversed"
    assert row_of("kotodama-two-nn", planted("kotodama-two-nn", 0.0, jitter=(0.0,)))["verdict"] == "reproduced"
    for claim_id in LOSSES:  # 1 % of the loss, seeds within a tenth of that
        assert row_of(claim_id, planted(claim_id, -0.005))["verdict"] == "reproduced"
        assert row_of(claim_id, planted(claim_id, 0.009))["verdict"] == "not seen"
        assert row_of(claim_id, planted(claim_id, 0.02))["verdict"] == "reversed"


def test_a_loss_is_the_last_one_logged_and_has_its_perplexity_beside_it() -> None:
    log = pd.DataFrame(
        [
            (MODELS[role], seed, step, loss + seed)
            for role, last in (("control", 3.0), ("adaptive", 3.02))
            for seed in (0, 1, 2)
            for step, loss in ((40, last), (0, 9.0), (50, math.nan))  # as resumed runs may have them; 50 is not judged
        ],
        columns=["model", "seed", "step", "held_out_loss"],
    )
    row = row_of("janus-loss", {"train_log": log})
    assert (row["reference_value"], row["treated_value"]) == (pytest.approx(4.0), pytest.approx(4.02))
    assert row["why"] == "Perplexities were not measured."
    row = row_of("janus-loss", {"train_log": log.assign(held_out_perplexity=np.exp(log["held_out_loss"]))})
    control, adaptive = (np.mean(np.exp([last, last + 1, last + 2])) for last in (3.0, 3.02))
    assert row["why"].startswith(f"Perplexity {control:.4g} → {adaptive:.4g}; it compares")


def evaluations(model: str, bits: float, artifact: float, seeds=(0, 1, 2)) -> dict[str, pd.DataFrame]:
    """evaluation of one model; the forms of weights and windows that are not judged hold other figures."""
    forms = (("stored", "plain", 1.5), ("stored", "sliding", 0.98), ("int8", "plain", 1.2), ("int8", "sliding", 1.0))
    rows = [
        (model, seed, weights, windows, bits * factor * math.exp(JITTER[seed] / 20), size)
        for seed in seeds
        for weights, windows, factor in forms
        for size in (artifact if weights == "int8" else math.nan,)
    ]
    columns = ["model", "seed", "weights", "windows", "bits_per_byte", "artifact_bytes"]
    return {"evaluation": pd.DataFrame(rows, columns=columns)}


def test_an_absolute_figure_is_held_against_the_recipe_as_it_stands() -> None:
    tables, roles = evaluations("recurrent-golf", 1.2271 * 1.004, 10.9e6), {"recurrent": "recurrent-golf"}
    chosen = [CLAIMS["recurrent-bits"], CLAIMS["recurrent-artifact"]]
    bits, artifact = judge_claims(tables, roles, chosen, {"recurrent-golf"}).to_dict("records")
    assert (bits["verdict"], artifact["verdict"]) == ("reproduced", "reproduced")
    assert bits["effect"] == pytest.approx(0.004, abs=1e-6)
    assert bits["treated_value"] == pytest.approx(1.2271 * 1.004, rel=1e-6)
    said = "bits per byte, int8 weights, sliding windows: +0.4 %, 1.232 against 1.2271 (3 seeds"
    assert bits["measured"].startswith(said)
    assert bits["measured"].endswith("; weights as stored 1.2074; plain windows 1.4784")
    assert "+1.9 %, 10,900,000 against 10,700,000" in artifact["measured"]
    worse = judge_claims(evaluations("recurrent-golf", 1.4, 13e6), roles, chosen, {"recurrent-golf"})
    assert set(worse["verdict"]) == {"reversed"}


@pytest.mark.parametrize(
    ("model", "as_published"), [("recurrent-nano", {"recurrent-nano"}), ("recurrent-golf", set()), ("mine", set())]
)
def test_an_absolute_figure_of_another_model_is_full_size_only(model, as_published) -> None:
    roles = {"recurrent": model}
    chosen = [CLAIMS["recurrent-bits"], CLAIMS["recurrent-artifact"]]
    for row in judge_claims(evaluations(model, 2.3, 7e5), roles, chosen, as_published).to_dict("records"):
        assert (row["verdict"], row["n"], row["interval"]) == ("full size only", 3, "none")
        assert all(math.isnan(row[name]) for name in ("effect", "ci_low", "ci_high"))
        assert f"judged on the recipe recurrent-golf as it stands; {model} is another" in row["why"]
        assert "%" not in row["measured"]
    assert row["measured"] == "bytes of int8 weights packed by zlib: 700,000 (3 seeds)"
    assert row["source_rows"] == "weights=int8 windows=plain"
    (missing, _) = judge_claims({}, roles, chosen, as_published).to_dict("records")
    assert (missing["verdict"], missing["why"]) == ("not measured", "The study has no evaluation.csv.")


def test_the_recipe_of_an_absolute_figure_is_one_of_the_packages() -> None:
    for claim in CLAIMS.values():
        assert not claim.compared.recipe or claim.compared.recipe in recipe_names()


def test_utilization_has_n_eff_beside_it() -> None:
    claim_id = "janus-rank-utilization"
    tables = planted(claim_id, 0.05, base=0.551)
    assert row_of(claim_id, tables)["why"].endswith("N_eff was not measured.")
    rows = [
        (MODELS["adaptive"], seed, MODELS[other], seed, layer, k * 40e6, k * 43.6e6, k * 64e6, k * 69e6)
        for seed in (0, 1, 2)
        for other, layer, k in (("control", 2, 1), ("control", -1, 9), ("pattern-vsm", 2, 9))
    ]
    columns = ["model_a", "seed_a", "model_b", "seed_b", "layer_a", "n_parameters_no_embedding", "n_eff_no_embedding"]
    table = pd.DataFrame(rows, columns=[*columns, "n_parameters", "n_eff"])
    row = row_of(claim_id, tables | {"effective_size": table})
    assert "43.6M of 40M parameters without embeddings (69M of 64M with them)" in row["why"]
    assert "at layer 2 of 6: +5.0 points" in row["measured"]


@pytest.mark.parametrize("claim_id", READ)
def test_what_is_missing_is_said(claim_id) -> None:
    claim = CLAIMS[claim_id]
    tables = planted(claim_id, claim.effect)
    table = tables[claim.measure.table]
    treated = MODELS[claim.compared.treated]
    without_role = {role: model for role, model in MODELS.items() if role != claim.compared.treated}
    key = claim.measure.column
    for lacking, roles, said in (
        ({}, MODELS, f"The study has no {claim.measure.table}.csv."),
        ({claim.measure.table: table.iloc[:0]}, MODELS, "holds no rows of"),
        ({claim.measure.table: table[table["model"] != treated]}, MODELS, "holds no rows of"),
        ({claim.measure.table: table.drop(columns=key)}, MODELS, f"{claim.measure.table}.csv has no column {key}."),
        ({claim.measure.table: table.drop(columns="seed")}, MODELS, "holds no rows of"),
        ({claim.measure.table: table.assign(**{key: math.nan})}, MODELS, "The measure is undefined on the rows of"),
        (tables, without_role, f"The study has no model in the role of {claim.compared.treated}."),
        (tables, {}, "The study has no model in the role of"),
    ):
        row = row_of(claim_id, lacking, roles)
        assert (row["verdict"], row["n"], row["measured"], row["source_rows"]) == ("not measured", 0, "–", "")
        assert said in row["why"]
        assert math.isnan(row["effect"])


def test_source_rows_lead_to_the_rows_that_were_read() -> None:
    for claim_id in ("janus-correlation-9", "janus-l0-3", "kotodama-muon-spectra", "kotodama-trajectories"):
        claim = CLAIMS[claim_id]
        tables = planted(claim_id, claim.effect)
        row = row_of(claim_id, tables)
        df = tables[row["source_table"]]
        df = df[df["model"] == MODELS[claim.compared.treated]]
        df = df[df["head"] >= 0]
        for part in row["source_rows"].split():
            column, values = part.split("=")
            df = df[df[column].astype(str).isin([v for value in values.split(",") for v in (value, f"{value}.0")])]
        if "layer" in df and "layer=" not in row["source_rows"]:
            df = df[df["layer"] >= 0]
        value = np.exp(np.log(df[claim.measure.column]).mean()) if claim_id == "kotodama-muon-spectra" else None
        found = df.groupby("seed")[claim.measure.column].mean().mean() if value is None else row["treated_value"]
        assert found == pytest.approx(row["treated_value"], rel=1e-9)


def test_a_zero_reference_is_undefined() -> None:
    tables = planted("kotodama-nca-entropy", 13.0)
    df = tables["attention_stats"]
    equal = (df["model"] == MODELS["p3-muon"]) & (df["layer"] == 0)
    df.loc[equal, "entropy"] = 2.0
    row = row_of("kotodama-nca-entropy", tables)
    assert row["verdict"] == "not measured"
    assert row["why"] == "The measure is undefined on the rows of attention_stats.csv."
    assert (row["reference_value"], row["treated_value"]) == (0.0, pytest.approx(5.6 * 1.1, rel=0.01))


# --- claims with a measure of their own


def funnel(last: dict[str, float], seeds=(0, 1, 2)) -> dict[str, pd.DataFrame]:
    rows = [
        {"model": MODELS[role], "seed": seed, "layer": layer, "basis": basis, "mean_cos": cos}
        for role, factor in last.items()
        for seed in seeds
        for layer, share in ((0, 1.0), (1, 5.0), (2, factor * math.exp(JITTER[seed])))
        for basis, cos in (("pattern", 0.3 * share), ("z", 9.0))
    ]
    return {"topology_stats": pd.DataFrame(rows)}


def test_the_funnel_is_the_last_layer_over_the_first() -> None:
    tables = funnel({"pattern-vsm": 0.2, "control": 0.5, "pattern-uniform": 0.3, "uniform-vsm": 1.0})
    row = row_of("janus-funnel", tables)
    assert row["verdict"] == "reproduced"
    assert row["effect"] == pytest.approx(0.2 - 1)
    assert row["published_effect"] == pytest.approx(0.08 / 0.60 - 1, abs=5e-4)
    assert "first: 0.2 × (3 seeds: 95 % interval over seeds" in row["measured"]
    assert "no pressure 0.5 × (3 seeds" in row["control"]
    assert "pressure on maps, equal on all layers 0.3 × (3 seeds" in row["control"]
    assert "pressure on z, equal on all layers 1 × (3 seeds" in row["control"]
    ranks = tables["topology_stats"].assign(basis=lambda df: df["basis"].map({"pattern": "z", "z": "pattern"}))
    rank = row_of("janus-funnel-rank", {"topology_stats": ranks.rename(columns={"mean_cos": "nuclear_rank"})})
    assert (rank["effect"], rank["verdict"]) == (pytest.approx(0.2 - 1), "reproduced")
    assert rank["published_effect"] == pytest.approx(29 / 99 - 1, abs=5e-4)
    assert row_of("janus-funnel", funnel({"pattern-vsm": 0.4}))["verdict"] == "same direction"  # less than half of it
    assert row_of("janus-funnel", funnel({"pattern-vsm": 1.5}))["verdict"] == "reversed"
    single = funnel({"pattern-vsm": 0.2})
    single["topology_stats"] = single["topology_stats"].query("layer == 0")
    assert row_of("janus-funnel", single)["verdict"] == "not measured"


def spectra(attention: float, mlp: float, roles=ROLES) -> dict[str, pd.DataFrame]:
    """weight_spectra where the second model of every published pair lies `attention` and `mlp` from the first, in units
    of their mean; further layers and seeds scale both ranks, which changes nothing."""
    depth = {"p1-adamw": 0, "p3-muon": 1, "nca-002": 2, "lang-baseline": 0, "lang-ddv1": 1}
    rows = []
    for role in (role for role in roles if role in depth):
        for seed in (0, 1, 2):
            for layer in range(3):
                for matrix in ("W_Q", "W_O", "W_in", "W_out"):
                    gap = mlp if matrix in ("W_in", "W_out") else attention * math.exp(JITTER[seed])
                    step = (2 + gap) / (2 - gap)
                    rank = (20.0 + layer + 3 * seed) * step ** depth[role]
                    key = {"model": MODELS[role], "seed": seed, "layer": layer, "matrix": matrix}
                    rows.append(key | {"nuclear_rank": rank})
    return {"weight_spectra": pd.DataFrame(rows)}


def test_mlp_spectra_diverge_as_much_as_their_ranks_say() -> None:
    row = row_of("kotodama-mlp-spectra", spectra(0.12, 0.04))
    assert row["effect"] == pytest.approx(2.0)
    assert row["verdict"] == "reproduced"
    assert row["measured"].endswith(", 3 of 3 published pairs")
    # the null: seeds of one model differ by the same factor in every matrix
    assert "Between seeds of one and the same model attention diverges 1.0" in row["why"]
    assert row_of("kotodama-mlp-spectra", spectra(0.04, 0.12))["verdict"] == "reversed"
    fewer = {role: MODELS[role] for role in ("p1-adamw", "p3-muon")}
    one = row_of("kotodama-mlp-spectra", spectra(0.12, 0.04), fewer)
    assert one["measured"].endswith(", 1 of 3 published pairs")
    assert one["effect"] == pytest.approx(2.0)
    alone = row_of("kotodama-mlp-spectra", spectra(0.12, 0.04), {"p1-adamw": MODELS["p1-adamw"]})
    assert alone["verdict"] == "not measured"
    same = row_of("kotodama-mlp-spectra", spectra(0.12, 0.0))
    assert same["verdict"] == "not measured"  # nothing to divide by


def test_spectra_that_seeds_of_one_model_would_give_are_not_seen() -> None:
    tables = spectra(0.12, 0.04)  # three times as far
    df = tables["weight_spectra"]
    is_attention = df["matrix"].isin(["W_Q", "W_O"])
    # seeds of one model lie apart by `gap` of their mean in attention, by .02 in MLPs; pairs of models as before
    for gap, verdict in ((0.1, "not seen"), (0.03, "reproduced")):
        apart = [((2 + g) / (2 - g)) ** df["seed"] for g in (gap, 0.02)]
        ranks = (df["nuclear_rank"] / (20.0 + df["layer"] + 3 * df["seed"])) * (20.0 + df["layer"])
        altered = df.assign(nuclear_rank=ranks * np.where(is_attention, *apart))
        row = row_of("kotodama-mlp-spectra", {"weight_spectra": altered})
        assert row["effect"] == pytest.approx(2.0)
        assert row["verdict"] == verdict
        assert row["why"].startswith("Between seeds of one and the same model attention diverges")


def components(cosine: float, baseline: float = 0.07, seeds=(0, 1, 2)) -> dict[str, pd.DataFrame]:
    """pc_cosine of P3-Muon against two others, once named first and once second; the embedding and the second component
    hold nonsense."""
    rows = []
    for seed in seeds:
        for a, b in (("p3-muon", "p1-adamw"), ("p3-attnres", "p3-muon"), ("p3-muon", "nca-shuffled")):
            for layer in (-1, 0, 1):
                for pc in (1, 2):
                    is_read = layer >= 0 and pc == 1 and b != "nca-shuffled"
                    value = cosine * math.exp(JITTER[seed]) * (1.5, 0.5)[layer] if is_read else 0.9
                    key = {"model_a": MODELS[a], "model_b": MODELS[b], "seed": seed, "layer": layer, "pc": pc}
                    rows.append(key | {"cosine": value, "baseline": baseline, "cka": 0.6, "cka_null": 0.01})
    return {"pc_cosine": pd.DataFrame(rows)}


def test_components_are_held_against_their_isotropic_baseline() -> None:
    row = row_of("kotodama-pc1", components(0.084))
    assert row["effect"] == pytest.approx(0.2)
    assert row["verdict"] == "reproduced"
    assert row["measured"].endswith(", 2 of 6 published pairs")
    assert "a CKA of 0.60 (items shuffled: 0.01)" in row["why"]
    assert row_of("kotodama-pc1", components(0.135))["verdict"] == "not seen"  # .14 is the margin
    assert row_of("kotodama-pc1", components(0.5))["verdict"] == "reversed"
    assert row_of("kotodama-pc1", components(0.084, seeds=(0,)))["verdict"] == "not enough seeds"
    unseeded = {"pc_cosine": components(0.084, seeds=(1,))["pc_cosine"].drop(columns="seed")}
    assert row_of("kotodama-pc1", unseeded)["n"] == 1
    assert row_of("kotodama-pc1", {})["why"] == "The study has no pc_cosine.csv."


def test_trajectories_name_both_nulls() -> None:
    tables = planted("kotodama-trajectories", -0.134)
    tables["trajectories"]["null_independent"] = -0.5
    why = row_of("kotodama-trajectories", tables)["why"]
    assert why == ("States that share nothing from layer to layer would give −0.500; the measured lies above it.")
    below = planted("kotodama-trajectories", -0.7)
    below["trajectories"]["null_independent"] = -0.5
    assert "lies below it" in row_of("kotodama-trajectories", below)["why"]


def test_a_reference_without_a_sink_is_said_to_have_none() -> None:
    tables = planted("kotodama-bos-mass", -0.34)  # .44 on the mean of the reference's seeds
    for even, said in (
        (0.21, "give position 0 21.0 %. Windows"),
        (0.23, "23.0 %. The reference gives it less than twice"),
    ):
        tables["attention_stats"]["bos_uniform"] = even
        assert said in row_of("kotodama-bos-mass", tables)["why"]


def test_controls_are_measured_as_the_claim_is() -> None:
    claim_id = "kotodama-nca-entropy"
    tables = planted(claim_id, 13.0)
    shuffled = [
        row for seed in (0, 1, 2) for row in plant(claim_id, MODELS["nca-shuffled"], seed, 4 * 0.4 * (1 + 0.1 * seed))
    ]
    tables["attention_stats"] = pd.concat([tables["attention_stats"], pd.DataFrame(shuffled)])
    control = row_of(claim_id, tables)["control"]
    assert "in shuffled order 4 × (3 seeds: 95 % interval over seeds 4 × to 4 ×)." in control
    # a control that the study has, without rows, is undefined; one that it has not is not spoken of
    assert "in shuffled order undefined." in row_of(claim_id, planted(claim_id, 13.0))["control"]
    without = {role: model for role, model in MODELS.items() if role != "nca-shuffled"}
    assert "Here:" not in row_of(claim_id, planted(claim_id, 13.0), without)["control"]


def test_a_control_may_have_a_reference_of_its_own() -> None:
    claim_id = "kotodama-two-nn"
    tables = planted(claim_id, 0.0)
    other = [
        plant(claim_id, MODELS[role], seed, value)
        for role, value in (("p1-adamw", 4.0), ("p3-muon", 6.0))
        for seed in range(3)
    ]
    table = pd.concat([tables["intrinsic_dimension"], pd.DataFrame([row for rows in other for row in rows])])
    control = row_of(claim_id, {"intrinsic_dimension": table})["control"]
    assert "p3-muon against p1-adamw +50.0 % (3 seeds" in control
    assert "p3-attnres against p3-muon undefined" in control


def test_pairs_are_averaged_over_seeds_that_all_of_them_have() -> None:
    df = spectra(0.12, 0.04)["weight_spectra"]
    fewer = df[(df["model"] != MODELS["nca-002"]) | (df["seed"] != 2)]
    row = row_of("kotodama-mlp-spectra", {"weight_spectra": fewer})
    assert (row["n"], row["verdict"]) == (2, "not enough seeds")
    assert row["effect"] == pytest.approx(2 * math.exp(-0.01) + math.exp(-0.01) - 1)


# --- the whole ledger


def test_a_study_of_nothing_measures_nothing() -> None:
    df = judge_claims({}, {})
    assert list(df.columns) == [*COLUMNS["claims"], *TRAILING]
    assert list(df["claim_id"]) == list(CLAIMS)
    undefined = {claim.id for claim in CLAIMS.values() if claim.undefined}
    assert set(df.loc[df["verdict"] == "not defined", "claim_id"]) == undefined == {"janus-coherence"}
    assert set(df["verdict"]) == {"not measured", "not defined"}


def test_models_of_other_names_or_depths_are_read_by_role(tmp_path) -> None:
    df = judge_claims(planted("janus-rank", 0.09) | planted("kotodama-years", 0.39), MODELS)
    named = df.set_index("claim_id")
    assert named.loc["janus-rank", "verdict"] == named.loc["kotodama-years", "verdict"] == "reproduced"
    assert set(df["verdict"]) <= set(VERDICTS)
    write_table(df, tmp_path, "claims")
    again = read_table(tmp_path, "claims")
    pd.testing.assert_frame_equal(again, df.astype(again.dtypes.to_dict()), check_exact=True)


def test_layers_correspond_by_their_share_of_the_depth() -> None:
    assert [matching_layer(9, 12, n) for n in (12, 4, 1)] == [9, 2, 0]  # 10/12: .75 of four is nearer than 1
    assert [matching_layer(6, 12, n) for n in (12, 4, 6)] == [6, 1, 2]  # 7/12 lies between 3/6 and 4/6: the earlier
    assert matching_layer(2, 12, 2) == 0
    assert matching_layer(14, 28, 6) == 2
    assert choose_layers("first third", 12) == (0, 1, 2, 3)
    assert choose_layers("last third", 4) == (3,)
    assert choose_layers("first third", 2) == (0,)
    assert choose_layers("all", 3) == (0, 1, 2)
    assert choose_layers("last", 1) == (0,)
    assert choose_layers("all", 0) == ()


def test_the_middle_of_a_sweep_is_one_of_its_values() -> None:
    assert shown_l1([4.0, 2.0, 1.0, 2.0]) == 2.0
    assert shown_l1([0.2, 0.1]) == 0.1  # the lower of two, whatever .15 is rounded to
    assert math.isnan(shown_l1([]))


# --- the claims as data


def test_every_published_claim_is_there() -> None:
    groups = pd.Series([claim.group for claim in CLAIMS.values()]).value_counts().to_dict()
    assert groups == {"janus-small": 5, "janus-ii": 26, "kotodama": 46, "recurrent": 32}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))
def test_every_claim_names_tables_columns_and_roles_that_exist(claim) -> None:
    check_claim(claim, claim.id)
    assert claim.control.endswith(".")


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))
def test_every_claim_has_its_place_in_the_docs(claim) -> None:
    page = (Path(__file__).parents[3] / "docs" / "claims.md").read_text(encoding="utf-8")
    assert f"### {claim.claim}\n" in page
    assert claim.published.replace("|", "\\|") in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"effect": 0.5}, "expected it on that side of 0"),
        ({"margin": 0.1}, "expected one where things agree"),
        ({"effect": -1.0}, "expected more than −1"),
        ({"published_in": "x"}, "published_in"),
        ({"direction": "wobbles"}, "direction"),
        ({"compared": {}}, "expected a role, or pairs"),
        ({"compared": {"treated": "a", "pairs": [["a", "b"]]}}, "expected a role, or pairs"),
        ({"compared": {"reference": "a", "pairs": [["a", "b"]]}}, "pairs, among and weights are compared"),
        ({"compared": {"treated": "a"}}, "compared.null: got 0"),
        ({"compared": {"treated": "a", "reference": "b", "recipe": "c"}}, "recipe: got 'c'; expected none"),
        ({"id": "Not a name"}, "id"),
    ],
)
def test_a_claim_that_contradicts_itself_is_refused(change, said) -> None:
    data = CLAIMS["janus-correlation-9"].model_dump()
    with pytest.raises(ValueError, match=said):
        Claim.model_validate(data | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": "12 of 12"}, "below the number of layers"),
        ({"layers": "second"}, "expected all, first"),
        ({"unit": "points"}, "unit"),
    ],
)
def test_a_measure_that_cannot_be_read_is_refused(change, said) -> None:
    data = CLAIMS["janus-correlation-9"].model_dump()
    with pytest.raises(ValueError, match=said):
        Claim.model_validate(data | {"measure": data["measure"] | change})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("a = 1", "a is a int"),
        ("a = ", "is not TOML"),
        ('[a]\ngroup = "x"', r"\[a\].*claim"),
    ],
)
def test_a_malformed_file_of_claims_is_refused(text, said, tmp_path) -> None:
    (tmp_path / "claims.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_claims(tmp_path / "claims.toml")
    with pytest.raises(ValueError, match="no file"):
        read_claims(tmp_path / "none.toml")


@pytest.mark.parametrize("n_layers", range(1, 61))
def test_the_page_reads_the_middle_layer_that_the_ledger_judges(n_layers) -> None:
    """The page may not import the ledger's rule (tests/policy), so that both are held to one another here."""
    assert middle_layer(n_layers) == matching_layer(14, 28, n_layers)
