"""The docs say what the program does."""

from __future__ import annotations

import re
from pathlib import Path

from docs import claims, faults, numerics, pressure
from docs.build import PAGE, render

ROOT = Path(__file__).parents[2]


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


def test_every_verb_of_the_readme_exists():
    from workbench.cli.app import VERBS

    named = set(re.findall(r"`workbench ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named - {"VERB"} <= set(VERBS) | {"recipes"}
