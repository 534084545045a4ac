"""How to read a claim's outcome, in sentences: what is missing, or the claim's remarks on what was found."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reports.table_cells import p_text
from workbench.analyses import known_tables
from workbench.analyses.ablate.load_bearing import N_PERMUTATIONS
from workbench.data.remarks import OPERATORS, UNITS, Case, Number, Remark, names_in
from workbench.study.claim_text import in_unit
from workbench.study.effects import effect_over_seeds, shown
from workbench.study.evidence import Evidence, compare
from workbench.study.measures import by_layer, change, choose_layers, matched_l0, read_measure, rows_of_pairs

Value = Any  # a number, those of several seeds in a list, or a role


def why(evidence: Evidence) -> str:
    """How to read the outcome, or what is missing."""
    claim, table = evidence.claim, evidence.claim.measure.table
    if claim.undefined:
        return claim.undefined
    if evidence.missing_roles:
        return f"The study has no model in the role of {', '.join(evidence.missing_roles)}."
    if not evidence.effect.is_known:
        if table not in evidence.tables:
            return f"The study has no {table}.csv."
        present = by_layer(evidence.tables, claim.measure)[table]
        missing = [name for name in (claim.measure.column, *claim.measure.where) if name not in present]
        if missing:
            return f"{table}.csv has no column {missing[0]}."
        if not evidence.treated.values or (claim.compared.reference and not evidence.reference.values):
            whom = "both models" if claim.compared.reference else "the models"
            return f"{table}.csv holds no rows of {whom} to compare."
        return f"The measure is undefined on the rows of {table}.csv."
    only = ""
    if evidence.is_other_size:
        only = (
            f"The published figure is of one full-size model and is judged on the recipe {claim.compared.recipe} as it "
            f"stands; {evidence.model(claim.compared.treated)} is another or was trained otherwise."
        )
    remarks = [say_remark(remark, evidence) for remark in claim.remarks]
    return " ".join(text for text in (only, *remarks, why_no_interval(evidence), claim.why) if text)


def why_no_interval(evidence: Evidence) -> str:
    """Why an effect has no interval beside too few seeds; nothing of one that has."""
    if evidence.effect.bounds is not None:
        return ""
    table, column = evidence.claim.measure.table, evidence.claim.measure.column
    contract = known_tables().get(table)
    if contract is not None and contract.is_of_weights:
        return f"{table}.csv is of weights alone, which no other text would change: only seeds give an interval."
    if contract is None or contract.twin is None or column not in contract.blocks:
        return f"{table}.csv has no values of {column} by blocks of text, so that only seeds give an interval."
    if contract.twin.name not in evidence.tables:
        return (
            f"The study has no {contract.twin.name}.csv, which is not written of fewer than 8 sequences or documents "
            "nor where its sums would take too much memory: no interval over text."
        )
    return f"Without one of the blocks of text in {contract.twin.name}.csv the effect is undefined: no interval."


def say_remark(remark: Remark, evidence: Evidence) -> str:
    """The remark on what was found; nothing where none of its cases holds, or a number that it quotes is unknown."""
    roles = evidence.claim.compared.roles if remark.join else ("",)
    said = [choose_case(remark.cases, read_numbers(remark, evidence, role)) for role in roles]
    return _fill(remark.say, read_numbers(remark, evidence) | {"case": remark.join.join(filter(None, said))})


def choose_case(cases: Sequence[Case], values: Mapping[str, Value]) -> str:
    """What the first case says whose conditions hold and whose numbers are known; nothing without one."""
    return next((text for case in cases if _holds(case, values) and (text := _fill(case.say, values))), "")


def _holds(case: Case, values: Mapping[str, Value]) -> bool:
    for condition in case.when:
        name, *compared = condition.split()
        if not _is_known(values[name]):
            return False
        if compared:
            sign, other = compared
            bound = values[other] if other in values else float(other)
            if not (_is_known(bound) and OPERATORS[sign](values[name], bound)):
                return False
    return True


class _Sentence(string.Formatter):
    """Fills a text with numbers: those of a list one by one, and in a unit where the format is one."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, list):
            return ", ".join(self.format_field(one, format_spec) for one in value)
        if format_spec == "p":
            return p_text(value, N_PERMUTATIONS)
        return in_unit(value, format_spec) if format_spec in UNITS else format(value, format_spec)


