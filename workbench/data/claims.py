"""The published claims that a study is held against, as data: what was measured, on whom, and how large it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, model_validator

from workbench.data.remarks import Case, Change, Layers, Number, Remark
from workbench.runs import read_toml, shorten
from workbench.runs.records import Frozen, describe_errors

PUBLISHED = Path(__file__).parent / "published"
# in the order of the ledger; the base of a claim stands above it, in its file or in one before
EMBEDDED_CLAIMS = tuple(
    PUBLISHED / f"{name}.toml" for name in ("remarks", "janus_small", "janus_ii", "kotodama", "recurrent")
)
REMARKS = "remarks"  # the table of a file that holds no claim, but the remarks that claims name
OF_PAIRS = ("divergence", "components")  # kinds of measure
Parsed = TypeVar("Parsed", bound=Frozen)


class Measure(Frozen):
    """Which number of a model and seed a claim is about: rows of one table, reduced."""

    name: str = Field(description="in words, as the ledger says it", min_length=1)
    kind: Literal[
        "rows", "ends", "last", "last over first", "top head", "at top head", "depth", "crossover", "divergence",
        "components",
    ] = Field(
        default="rows",
        description="rows: reduce a column over rows; ends: that of the last layer over that of the first; last: that "
        "of the last step; last over first: that of the last step over that at the start of the last phase (the last "
        "of the phase before, else the first of all); top head: the largest, with its interval over sequences; at top "
        "head: that of the head whose zero ablation costs most, by ablation_results; depth: (layer + ½) / layers of "
        "the head of the largest, .5 on the mean of heads at random; crossover: 1 where treated − reference changes "
        "its sign once over depth, from − to +, −1 from + to −, else 0; divergence: of attention over MLP spectra of "
        "pairs; components: |cos| of pairs over its baseline",
    )  # fmt: skip
    table: str = Field(default="", description="name of the table, as in the column contract")
    column: str = Field(
        default="", description="name of the column; of the training log's, without the layer: stable_rank.W_Q"
    )
    where: dict[str, str | float | tuple[str, ...]] = Field(
        default_factory=dict, description='column -> value, or values, that rows must have; l1 = "middle": of the sweep'
    )
    per: dict[str, str | float | tuple[str, ...]] = Field(
        default_factory=dict,
        description="column -> value, or values: the number is then its ratio to that of the rows with these in place "
        "of where's",
    )
    layers: Layers = Field(
        default="all",
        min_length=1,
        description='all, first, last, first third, last third, or "9 of 12": the layer at that share of the depth',
    )
    reduce: Literal["mean", "geometric mean", "standard deviation", "maximum", "sum", "gini"] = Field(
        default="mean",
        description="over a model's and seed's rows; gini: 0 where all are alike, (n − 1) / n where one of n has all",
    )
    unit: Literal["percent", "factor", "points", "plain"] = Field(
        default="percent",
        description="how an effect is said: of a ratio as per cent of change or as a factor; of a difference as "
        "percentage points or plainly",
    )


class Compared(Frozen):
    """The roles of the models that a claim compares."""

    treated: str = Field(default="", description="role of the model that the claim is about")
    reference: str = Field(default="", description="role of the model it is compared with; none: the null")
    null: float = Field(default=0.0, description="what the measure of the treated model is compared with, without one")
    pairs: tuple[tuple[str, str], ...] = Field(
        default=(), description="instead of both: roles of pairs that one number is measured on, averaged over them"
    )
    among: tuple[str, ...] = Field(
        default=(), description="instead of both: roles of models, all of which the study must have; see take"
    )
    take: Literal["", "range", "maximum"] = Field(
        default="", description="with among: the largest − smallest of the models' values, seed by seed, or the largest"
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="instead of both: role -> weight of its value in a sum, seed by seed"
    )
    recipe: str = Field(
        default="",
        description="where null is an absolute figure of one model: the training recipe of that model, full size; any "
        "other model, and this one with other settings, is full size only",
    )

    @model_validator(mode="after")
    def _names_someone(self) -> Compared:
        if sum(map(bool, (self.treated, self.pairs, self.among, self.weights))) != 1:
            raise ValueError("treated: expected a role, or pairs, among or weights, and one of them alone")
        if self.reference and not self.treated:
            raise ValueError("reference: pairs, among and weights are compared with the null; expected none")
        if bool(self.among) != bool(self.take) or len(self.among) == 1:
            raise ValueError(f"among: got {list(self.among)} with take = {self.take!r}; expected two roles and a take")
        if self.recipe and (self.reference or not self.treated):
            raise ValueError(f"recipe: got {self.recipe!r}; expected none where several models are compared")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role named, once."""
        named = [role for pair in self.pairs for role in pair] or [*self.among, *self.weights]
        named = named or [self.reference, self.treated]
        return tuple(dict.fromkeys(role for role in named if role))


