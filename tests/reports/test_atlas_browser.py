"""The atlas in headless Chromium: what its search finds and how fast, its sheets, its history, its tables and print."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from fake_study import feature_atlas
from headless import Tab

from reports.atlas import write_atlas
from reports.tables import read_table

pytestmark = pytest.mark.browser

HEADER = "#features thead"


def said(tab: Tab) -> str:
    return tab.page.locator("#count").inner_text()


def counts(tab: Tab) -> list[int]:
    """The numbers of the line above the list: found, of all, most strongly."""
    text = said(tab)
    return [0] if text.startswith("No") else [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", text)]


def hit_values(tab: Tab) -> list[float]:
    cells = tab.page.locator("tr.feature .hit-value").all_inner_texts()
    return [float(cell.replace("−", "-")) for cell in cells]


# --- search: the naive way


def spans(tokens: list[str], query: str, is_part: bool) -> list[tuple[int, int]]:
    """(first, last) places of what the query finds in a context's tokens."""
    lower = [token.lower() for token in tokens]
    text, ends = "".join(lower), np.cumsum([len(token) for token in lower])
    starts = ends - [len(token) for token in lower]
    wanted = query.lower() if is_part else query.lower().strip()
    found = []
    if not is_part:
        found += [
            (i, i)
            for i, token in enumerate(lower)
            if token.strip() == wanted and (query[0] != " " or token.startswith(" "))
        ]
    for at in (match.start() for match in re.finditer(f"(?={re.escape(wanted)})", text)):
        end = at + len(wanted)
        first, last = int(np.searchsorted(ends, at, "right")), int(np.searchsorted(ends, end, "left"))
        if is_part:
            found.append((first, last))
            continue
        is_whole = not text[starts[first] : at].strip() and not text[end : ends[last]].strip()
        before, after = text[at - 1 : at] if at else "", text[end : end + 1]
        is_inside = (before.isalnum() and text[at].isalnum()) or (after.isalnum() and text[end - 1].isalnum())
        if first < last and is_whole and not is_inside and (query[0] != " " or before == " "):
            found.append((first, last))
    return found


def naive_hits(table, mode: str, query: str, is_part: bool) -> dict[int, float]:
    """Row -> value of its best hit."""
    best: dict[int, float] = {}
    for row, cells in enumerate(zip(table["top_contexts"], table["interval_contexts"], strict=True)):
        values = []
        for context in json.loads(cells[0]) + json.loads(cells[1]):
            for first, last in spans(context["tokens"], query, is_part):
                acts = [act for act in context["acts"][first : last + 1] if act > 0]
                values += [context["value"]] if mode == "context" else acts
        if mode in ("promotes", "suppresses"):
            pairs = json.loads(table["logit_promoted" if mode == "promotes" else "logit_suppressed"].iloc[row])
            values = [value for token, value in pairs if spans([token], query, is_part)]
        if values:
            best[row] = min(values) if mode == "suppresses" else max(values)
    return best


QUERIES = ("the", " the", "THE", "king", "he", "e", "zzzz", "of the", "'s")
QUERIES += ("</script>", "🦊", "العربية", "e\u0301", "\\")


@pytest.mark.parametrize("mode", ["fires", "context", "promotes", "suppresses"])
@pytest.mark.parametrize("is_part", [False, True], ids=["whole", "part"])
def test_search_finds_what_a_loop_finds(tab, pages, made_study, mode, is_part):
    table = read_table(made_study, "feature_atlas")
    tab.open(pages / "atlas.html", f"#state=all&mode={mode}{'&part=1' if is_part else ''}")
    n_found = 0
    for query in QUERIES:
        tab.page.locator("#query").fill(query)
        wanted = naive_hits(table, mode, query, is_part)
        n_found += len(wanted)
        assert counts(tab)[0] == len(wanted), query
        if not wanted:
            continue
        values = sorted(wanted.values(), reverse=mode != "suppresses")[:40]
        np.testing.assert_allclose(hit_values(tab), values, atol=6e-3, err_msg=query)
        if mode == "fires":
            largest = [max([c["value"] for c in json.loads(cell)], default=np.inf) for cell in table["top_contexts"]]
            assert counts(tab)[2] == sum(value == largest[row] for row, value in wanted.items()), query
        assert tab.page.locator("tr.feature").first.locator(".tok.hit").count() > 0, "the preview shows the hit"
    assert n_found > 10


