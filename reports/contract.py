"""What a table is: the key that tells its rows apart, its columns with their meaning and unit.

Whoever makes a table declares it (`declare`): analyses by their records, the study its own. `write_table` leaves the
same beside the CSVs, in `datapackage.json` (Frictionless Data Package), so that a directory says itself what is in it.
Loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Kind = Literal["number", "integer", "text"]

_TEXTS = "model model_a model_b other set topology basis matrix part term kind mechanism measure claim name comparison"
_TEXTS += " weights windows phase item table task site dictionary group log10_density_bin revision"
_TEXTS += " direction position method circuit member target probe form control letter text"
_PLACES = (
    "seed seed_a seed_b sae_seed other_seed layer layer_a layer_b head head_a head_b head_i head_j feature step lag"
)
_PLACES += " pc place rung n_removed n_points permutation_seed block sentence"
_TEXTS += " quantity where"  # of comparisons with another study
# by which rows are told apart and figures laid out: a row without a whole number there is at no place at all
PLACES = frozenset(_PLACES.split())
_COUNTS = "n n_ctx n_sequences stride"
# what a column holds that tells rows apart, by its name: the same in every table
KEYS: Mapping[str, Kind] = {
    **dict.fromkeys(_TEXTS.split(), "text"),
    **dict.fromkeys([*PLACES, *_COUNTS.split()], "integer"),
    "l1": "number",
}


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    meaning: str = ""
    """in words or as a formula"""
    unit: str = ""
    """nats, %, tokens …; "1" for a ratio"""
    kind: Kind = "number"
    """integer: a place such as a layer, whole in every row; text: whatever it looks like"""


@dataclass(frozen=True)
class Table:
    """The contract of `<name>.csv`: the key, then the columns, in this order; further columns may follow them."""

    name: str
    key: tuple[str, ...]
    """columns that tell rows apart; their kinds are those of `KEYS`, else what they look like"""
    columns: Sequence[Column] = ()
    meaning: str = ""
    """one row is …, in a sentence or two"""
    trailing: Sequence[Column] = ()
    """known columns that may be missing"""
    is_shown: bool = True
    """whether the page shows it where no panel of the page's own does"""
    blocks: Sequence[str] = ()
    """names of columns that are averages over a text; the table `twin` has them with each block of the text left out"""
    is_of_weights: bool = False
    """whether its numbers follow from weights alone, so that no text gives them an interval"""

    def __post_init__(self) -> None:
        for name in ("key", "columns", "trailing", "blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        known = {own.name for own in (*self.columns, *self.trailing)}
        if unknown := [name for name in self.blocks if name not in known]:
            raise ValueError(f"table {self.name}: got blocks of {unknown[0]!r}; expected columns of the table")

    @property
    def twin(self) -> Table | None:
        """The contract of `<name>_blocks.csv`: the same rows once for each block of the text, and of each the columns
        `blocks` with that block left out; None for a table that has none.

        >>> twin = Table("gap", ("model", "seed"), [Column("gap"), Column("n_tokens")], blocks=["gap"]).twin
        >>> twin.name, twin.leading
        ('gap_blocks', ('model', 'seed', 'block', 'gap'))
        """
        if not self.blocks:
            return None
        every = (*self.columns, *self.trailing)
        return Table(
            f"{self.name}_blocks",
            (*self.key, "block"),
            [own for own in every if own.name in self.blocks],
            f"`{self.name}.csv` with one block of the text left out, numbered from 0: what intervals of a single seed "
            "are made of. Missing for fewer than 8 sequences or documents.",
            trailing=[own for own in every if own.name not in self.blocks],
            is_shown=False,
        )

    @property
    def leading(self) -> tuple[str, ...]:
        """Names of the columns that the file has first, in order."""
        return (*self.key, *(column.name for column in self.columns))

    def kind(self, column: str) -> Kind | None:
        """What a column holds; None for one that the contract does not know, which holds what it looks like."""
        known: dict[str, Kind] = {own.name: own.kind for own in (*self.columns, *self.trailing)}
        return known.get(column) or KEYS.get(column)


def with_twins(tables: Iterable[Table]) -> tuple[Table, ...]:
    """The tables, behind each that has one its twin."""
    return tuple(own for table in tables for own in (table, table.twin) if own is not None)


def over_training(table: Table) -> Table:
    """The contract of a table that holds several checkpoints of each model: a key column `step` behind the seed, and
    `revision` where the checkpoints are a hub repository's. A table that is told apart by steps already is as it was.

    >>> over_training(Table("gap", key=("model", "seed", "layer"))).key
    ('model', 'seed', 'step', 'layer')
    """
    if "step" in table.key:
        return table
    i = max((table.key.index(name) + 1 for name in ("model", "seed") if name in table.key), default=0)
    revision = Column("revision", "of the hub's repository", kind="text")
    return replace(table, key=(*table.key[:i], "step", *table.key[i:]), trailing=(*table.trailing, revision))


_DECLARED: dict[str, Table] = {}


def declare(tables: Iterable[Table]) -> None:
    """Make the contracts of these tables known to whoever reads and writes tables in this process.

    Raises:
        ValueError: another contract of the same name.
    """
    for table in tables:
        if _DECLARED.setdefault(table.name, table) != table:
            raise ValueError(f"table {table.name}: got two contracts; expected one name for one table")


def declared() -> Mapping[str, Table]:
    """The contracts that are known, by name, in the order in which they were declared."""
    return dict(_DECLARED)


# --- beside the tables: datapackage.json

PACKAGE = "datapackage.json"
_TYPES: Mapping[Kind, str] = {"number": "number", "integer": "integer", "text": "string"}


def describe_table(table: Table, columns: Sequence[str]) -> dict[str, Any]:
    """A table as a resource of a data package; columns: those that its file has."""
    known = {own.name: own for own in (*table.columns, *table.trailing)}
    fields = []
    for name in columns:
        own = known.get(name, Column(name))
        kind = table.kind(name)
        said = {"type": _TYPES[kind] if kind else "any", "description": own.meaning, "unit": own.unit}
        fields.append({"name": name} | {key: value for key, value in said.items() if value})
    return {
        "name": table.name,
        "path": f"{table.name}.csv",
        "profile": "tabular-data-resource",
        "description": table.meaning,
        "leading": len(table.leading),
        "shown": table.is_shown,
        "schema": {"fields": fields, "primaryKey": list(table.key)},
    }


def read_resource(resource: Mapping[str, Any]) -> Table:
    """The contract that a resource of a data package describes.

    Raises:
        ValueError: a resource that is not one of ours.
    """
    kinds: dict[str, Kind] = {said: kind for kind, said in _TYPES.items()}
    try:
        schema = resource["schema"]
        key = tuple(map(str, schema["primaryKey"]))
        columns = [
            Column(str(own["name"]), str(own.get("description", "")), str(own.get("unit", "")), kinds[own["type"]])
            for own in schema["fields"]
            if own["name"] not in key and own.get("type") in kinds
        ]
        leading = int(resource["leading"]) - len(key)
        meaning = str(resource.get("description", ""))
        own = {"meaning": meaning, "trailing": tuple(columns[leading:]), "is_shown": bool(resource.get("shown", True))}
        return Table(str(resource["name"]), key, tuple(columns[:leading]), **own)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{PACKAGE}: a table is described wrongly ({error!r}); expected what a study wrote") from None