class Beside(Change):
    """The same comparison on another measure, said behind the claim's own."""

    name: str = Field(description="in words", min_length=1)


class Against(Frozen):
    """The same measure on another model, which the claim does not speak of but a confound does."""

    name: str = Field(description="what this comparison controls for, in words", min_length=1)
    treated: str = Field(description="role of the other model", min_length=1)
    reference: str = Field(default="", description="the claim's own unless given")


def _find_named(value: Any, info: ValidationInfo) -> Any:
    """The shared remark of that name, where a name is given."""
    if not isinstance(value, str):
        return value
    shared: Mapping[str, Remark] = info.context or {}
    if value not in shared:
        raise ValueError(f"expected one of {', '.join(shared)}, or a table")
    return shared[value]


class Claim(Frozen):
    """One published claim.

    Raises:
        ValueError: (pydantic's ValidationError) for unknown or unfit fields, an effect on the other side of 0 than its
            direction, a margin of anything but likeness, a scale that its unit does not fit, a measure or a remark on
            models that it does not compare, and no measure without a reason.
    """

    id: str = Field(description="short name, that of its table in the file", pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    group: str = Field(description="whose claim: janus-ii, kotodama …", min_length=1)
    claim: str = Field(description="in one sentence, without a full stop", min_length=1)
    published: str = Field(description="the published figure as text", min_length=1)
    undefined: str = Field(
        default="", description="why there is nothing to measure, in sentences: then the verdict is not defined"
    )
    effect: float | None = Field(
        default=None,
        description="the published figure as a number: treated / reference − 1, or treated − reference; none: only its "
        "direction was published",
    )
    scale: Literal["ratio", "difference"] = Field(description="what the effect is: a ratio or a difference")
    direction: Literal["falls", "rises", "agrees"] = Field(description="of the measure, from reference to treated")
    margin: float | None = Field(
        default=None, description="agrees: largest |effect| that still is agreement, in the effect's own unit", gt=0
    )
    compared: Compared = Field(description="the models by role")
    measure: Measure = Field(description="what is measured of each")
    beside: tuple[Beside, ...] = Field(default=(), description="said behind the measured effect")
    against: tuple[Against, ...] = Field(default=(), description="controls: other models, measured the same")
    control: str = Field(description="which confound or control speaks to the claim, in sentences", min_length=1)
    remarks: tuple[Annotated[Remark, BeforeValidator(_find_named)], ...] = Field(
        default=(), description="said of the outcome: names of remarks at the head of the file, or remarks themselves"
    )
    why: str = Field(default="", description="how to read any outcome, in sentences behind the remarks")
    source: str = Field(description="where the figure was published", min_length=1)
    published_params: int | None = Field(
        default=None,
        description="parameters of the published model without embeddings, to which the line over a study's sizes is "
        "drawn out; none: those of the paper of its group, where that is one of `papers.toml`",
        ge=1,
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Claim:
        if (self.direction == "agrees") != (self.margin is not None):
            raise ValueError(
                f"margin: got {self.margin} with direction {self.direction!r}; expected one where things agree"
            )
        side = {"falls": -1, "rises": 1, "agrees": 0}[self.direction]
        if side and self.effect is not None and self.effect * side <= 0:
            raise ValueError(
                f"effect: got {self.effect:g} with direction {self.direction!r}; expected it on that side of 0"
            )
        if self.scale == "ratio" and self.effect is not None and self.effect <= -1:
            raise ValueError(f"effect: got {self.effect:g} of a ratio; expected more than −1")
        if self.measure.unit not in {"ratio": ("percent", "factor"), "difference": ("points", "plain")}[self.scale]:
            raise ValueError(f"measure.unit: got {self.measure.unit!r} of a {self.scale}; expected one that fits")
        self._refuse_unfit_kind()
        if self.scale == "ratio" and not self.compared.reference and self.compared.null <= 0:
            raise ValueError(f"compared.null: got {self.compared.null:g} for a ratio; expected more than 0")
        possible: tuple[str, ...] = ("effect", "treated", "each")
        if self.compared.pairs:
            possible = ("pair", "ratio between seeds")
        elif not self.compared.treated:
            possible = ("effect",)
        elif self.compared.reference:
            possible = (*possible, "reference", "pair", "effect at matched l0")
        for i, remark in enumerate(self.remarks):
            for name, number in remark.numbers.items():
                if not number.ratio and number.of not in possible:
                    raise ValueError(
                        f"remarks.{i}.numbers.{name}.of: got {number.of!r}; expected, of what is compared, one of "
                        f"{', '.join(possible)}"
                    )
        return self

    def _refuse_unfit_kind(self) -> None:
        kind, is_measured = self.measure.kind, not self.undefined
        for name, value in (("table", self.measure.table), ("column", self.measure.column)):
            if is_measured and not value:
                raise ValueError(f"measure.{name}: got none; expected one, or undefined: why there is no measure")
        if (kind in OF_PAIRS) != bool(self.compared.pairs):
            raise ValueError(f"measure.kind: got {kind!r}; expected {' or '.join(OF_PAIRS)} of pairs alone")
        if kind == "crossover" and not (self.compared.reference and self.scale == "difference"):
            raise ValueError("measure.kind: a crossover is a difference of two models; expected a reference, and scale")
        if self.against and not self.compared.treated:
            raise ValueError("against: got models beside pairs, among or weights; expected them beside a treated model")
        if kind == "depth" and self.scale != "difference":
            raise ValueError(f"scale: got {self.scale!r} of a depth, which is a share; expected 'difference'")


# what a key may be called, at any depth
KEYS = {
    key
    for record in (Claim, Measure, Compared, Beside, Against, Remark, Case, Number)
    for key in (*record.model_fields, "base")
} - {"id"}


def collect_claims(files: Sequence[str | Path] = ()) -> tuple[Claim, ...]:
    """The published claims that come with the package, and behind them those of a user's files.

    Raises:
        ValueError: as `read_claims`, and for an id that stands in two of the files.
    """
    found = {claim.id: claim for claim in read_claims()}
    whose = dict.fromkeys(found, "the package")
    for file in files:
        for claim in read_claims(file):
            if claim.id in found:
                raise ValueError(
                    f"claims: {file}: [{claim.id}] is a claim of {whose[claim.id]} already; expected another name"
                )
            found[claim.id], whose[claim.id] = claim, str(file)
    return tuple(found.values())


def read_claims(path: str | Path | None = None) -> tuple[Claim, ...]:
    """The claims of a TOML file, a table each; the published ones that come with the package unless told otherwise.

    The table `remarks` holds no claim, but remarks that claims name. A claim with `base = "other"` holds only what
    differs from a claim above it. Remarks and claims of the package may be named in every file.

    Raises:
        ValueError: a file that is not there, not TOML or without a claim; and naming file and claim, every wrong field.
    """
    remarks: dict[str, Remark] = {}
    tables: dict[str, dict[str, Any]] = {}
    published = [claim for file in EMBEDDED_CLAIMS for claim in _read_file(file, remarks, tables)]
    if path is None:
        return tuple(published)
    claims = _read_file(Path(path), remarks, tables)
    if not claims:
        raise ValueError(f"claims: {path} is empty; expected a table [name] for each claim")
    return tuple(claims)


def _read_file(path: Path, remarks: dict[str, Remark], tables: dict[str, dict[str, Any]]) -> list[Claim]:
    """The claims of one file; its remarks and tables are added to those that are known."""
    if not path.is_file():
        raise ValueError(f"claims: no file {str(path)!r}; expected a TOML file of claims")
    own = _tables_of(read_toml(path, "claims"), path)
    for name, table in _tables_of(own.pop(REMARKS, {}), path, f"{REMARKS}.").items():
        remarks[name] = _parse(Remark, table, path, f"{REMARKS}.{name}")
    claims = []
    for name, table in own.items():
        tables[name] = _with_base(table, tables, path, name)
        claims.append(_parse(Claim, tables[name] | {"id": name}, path, name, remarks))
    return claims


def _tables_of(found: Any, path: Path, where: str = "") -> dict[str, dict[str, Any]]:
    """What is found in a file, if it is tables by name."""
    for name, table in found.items():
        if not isinstance(table, dict):
            name = shorten(where + name)
            raise ValueError(f"claims: {path}: {name} is a {type(table).__name__}; expected a table [{name}]")
    return found


def _with_base(table: dict[str, Any], known: Mapping[str, dict[str, Any]], path: Path, name: str) -> dict[str, Any]:
    """A claim's table laid over that of its base."""
    if "base" not in table:
        return table
    base, own = table["base"], {key: value for key, value in table.items() if key != "base"}
    if not isinstance(base, str) or base not in known:
        raise ValueError(
            f"claims: {path}: [{shorten(name)}] base: got {shorten(repr(base))}; expected a claim above it"
        )
    return _lay_over(known[base], own)


def _lay_over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, tables key by key."""
    both = {
        key: _lay_over(base[key], changes[key])
        for key in base.keys() & changes.keys()
        if isinstance(base[key], dict) and isinstance(changes[key], dict)
    }
    return base | changes | both


def _parse(
    kind: type[Parsed], table: dict[str, Any], path: Path, name: str, remarks: Mapping[str, Remark] | None = None
) -> Parsed:
    try:
        return kind.model_validate(table, context=remarks)
    except ValidationError as error:
        raise ValueError(f"claims: {path}: [{shorten(name)}] {describe_errors(error, KEYS)}") from None
