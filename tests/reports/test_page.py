"""report.html: complete, the same every time, safe, and honest about what a study lacks. No browser needed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re

import pandas as pd
import pytest
from fake_study import write_fake_study

from reports.ledger import ledger_groups
from reports.page import REFERENCE, SECTIONS, Shown, duration, name_panels, show_section, write_report
from reports.study import read_study
from reports.tables import MADE, read_csv
from workbench.study.effects import write_effects


@pytest.fixture(scope="module")
def page(made_study, tmp_path_factory) -> str:
    return write_report(made_study, tmp_path_factory.mktemp("out") / "report.html").read_text(encoding="utf-8")


def visible(page: str) -> str:
    """The page's text, without scripts, styles and packed data, entities resolved."""
    return html.unescape(re.sub(r"<[^>]*>", " ", re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)))


def unpack(page: str, identity: str) -> bytes:
    match = re.search(rf'<script type="text/plain" id="{re.escape(identity)}">([^<]*)</script>', page)
    assert match, identity
    return gzip.decompress(base64.b64decode(match[1]))


def test_the_papers_tables_and_figures_come_first_and_in_order(page):
    captions = re.findall(r"<strong>((?:Table|Figure) \d+)\.", page)
    assert captions[:7] == ["Table 1", "Figure 1", "Table 2", "Figure 2", "Figure 3", "Table 3", "Figure 4"]
    tables = [int(caption.split()[1]) for caption in captions if caption.startswith("Table")]
    figures = [int(caption.split()[1]) for caption in captions if caption.startswith("Figure")]
    assert tables == list(range(1, len(tables) + 1))
    assert figures == list(range(1, len(figures) + 1))


def test_every_figure_states_seeds_and_source(page):
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", page, flags=re.DOTALL):
        text = visible(caption)
        assert re.search(r"eed 0|pc_cosine\.csv|n = [\d to]+ seeds", text), text
        assert ".csv" in text


def test_two_seeds_are_said_to_be_drawn_as_they_are(tmp_path):
    study = read_study(write_fake_study(tmp_path, n_layers=2, n_heads=3, seeds=(0, 1), atlas=False, later=True))
    payload: dict = {}
    shown = [item for section in SECTIONS for item in show_section(study, section, {"Table": 0, "Figure": 0}, payload)]
    said = {item.panel.key: "faint mark" in item.facts for item in shown if "their mean" in item.facts}
    assert len(said) >= 15
    for key, is_said in said.items():
        marks = [trace.get("marker", {}) for figure in payload[key] for trace in figure["data"]]
        assert any(own.get("size") == 4 and own.get("opacity") == 0.5 for own in marks) == is_said, key


def test_a_panel_calls_another_by_the_number_that_it_has_on_this_page(made_study, study_copy, tmp_path):
    panels = {panel.key: panel for section in SECTIONS for panel in section.panels}
    referring = {panel.key: REFERENCE.findall(panel.read + panel.detail) for panel in panels.values()}
    assert {name for names in referring.values() for name in names} <= set(panels)
    assert referring["l0"] == ["sae-health"]

    def said(directory) -> tuple[str, str]:
        """The number of the figure of the SAEs' health, and what the figure of l0 calls it."""
        page = write_report(directory, tmp_path / "report.html").read_text(encoding="utf-8")
        title = r"(Figure \d+)\. Are the SAEs’ features features"
        own = re.search(title, visible(page))
        return own[1] if own else "", re.search(r"only where FVU \(([^)]*)\) is no higher", visible(page))[1]

    number, called = said(study_copy)
    assert number == called != ""
    for name in ("topology_stats", "head_cosines"):  # figures in front of it
        (study_copy / f"{name}.csv").unlink()
    fewer, called = said(study_copy)
    assert fewer == called != number
    read_csv(study_copy / "sae_training_results.csv").drop(columns="fvu").to_csv(
        study_copy / "sae_training_results.csv", index=False
    )
    number, called = said(study_copy)
    assert number == called  # not drawn, but there with its reason


