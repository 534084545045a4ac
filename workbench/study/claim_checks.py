"""Whether the claims of a user's files name tables, columns and roles that there are, before anything is trained."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache

from reports.study_tables import TRAIN_LOG
from workbench.analyses import known_tables
from workbench.data.claims import Claim, collect_claims, read_claims
from workbench.data.remarks import Change, Number
from workbench.runs import shorten
from workbench.study.recipe import StudyRecipe, load_study, study_names


def collect_checked(recipe: StudyRecipe) -> tuple[Claim, ...]:
    """The claims that a study is judged on: the package's, and those of its own files.

    A role that this study lacks and another one of the package has is no fault: the claim is then not measured.

    Raises:
        ValueError: as `collect_claims`, and naming file and claim, for a table or a column that no analysis declares,
            and for a role that neither the study nor any of the package has.
    """
    claims = collect_claims(recipe.claims)
    for file in recipe.claims:
        for claim in read_claims(file):
            check_claim(claim, f"claims: {file}: [{claim.id}]", recipe.roles)
    return claims


def check_claim(claim: Claim, where: str, roles: Collection[str] = ()) -> None:
    """Raise ValueError for the first table, column or role of a claim that is not there.

    roles: those that are there beside the package's.
    """
    known = dict.fromkeys([*roles, *roles_of_package()])
    against = [role for other in claim.against for role in (other.treated, other.reference) if role]
    for role in (*claim.compared.roles, *against):
        if role not in known:
            raise ValueError(f"{where} role: got {shorten(repr(role))}; {_nearest(role, known)}")
    tables = known_tables()
    for field, table, columns in () if claim.undefined else _reads(claim):
        if table not in tables:
            raise ValueError(f"{where} {field}.table: got {shorten(repr(table))}; {_nearest(table, tables)}")
        contract = tables[table]
        present = (*contract.leading, *(column.name for column in contract.trailing))
        for column in columns:
            # columns of layers, monitors and interventions, which the log's contract does not name
            is_logged = table == TRAIN_LOG.name and "." in column
            if column not in present and not is_logged:
                said = _nearest(column, present)
                raise ValueError(f"{where} {field}: got the column {shorten(repr(column))} of {table}; {said}")


@lru_cache(maxsize=1)
def roles_of_package() -> tuple[str, ...]:
    """Every role that a study of the package has."""
    return tuple(dict.fromkeys(role for name in study_names() for role in load_study(name).roles))


def _reads(claim: Claim) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield field, table and columns of everything that a claim reads."""
    own = claim.measure
    yield "measure", own.table, (own.column, *own.where, *own.per)
    for i, other in enumerate(claim.beside):
        yield f"beside.{i}", own.table, _columns(other)
    for i, remark in enumerate(claim.remarks):
        for name, number in remark.numbers.items():
            if not number.ratio:
                yield f"remarks.{i}.numbers.{name}", number.table or own.table, _columns(number)


def _columns(change: Change | Number) -> tuple[str, ...]:
    return (*filter(None, [change.column]), *change.where)


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
    return f"expected one of {', '.join(near)}"
