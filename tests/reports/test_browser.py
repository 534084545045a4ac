"""Both pages in headless Chromium, opened from disk: what they do, what they must never do, how fast."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_study import HOSTILE, clean, feature_atlas, write_fake_study
from headless import Tab

from reports.atlas import write_atlas
from reports.heads import write_heads
from reports.page import write_report
from reports.tables import read_contracts, read_csv, read_table, write_table
from workbench.study.effects import write_effects

pytestmark = pytest.mark.browser

# letters that are shown as they are; capitals and signs also name what cannot be seen
WORD_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz</>'\"=;{}$")


def count(tab: Tab) -> int:
    text = tab.page.locator("#count").inner_text()
    return 0 if text.startswith("No") else int(text.split()[0].replace(",", ""))


def keys(tab: Tab) -> list[str]:
    return [text.strip() for text in tab.page.locator("tr.feature .opener").all_inner_texts()]


# --- the report


@pytest.mark.parametrize("tab", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_report_draws_every_figure(tab, pages):
    tab.open(pages / "report.html")
    plots = tab.page.locator(".plot")
    assert plots.count() > 15
    for plot in plots.all():
        assert plot.get_attribute("data-drawn") == "yes"
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 1280
    assert "One seed; both intervals overlap </script>" in tab.page.locator("main").text_content()  # folded


@pytest.mark.parametrize("tab", [{"viewport": {"width": 360, "height": 780}}], indirect=True)
def test_report_fits_a_phone(tab, pages):
    tab.open(pages / "report.html")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 360


def test_report_hands_out_its_tables(tab, pages, made_study):
    tab.open(pages / "report.html")
    button = tab.page.locator("#topology button.source[data-table=topology_stats]")
    button.focus()
    with tab.page.expect_download() as download:
        tab.page.keyboard.press("Enter")
    assert download.value.suggested_filename == "topology_stats.csv"
    assert Path(download.value.path()).read_bytes() == (made_study / "topology_stats.csv").read_bytes()
    atlas = tab.page.locator("#sources ~ * button.source[data-table=feature_atlas]")
    assert atlas.is_disabled()


def test_report_switches_variants_and_themes(tab, pages):
    tab.open(pages / "report.html")
    figure = tab.page.locator("#heatmaps")
    assert figure.locator(".plot:visible").get_attribute("data-variant") == "0"
    figure.locator("input[value='2']").check()
    assert figure.locator(".plot:visible").get_attribute("data-variant") == "2"
    paper = "getComputedStyle(document.body).backgroundColor"
    before = tab.page.evaluate(paper)
    tab.page.locator("#theme").click()  # auto -> light
    tab.page.locator("#theme").click()  # light -> dark
    assert tab.page.evaluate(paper) != before
    assert tab.page.locator("#l0 .xtick text").first.evaluate("node => node.style.fill") == "rgb(154, 164, 175)"


def test_a_long_list_of_variants_is_drawn_on_demand(tab, made_study, tmp_path):
    log = read_table(made_study, "train_log")
    log = log.assign(**{f"rank_{name}.0": 1.0 for name in "abcdefg"})
    write_table(log, tmp_path, "train_log")
    write_effects(tmp_path)
    tab.open(write_report(tmp_path))
    figure = tab.page.locator("#monitors")
    assert figure.locator(".plot[data-drawn]").count() == 1
    figure.locator("select").select_option("7")
    figure.locator(".plot[data-variant='7'][data-drawn]").wait_for()
    assert figure.locator(".plot:visible").get_attribute("data-variant") == "7"


def test_continuations_are_read_side_by_side(tab, pages, made_study):
    lines = (made_study / "continuations.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    tab.open(pages / "report.html")
    reader = tab.page.locator("#continuations-reader")
    assert reader.locator("h3").all_inner_texts() == ["control", "adaptive"]
    assert reader.locator(".prompt option").count() == 3
    for prompt, sample in ((0, 0), (1, 1), (2, 0)):
        reader.locator(".prompt").select_option(index=prompt)
        reader.locator(".sample").select_option(index=sample)
        own = records[2 * prompt + sample]
        shown = reader.locator("article p").first
        assert f"janus-v3-control-nano 0 {sample} " in shown.inner_text()
        assert shown.locator("span").count() == shown.locator("*").count() == 3  # no text became an element
        plain = "".join(c for c in own["prompt"] + own["text"] if c in WORD_LETTERS)
        assert plain in "".join(c for c in shown.text_content() if c in WORD_LETTERS)
    assert "U+202E" in reader.inner_text()
    assert "\u202e" not in reader.text_content()


def test_report_prints(tab, pages):
    tab.open(pages / "report.html")
    assert len(tab.page.pdf(format="A4")) > 50_000


# --- the atlas


def test_atlas_lists_what_is_alive(tab, pages, made_study):
    table = read_table(made_study, "feature_atlas")
    tab.open(pages / "atlas.html")
    assert count(tab) == int((~table["dead"]).sum())
    tab.page.locator("#state").select_option("all")
    assert count(tab) == len(table)
    tab.page.locator("#state").select_option("dead")
    assert count(tab) == int(table["dead"].sum())


def test_atlas_sorts_both_ways(tab, pages):
    tab.open(pages / "atlas.html", "#state=all")
    header = tab.page.locator("[data-sort=density]")

    def shown() -> list[float]:
        cells = tab.page.locator("tr.feature td:nth-child(2)").all_inner_texts()
        return [float(cell.replace("−", "-").removesuffix("%")) for cell in cells]

    header.click()
    falling = shown()
    assert falling == sorted(falling, reverse=True)
    assert header.locator("..").get_attribute("aria-sort") == "descending"
    header.click()
    rising = shown()
    assert rising == sorted(rising)
    assert header.locator("..").get_attribute("aria-sort") == "ascending"


def test_atlas_filters_by_head_and_density(tab, pages, made_study):
    table = read_table(made_study, "feature_atlas")
    tab.open(pages / "atlas.html")
    tab.page.locator("#model").select_option("janus-v3-adaptive-nano")
    tab.page.locator("#layer").select_option("1")
    tab.page.locator("#head").select_option("2")
    tab.page.locator("#dmin").fill("-2.5")
    tab.page.locator("#dmax").fill("-1.5")
    kept = table[(table["model"] == "janus-v3-adaptive-nano") & (table["layer"] == 1) & (table["head"] == 2)]
    kept = kept[~kept["dead"] & kept["density"].between(10**-2.5, 10**-1.5)]
    assert keys(tab) == [f"◆adaptive L1 H2 #{feature}" for feature in kept["feature"]]
    tab.page.locator("button[type=reset]").click()
    assert count(tab) == int((~table["dead"]).sum())


def test_atlas_links_restore_the_view(tab, pages):
    tab.open(pages / "atlas.html")
    tab.page.locator("#query").fill("the")
    tab.page.locator("#layer").select_option("1")
    tab.page.locator("[data-sort=max_act]").click()
    tab.page.locator(".opener").nth(3).click()
    before = (keys(tab), tab.page.locator("tr.detail").inner_text(), count(tab))
    address = tab.page.url
    tab.page.goto("about:blank")
    tab.page.goto(address)
    tab.page.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
    assert (keys(tab), tab.page.locator("tr.detail").inner_text(), count(tab)) == before
    assert tab.page.locator("#query").input_value() == "the"


@pytest.mark.parametrize(
    "fragment", ["#open=nonsense", "#sort=__proto__&page=-3&state=x", "#page=99999", "#query=%00%E0%A4%A", "#dmin=x"]
)
def test_atlas_survives_broken_links(tab, pages, fragment):
    tab.open(pages / "atlas.html", fragment)
    assert tab.page.locator("tr.feature").count() > 0 or "query" in fragment


def test_a_link_to_a_filtered_feature_opens_it(tab, pages):
    tab.open(pages / "atlas.html", "#query=zzzz&open=janus-v3-control-nano|0|1|1|3")
    assert tab.page.locator("tr.open .opener").inner_text().endswith("L1 H1 #3")


def test_atlas_shows_the_match_beside_the_feature(tab, pages, made_study):
    table = read_table(made_study, "feature_atlas")
    alive = table[(table["model"] == "janus-v3-control-nano") & ~table["dead"]]
    matches = alive["match"].map(json.loads)
    row = alive[[match[3] >= 0.5 for match in matches]].iloc[0]
    _, head, feature, correlation = json.loads(row["match"])
    key = f"janus-v3-control-nano|0|{row['layer']}|{row['head']}|{row['feature']}"
    tab.open(pages / "atlas.html", f"#open={key}")
    cards = tab.page.locator("tr.detail .card")
    assert cards.count() == 2
    title = cards.nth(1).locator("h2").inner_text()
    assert title.startswith(f"Best match in this layer, correlation {correlation:.2f}:")
    assert title.endswith(f"H{head} #{feature}")
    promoted = json.loads(row["logit_promoted"])
    assert cards.nth(0).locator("section.logits").nth(0).locator("li").count() == len(promoted)
    cards.nth(1).get_by_text("Open this feature").click()
    assert tab.page.locator("tr.open .opener").inner_text().endswith(f"#{feature}")


def test_a_card_says_what_removing_the_head_costs_at_the_features_seed(tab, tmp_path):
    write_fake_study(tmp_path, models=("solo",), seeds=(0, 1), n_layers=1, n_heads=2, d_sae=6, hostile=False)
    impacts = read_table(tmp_path, "ablation_results").set_index(["seed", "layer", "head"])["impact_pct"]
    table = read_table(tmp_path, "feature_atlas")
    write_table(pd.concat([table, table.assign(seed=1)]), tmp_path, "feature_atlas")
    write_atlas(tmp_path, tmp_path / "atlas.html")
    shown = {}
    for seed, head in itertools.product((0, 1), (0, 1)):
        tab.open(tmp_path / "atlas.html", f"#open=solo|{seed}|0|{head}|3&state=all")
        fact = tab.page.locator("tr.detail .facts li", has_text="removing this head").inner_text()
        shown[seed, 0, head] = float(fact.split()[3].replace("−", "-"))
        tab.page.goto("about:blank")
    assert shown == {key: pytest.approx(impacts[key], abs=0.006) for key in shown}
    assert len(set(shown.values())) == 4


def test_a_feature_of_first_positions_alone_is_not_called_silent(tab, tmp_path):
    table = feature_atlas(np.random.default_rng(0), ("solo",), 1, 1, 3, 2, 8, hostile=False, empty=True)
    table.loc[1, ["density", "mean_act"]] = 0.1, 2.0
    table["dead"] = [True, False, True]
    write_atlas({"feature_atlas": table}, tmp_path / "atlas.html")
    write_atlas({"feature_atlas": table.assign(n_tokens=65_024)}, tmp_path / "counted.html")
    words = [
        ("atlas", 0, "on none of the tokens of this atlas"),
        ("atlas", 1, "at the first position of sequences alone"),
        ("counted", 0, "on none of the 65,024 held-out tokens of this atlas"),
    ]
    for name, feature, where in words:
        tab.open(tmp_path / f"{name}.html", f"#state=all&open=solo|0|0|0|{feature}")
        assert where in tab.page.locator("tr.detail .nothing").inner_text()
        tab.page.goto("about:blank")


def test_a_token_shows_the_activation_that_its_table_has(tab, tmp_path):
    """More than the largest, which leaves out position 0; none at a position that is not measured; and no −0."""
    contexts = [
        {"tokens": [" a", " b", " c"], "acts": [6.8912, 0.0, 5.2349], "peak": 2, "value": 5.2349},
        {"tokens": [" d", " e", " f"], "acts": [None, 0.0151, 2.0], "peak": 2, "value": 2.0},
    ]
    table = feature_atlas(np.random.default_rng(0), ("solo",), 1, 1, 2, 1, 4, hostile=False, empty=False).iloc[:1]
    table = table.assign(max_act=5.234912, density=0.1, dead=False, top_contexts=json.dumps(contexts))
    logits = json.dumps([[" x", 0.3], [" y", -0.0004]])
    table = table.assign(logit_promoted=logits, neighbours="[[1, -0.001]]", match="[]", interval_contexts="[]")
    table = pd.concat([table, table.assign(feature=1)])
    rows = pd.DataFrame({"model": "solo", "seed": 0, "layer": 0, "head": 0, "kind": "zero"}, index=[0])
    rows = rows.assign(impact_pct=-0.001, ci_low=-0.004, ci_high=0.021)
    write_atlas({"feature_atlas": table, "ablation_results": rows}, tmp_path / "atlas.html")
    tab.open(tmp_path / "atlas.html", "#open=solo|0|0|0|0")
    titles = tab.page.locator("tr.detail .contexts .tok[title]").evaluate_all(
        "all => all.map(node => [node.textContent, node.title])"
    )
    assert titles == [
        [" a", "6.89"], [" c", "5.23"],
        [" d", "not measured: position 0 or a special token"], [" e", "0.02"], [" f", "2.00"],
    ]  # fmt: skip
    assert tab.page.locator("tr.detail .tok.peak").all_inner_texts() == [" c", " f"]
    assert tab.page.locator("#stronger").is_visible()
    text = tab.page.locator("tr.detail").inner_text()
    assert "removing this head 0.00 % [0.00, 0.02]" in text
    assert tab.page.locator("tr.detail .logits .num").all_inner_texts()[:2] == ["0.300", "0.000"]
    assert "#1 · 0.00" in text
    assert "−0.0" not in text


def test_atlas_profile_leads_to_a_head(tab, pages):
    tab.open(pages / "atlas.html")
    plot = tab.page.locator("#profile-plot")
    plot.evaluate("plot => plot.emit('plotly_click', { points: [{ customdata: plot.data[1].customdata[2] }] })")
    target = plot.evaluate("plot => plot.data[1].customdata[2]")
    assert target[0] == "adaptive"
    assert all(text.startswith(f"◆adaptive L{target[1]} H{target[2]} ") for text in keys(tab))


def test_atlas_obeys_the_keyboard(tab, pages):
    tab.open(pages / "atlas.html")
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("the")
    assert tab.page.locator("#query").input_value() == "the"
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.press("j")
    first = tab.page.locator("tr.open .opener").inner_text()
    tab.page.keyboard.press("j")
    assert tab.page.locator("tr.open .opener").inner_text() != first
    tab.page.keyboard.press("k")
    assert tab.page.locator("tr.open .opener").inner_text() == first
    tab.page.keyboard.press("Escape")
    assert tab.page.locator("tr.detail").count() == 0
    tab.page.keyboard.press("]")
    assert tab.page.locator("#page").inner_text().startswith("2 /")
    tab.page.locator(".opener").first.focus()
    tab.page.keyboard.press("Enter")
    assert tab.page.locator("tr.detail").count() == 1


def test_no_token_becomes_markup(tab, pages):
    """Every page of the list and every sheet: elements other than ours never appear, and nothing runs."""
    tab.open(pages / "atlas.html", "#state=all&mode=context&part=1&query=%3C")
    assert count(tab) > 20
    tags = "() => [...new Set([...document.querySelectorAll('#features *')].map(node => node.localName))].sort()"
    ours = {"thead", "tbody", "tr", "th", "td", "button", "span", "b", "div", "article", "h2", "h3", "ul", "ol", "li"}
    ours |= {"section", "p", "i", "small", "details", "summary", "table", "svg", "rect", "title", "line", "text"}
    while True:
        for opener in tab.page.locator(".opener").all()[:12]:
            opener.click()
            assert set(tab.page.evaluate(tags)) <= ours
        if tab.page.locator("#next").is_disabled():
            break
        tab.page.locator("#next").click()
    assert tab.page.evaluate("window.pwned") is None


def test_invisible_characters_are_named(tab, pages):
    tab.open(pages / "atlas.html", "#state=all&mode=context&part=1&query=evil")
    tab.page.locator(".opener").first.click()
    text = tab.page.locator("tr.detail").inner_text()
    assert "U+202E" in text
    assert "\u202e" not in text


@pytest.mark.parametrize("tab", [{"viewport": {"width": 360, "height": 780}}], indirect=True)
def test_atlas_fits_a_phone(tab, pages):
    tab.open(pages / "atlas.html")
    tab.page.locator(".opener").first.click()
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.slow
def test_a_large_atlas_paints_and_searches_in_time(browser, tab, tmp_path, record_property):
    """50 heads of 512 features with 10 contexts: first paint within 1 s, a search within 50 ms (median of many)."""
    rng = np.random.default_rng(0)
    table = feature_atlas(rng, ("control", "adaptive"), 5, 5, 512, 10, 16, hostile=True, empty=False)
    path = write_atlas({"feature_atlas": table}, tmp_path / "atlas.html")
    assert path.stat().st_size < 12_000_000
    tab.open(path)
    paint = tab.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    tab.page.evaluate("performance.clearMeasures()")
    for query in ("k", "ki", "king", "the", "the king", "e", "zzz", " of the", "#5", "captain"):
        tab.page.locator("#query").fill(query)
        tab.page.wait_for_timeout(200)
    times = sorted(tab.page.evaluate("performance.getEntriesByName('search').map(entry => entry.duration)"))
    record_property("first paint, ms", round(paint))
    record_property("searches, ms", [round(time, 1) for time in times])
    assert paint < 1000
    assert times[len(times) // 2] < 50, times


# --- accessibility


def violations(tab: Tab) -> list[str]:
    """What axe-core finds wrong with the page as it stands, a line each."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(tab.page).response["violations"]
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]