def test_a_panel_that_was_left_out_is_called_by_no_number():
    panel = next(panel for section in SECTIONS for panel in section.panels if panel.key == "l0")
    shown = Shown(panel, "Figure 2", (), (), None, (), "", ())
    assert "only where FVU (not drawn here) is no" in name_panels(shown, {"l0": "Figure 2"}).panel.read
    assert "only where FVU (Figure 7) is no" in name_panels(shown, {"sae-health": "Figure 7"}).panel.read


def test_a_study_of_earlier_versions_says_what_it_lacks(study_copy):
    for name in MADE:
        (study_copy / f"{name}.csv").unlink(missing_ok=True)  # what is against another study is not made of one
    text = " ".join(visible(write_report(study_copy).read_text(encoding="utf-8")).split())
    assert text.count("Not drawn. seed_means.csv is not in this study.") > 5
    assert "Cosine between heads, layer by layer." in text  # what needs no mean is drawn


def test_no_caption_names_another_by_a_number_that_another_study_would_change():
    panels = [panel for section in SECTIONS for panel in section.panels]
    assert [panel.key for panel in panels if re.search(r"(Figure|Table) \d", panel.read + panel.detail)] == []


def test_no_caption_names_a_colour_that_the_other_theme_lacks():
    """The strong end of a scale is dark on a light page and light on a dark one."""
    panels = [panel for section in SECTIONS for panel in section.panels]
    false = re.compile(r"\b(dark|darker|light|lighter|pale|paler|bright|brighter|black|white)\b", re.IGNORECASE)
    assert [panel.key for panel in panels if false.search(f"{panel.read} {panel.detail}")] == []


def test_the_ledger_comes_first_in_words_marks_and_links(page):
    text = " ".join(visible(page).split())
    main = page[page.index("<main") :]
    assert main.index('id="ledger"') < main.index('id="topology"')
    assert re.search(r"1 ✓ reproduced 1 ↗ same direction 1 ○ not seen 1 ↺ reversed 1 – not measured", text)
    row = re.search(r'<tr id="claim-janus-correlation">(.*?)</tr>', page, flags=re.DOTALL)[1]
    words = " ".join(visible(row).split())
    assert "−60.3 % at layer 9" in words
    assert "[−97.0, −92.0]" in words
    assert "3 seeds interval over seeds, paired" in words
    assert "topology_stats.csv rows layer=3 basis=z · Table 1" in words
    assert 'href="#topology"' in row
    assert 'data-table="topology_stats"' in row
    assert "[+0.020, +0.180]" in text  # a difference is given as it is
    assert "1 claim not measured in this study" in text
    assert "<script>window.pwned" not in page


