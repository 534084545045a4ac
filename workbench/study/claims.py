"""The claims ledger: every published claim held against a study's tables, a row each.

Which claims, in `workbench/data/published`; what they measure, in `measures`; effects and intervals, in `effects`;
the rules of the verdicts, in `verdicts`; the sentences, in `claim_text` and `remarks`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from reports.study_tables import CLAIMS
from workbench.data.claims import Claim, read_claims
from workbench.data.papers import published_size
from workbench.study import claim_text, remarks
from workbench.study.effects import Effect, shown, working
from workbench.study.evidence import Evidence, gather
from workbench.study.verdicts import judge

TRAILING = tuple(column.name for column in CLAIMS.trailing)
SIDES = {"falls": -1, "rises": 1, "agrees": 0}


def judge_claims(
    tables: Mapping[str, pd.DataFrame],
    roles: Mapping[str, str],
    claims: Sequence[Claim] | None = None,
    as_published: Collection[str] = frozenset(),
) -> pd.DataFrame:
    """claims.csv's rows: each claim with its published figure, what the tables hold, and the verdict.

    A claim whose roles, tables, columns or rows are missing is `not measured`, and `why` says what is missing; one
    whose measure was never published is `not defined`. One on an absolute figure of a model that the study does not
    have is `full size only` and has no effect. Columns beyond the contract's: claim_id, group, reference and treated
    (roles; of pairs, the firsts and the seconds; of several models, all as treated), direction, scale; effect and
    published_effect, in the unit of ci_low and ci_high (ratio: treated / reference − 1; difference: treated −
    reference); margin; reference_value and treated_value (means over seeds); interval (paired, welch, own or none);
    why; source_rows (which rows of source_table); published_in; unit (percent, factor, points or plain); figure, that
    is whether the interval holds or excludes the published effect; published_params (of the published model).

    Args:
        tables: a study's tables by name, all models and seeds merged.
        roles: role -> the model's name in the tables.
        claims: those that come with the package by default.
        as_published: models trained by the package's recipe of their name, with nothing of it changed.
    """
    chosen = read_claims() if claims is None else claims
    return claim_rows([gather(claim, tables, roles, as_published) for claim in chosen])


def claim_rows(found: Sequence[Evidence]) -> pd.DataFrame:
    """The rows of `judge_claims`, of evidence."""
    return pd.DataFrame([_row(one) for one in found], columns=pd.Index([*CLAIMS.leading, *TRAILING]))


def _row(evidence: Evidence) -> dict[str, Any]:
    claim, effect = evidence.claim, evidence.effect
    published = None if claim.effect is None else working(claim.effect, claim.scale)
    margin = None if claim.margin is None else working(claim.margin, claim.scale)
    verdict = judge(effect, published, SIDES[claim.direction], margin, evidence.chance)
    if claim.undefined:
        verdict = "not defined"
    if evidence.is_other_size and effect.is_known:
        verdict, effect = "full size only", Effect(math.nan, None, effect.n, "none")
    low, high = effect.bounds or (math.nan, math.nan)
    size = published_size(claim)
    pairs, several = claim.compared.pairs, (*claim.compared.among, *claim.compared.weights)
    return {
        "claim": claim.claim,
        "published": claim.published,
        "measured": claim_text.measured(evidence),
        "ci_low": shown(low, claim.scale),
        "ci_high": shown(high, claim.scale),
        "n": effect.n,
        "verdict": verdict,
        "measure": claim.measure.name,
        "source_table": claim.measure.table,
        "control": claim_text.control(evidence),
        "claim_id": claim.id,
        "group": claim.group,
        "reference": "; ".join(first for first, _ in pairs) or claim.compared.reference,
        "treated": "; ".join([second for _, second in pairs] or several) or claim.compared.treated,
        "direction": claim.direction,
        "scale": claim.scale,
        "effect": shown(effect.estimate, claim.scale),
        "published_effect": math.nan if claim.effect is None else claim.effect,
        "margin": math.nan if claim.margin is None else claim.margin,
        "reference_value": evidence.reference.mean,
        "treated_value": evidence.treated.mean,
        "interval": effect.basis,
        "why": remarks.why(evidence),
        "source_rows": source_rows(evidence),
        "published_in": claim.source,
        "unit": claim.measure.unit,
        "figure": "" if published is None or effect.bounds is None else ("excludes", "holds")[low <= published <= high],
        "published_params": math.nan if size is None else size,
    }


def source_rows(evidence: Evidence) -> str:
    """Which rows of the source table a claim was read from: "layer=3 basis=z"; empty where it was not measured."""
    if not evidence.effect.is_known:
        return ""
    measure, reading = evidence.claim.measure, evidence.treated
    parts = []
    if 0 < len(reading.layers) < reading.n_layers:
        parts.append("layer=" + ",".join(map(str, reading.layers)))
    for column, value in measure.where.items():
        found = reading.chosen.get(column, value)
        text = ",".join(found) if isinstance(found, tuple) else f"{found:g}" if isinstance(found, float) else found
        parts.append(f"{column}={text}")
    return " ".join(parts)
