"""docs/fidelity.md: its counts are those of its tables, and whatever it names in the package is there."""

from __future__ import annotations

import importlib
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import typer.main
from pydantic import BaseModel

from reports.panels import SECTIONS
from reports.tables import COLUMNS
from workbench.cli.app import app
from workbench.data.claims import read_claims
from workbench.data.concepts import read_concepts
from workbench.study.recipe import StudyRecipe, load_study, study_names
from workbench.training.interventions import find_intervention, intervention_kinds
from workbench.training.monitor import monitor_columns
from workbench.training.recipe import Recipe, load_recipe, recipe_names
from workbench.training.telemetry import telemetry_columns

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fidelity.md"
STATUSES = ("same", "different", "missing")
HEADER = ["the source", "here", "status", "difference or reason"]


class Item(NamedTuple):
    source: str
    """the second-level heading above it"""
    said: str
    here: str
    status: str
    reason: str


def cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def read_items(text: str) -> list[Item]:
    """The rows of every table with the page's header, in order."""
    items, source, inside = [], "", False
    for line in text.splitlines():
        if line.startswith("## "):
            source = line[3:].strip()
        if not line.startswith("|"):
            inside = False
        elif cells(line) == HEADER:
            inside = True
        elif inside and not re.fullmatch(r"[|\-: ]+", line):
            items.append(Item(source, *cells(line)))
    return items


def read_counts(text: str) -> dict[str, tuple[int, ...]]:
    """source -> (same, different, missing, all), of the table above the first source."""
    head = text.split("\n## ")[0]
    rows = [cells(line) for line in head.splitlines() if line.startswith("|")][2:]
    return {row[0]: tuple(int(cell) for cell in row[1:]) for row in rows}


TEXT = PAGE.read_text(encoding="utf-8")
ITEMS = read_items(TEXT)
NAMES = [(item, name) for item in ITEMS for name in re.findall(r"`([^`]+)`", item.here)]


def test_the_page_is_complete() -> None:
    assert len(ITEMS) >= 190
    assert len({item.source for item in ITEMS}) == 4


def test_the_counts_are_those_of_the_tables() -> None:
    counted = {}
    for source in dict.fromkeys(item.source for item in ITEMS):
        own = [sum(item.source == source and item.status == status for item in ITEMS) for status in STATUSES]
        counted[source] = (*own, sum(own))
    counted["in all"] = tuple(map(sum, zip(*counted.values(), strict=True)))
    assert read_counts(TEXT) == counted


def test_every_status_is_known_and_every_difference_has_its_reason() -> None:
    for item in ITEMS:
        assert item.said, item
        assert item.status in STATUSES, item
        assert item.here or item.status == "missing", item
        assert item.reason or item.status == "same", item


# --- what may be named


@cache
def panel_keys() -> frozenset[str]:
    return frozenset(panel.key for section in SECTIONS for panel in section.panels)


@cache
def logged() -> frozenset[str]:
    """Columns that the training monitor and interventions add, `{layer}` in place of a layer."""
    columns = set()
    for name in ("p3-attnres-nano", "janus-small-nano", "recurrent-nano"):
        recipe = load_recipe(name)
        columns |= {*monitor_columns(recipe.model, recipe.monitor), *telemetry_columns(recipe)}
    return frozenset(re.sub(r"\.\d+$", ".{layer}", column) for column in columns)


@cache
def written() -> frozenset[str]:
    """Names that the package writes as strings: columns and measures among them."""
    code = "".join(f.read_text(encoding="utf-8") for p in ("workbench", "reports") for f in (ROOT / p).rglob("*.py"))
    return frozenset(re.findall(r'"(\w+)"', code))


@cache
def defined() -> frozenset[str]:
    """Those of them that docs/definitions.md explains."""
    return written() & set(re.findall(r"`(\w+)`", (ROOT / "docs" / "definitions.md").read_text(encoding="utf-8")))


def is_field(record: Any, parts: list[str]) -> bool:
    """Whether a path of fields leads somewhere within a record's annotation; indices and free keys are passed over."""
    if not parts:
        return True
    if parts[0] == "interventions" and len(parts) > 1:
        return parts[1] in intervention_kinds() and is_field(find_intervention(parts[1]).Settings, parts[2:])
    if isinstance(record, type) and issubclass(record, BaseModel):
        field = record.model_fields.get(parts[0])
        return field is not None and is_field(field.annotation, parts[1:])
    rest = parts[1:] if parts[0].isdecimal() else parts
    return any(is_field(inner, rest) for inner in get_args(record))


