"""Kinds of measures that claims have, each on tables whose number is known; which findings are claims; where each can
be measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.data.claims import Claim, Compared, Measure, read_claims
from workbench.study.claim_checks import roles_of_package
from workbench.study.claims import judge_claims
from workbench.study.evidence import Evidence, gather
from workbench.study.measures import read_crossover, read_measure
from workbench.study.recipe import load_study, study_names

CLAIMS = {claim.id: claim for claim in read_claims()}
SEEDS = (0, 1, 2)
JITTER = (-0.01, 0.0, 0.01)
# finding of the published reports -> the claims that judge it
FINDINGS = {
    "J0.1": "janus-maps-loss", "J0.2": "janus-redundancy", "J0.3": "janus-funnel", "J0.4": "janus-funnel-rank",
    "J0.5": "janus-recall",
    "J2.1–3": "janus-correlation-3 janus-correlation-6 janus-correlation-9",
    "J2.4–6": "janus-rank-3 janus-rank janus-rank-9", "J2.7": "janus-rank-utilization",
    "J2.8–10": "janus-l0-3 janus-l0-6 janus-l0-9 janus-l0-crossover",
    "J2.11–13": "janus-mse-3 janus-mse-6 janus-mse-9 janus-mse-crossover", "J2.14": "janus-densest-head",
    "J2.15": "janus-dead janus-rare", "J2.16": "janus-top-head", "J2.17": "janus-top-head-depth janus-impact-gini",
    "J2.18": "janus-content janus-content-top-head", "J2.19": "janus-loss",
    "J1.1–2": "janus-coherence janus-perplexity",
    "K.1": "kotodama-muon-loss", "K.2": "kotodama-muon-spectra", "K.3": "kotodama-muon-mlp",
    "K.4": "kotodama-muon-query-output", "K.5": "kotodama-muon-entropy", "K.6": "kotodama-muon-sink",
    "K.7": "kotodama-nca-entropy", "K.8": "kotodama-nca-entropy-mean", "K.9": "kotodama-nca-output-rank",
    "K.10": "kotodama-nca-query-rank", "K.11": "kotodama-nca-sink", "K.12": "kotodama-bos-mass",
    "K.13": "kotodama-attnres-last", "K.14": "kotodama-routing-sink", "K.15": "kotodama-attnres-collapse",
    "K.16": "kotodama-dimension-attnres kotodama-dimension-interaction", "K.17": "kotodama-entropy-both",
    "K.18": "kotodama-digits-alone kotodama-digits-automata",
    "K.19": "kotodama-trajectories kotodama-trajectories-smooth",
    "K.20": "kotodama-rank-erodes kotodama-rank-climbs", "K.21": "kotodama-rank-budget",
    "K.22": "kotodama-order-number-words kotodama-order-sizes", "K.23": "kotodama-years",
    "K.24": "kotodama-states-automata kotodama-states-attnres", "K.25": "kotodama-circles",
    "K.26": "kotodama-antonyms",
    "K.27–33": "kotodama-voice-questions kotodama-voice-entities kotodama-voice-unique-entities kotodama-voice-nouns "
    "kotodama-voice-discourse kotodama-voice-dialogue kotodama-voice-pronouns kotodama-voice-clauses",
    "K.34": "kotodama-loops-enumeration kotodama-loops-increment", "K.35": "kotodama-losses",
    "K.36–38": "kotodama-pc1 kotodama-two-nn kotodama-mlp-spectra",
    "G.1": "recurrent-bits", "G.2": "recurrent-artifact", "G.3": "recurrent-exit-depth recurrent-plain",
}  # fmt: skip


def test_every_published_finding_is_accounted_for() -> None:
    named = [claim for names in FINDINGS.values() for claim in names.split()]
    assert len(named) == len(set(named))
    mechanisms = [name for name in CLAIMS if name.startswith(("recurrent-ladder-", "recurrent-off-"))]  # G.4 and on
    assert {*named, *mechanisms} == set(CLAIMS)


def test_every_mechanism_has_its_rows() -> None:
    from workbench.analyses.ladder.rungs import RUNGS
    from workbench.analyses.mechanisms.switches import OFF

    for table, names in (("ladder", RUNGS), ("mechanisms", OFF)):
        rows = [claim.measure.where["mechanism"] for claim in CLAIMS.values() if claim.measure.table == table]
        assert sorted(rows) == sorted(names)


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))
def test_every_claim_can_be_measured_in_a_study_of_the_package(claim: Claim) -> None:
    if claim.undefined:
        return
    found = []
    for name in study_names():
        study = load_study(name)
        tables = {"train_log"} | {table.name for analysis in study.opened_with() for table in analysis.tables}
        is_published = not claim.compared.recipe or study.roles.get(claim.compared.treated) == claim.compared.recipe
        tables_read = {claim.measure.table} | ({"ablation_results"} if claim.measure.kind == "at top head" else set())
        if {*claim.compared.roles} <= {*study.roles} and tables_read <= tables and is_published:
            found.append(name)
    assert found
    assert {role for other in claim.against for role in (other.treated, other.reference) if role} <= {
        *roles_of_package()
    }


# --- kinds, each by its number


def claim_of(measure: Mapping[str, Any], compared: Mapping[str, Any], **fields: Any) -> Claim:
    """A claim on that measure."""
    given = {"scale": "difference", "direction": "rises", "published": "more", "group": "mine", "claim": "It rises"}
    given |= {"control": "None.", "source": "here"} | fields
    unit = "plain" if given["scale"] == "difference" else "factor"
    measure = {"name": "number", "table": "t", "column": "x", "unit": unit} | measure
    return Claim.model_validate(given | {"id": "mine", "measure": measure, "compared": compared})


def evidence(claim: Claim, rows: list[dict[str, Any]], table: str = "t") -> Evidence:
    """What these rows say of it; a role's model is called as the role is."""
    roles = {role: role for role in claim.compared.roles}
    return gather(claim, {table: pd.DataFrame(rows)}, roles)