def contexts_of(*texts: list[tuple[str, float]]) -> str:
    found = [
        {"tokens": [token for token, _ in text], "acts": [act for _, act in text], "value": max(act for _, act in text)}
        for text in texts
    ]
    return json.dumps(found)


@pytest.fixture
def words(tab, tmp_path) -> Tab:
    """Features that fire on Anne, whole, of two tokens, in other words; and beside her."""
    rows = [
        contexts_of([(" said", 1.0), (" Anne", 9.0)]),
        contexts_of([(" to", 5.0), (" An", 0.5), ("ne", 7.0), (".", 0.0)]),
        contexts_of([(" m", 1.0), ("ann", 3.0), ("er", 4.0)], [(" ch", 1.0), ("anne", 2.0), ("ls", 3.0)]),
        contexts_of([(" Anne", 0.0), (" Elliot", 6.0)]),
    ]
    table = feature_atlas(np.random.default_rng(0), ("solo",), 1, 1, len(rows), 2, 8, hostile=False, empty=True)
    table = table.assign(top_contexts=rows, interval_contexts="[]", dead=False, density=0.1, max_act=10.0)
    write_atlas({"feature_atlas": table}, tmp_path / "atlas.html")
    tab.open(tmp_path / "atlas.html")
    return tab


def names(tab: Tab) -> list[str]:
    return [text.split("#")[1] for text in tab.page.locator(".opener").all_inner_texts()]


def test_anne_is_not_manner(words):
    page = words.page
    page.locator("#query").fill("Anne")
    assert names(words) == ["0", "1", "2"]  # by activation on her: 9, 7; 2 on the token that "channels" holds whole
    assert said(words) == "3 of 4 features fire on it in a context kept here, 2 of them most strongly"
    assert page.locator("tr.feature").nth(1).locator(".tok.hit").all_inner_texts() == [" An", "ne"]
    page.locator("#query").fill(" anne")  # a space in front: words that begin so
    assert names(words) == ["0", "1"]
    page.locator("#query").fill("nn")
    assert counts(words) == [0]
    assert "parts of words" in said(words)
    page.locator("#query").fill('"ann"')
    assert names(words) == ["0", "1", "2"]
    page.locator("#query").fill("ann")
    assert names(words) == ["2"]  # a whole token
    page.locator("#part").check()
    assert names(words) == ["0", "1", "2"]
    page.locator("#part").uncheck()
    page.locator("#query").fill("Anne Elliot")
    assert names(words) == ["3"]
    page.locator("#query").fill("Anne")
    page.locator("#mode").select_option("context")
    assert names(words) == ["0", "1", "3", "2"]