def value_at(record: Any, parts: list[str]) -> Any:
    """The value that a path leads to; the word absent where it leads nowhere."""
    for part in parts:
        if isinstance(record, tuple):  # phases go by index, interventions by name
            named = {own.name or own.kind: own for own in record if hasattr(own, "kind")}
            record = dict(enumerate(record)).get(int(part), "absent") if part.isdecimal() else named.get(part, "absent")
        else:
            record = getattr(record, part, "absent")
    return record


@cache
def records_of(name: str) -> list[Any]:
    """The recipe and the study of that name, as far as there are."""
    return [load(name) for load, names in ((load_recipe, recipe_names()), (load_study, study_names())) if name in names]


def is_setting(text: str, here: str) -> bool:
    """Whether `key = value` holds in every recipe or study that the cell names."""
    key, _, written = text.partition(" = ")
    parts = key.split(".")
    value = None if written == "none" else tomllib.loads(f"value = {written}")["value"]
    records = [record for name in re.findall(r"`([^`]+)`", here) for record in records_of(name)]
    found = [
        value_at(record.settings_of(parts[1]), parts[2:]) if parts[0] == "settings" else value_at(record, parts)
        for record in records
        if parts[0] in type(record).model_fields
    ]
    return bool(found) and all((list(own) if isinstance(own, tuple) else own) == value for own in found)


@cache
def options_of() -> dict[str, set[str]]:
    verbs: Any = typer.main.get_command(app)
    commands = {verb: verbs.get_command(None, verb) for verb in verbs.list_commands(None)}
    return {
        verb: {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
        for verb, command in commands.items()
    }


def is_command(text: str) -> bool:
    """Whether `workbench VERB --option …` is one."""
    _, verb, *rest = text.split()
    return verb in options_of() and set(rest) <= options_of()[verb]


def is_column(text: str) -> bool:
    table, _, column = text.partition(".")
    if table not in COLUMNS:
        return False
    if table == "train_log":
        return column in COLUMNS[table] or column in logged() or column in defined()
    return column in COLUMNS[table] or column in written()  # trailing columns are no part of the contract


def is_importable(text: str) -> bool:
    module, _, name = text.rpartition(".")
    if module.split(".")[0] not in ("workbench", "sae", "probes", "reports"):
        return False
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return False


@cache
def listed() -> frozenset[str]:
    """Recipes, studies, claims, concept sets, tables, and what definitions.md names."""
    claims, sets = (claim.id for claim in read_claims()), (one.name for one in read_concepts())
    return frozenset((*recipe_names(), *study_names(), *claims, *sets, *COLUMNS, *defined()))


def is_known(name: str, here: str) -> bool:
    if " = " in name:
        return is_setting(name, here)
    if name.startswith("workbench "):
        return is_command(name)
    if name.startswith("#"):
        return name[1:] in panel_keys()
    if "/" in name:
        return (ROOT / name).exists()
    if name in listed() or is_column(name):
        return True
    return is_importable(name) or any(is_field(record, name.split(".")) for record in (Recipe, StudyRecipe))


def test_what_is_named_is_in_the_package() -> None:
    assert [(name, item.here) for item, name in NAMES if not is_known(name, item.here)] == []


def test_settings_of_interventions_are_found_by_name() -> None:
    here = "`janus-small`"
    for name in (
        'phases.0.interventions.vsm.on = "pattern"', "phases.0.interventions.coherence.weight = 0.05",
        "phases.interventions.vsm.controller", "train_log.vsm.loss",
    ):  # fmt: skip
        assert is_known(name, here), name
    assert is_known("phases.0.interventions = []", "`janus-v3-control`")
    for name in ("phases.0.interventions.vsm.steering = 1.0", "phases.interventions.vsn.on", "train_log.vsm.los"):
        assert not is_known(name, here), name


@pytest.mark.parametrize(
    "name",
    [
        "janus-v4", "topology_stats.max_cosine", "train_log.bos.{layer}", "workbench ablate --no-such",
        "workbench no-verb", "#no-panel", "docs/none.md", "phases.0.interventions.vsm.steer", "probes.no_such",
        "model.n_layers = 13", "model.layers = 12", "phases.1.n_steps = 4005", "undefined_measure",
    ],
)  # fmt: skip
def test_what_is_not_there_is_found(name: str) -> None:
    assert not is_known(name, f"`janus-v3-control` `{name}`")


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_anchor_leads_to_a_heading() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        page, _, anchor = target.partition("#")
        headings = re.findall(r"^#+ (.+)$", (PAGE.parent / (page or PAGE.name)).read_text(encoding="utf-8"), re.M)
        assert not anchor or anchor in map(slug, headings), target
