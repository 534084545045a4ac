"""A page of ours in headless Chromium: opened from disk with the network off, what it asks for written down."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reports.atlas import write_atlas
from reports.heads import write_heads
from reports.page import write_report

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]


@dataclass
class Tab:
    """A page of the browser and everything it complained about, asked for or opened."""

    page: object
    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    def open(self, path: Path, fragment: str = "") -> None:
        self.page.goto(f"{path.as_uri()}{fragment}")
        self.page.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)

    def check(self) -> None:
        assert self.console == []
        assert self.errors == []
        assert [address for address in self.requests if not address.startswith(("file:", "data:", "blob:"))] == []
        assert self.opened == []
        assert self.page.evaluate("window.pwned") is None


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as player:
        running = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def tab(browser, request) -> Iterator[Tab]:
    options = {"viewport": {"width": 1280, "height": 900}, "accept_downloads": True, **getattr(request, "param", {})}
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    found = Tab(page)
    page.on("console", lambda message: found.console.append(message.text))
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    context.on("request", lambda request: found.requests.append(request.url))
    context.on("page", lambda other: found.opened.append(other.url))
    yield found
    found.check()
    context.close()


@pytest.fixture(scope="session")
def pages(made_study, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("pages")
    write_report(made_study, directory / "report.html")
    write_atlas(made_study, directory / "atlas.html")
    write_heads(made_study, directory / "heads.html")
    return directory