SCHEMES = [{"color_scheme": "light"}, {"color_scheme": "dark"}]


@pytest.mark.parametrize("tab", SCHEMES, indirect=True, ids=["light", "dark"])
def test_the_report_is_accessible(tab, pages):
    tab.open(pages / "report.html")
    assert violations(tab) == []


@pytest.mark.parametrize("tab", SCHEMES, indirect=True, ids=["light", "dark"])
def test_the_atlas_is_accessible(tab, pages):
    tab.open(pages / "atlas.html")
    tab.page.locator(".opener").first.click()
    assert violations(tab) == []


def test_axe_sees_what_is_wrong(tab, tmp_path):
    """The check itself: a picture without a text and grey on grey."""
    (tmp_path / "bad.html").write_text(
        "<!doctype html><html data-ready><title>x</title><main><h1>x</h1><img src='data:,'>"
        "<p style='color:#999;background:#aaa'>grey</p></main></html>"
    )
    tab.open(tmp_path / "bad.html")
    assert {line.partition(":")[0] for line in violations(tab)} >= {"image-alt", "color-contrast", "html-has-lang"}


# --- hostile strings in every cell that holds text


def hostile_strings() -> list[str]:
    """At least two hundred strings that try to become markup, script, formula or layout."""
    run = "window.pwned=1"
    handlers = ("onerror", "onload", "onclick", "onfocus", "onmouseover", "ontoggle", "onanimationstart", "onbegin")
    tags = ("img src=x", "svg", "body", "details open", "video src=x", "iframe", "input autofocus", "style", "marquee")
    made = [f"<{tag} {handler}={run}>" for tag in tags for handler in handlers]
    made += [f"<{tag.upper().replace(' ', '/')}/{handler.title()}\t=\n{run}//" for tag in tags for handler in handlers]
    made += [f"&lt;{tag} {handler}={run}&gt;" for tag in tags for handler in handlers[:3]]
    made += [f'" {handler}="{run}' for handler in handlers] + [f"' {handler}='{run}" for handler in handlers]
    made += [f"{scheme}:{run}" for scheme in ("javascript", "JaVaScRiPt", "data:text/html,<script>", "vbscript")]
    made += [f"<a href='javascript:{run}'>x</a>", f"</script><script>{run}</script>", f"]]><script>{run}</script>"]
    made += [f"{{{{constructor.constructor('{run}')()}}}}", f"{{% raw %}}{run}", f"${{{run}}}", f"#{{{run}}}"]
    made += ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("javascript:x")', "%{customdata}", "%{x:.3f}<extra>", "$x^2$"]
    return list(dict.fromkeys([*made, *HOSTILE]))


