"""The numbers of both pages as Chromium shows them, against the CSVs: read back, computed anew, compared one by one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from atlas_numbers import ROWS, SHEET, compare_rows, compare_sheet, read_atlas_table
from figure_numbers import FIGURE_CHECKS
from headless import Tab
from page_numbers import READ, TABLE_CHECKS, Report, Tally

from reports.atlas import write_atlas
from reports.page import write_report

pytestmark = pytest.mark.browser


def read_report(tab: Tab, path: Path) -> dict:
    """What the report shows, the figures that are drawn on demand too."""
    tab.open(path)
    choices = tab.page.locator("figure .variants select:visible")
    for figure in choices.all():
        for option in range(figure.locator("option").count()):
            figure.select_option(index=option)
    tab.page.wait_for_function("() => [...document.querySelectorAll('.plot')].every(plot => plot.dataset.drawn)")
    return tab.page.evaluate(READ)


def compare_report(page: Mapping[str, Any], directory: Path) -> Tally:
    """Compare what `READ` found on a report with the CSVs of its study, of one seed a model."""
    report = Report(page, directory)
    for check, needed in (TABLE_CHECKS | FIGURE_CHECKS).items():
        if set(needed) <= set(report.csv):
            check(report)
    return report.tally


def read_atlas(tab: Tab, path: Path, directory: Path, n_sheets: int) -> Tally:
    """Compare every row of the atlas's list, and some features' sheets, with the study's table."""
    table = read_atlas_table(directory)
    tab.open(path, "#state=all")
    models = tab.page.locator("#model option").evaluate_all(
        "all => all.slice(1).map(one => [one.value, one.textContent])"
    )
    tally = compare_rows(tab.page.evaluate(ROWS), table, dict(models))
    impacts = directory / "ablation_results.csv"
    heads = None
    if impacts.is_file():
        heads = pd.read_csv(impacts).query("head >= 0 and kind == 'zero'").set_index(["model", "layer", "head"])
    for row in table.iloc[:: max(1, len(table) // n_sheets)].itertuples():
        key = "|".join(str(part) for part in (row.model, row.seed, row.layer, row.head, row.feature))
        compare_sheet(tally, tab.page.evaluate(SHEET, key), row, heads)
    return tally


def test_the_report_shows_what_its_tables_say(tab, pages, made_study, record_property):
    tally = compare_report(read_report(tab, pages / "report.html"), made_study)
    record_property("compared, equal", (tally.n, tally.n - len(tally.wrong)))
    assert tally.wrong == []
    assert tally.n > 2500
    assert len(tally.by_place) > 25


def test_the_atlas_shows_what_its_table_says(tab, pages, made_study, record_property):
    tally = read_atlas(tab, pages / "atlas.html", made_study, 40)
    record_property("compared, equal", (tally.n, tally.n - len(tally.wrong)))
    assert tally.wrong == []
    assert tally.n > 2500


@pytest.mark.skipif("STUDY" not in os.environ, reason="STUDY names no finished study")
def test_a_finished_study_shows_what_its_tables_say(tab, tmp_path, record_property):
    study = Path(os.environ["STUDY"])
    report = compare_report(read_report(tab, write_report(study, tmp_path / "report.html")), study)
    atlas = read_atlas(tab, write_atlas(study, tmp_path / "atlas.html"), study, 200)
    for name, tally in (("report", report), ("atlas", atlas)):
        record_property(f"{name}: compared, equal", (tally.n, tally.n - len(tally.wrong)))
        assert tally.wrong == []


CHANGED = {
    "effective_size": "utilization_a", "topology_stats": "mean_cos", "head_cosines": "cos",
    "sae_training_results": "fvu", "sae_density": "n_features",
    "ablation_results": "impact_pct", "ablation_summary": "value", "train_log": "held_out_loss", "baselines": "nats",
    "attention_stats": "entropy_share", "sae_matched_l0": "fvu_difference", "claims": "n", "concept_mantel": "r",
    "weight_spectra": "stable_rank", "concept_geometry": "effective_dim", "text_quality": "ci_low",
    "evaluation": "bits_per_byte", "ladder": "delta_bits", "intrinsic_dimension": "dimension",
    "intrinsic_dimension_curve": "dimension", "mantel_stability": "p_high", "seed_means": "mean",
}  # fmt: skip


@pytest.fixture(scope="module")
def shown(browser, pages) -> dict:
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    yield read_report(Tab(context.new_page()), pages / "report.html")
    context.close()


@pytest.mark.parametrize("name", CHANGED)
def test_one_changed_number_of_a_table_is_seen(shown, made_study, tmp_path, name):
    """The comparison itself: the last number of a column, a thousandth off, and counts off by one."""
    study = shutil.copytree(made_study, tmp_path / "study")
    df, column = pd.read_csv(study / f"{name}.csv", low_memory=False), CHANGED[name]
    at = df[
        df[column].notna() & (df.get("head_i", -1) != df.get("head_j", -2)) & (df.get("dictionary", "") != "shuffled")
    ].index[-1]
    df.loc[at, column] += 1 if pd.api.types.is_integer_dtype(df[column]) else 0.01
    df.to_csv(study / f"{name}.csv", index=False)
    wrong = [line for line in compare_report(shown, study).wrong if not line.startswith("sources")]
    assert wrong


def test_one_changed_number_of_the_atlas_is_seen(tab, pages, made_study, tmp_path):
    for number, (column, change) in enumerate((("density", 0.01), ("max_act", 0.1), ("mean_act", -0.1))):
        study = shutil.copytree(made_study, tmp_path / str(number))
        table = pd.read_csv(made_study / "feature_atlas.csv", keep_default_na=False)
        table.loc[5, column] = float(table.loc[5, column]) + change
        table.to_csv(study / "feature_atlas.csv", index=False)
        assert len(read_atlas(tab, pages / "atlas.html", study, 1).wrong) == 1
    assert read_atlas(tab, pages / "atlas.html", made_study, 1).wrong == []