def by_layer(models: Mapping[str, list[float]], seeds=SEEDS, **keys: Any) -> list[dict[str, Any]]:
    """A row per model, seed and layer."""
    return [
        {"model": model, "seed": seed, "layer": layer, "x": value} | keys
        for model, values in models.items()
        for seed in seeds
        for layer, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([-1, -1, 2, 3], 1.0),
        ([1, 1, -2, -3], -1.0),
        ([1, 2, 3, 4], 0.0),
        ([-1, 2, -3, 4], 0.0),
        ([-1, 0, 0, 1], 1.0),
        ([0, 0, 0, 0], 0.0),
    ],
)
def test_a_crossover_is_one_change_of_sign(differences, expected) -> None:
    rows = by_layer({"a": [5.0] * 4, "b": [5.0 + d for d in differences]})
    found = evidence(claim_of({"kind": "crossover"}, {"reference": "a", "treated": "b"}), rows)
    assert found.treated.values == dict.fromkeys(SEEDS, expected)
    assert found.effect.estimate == expected


def test_a_crossover_matches_layers_of_unequal_depth_and_seeds_of_both() -> None:
    rows = by_layer({"a": [5.0, 6.0]}) + by_layer({"b": [4.0, 4.5, 7.0, 8.0]}, seeds=(1, 2, 3))
    measure = Measure(name="x", table="t", column="x", kind="crossover")
    found = read_crossover({"t": pd.DataFrame(rows)}, measure, "a", "b")
    assert found.values == {1: 1.0, 2: 1.0}
    assert read_crossover({}, measure, "a", "b").values == {}


def test_crossovers_of_three_seeds_are_reproduced_and_of_two_are_not() -> None:
    claim = CLAIMS["janus-l0-crossover"]
    rows = by_layer({"control": [5.0] * 4, "adaptive": [4.0, 4.0, 6.0, 7.0]}, head=0, dictionary="trained", l1=2.0)
    table = pd.DataFrame(rows).rename(columns={"x": "l0"})
    roles = {"control": "control", "adaptive": "adaptive"}
    (row,) = judge_claims({"sae_training_results": table}, roles, [claim]).to_dict("records")
    assert (row["verdict"], row["effect"], row["source_rows"]) == ("reproduced", 1.0, "dictionary=trained l1=2")
    odd = table.assign(l0=table["l0"].where(table["seed"] > 0, 5.0))
    (row,) = judge_claims({"sae_training_results": odd}, roles, [claim]).to_dict("records")
    assert row["verdict"] == "not seen"


@pytest.mark.parametrize(
    ("reduce", "expected"), [("sum", 10.0), ("maximum", 4.0), ("gini", (3 * 4 + 3 - 2 - 3 * 1) / (4 * 10))]
)
def test_rows_are_reduced(reduce, expected) -> None:
    found = evidence(claim_of({"reduce": reduce}, {"treated": "a"}), by_layer({"a": [1.0, 2.0, 3.0, 4.0]}))
    assert found.treated.mean == pytest.approx(expected)
    each = [abs(a - b) for a, b in itertools.product([1.0, 2.0, 3.0, 4.0], repeat=2)]
    if reduce == "gini":
        assert expected == pytest.approx(sum(each) / (2 * 16 * 2.5))
        undefined = evidence(claim_of({"reduce": reduce}, {"treated": "a"}), by_layer({"a": [0.0, 0.0]}))
        assert not undefined.effect.is_known