def spoil(study: Path, out: Path, strings: list[str]) -> Path:
    """A copy of a study whose texts are all among `strings`, but for those that tell the code what a row is."""
    shutil.copytree(study, out, ignore=shutil.ignore_patterns("*.html"))
    places = itertools.count()
    named: dict[tuple[str, str], str] = {}

    def hostile(kind: str, value: str) -> str:
        """The same text becomes the same string everywhere, so that models and sets stay what they are."""
        if (kind, value) not in named:
            named[kind, value] = f"{strings[next(places) % len(strings)]}{len(named)}"
        return named[kind, value]

    for path in sorted(out.glob("*.csv")):
        table, contract = read_csv(path), read_contracts(out)[path.stem]
        for column in {own for own in table.columns if contract.kind(own) == "text"} - JSON_COLUMNS:
            kind = "model" if column.startswith("model") else column
            values = [
                value if (column, value) in KNOWN_WORDS else clean(hostile(kind, value)) for value in table[column]
            ]
            table[column] = values
        write_table(table, out, path.stem)
    lines = [json.loads(line) for line in (out / "continuations.jsonl").read_text(encoding="utf-8").splitlines()]
    records = [record | {"model": clean(hostile("model", record["model"]))} for record in lines]
    texts = itertools.cycle(clean(text) for text in strings)
    records = [record | {"text": next(texts), "kind": next(texts)} for record in records]
    (out / "continuations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    record = json.loads((out / "study.json").read_text())
    models = [
        model | {"name": clean(hostile("model", model["name"])), "recipe": next(texts)} for model in record["models"]
    ]
    record |= {"models": models, "notes": [next(texts) for _ in strings], "roles": {}}
    record |= {key: next(texts) for key in ("title", "command", "corpus", "device", "created")}
    (out / "study.json").write_text(json.dumps(record))
    return out


# texts that name a kind of row: another one in their place would only leave a figure out
KINDS = {
    "basis": ("z", "pattern", "residual"), "kind": ("zero",), "dictionary": ("trained", "random", "shuffled"),
    "topology": ("ordinal", "cyclic"), "part": ("attention", "mlp"), "log10_density_bin": (), "name": (),
    "measure": ("trajectory_consistency", "lag_decay", "gini", "induction", "local_mass"),
    "matrix": ("W_Q", "W_O"), "source_table": (),
}  # fmt: skip
KNOWN_WORDS = frozenset((column, value) for column, values in KINDS.items() for value in values)
JSON_COLUMNS = frozenset(
    (
        *("top_contexts", "interval_contexts", "histogram", "logit_promoted", "logit_suppressed", "neighbours"),
        *("match", "log10_density_bin", "weights", "tokens", "ids"),
    )
)


def test_no_text_of_any_table_becomes_markup_or_script(tab, made_study, tmp_path, record_property):
    """Two models, two layers, every table: each text another hostile string; both pages render and nothing runs."""
    strings = hostile_strings()
    assert len(strings) >= 200
    study = spoil(made_study, tmp_path / "spoilt", strings)
    sources = {"report": write_report(study), "atlas": write_atlas(study, study / "atlas.html")}
    sources["heads"] = write_heads(study)
    for name, path in sources.items():
        tab.open(path)
        if name == "report":
            assert all(plot.get_attribute("data-drawn") == "yes" for plot in tab.page.locator(".plot:visible").all())
            assert tab.page.locator("#topology table.grid").count() > 0
            for option in range(tab.page.locator(".prompt option").count()):
                tab.page.locator(".prompt").select_option(index=option)
        elif name == "heads":
            assert tab.page.locator(".card canvas").count() > 0
            for option in range(tab.page.locator("#sentence option").count()):
                tab.page.locator("#sentence").select_option(index=option)
        else:
            tab.page.locator("#state").select_option("all")
            for opener in tab.page.locator(".opener").all()[:12]:
                opener.click()
        scripts = tab.page.locator("script:not([type='text/plain']):not([type=module]):not(#early)").count()
        assert scripts == 0, "an element that a text made"
        assert tab.page.locator("img, iframe, video, marquee, [onerror], [onclick], [onload]").count() == 0
        assert tab.page.locator("a[href^='javascript' i]").count() == 0
        tab.check()
    # a row of the fault suite's table, which runs this test too
    record_property("fault", ("security", "texts that try to become script on a page", len(strings), len(strings)))