def test_the_ledger_counts_what_holds_of_each_paper(page, study_copy):
    papers = re.search(r'<table class="findings" id="papers".*?</table>', page, re.DOTALL)
    assert papers
    held = re.findall(r"\d+ of \d+ hold; \d+ measured", papers[0])
    assert held == ["1 of 3 hold; 3 measured", "1 of 2 hold; 1 measured"]
    assert papers[0].count('class="mark"') == 5
    rows = [("a", "not defined"), ("a", "reproduced"), ("a", "same direction"), ("b", "full size only")]
    lines = ["claim,published,measured,verdict,group", *(f"x,1,–,{verdict},{group}" for group, verdict in rows)]
    (study_copy / "claims.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    first, second = ledger_groups(read_study(study_copy))
    assert (first.held, second.held) == ("2 of 3 hold; 2 measured", "0 of 1 hold; 1 measured")
    assert [row["verdict"] for row in first.unmeasured] == ["not defined"]
    assert [(item["verdict"], item["count"]) for item in first.counts] == [
        ("reproduced", "1"), ("same direction", "1"), ("not defined", "1")
    ]  # fmt: skip


def test_a_ledger_that_lacks_columns_says_which(study_copy):
    (study_copy / "claims.csv").write_text("claim,published\nx,y\n")
    text = " ".join(visible(write_report(study_copy).read_text(encoding="utf-8")).split())
    assert "No ledger. claims.csv lacks the columns measured, verdict." in text


def test_figures_carry_the_numbers_of_the_tables(page, made_study):
    figures = json.loads(unpack(page, "page-data"))["figures"]
    df = read_csv(made_study / "topology_stats.csv")
    wanted = df[(df["basis"] == "z") & (df["model"] == "janus-v3-control-nano")]["mean_cos"]
    trace = figures["redundancy"][0]["data"][0]
    assert trace["name"] == "control"
    assert trace["y"] == pytest.approx(wanted.tolist(), rel=1e-5)  # six significant digits


def test_carried_tables_are_the_files_byte_for_byte(page, made_study):
    for path in made_study.glob("*.csv"):
        if path.stem != "feature_atlas":
            assert unpack(page, f"csv-{path.stem}") == path.read_bytes(), path
    assert "csv-feature_atlas" not in page


def test_only_the_pages_own_scripts_may_run(page):
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    sources = re.search(r"script-src ([^;]*)", policy)[1].split()
    opened = ('<script id="early">', '<script type="module">')
    scripts = [re.search(f"{start}(.*?)</script>", page, flags=re.DOTALL)[1] for start in opened]
    scripts.append(unpack(page, "plotly-source").decode("utf-8"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert sources == [f"'sha256-{digest}'" for digest in hashes]
    assert not re.search(r"\son\w+=", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_the_page_names_no_address_outside_itself(page):
    assert not re.search(
        r"""(?:src|href)=["'](?!#|data:,|atlas\.html|heads\.html)""",
        re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL),
    )


def test_the_page_is_small_and_the_same_every_time(page, made_study, tmp_path):
    again = write_report(made_study, tmp_path / "again.html").read_bytes()
    assert again == page.encode("utf-8")
    assert len(again) < 6_000_000


def test_by_default_the_page_lies_in_the_study(study_copy):
    assert write_report(str(study_copy)) == study_copy / "report.html"


def test_a_missing_table_costs_its_figures_only(study_copy):
    (study_copy / "head_cosines.csv").unlink()
    text = visible(write_report(study_copy).read_text(encoding="utf-8"))
    assert "Not drawn. head_cosines.csv is not in this study." in " ".join(text.split())
    assert text.count("Not drawn.") == 1
    absent = text.partition("Not measured in this study, so not shown: ")[2].partition(".")[0].split("; ")
    assert {"Head entropies", "Continuations side by side", "Measures of sampled text"} <= set(absent)
    assert "Figure 2" in text


def test_a_missing_column_is_named(study_copy):
    path = study_copy / "sae_training_results.csv"
    read_csv(path).drop(columns=["fvu"]).to_csv(path, index=False)
    text = " ".join(visible(write_report(study_copy).read_text(encoding="utf-8")).split())
    assert text.count("sae_training_results.csv lacks the column fvu.") == 2  # Table 2 and the health figure
    assert "L0, active features per token, by layer." in text


def test_each_table_can_be_the_only_one(made_study, tmp_path):
    for path in sorted(made_study.glob("*.csv")):
        if path.stem == "head_cosines":  # the slowest to draw, and drawn by every other test
            continue
        directory = tmp_path / path.stem
        directory.mkdir()
        (directory / path.name).write_bytes(path.read_bytes())
        assert write_report(directory).stat().st_size > 10_000, path
        if path.stem not in MADE:
            write_effects(directory)
            assert write_report(directory).stat().st_size > 10_000, path


def test_tables_without_rows_are_said_to_be_empty(study_copy):
    for path in study_copy.glob("*.csv"):
        path.write_text(path.read_text(encoding="utf-8").partition("\n")[0] + "\n")
    text = visible(write_report(study_copy).read_text(encoding="utf-8"))
    assert text.count("has no rows.") >= 9


def test_what_has_nothing_to_show_says_so(tmp_path):
    write_fake_study(tmp_path, n_layers=2, n_heads=1, atlas=False, later=True)
    for name, columns in (("topology_stats", ["max_cos", "mean_cos"]), ("pc_cosine", ["cosine", "baseline"])):
        path = tmp_path / f"{name}.csv"
        read_csv(path).assign(**dict.fromkeys(columns, float("nan"))).to_csv(path, index=False)
    write_effects(tmp_path)
    text = " ".join(visible(write_report(tmp_path).read_text(encoding="utf-8")).split())
    assert text.count("Not drawn. No layer has two heads that can be compared.") == 2
    assert text.count("Not drawn. The models’ states have different widths") == 1
    assert "Nuclear rank of the concatenated z, by layer." in text


@pytest.mark.parametrize("case", ["one model", "empty SAE", "three seeds", "four models"])
def test_unusual_studies_are_drawn(tmp_path, case):
    shape = {
        "one model": {"models": ("solo",)},
        "empty SAE": {"empty_sae": True},
        "three seeds": {"seeds": (0, 1, 2)},
        "four models": {"models": ("control", "adaptive", "pattern", "uniform")},
    }[case]
    write_fake_study(tmp_path / "s", n_layers=2, n_heads=3, atlas=False, later=case == "one model", **shape)
    text = visible(write_report(tmp_path / "s").read_text(encoding="utf-8"))
    assert "Not drawn." not in text
    assert "nan" not in text.lower().replace("nano", "")
    if case == "three seeds":
        assert "seeds 0, 1, 2" in text
        assert "seed 0, the first of 3." in text  # the heatmaps


def test_a_sweep_of_l1_is_shown_value_by_value(study_copy):
    path = study_copy / "sae_training_results.csv"
    df = read_csv(path)
    pd.concat([df, df.assign(l1=0.06, l0=df["l0"] / 2)]).to_csv(path, index=False)
    write_effects(study_copy)
    page = write_report(study_copy).read_text(encoding="utf-8")
    text = " ".join(visible(page).split())
    assert "(a) L0 at λ₁ = 0.03" in text
    assert "Figure 2 shows λ₁ = 0.03 λ₁ = 0.06" in text
    assert "FVU against L0 over a sweep of λ₁." in text
    assert len(json.loads(unpack(page, "page-data"))["figures"]["l0"]) == 2


def test_many_variants_are_a_list(study_copy):
    path = study_copy / "train_log.csv"
    df = read_csv(path)
    df.assign(**{f"rank_{name}.0": 1.0 for name in "abcdefg"}).to_csv(path, index=False)
    write_effects(study_copy)
    page = write_report(study_copy).read_text(encoding="utf-8")
    assert '<option value="8">rank g</option>' in page


def test_without_a_record_the_tables_speak_alone(study_copy):
    (study_copy / "study.json").unlink()
    text = visible(write_report(study_copy).read_text(encoding="utf-8"))
    assert "This study judges no published claims" in text
    assert "janus-v3-adaptive-nano" in text


def test_a_ragged_table_is_refused_by_name(study_copy):
    with (study_copy / "baselines.csv").open("a") as file:
        file.write("trigram,3.9,1000,extra,cells\n")
    with pytest.raises(ValueError, match=r"baselines.csv: not a whole CSV .*; expected 4 cells a row"):
        write_report(study_copy)


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (171.3, "2 min 51 s"), (7265, "2 h 01 min"), (None, ""), (59.9, "1 min 00 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_map_that_is_no_triangle_is_named_and_the_page_survives(study_copy, made_study):
    table = pd.read_csv(made_study / "attention_patterns.csv")
    for broken in ("", "{", "[[1.0], [0.5]]", "7", "[[1], 2]"):
        table.loc[3, "pattern"] = broken
        table.to_csv(study_copy / "attention_patterns.csv", index=False)
        page = write_report(study_copy).read_text(encoding="utf-8")
        assert "the pattern of layer 0, head 3 is no lower triangle" in page
