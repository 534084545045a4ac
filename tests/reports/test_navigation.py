"""How a reader moves through the report in headless Chromium: theme, contents, links, history, keyboard, print."""

from __future__ import annotations

import pytest
from headless import Tab

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
