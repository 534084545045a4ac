"""The page of heads in headless Chromium: what it shows is what the tables say, by mouse, keyboard and address."""

from __future__ import annotations

import json
import shutil

import pytest
from test_browser import SCHEMES, violations

from reports.atlas import write_atlas
from reports.heads import write_heads
from reports.tables import read_table

pytestmark = pytest.mark.browser

CONTROL, ADAPTIVE = "janus-v3-control-nano", "janus-v3-adaptive-nano"
CLICK = "(plot, point) => plot.emit('plotly_click', { points: [point] })"
PHONE = {"viewport": {"width": 360, "height": 780}}


def titles(tab) -> list[str]:
    return [" ".join(text.split()) for text in tab.page.locator("article h2").all_inner_texts()]


def test_an_address_leads_to_a_head_and_one_beside_it(tab, pages):
    tab.open(pages / "heads.html", f"#model={ADAPTIVE}&layer=1&head=2")
    assert titles(tab) == ["◆ adaptive layer 1, head 2", "● control layer 1, head 2"]
    tab.page.goto(f"{(pages / 'heads.html').as_uri()}#model=control&layer=0&head=3&beside=none")  # its short name too
    tab.page.wait_for_function("document.title === 'control, layer 0, head 3'")
    assert titles(tab) == ["● control layer 0, head 3"]
    assert tab.page.locator("#fault").is_hidden()
    assert tab.page.locator(".card").count() == 8


def test_without_an_address_the_head_that_costs_most_is_shown(tab, pages, made_study):
    table = read_table(made_study, "ablation_results").query(f"model == '{CONTROL}' and kind == 'zero' and head >= 0")
    top = table.loc[table["impact_pct"].idxmax()]
    tab.open(pages / "heads.html")
    assert titles(tab)[0] == f"● control layer {top['layer']}, head {top['head']}"
    assert "1st of 8 heads" in tab.page.locator(".summary").first.inner_text()


@pytest.mark.parametrize(
    ("fragment", "said"),
    [
        ("#model=absent&layer=0&head=0", "no model absent; the study has control, adaptive"),
        ("#model=control&layer=9&head=0", "no layer 9 in it; there are 0, 1"),
        ("#model=control&layer=0&head=99", "no head 99 in it; there are 0, 1, 2, 3"),
        ("#model=control&layer=0&head=0&beside=x", "no head x to stand beside"),
        ("#model=control&sentence=7", "no sentence 7; there are 2, from 0"),
        ("#model=%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E", "no model <img src=x onerror=window.pwned=1>"),
    ],
)
def test_a_wrong_address_says_so(tab, pages, fragment, said):
    tab.open(pages / "heads.html", fragment)
    assert said in tab.page.locator("#fault").inner_text()
    assert tab.page.locator("article").count() >= 1


def test_a_query_names_its_strongest_keys(tab, pages, made_study):
    table = read_table(made_study, "attention_examples")
    row = table.query(f"model == '{CONTROL}' and layer == 1 and head == 0 and sentence == 0").iloc[0]
    weights = json.loads(row["weights"])
    tab.open(pages / "heads.html", f"#model={CONTROL}&layer=1&head=0&beside=none")
    line, said = tab.page.locator(".line"), tab.page.locator(".said")
    line.focus()
    tab.page.keyboard.press("Home")
    for q, keys in enumerate(weights):
        want = sorted((weight for weight in keys if weight > 0), reverse=True)[:3]
        text = said.inner_text()
        assert f"(position {q})" in text
        assert all(f"{weight:.3f}" in text for weight in want)
        assert line.locator(".query").get_attribute("data-q") == str(q)
        tab.page.keyboard.press("ArrowRight")
    tab.page.locator("#without").check()
    text, keys = said.inner_text(), weights[-1]
    left = max(weight / (1 - keys[0]) for weight in keys[1:])
    assert f"{left:.3f}" in text
    tab.page.locator(".line [data-q='4']").click()
    assert "(position 4)" in said.inner_text()


def test_choices_are_kept_in_the_address_and_go_back(tab, pages):
    tab.open(pages / "heads.html", f"#model={CONTROL}&layer=0&head=0")
    tab.page.locator("#one-layer").select_option("1")
    tab.page.locator("#two-model").select_option("")
    tab.page.locator("#sentence").select_option("1")
    before, address = titles(tab), tab.page.url
    assert before == ["● control layer 1, head 0"]
    tab.page.goto("about:blank")
    tab.page.goto(address)
    tab.page.wait_for_selector("html[data-ready]", state="attached")
    assert titles(tab) == before
    assert tab.page.locator("#sentence").input_value() == "1"
    tab.page.keyboard.press("j")
    assert titles(tab) == ["● control layer 1, head 1"]
    tab.page.go_back()
    tab.page.wait_for_function("document.title === 'control, layer 1, head 0'")
    tab.page.locator("#next").click()
    tab.page.locator("#previous").click()
    assert titles(tab) == before
    tab.page.locator("a[href='#gallery-title']").click()
    assert titles(tab) == before


