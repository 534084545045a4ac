"""The docs say what the program does."""

from __future__ import annotations

import re
from pathlib import Path

from docs import claims, faults, numerics, pressure
from docs.build import PAGE, render
from reports.tables import COLUMNS, declared
from workbench.analyses import all_analyses
from workbench.study.recipe import StudyRecipe
from workbench.training.recipe import load_recipe, recipe_names

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"


def test_the_page_of_verbs_is_current():
    assert PAGE.read_text(encoding="utf-8") == render(), "run `make docs`"


def test_the_page_of_claims_is_current():
    assert claims.PAGE.read_text(encoding="utf-8") == claims.render(), "run `make docs`"


def test_the_page_of_faults_is_current():
    assert faults.PAGE.read_text(encoding="utf-8") == faults.render(), "run `make docs`"


def test_the_page_of_numerics_is_current():
    assert numerics.PAGE.read_text(encoding="utf-8") == numerics.render(), "run `make docs`"


def test_the_picture_of_pressures_is_current():
    assert pressure.PICTURE.read_text(encoding="utf-8") == pressure.draw(), "run `make docs`"


def test_every_relative_link_of_the_docs_leads_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_glossary_names_only_what_exists():
    """Columns and tables of the contract, options of the command line, keys of recipes in brackets; each term once."""
    rows = [line.split("|")[1:-1] for line in GLOSSARY.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    terms = [term.strip() for term, *_ in rows if term.strip() != "term"]
    named = {name for *_, places in rows for name in re.findall(r"`([^`]+)`", places)}
    assert len(terms) == len(set(terms)) > 50
    assert all(len(row) == 3 for row in rows)
    all_analyses()  # their tables join the contract
    options = set(re.findall(r"`(--[a-z0-9-]+)`", PAGE.read_text(encoding="utf-8")))
    recipes = {f"[{key}]" for name in recipe_names() for key in keys_of(load_recipe(name).model_dump(mode="json"))}
    keys = recipes | {f"[{key}]" for key in ("base", *StudyRecipe.model_fields)}
    columns = {column for leading in COLUMNS.values() for column in leading}
    columns |= {column.name for table in declared().values() for column in table.trailing}
    assert not named - options - keys - columns - {f"{table}.csv" for table in COLUMNS}


def keys_of(settings: object) -> set[str]:
    """Names of settings, at any depth."""
    parts = settings if isinstance(settings, list) else list(settings.values()) if isinstance(settings, dict) else []
    return set(settings if isinstance(settings, dict) else ()).union(*map(keys_of, parts))


def test_every_verb_of_the_readme_exists():
    from workbench.analyses import analysis_names
    from workbench.cli.app import VERBS

    named = set(re.findall(r"`workbench ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named - {"VERB"} <= {*VERBS, *analysis_names(), "recipes"}
