"""The published claims that a study is held against, as data: what was measured, on whom, and how large it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationError, model_validator

from workbench.runs import read_toml, shorten
from workbench.runs.records import Frozen, describe_errors

EMBEDDED_CLAIMS = Path(__file__).parent / "claims.toml"
# remarks on a comparison of two models, and on one model or on pairs
OfTwo = Literal["basis", "rank", "utilization", "l0", "loss", "sink"]
Remark = OfTwo | Literal["top head", "trajectory", "components", "divergence"]
LAYERS = re.compile(r"all|first|last|first third|last third|\d+ of \d+")


class Measure(Frozen):
    """Which number of a model and seed a claim is about: rows of one table, reduced."""

    name: str = Field(description="in words, as the ledger says it", min_length=1)
    kind: Literal["rows", "ends", "last", "top head", "divergence", "components"] = Field(
        default="rows",
        description="rows: reduce a column over rows; ends: that of the last layer over that of the first; last: that "
        "of the last step; top head: the largest, with its interval over sequences; divergence: of attention over MLP "
        "spectra of pairs; components: |cos| of pairs over its baseline",
    )
    table: str = Field(description="name of the table, as in the column contract")
    column: str = Field(description="name of the column")
    where: dict[str, str | float | tuple[str, ...]] = Field(
        default_factory=dict, description='column -> value, or values, that rows must have; l1 = "middle": of the sweep'
    )
    layers: str = Field(
        default="all",
        description='all, first, last, first third, last third, or "9 of 12": the layer at that share of the depth',
    )
    reduce: Literal["mean", "geometric mean", "standard deviation", "maximum"] = Field(
        default="mean", description="over a model's and seed's rows"
    )
    unit: Literal["percent", "factor", "points", "plain"] = Field(
        default="percent",
        description="how an effect is said: of a ratio as per cent of change or as a factor; of a difference as "
        "percentage points or plainly",
    )
    remark: Remark | None = Field(
        default=None, description="what the ledger adds on the outcome of such a measure, in words"
    )

    @model_validator(mode="after")
    def _layers_are_named(self) -> Measure:
        if not LAYERS.fullmatch(self.layers):
            raise ValueError(
                f"layers: got {shorten(repr(self.layers))}; "
                f'expected all, first, last, first third, last third or "9 of 12"'
            )
        if " of " in self.layers:
            layer, n_layers = map(int, self.layers.split(" of "))
            if layer >= n_layers:
                raise ValueError(
                    f"layers: got {shorten(repr(self.layers))}; expected a layer, from 0, below the number of layers"
                )
        return self


class Compared(Frozen):
    """The roles of the models that a claim compares."""

    treated: str = Field(default="", description="role of the model that the claim is about")
    reference: str = Field(default="", description="role of the model it is compared with; none: the null")
    null: float = Field(default=0.0, description="what the measure of the treated model is compared with, without one")
    pairs: tuple[tuple[str, str], ...] = Field(
        default=(), description="instead of both: roles of pairs that one number is measured on, averaged over them"
    )
    recipe: str = Field(
        default="",
        description="where null is an absolute figure of one model: the training recipe of that model, full size; any "
        "other model, and this one with other settings, is full size only",
    )

    @model_validator(mode="after")
    def _names_someone(self) -> Compared:
        if bool(self.treated) == bool(self.pairs):
            raise ValueError("treated: expected a role, or pairs, and not both")
        if self.pairs and self.reference:
            raise ValueError("reference: pairs are compared with the null; expected none")
        if self.recipe and (self.pairs or self.reference):
            raise ValueError(f"recipe: got {self.recipe!r}; expected none where two models are compared")
        return self

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role named, once."""
        named = [role for pair in self.pairs for role in pair] or [self.reference, self.treated]
        return tuple(dict.fromkeys(role for role in named if role))


class Beside(Frozen):
    """The same comparison on another measure, said behind the claim's own."""

    name: str = Field(description="in words", min_length=1)
    column: str = Field(default="", description="the claim's own unless given")
    where: dict[str, str | float | tuple[str, ...]] = Field(
        default_factory=dict, description="replaces the claim's own of those columns"
    )
    layers: str = Field(default="", description="the claim's own unless given")


class Against(Frozen):
    """The same measure on another model, which the claim does not speak of but a confound does."""

    name: str = Field(description="what this comparison controls for, in words", min_length=1)
    treated: str = Field(description="role of the other model", min_length=1)
    reference: str = Field(default="", description="the claim's own unless given")


class Claim(Frozen):
    """One published claim.

    Raises:
        ValueError: (pydantic's ValidationError) for unknown or unfit fields, an effect on the other side of 0 than its
            direction, a margin of anything but likeness, and a scale that its unit does not fit.
    """

    id: str = Field(description="short name, that of its table in the file", pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    group: str = Field(description="whose claim: janus, kotodama …", min_length=1)
    claim: str = Field(description="in one sentence, without a full stop", min_length=1)
    published: str = Field(description="the published figure as text", min_length=1)
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
    why: str = Field(default="", description="how to read the outcome, in sentences")
    source: str = Field(description="where the figure was published", min_length=1)

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
        if self.measure.remark in get_args(OfTwo) and not self.compared.reference:
            raise ValueError(f"measure.remark: got {self.measure.remark!r}; expected a reference to compare with")
        if self.scale == "ratio" and not self.compared.reference and self.compared.null <= 0:
            raise ValueError(f"compared.null: got {self.compared.null:g} for a ratio; expected more than 0")
        return self


def read_claims(path: str | Path = EMBEDDED_CLAIMS) -> tuple[Claim, ...]:
    """The claims of a TOML file, a table each; the published ones that come with the package unless told otherwise.

    Raises:
        ValueError: a file that is not there, not TOML or without a claim; and naming the claim, every wrong field.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"claims: no file {str(path)!r}; expected a TOML file of claims")
    tables = read_toml(path, "claims")
    if not tables:
        raise ValueError(f"claims: {path} is empty; expected a table [name] for each claim")
    claims = []
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(
                f"claims: {path}: {shorten(name)} is a {type(table).__name__}; expected a table [{shorten(name)}]"
            )
        try:
            claims.append(Claim.model_validate(table | {"id": name}))
        except ValidationError as error:
            raise ValueError(f"claims: {path}: [{shorten(name)}] {describe_errors(error)}") from None
    return tuple(claims)