def test_a_number_may_be_a_ratio_of_rows() -> None:
    rows = by_layer({"a": [8.0, 2.0]}, m="q") + by_layer({"a": [4.0, 1.0]}, m="k") + by_layer({"b": [6.0]}, m="q")
    measure = {"where": {"m": "q"}, "per": {"m": "k"}, "reduce": "geometric mean"}
    found = evidence(claim_of(measure, {"treated": "a"}), rows)
    assert found.treated.values == dict.fromkeys(SEEDS, pytest.approx(2.0))
    assert not evidence(claim_of(measure, {"treated": "b"}), rows).effect.is_known


def test_the_depth_of_the_top_head() -> None:
    rows = [
        {"model": "a", "seed": seed, "layer": layer, "head": head, "x": float(10 * layer + head == top)}
        for seed, top in zip(SEEDS, (0, 20, 31), strict=True)
        for layer in range(4)
        for head in (0, 1)
    ]
    found = evidence(claim_of({"kind": "depth"}, {"treated": "a", "null": 0.5}), rows)
    assert found.treated.values == {0: 0.125, 1: 0.625, 2: 0.875}
    every = [(layer + 0.5) / 4 for layer in range(4)]
    assert np.mean(every) == 0.5, "of heads at random"


def log(columns: dict[str, list[float]], phases: list[str], seeds=SEEDS) -> pd.DataFrame:
    """A training log of one model, with columns of layers."""
    steps = {"step": range(len(phases)), "phase": phases}
    return pd.concat([pd.DataFrame({"model": "a", "seed": seed, **steps, **columns}) for seed in seeds])


def test_the_last_step_over_the_start_of_the_last_phase() -> None:
    measure = Measure(
        name="rank", kind="last over first", table="train_log", column="stable_rank.W_Q", layers="14 of 28"
    )
    columns = {f"stable_rank.W_Q.{layer}": [9.0, 4.0 + layer, 50.0, 12.0, math.nan] for layer in range(4)}
    tables = {"train_log": log(columns | {"stable_rank.W_K.0": [1.0] * 5}, ["nca", "nca", "text", "text", "text"])}
    assert read_measure(tables, measure, "a", ["a"]).values == dict.fromkeys(SEEDS, 12 / 5)  # layer 1 of 4
    alone = {"train_log": log(columns, ["text"] * 5)}
    found = read_measure(alone, measure, "a", ["a"])
    assert (found.values, found.layers, found.n_layers) == (dict.fromkeys(SEEDS, 12 / 9), (1,), 4)
    once = {"train_log": log({name: values[:1] for name, values in columns.items()}, ["text"])}
    assert math.isnan(read_measure(once, measure, "a", ["a"]).mean)
    assert read_measure({"train_log": log({}, ["text"])}, measure, "a", ["a"]).values == {}


def test_what_the_log_lacks_of_a_layered_column_is_said() -> None:
    claim = CLAIMS["kotodama-rank-erodes"]
    roles = {"lang-baseline": "a"}
    for columns, said in (
        ({}, "train_log.csv has no column stable_rank.W_Q."),
        ({"stable_rank.W_Q.0": [math.nan]}, "train_log.csv holds no rows of the models"),
    ):
        (row,) = judge_claims({"train_log": log(columns, ["text"])}, roles, [claim]).to_dict("records")
        assert said in row["why"]
    grows = log({"stable_rank.W_Q.0": [10.0, 6.0]}, ["text"] * 2)
    (row,) = judge_claims({"train_log": grows}, roles, [claim]).to_dict("records")
    assert (row["verdict"], row["effect"]) == ("reproduced", pytest.approx(-0.4))


def one_each(values: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {"model": model, "seed": seed, "x": value + JITTER[seed]} for model, value in values.items() for seed in SEEDS
    ]