def _fill(text: str, values: Mapping[str, Value]) -> str:
    """The text with its numbers; nothing where one of them is unknown."""
    if all(_is_known(values[name]) for name in names_in(text)):
        return _Sentence().vformat(text, (), values)
    return ""


def _is_known(value: Value) -> bool:
    return bool(value) if isinstance(value, str | list) else math.isfinite(value)


# --- numbers


def read_numbers(remark: Remark, evidence: Evidence, role: str = "") -> dict[str, Value]:
    """Name -> the remark's number, nan or an empty list where unknown; those of "each" are of the model of `role`."""
    shown_effect = shown(evidence.effect.estimate, evidence.claim.scale)
    values: dict[str, Value] = {
        "role": role, "effect": shown_effect, "reference": evidence.reference.mean, "treated": evidence.treated.mean,
    }  # fmt: skip
    for name, number in remark.numbers.items():
        if number.ratio:
            first, second = (values[own] for own in number.ratio)
            values[name] = number.times * first / second if second else math.nan
        else:
            values[name] = read_number(number, evidence, role) if role or number.of != "each" else math.nan
    return values


def read_number(number: Number, evidence: Evidence, role: str = "") -> Value:
    """A number of a remark that is read from the tables; nan, or an empty list, where it was not measured."""
    claim, tables, compared = evidence.claim, evidence.tables, evidence.claim.compared
    measure = change(claim.measure, number)
    models = [evidence.roles[own] for own in compared.roles if own in evidence.roles]  # of pairs, those that are there
    if number.of == "effect":
        effect = compare(claim, measure, compared, tables, evidence.roles)[2]
        return number.times * shown(effect.estimate, claim.scale)
    if number.of == "effect at matched l0":
        layers = [evidence.reference.layers, evidence.treated.layers]
        reference, treated = matched_l0(tables, claim.measure, models, layers)
        return shown(effect_over_seeds(reference, treated, "ratio").estimate, "ratio")
    if number.of == "ratio between seeds":
        return math.nan if evidence.chance is None else math.exp(evidence.chance)
    if number.of == "pair":
        pooled = read_pair(number, evidence)
    else:
        own = role if number.of == "each" else getattr(compared, number.of)
        reading = read_measure(tables, measure, evidence.model(own), models)
        if not number.reduce:
            return number.times * reading.mean
        pooled = reading.pooled
    kept = [number.times * value for value in pooled if number.up_to is None or value <= number.up_to]
    if number.reduce == "list":
        return kept
    if number.reduce == "count":
        return len(kept) if pooled else math.nan
    return float((np.median if number.reduce == "median" else np.mean)(kept)) if kept else math.nan


def read_pair(number: Number, evidence: Evidence) -> list[float]:
    """The values of a column on both models of the claim, or on its pairs whichever model of one comes first."""
    roles, compared = evidence.roles, evidence.claim.compared
    measure = change(evidence.claim.measure, number)
    pairs = [own for first, second in compared.pairs for own in ((first, second), (second, first))]
    named = [(a, b) for a, b in pairs or [(compared.treated, compared.reference)] if a in roles and b in roles]
    rows = rows_of_pairs(evidence.tables, measure, [(roles[a], roles[b]) for a, b in named])
    if measure.column not in rows or rows.empty:
        return []
    n_layers = evidence.treated.n_layers or int(rows["layer"].max()) + 1
    return rows.loc[rows["layer"].isin(choose_layers(measure.layers, n_layers)), measure.column].dropna().tolist()
