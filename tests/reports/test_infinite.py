"""Infinite and missing numbers in every column of every table: drawn without them, said on the page, never a crash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fake_study import write_fake_study

from reports.atlas import write_atlas
from reports.contract import PLACES
from reports.page import show_section, write_report
from reports.panels import SECTIONS
from reports.study import Study, leave_out_infinite, read_study
from reports.table_cells import fixed, percent_change, significant, thousands
from reports.tables import COLUMNS, read_csv
from workbench.study.effects import write_effects

DRAWN = sorted(set(COLUMNS) - {"feature_atlas"})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    directory = tmp_path_factory.mktemp("infinite")
    return read_study(write_fake_study(directory, n_layers=2, n_heads=2, seeds=(0,), atlas=False, later=True))


def numbers(df: pd.DataFrame) -> list[str]:
    return [str(column) for column in df if pd.api.types.is_numeric_dtype(df[column])]


def draw(study: Study, name: str) -> Iterator[object]:
    """Everything of the page that reads the table."""
    for section in SECTIONS:
        panels = tuple(panel for panel in section.panels if name in (*panel.needs, *panel.uses))
        yield from show_section(study, replace(section, panels=panels), {"Table": 0, "Figure": 0}, {})


def changed(study: Study, name: str, columns: list[str], value: float, *, is_one: bool) -> Study:
    df = study.tables[name]
    model = next((column for column in ("model", "model_a") if column in df), None)
    rows = df[model] == df[model].iloc[0] if is_one and model else np.full(len(df), fill_value=True)
    new = df.assign(**{column: df[column].astype(float).mask(rows, value) for column in columns})
    tables, notes = leave_out_infinite({**study.tables, name: new})
    return replace(study, tables=tables, notes=notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_a_page_survives_infinity_in_any_column(study: Study, name: str) -> None:
    if name not in study.tables:
        pytest.skip("the made-up study has no such table")
    for place, column in enumerate(numbers(study.tables[name])):
        broken = changed(study, name, [column], np.inf, is_one=place % 2 == 0)
        assert [f"{name}.csv" in note and f" {column} " in note for note in broken.notes] == [True]
        for shown in draw(broken, name):
            assert "inf" not in repr((shown.grids, shown.facts)).lower()  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_one", [True, False])
@pytest.mark.parametrize("name", DRAWN)
def test_a_page_survives_a_table_without_one_finite_measure(study: Study, name: str, is_one: bool) -> None:
    if name not in study.tables:
        pytest.skip("the made-up study has no such table")
    values = [column for column in numbers(study.tables[name]) if column not in PLACES]
    broken = changed(study, name, values, -np.inf, is_one=is_one)
    assert len(broken.notes) == len(values)
    for shown in draw(broken, name):
        assert "inf" not in repr((shown.grids, shown.facts)).lower()  # type: ignore[attr-defined]


def test_the_page_says_what_was_left_out(tmp_path) -> None:
    write_fake_study(tmp_path, n_layers=2, n_heads=2, atlas=False)
    df = read_csv(tmp_path / "topology_stats.csv")
    df["nuclear_rank"] = df["nuclear_rank"].mask(df["basis"] == "z", np.inf)
    df.to_csv(tmp_path / "topology_stats.csv", index=False)
    write_effects(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "topology_stats.csv: 4 of 12 values of nuclear_rank are infinite and count as missing." in page


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_an_atlas_survives_infinity_in_any_measure(tmp_path, value: float) -> None:
    write_fake_study(tmp_path, n_layers=1, n_heads=2, d_sae=6)
    for name in ("feature_atlas", "ablation_results"):
        whole = read_csv(tmp_path / f"{name}.csv")
        for column in numbers(whole):
            whole.assign(**{column: value}).to_csv(tmp_path / f"{name}.csv", index=False)
            if column in PLACES:
                with pytest.raises(ValueError, match=f"{name}: {column} .*whole number"):
                    write_atlas(tmp_path, tmp_path / "atlas.html")
                continue
            page = write_atlas(tmp_path, tmp_path / "atlas.html").read_text(encoding="utf-8")
            assert (f"values of {column} are infinite" in page) == np.isinf(value)
        whole.to_csv(tmp_path / f"{name}.csv", index=False)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_not_finite_is_a_dash(value: float) -> None:
    found = [fixed(value, 2), significant(value), thousands(value), percent_change(value, 1.0)]
    assert [*found, percent_change(1.0, value)] == ["–"] * 5