@pytest.mark.slow
def test_a_search_takes_50_ms_from_key_to_frame(tab, tmp_path, record_property):
    """16,384 features of 10 contexts: from the key to what follows the next frame, the best of five presses each, for
    the machine does other things too; most queries within 50 ms."""
    table = feature_atlas(np.random.default_rng(0), ("a", "b"), 4, 8, 256, 10, 16, hostile=True, empty=False)
    assert len(table) == 16_384
    tab.open(write_atlas({"feature_atlas": table}, tmp_path / "atlas.html"))
    press = """([mode, query]) => new Promise(resolve => {
      const field = document.getElementById("query");
      document.getElementById("mode").value = mode;
      document.getElementById("mode").dispatchEvent(new Event("input", { bubbles: true }));
      field.value = ""; // a query that stands there already would not be searched again
      field.dispatchEvent(new Event("input", { bubbles: true }));
      requestAnimationFrame(() => setTimeout(() => {
        field.value = query;
        const start = performance.now();
        field.dispatchEvent(new Event("input", { bubbles: true }));
        requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
      }, 300));
    })"""
    queries = ("t", "th", "the", "king", "the king", " of the", "zzz", '"e"', '"the"', "captain")
    pairs = [(mode, query) for mode in ("fires", "context", "promotes") for query in queries]
    times = {pair: min(tab.page.evaluate(press, [*pair]) for _ in range(5)) for pair in pairs}
    ordered = sorted(times.values())
    record_property("key to frame, ms", {f"{mode} {q}": round(time, 1) for (mode, q), time in times.items()})
    assert ordered[len(ordered) // 2] < 50, times


# --- sheets


KEYS = ["janus-v3-control-nano|0|1|1|3", "janus-v3-adaptive-nano|0|0|2|5"]


def test_two_pinned_features_stand_side_by_side(tab, pages):
    tab.open(pages / "atlas.html", f"#state=all&open={KEYS[0]}")
    pinned = tab.page.locator("#pinned")
    assert not pinned.is_visible()
    tab.page.keyboard.press("p")
    assert pinned.locator(".card h2").all_inner_texts() == ["●control L1 H1 #3"]
    tab.page.evaluate("key => { location.hash += '&pin2=' + encodeURIComponent(key); }", KEYS[1])
    pinned.locator(".card").nth(1).wait_for()
    boxes = [card.bounding_box() for card in pinned.locator(".card").all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    tab.page.locator("#query").fill("the")
    assert pinned.locator(".card").count() == 2, "a search leaves them"
    pinned.get_by_text("Unpin").first.click()
    assert pinned.locator(".card h2").all_inner_texts() == ["◆adaptive L0 H2 #5"]
    tab.page.locator("button[type=reset]").click()
    assert pinned.is_visible()
    tab.page.go_back()
    tab.page.go_back()
    assert pinned.locator(".card").count() == 2


def test_bars_are_signed_and_to_scale(tab, pages, made_study):
    table = read_table(made_study, "feature_atlas")
    row = table.query("model == 'janus-v3-control-nano' and layer == 1 and head == 1").iloc[3]
    tab.open(pages / "atlas.html", f"#state=all&open={KEYS[0]}")
    card = tab.page.locator("tr.detail .card").first
    values = {name: [v for _, v in json.loads(row[name])] for name in ("logit_promoted", "logit_suppressed")}
    widest = max(abs(v) for own in values.values() for v in own)
    for place, own in enumerate(values.values()):
        bars = card.locator("section.logits").nth(place).locator(".bar")
        shares = bars.evaluate_all("all => all.map(bar => parseFloat(bar.firstChild.style.width) / 100)")
        np.testing.assert_allclose(shares, [abs(v) / widest for v in own], atol=1e-4)
        is_left = bars.evaluate_all("all => all.map(bar => bar.classList.contains('negative'))")
        assert is_left == [v < 0 for v in own]


def test_an_older_table_opens_without_bins_and_weaker_contexts(tab, tmp_path, made_study):
    table = read_table(made_study, "feature_atlas").drop(columns=["histogram", "interval_contexts"])
    row = table[~table["dead"]].iloc[0]
    key = f"{row['model']}|0|{row['layer']}|{row['head']}|{row['feature']}"
    tab.open(write_atlas({"feature_atlas": table}, tmp_path / "atlas.html"), f"#state=all&open={key}")
    card = tab.page.locator("tr.detail .card").first
    assert card.locator(".spread").count() == 0
    assert card.locator("ol.contexts").count() == 1
    tab.page.locator("#query").fill("the")
    assert counts(tab)[0] > 0


def test_a_weak_match_is_not_shown(tab, tmp_path, made_study):
    table = read_table(made_study, "feature_atlas")
    match = json.dumps(["janus-v3-adaptive-nano", 3, 1, 0.4999])
    table.loc[table["model"] == "janus-v3-control-nano", "match"] = match
    tab.open(write_atlas({"feature_atlas": table}, tmp_path / "atlas.html"), f"#state=all&open={KEYS[0]}")
    assert tab.page.locator("tr.detail .card").count() == 1
    text = tab.page.locator("tr.detail").inner_text()
    assert "No feature of adaptive in this layer correlates with this one by 0.5 or more" in text


# --- the history, links


def test_back_closes_what_was_opened_and_stays(tab, pages):
    tab.open(pages / "atlas.html")
    page = tab.page
    first = page.locator("#count").inner_text()
    page.locator("#query").press_sequentially("the")
    page.locator(".opener").nth(2).click()
    page.locator("#layer").select_option("1")
    assert page.locator("tr.detail").count() == 0
    page.go_back()
    assert page.locator("#layer").input_value() == ""
    assert page.locator("tr.detail").count() == 1
    page.go_back()
    assert page.locator("tr.detail").count() == 0
    assert page.locator("#query").input_value() == "the"
    page.go_back()  # what is typed in one go is one step
    assert (page.locator("#query").input_value(), page.locator("#count").inner_text()) == ("", first)
    page.go_forward()
    assert page.locator("#query").input_value() == "the"
    assert page.url.partition("#")[0] == (pages / "atlas.html").as_uri()


@pytest.mark.parametrize(
    ("fragment", "message"),
    [
        ("#open=nonsense|0|0|0|0", "open “nonsense|0|0|0|0”"),
        ("#model=gpt-5&layer=1", "model “gpt-5”"),
        ("#sort=__proto__&page=-3&state=x", "sort “__proto__”, page “-3”, state “x”"),
        ("#page=99999", "page “99999”"),
        ("#dmin=x&__proto__=1", "dmin “x”, __proto__ “1”"),
        (f"#pin1={'<b>' * 50}", "pin1 “<b>"),
    ],
)
def test_a_wrong_link_says_so(tab, pages, fragment, message):
    tab.open(pages / "atlas.html", fragment)
    warning = tab.page.locator("#warning")
    assert warning.inner_text().startswith("Not in this atlas, so left out of what the link asks for: ")
    assert message in warning.inner_text()
    assert warning.locator("*").count() == 0
    assert tab.page.locator("tr.feature").count() > 0
    tab.page.locator("#state").select_option("all")
    assert not warning.is_visible()


def test_the_skip_link_leaves_the_view(tab, pages):
    tab.open(pages / "atlas.html", "#layer=1&state=all")
    before = said(tab)
    tab.page.locator(".skip").focus()
    tab.page.keyboard.press("Enter")
    assert tab.page.url.endswith("#main")
    assert (said(tab), tab.page.locator("#warning").is_visible()) == (before, False)


# --- for the keyboard, the phone, the printer


def test_plots_have_tables_and_their_heads_open_by_keyboard(tab, pages, made_study):
    impacts = read_table(made_study, "ablation_results")
    tab.open(pages / "atlas.html")
    fold = tab.page.locator("#profile-table")
    fold.locator("summary").focus()
    tab.page.keyboard.press("Enter")
    rows = fold.locator("tbody tr")
    rows.first.wait_for()
    assert rows.count() == len(impacts)
    row = impacts.query("model == 'janus-v3-adaptive-nano' and layer == 1 and head == 2").iloc[0]
    mine = rows.filter(has_text="adaptive").filter(has_text="L1 H2")
    shown = mine.locator("td").last.inner_text()
    assert float(shown.split()[0].replace("−", "-")) == pytest.approx(row["impact_pct"], abs=0.0051)
    mine.locator("button").focus()
    tab.page.keyboard.press("Enter")
    assert {text.partition(" #")[0] for text in tab.page.locator(".opener").all_inner_texts()} == {"◆adaptive L1 H2"}
    fold = tab.page.locator("#histogram-table")
    fold.locator("summary").click()
    fold.locator("tbody tr").first.wait_for()
    cells = [int(text) for text in fold.locator("tbody td:last-child").all_inner_texts()]
    assert sum(cells) == tab.page.locator("tr.feature").count() == counts(tab)[0]


@pytest.mark.parametrize("tab", [{"viewport": {"width": 390, "height": 800}}], indirect=True)
def test_a_phone_shows_search_first_and_filters_when_asked(tab, pages):
    tab.open(pages / "atlas.html", f"#open={KEYS[0]}&state=all&pin1={KEYS[1]}")
    page = tab.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#query").bounding_box()["y"] < page.locator("#histogram").bounding_box()["y"]
    assert not page.locator("#layer").is_visible()
    page.locator("#more").click()
    assert page.locator("#layer").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_an_open_sheet_prints_alone(tab, pages):
    tab.open(pages / "atlas.html", f"#state=all&open={KEYS[0]}")
    tab.page.emulate_media(media="print")
    assert tab.page.locator("tr.feature:visible").count() == 1
    assert tab.page.locator("tr.detail .contexts").first.is_visible()
    tab.page.emulate_media(media="screen")
    tab.page.keyboard.press("Escape")
    tab.page.emulate_media(media="print")
    assert tab.page.locator("tr.feature:visible").count() == 40
