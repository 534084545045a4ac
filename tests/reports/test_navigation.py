"""How a reader moves through the report in headless Chromium: theme, contents, links, history, keyboard, print."""

from __future__ import annotations

import pandas as pd
import pytest
from headless import Tab

from reports.tables import read_table

pytestmark = pytest.mark.browser

THEME = "document.documentElement.dataset.theme ?? 'auto'"
DENIED = (
    "Object.defineProperty(globalThis, 'localStorage', { get() { throw new DOMException('no', 'SecurityError') } })"
)


def choose_theme(tab: Tab, n_clicks: int) -> None:
    for _ in range(n_clicks):
        tab.page.locator("#theme").click()


def test_the_theme_is_kept_from_page_to_page(tab, pages):
    tab.open(pages / "report.html")
    choose_theme(tab, 2)  # auto, light, dark
    tab.open(pages / "atlas.html")
    assert tab.page.evaluate(THEME) == "dark"
    assert tab.page.locator("#theme").inner_text() == "Theme: dark"
    choose_theme(tab, 1)
    tab.open(pages / "report.html")
    assert tab.page.evaluate(THEME) == "auto"


def test_the_theme_works_where_storage_is_denied(tab, pages):
    tab.page.add_init_script(DENIED)
    tab.open(pages / "report.html")
    choose_theme(tab, 2)
    assert tab.page.evaluate(THEME) == "dark"
    tab.open(pages / "atlas.html")
    assert tab.page.evaluate(THEME) == "auto"


def said(tab: Tab) -> str:
    tab.page.wait_for_timeout(150)
    return tab.page.locator("[aria-live=polite].unseen").inner_text()


def test_marks_are_reached_by_keyboard_and_read_out(tab, pages, made_study):
    tab.open(pages / "report.html")
    plot = tab.page.locator("#ablation .plot")
    plot.focus()
    own = read_table(made_study, "ablation_results").query("model.str.contains('control') and layer == 0")
    for row in own.iloc[:2].itertuples():
        tab.page.keyboard.press("ArrowRight")
        assert said(tab).startswith(f"control, seed 0, layer 0, head {row.head}: {row.impact_pct:+.3f} %")
    tab.page.keyboard.press("ArrowDown")
    assert said(tab).startswith("adaptive, seed 0, layer 0, head 0:")
    with tab.page.expect_navigation(url="**/heads.html#*"):
        tab.page.keyboard.press("Enter")
    tab.open(pages / "report.html")
    tab.page.locator("#entropy .plot").focus()
    tab.page.keyboard.press("ArrowRight")
    assert said(tab).startswith("control, layer 0, head 0: ")


def test_a_figure_has_its_values_as_a_table_and_a_csv(tab, pages, made_study):
    tab.open(pages / "report.html")
    fold = tab.page.locator("#redundancy details.values")
    fold.locator("summary").click()
    fold.locator("tbody tr").first.wait_for()
    rows = fold.locator("tbody tr").all()
    df = read_table(made_study, "topology_stats")
    assert len(rows) == len(df) == 12
    with tab.page.expect_download() as download:
        fold.locator("button").click()
    values = pd.read_csv(download.value.path())
    assert values.columns[:3].tolist() == ["panel", "series", "layer"]
    panels = {"z": "z", "attention pattern": "pattern", "residual contribution": "residual"}
    wanted = df.assign(model=df["model"].str.split("-").str[2]).set_index(["basis", "model", "layer"])["mean_cos"]
    for panel, series, layer, value in values.iloc[:, :4].itertuples(index=False):
        assert value == pytest.approx(wanted[panels[panel], series, layer], rel=1e-12)


def test_variants_are_in_the_history(tab, pages):
    tab.open(pages / "report.html")
    shown = tab.page.locator("#heatmaps .plot:visible")
    tab.page.locator("#heatmaps input[value='2']").check()
    assert tab.page.url.endswith("#figure=heatmaps&variant=2")
    tab.page.locator("#heatmaps input[value='1']").check()
    tab.page.go_back()
    assert shown.get_attribute("data-variant") == "2"
    tab.page.go_back()
    assert shown.get_attribute("data-variant") == "0"
    assert tab.page.locator("#heatmaps input[value='0']").is_checked()
    tab.page.goto("about:blank")
    tab.open(pages / "report.html", "#figure=heatmaps&variant=1")
    assert shown.get_attribute("data-variant") == "1"


@pytest.mark.parametrize("address", ["#nothing", "#figure=nothing&variant=1", "#model=x&layer=0&head=9", "#%E0%A4%A"])
def test_an_address_that_leads_nowhere_says_so(tab, pages, address):
    tab.open(pages / "report.html", address)
    assert f"nothing at the address {address}" in tab.page.locator(".wrong-link").inner_text()
    tab.page.evaluate("location.hash = '#l0'")
    tab.page.locator(".wrong-link").wait_for(state="hidden")


@pytest.mark.parametrize("tab", [{"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_contents_are_in_reach_on_a_phone(tab, pages):
    tab.open(pages / "report.html")
    contents = tab.page.locator("nav.contents")
    assert not contents.locator("ol").is_visible()
    tab.page.evaluate("scrollTo(0, 4000)")
    contents.locator("summary").click()
    contents.locator("a[href='#density']").click()
    assert not contents.locator("ol").is_visible()
    assert contents.locator("summary").is_visible()
    assert tab.page.locator("#density").bounding_box()["y"] < 844


def test_on_paper_folds_are_open_and_all_figures_drawn(tab, pages):
    tab.page.goto((pages / "report.html").as_uri())
    tab.page.wait_for_selector(".plot[data-drawn]", state="attached")
    state = """() => {
      dispatchEvent(new Event("beforeprint"));
      const folds = [...document.querySelectorAll("details:not(.values)")];
      const drawn = [...document.querySelectorAll(".plot-scroll:not(.on-demand[hidden]) > .plot")];
      const found = [folds.filter(fold => !fold.open).length, drawn.filter(plot => !plot.dataset.drawn).length];
      dispatchEvent(new Event("afterprint"));
      return [...found, folds.filter(fold => !fold.open).length];
    }"""
    n_closed, n_undrawn, n_after = tab.page.evaluate(state)
    assert (n_closed, n_undrawn) == (0, 0)
    assert n_after > 0