def test_the_gallery_has_every_head_under_its_kind(tab, pages, made_study):
    kinds = read_table(made_study, "head_kinds").query(f"model == '{CONTROL}' and is_kind == 1")
    tab.open(pages / "heads.html", f"#model={CONTROL}")
    groups = tab.page.locator(".group")
    shown = [
        (measure, [text.split("\n")[0] for text in group.locator(".card").all_inner_texts()])
        for measure, group in zip(
            ("induction", "previous_token", "bos_mass", "local_mass", "entropy_share"), groups.all()[:5], strict=True
        )
    ]
    for measure, cards in shown:
        own = kinds[kinds["measure"] == measure].sort_values("value", ascending=False)
        assert cards == [f"L{layer} H{head}" for layer, head in zip(own["layer"], own["head"], strict=True)]
    assert tab.page.locator(".card").count() == 8
    card = tab.page.locator(".card").last
    name = card.locator("b").inner_text()
    card.click()
    layer, head = (part[1:] for part in name.split())
    tab.page.wait_for_function(f"document.title === 'control, layer {layer}, head {head}'")


# panel -> a point of it as a click gives it, and its head
POINTS = {
    "ablation": """plot => {
        const { customdata, meta } = plot.data[0];
        return [{ customdata: customdata[1], data: { meta } }, customdata[1]];
    }""",
    "entropy": "plot => [{ data: { meta: plot.data[0].meta }, x: 2, y: 1 }, [plot.data[0].meta.head.model, 1, 2]]",
    "head-maps": """plot => {
        const { head } = plot.data[1].meta;
        return [{ data: { meta: { head } }, x: 3, y: 3 }, [head.model, head.layer, head.head]];
    }""",
}


def test_every_mark_of_a_head_leads_to_its_page(tab, pages):
    tab.open(pages / "report.html")
    for panel, point in POINTS.items():
        plot = tab.page.locator(f"#{panel} .plot").first
        given, (model, layer, head) = plot.evaluate(point)
        with tab.page.expect_navigation(url="**/heads.html#*"):
            plot.evaluate(CLICK, given)
        tab.page.wait_for_selector("html[data-ready]", state="attached")
        assert tab.page.title() == f"{model}, layer {layer}, head {head}"
        assert tab.page.locator("#fault").is_hidden()
        tab.page.go_back()
        tab.page.wait_for_selector("html[data-ready]", state="attached")


def test_the_atlas_leads_to_the_page_of_a_features_head(tab, made_study, tmp_path):
    study = shutil.copytree(made_study, tmp_path / "study", ignore=shutil.ignore_patterns("*.html"))
    write_atlas(study, study / "atlas.html")
    write_heads(study)
    tab.open(study / "atlas.html", f"#model={CONTROL}&layer=1&head=2")
    tab.page.locator(".opener").first.click()
    with tab.page.expect_navigation(url="**/heads.html#*"):
        tab.page.locator("tr.detail a[href^='heads.html']").first.click()
    tab.page.wait_for_selector("html[data-ready]", state="attached")
    assert titles(tab)[0] == "● control layer 1, head 2"
    with tab.page.expect_navigation(url="**/atlas.html#*"):
        tab.page.locator("article a[href^='atlas.html#open']").first.click()
    tab.page.wait_for_selector("html[data-ready]", state="attached")
    assert "L1 H2" in tab.page.locator("tr.open .opener").inner_text()


@pytest.mark.parametrize("tab", SCHEMES, indirect=True, ids=["light", "dark"])
def test_it_is_accessible(tab, pages):
    tab.open(pages / "heads.html")
    assert violations(tab) == []


@pytest.mark.parametrize("tab", [PHONE], indirect=True)
def test_it_fits_a_phone(tab, pages):
    tab.open(pages / "heads.html", "#sentence=1")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 360


def test_it_paints_at_once_and_prints(tab, pages, record_property):
    tab.open(pages / "heads.html")
    paint = tab.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    tab.page.evaluate("performance.clearMeasures()")
    for _ in range(6):
        tab.page.keyboard.press("j")
    times = tab.page.evaluate("performance.getEntriesByName('head').map(entry => entry.duration)")
    record_property("first paint, ms", round(paint))
    record_property("heads, ms", [round(time, 1) for time in times])
    assert paint < 1000
    assert sorted(times)[len(times) // 2] < 100, times
    assert len(tab.page.pdf(format="A4")) > 20_000