@pytest.mark.parametrize(
    ("compared", "expected"),
    [
        ({"among": ["a", "b", "c"], "take": "range"}, 3.0),
        ({"among": ["a", "b", "c"], "take": "maximum", "null": 0.5}, 3.5),
        ({"weights": {"a": 1.0, "b": -1.0, "c": 0.5}}, 1.0 - 4.0 + 1.0),
    ],
)
def test_several_models_make_one_number(compared, expected) -> None:
    rows = one_each({"a": 1.0, "b": 4.0, "c": 2.0, "d": 99.0})
    found = evidence(claim_of({}, compared), rows)
    assert found.effect.estimate == pytest.approx(expected)
    assert (found.effect.n, found.effect.basis) == (3, "paired")
    fewer = [row for row in rows if row["model"] != "b" or row["seed"]]
    assert evidence(claim_of({}, compared), fewer).effect.n == 2
    assert not evidence(claim_of({}, compared), rows[:3]).effect.is_known
    lacking = gather(claim_of({}, compared), {"t": pd.DataFrame(rows)}, {"a": "a", "b": "b"})
    assert lacking.missing_roles == ("c",)


def test_the_two_by_two_is_the_factorials() -> None:
    from workbench.study.factorial import factorial

    names = ("p3-muon", "p3-attnres", "nca-002", "nca-attnres")
    roles = {name: name for name in names}
    cells = dict(zip(names, (1.63, 1.01, 2.24, 5.27), strict=True))
    table = pd.DataFrame(one_each(cells)).rename(columns={"x": "effective_dim"}).assign(layer=0, set="months")
    tables = {"concept_geometry": table}
    terms = factorial(tables, roles).set_index("term")["value"]
    for name, term in (("attnres", "main effect of attn_res"), ("interaction", "interaction")):
        claim = CLAIMS[f"kotodama-dimension-{name}"]
        (row,) = judge_claims(tables, roles, [claim]).to_dict("records")
        assert row["effect"] == pytest.approx(terms[term])
        assert row["effect"] == pytest.approx(claim.effect)
        assert (row["verdict"], row["treated"]) == ("reproduced", "; ".join(claim.compared.roles))


def test_rungs_of_a_ladder_are_of_the_model_that_it_builds() -> None:
    claim = CLAIMS["recurrent-ladder-carry"]
    rows = [
        {"model": f"recurrent-nano-{rung:02d}", "seed": seed, "rung": rung, "mechanism": name, "delta_bits": delta}
        for seed in SEEDS
        for rung, name, delta in ((7, "q gain", 0.3), (8, "carry", -0.02 + JITTER[seed] / 10))
    ]
    (row,) = judge_claims({"ladder": pd.DataFrame(rows)}, {"recurrent": "recurrent-nano"}, [claim]).to_dict("records")
    assert (row["verdict"], row["effect"]) == ("reproduced", pytest.approx(-0.02))


def test_what_has_no_published_measure_is_not_defined() -> None:
    claim = CLAIMS["janus-coherence"]
    for roles in ({}, {"control": "a", "adaptive": "b"}):
        (row,) = judge_claims({}, roles, [claim]).to_dict("records")
        assert (row["verdict"], row["why"], row["measured"]) == ("not defined", claim.undefined, "–")
    data = claim.model_dump()
    for key in ("table", "column"):
        given = {"table": "t", "column": "x"} | {key: ""}
        with pytest.raises(ValueError, match=f"measure.{key}: got none; expected one, or undefined"):
            Claim.model_validate(data | {"undefined": "", "measure": data["measure"] | given})


@pytest.mark.parametrize(
    ("measure", "compared", "said"),
    [
        ({"kind": "crossover"}, {"treated": "a"}, "a crossover is a difference of two models"),
        ({"kind": "depth", "unit": "factor"}, {"reference": "b", "treated": "a"}, "got 'ratio' of a depth"),
        ({}, {"among": ["a", "b"]}, "among: got"),
        ({}, {"among": ["a"], "take": "range"}, "expected two roles and a take"),
        ({}, {"treated": "a", "take": "range"}, "expected two roles and a take"),
        ({}, {"treated": "a", "weights": {"b": 1.0}}, "one of them alone"),
        ({}, {"reference": "a", "weights": {"b": 1.0}}, "are compared with the null; expected none"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(measure, compared, said) -> None:
    scale = "ratio" if measure.get("unit") == "factor" else "difference"
    with pytest.raises(ValueError, match=said):
        claim_of(measure, compared, scale=scale)


def test_models_beside_several_are_refused() -> None:
    with pytest.raises(ValueError, match="against: got models beside pairs, among or weights"):
        claim_of({}, {"weights": {"a": 1.0}}, against=[{"name": "other", "treated": "c"}])
    assert Compared(weights={"a": 1.0, "b": -1.0}).roles == ("a", "b")
