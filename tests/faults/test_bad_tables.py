"""Pages of tables that cannot be drawn: ragged, not UTF-8, not JSON, of other types, or altered since the run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bad import refuse
from grounds import call

from reports.tables import COLUMNS
from workbench.runs import verify_manifest

STATS = ",".join(COLUMNS["topology_stats"])
ROW = "a,0,0,z,0.5,0.4,3,2,1.5,2.5,0.5,96"
ATLAS = ",".join(COLUMNS["feature_atlas"])
FEATURE = 'a,0,0,0,0.1,1.0,0.5,the,"[]","[]","[]"'
DEEP = "[" * 100_000


def feature(**cells: str) -> str:
    """A row of the atlas with other cells, quoted as CSV wants it."""
    row = dict(
        zip(COLUMNS["feature_atlas"], ("a", "0", "0", "0", "0.1", "1.0", "0.5", "the", "[]", "[]", "[]"), strict=True)
    )
    quoted = ('"' + text.replace('"', '""') + '"' for text in (row | cells).values())
    return f"{ATLAS}\n{','.join(quoted)}\n"


GOOD = {"topology_stats.csv": f"{STATS}\n{ROW}\n"}
# name, files, what is typed, part of the one line
CASES = [
    ("nothing", {}, "report x", "holds no known table"),
    ("an unknown table", {"mine.csv": "a,b\n1,2\n"}, "report x", "holds no known table"),
    ("a ragged row", {"topology_stats.csv": f"{STATS}\n{ROW},1,2,3\n{ROW}\n"}, "report x", "topology_stats.csv"),
    ("not UTF-8", {"topology_stats.csv": b"\xff\xfe" + STATS.encode()}, "report x", "topology_stats.csv"),
    ("not UTF-8 in a row",
     {"topology_stats.csv": f"{STATS}\n".encode() + b"\xff" + ROW.encode()}, "report x", "topology_stats.csv"),
    ("semicolons", {"topology_stats.csv": f"{STATS}\n{ROW}\n".replace(",", ";")}, "report x", "by semicolons;"),
    ("decimal commas", {"topology_stats.csv": f"{STATS}\n{ROW}\n".replace("0.5", '"0,5"')}, "report x",
     "max_cos has decimal commas (got '0,5'); expected decimal points"),
    ("UTF-16", {"topology_stats.csv": f"{STATS}\n{ROW}\n".encode("utf-16")}, "report x", "UTF-16; expected UTF-8"),
    ("a quote that never ends", {"topology_stats.csv": f'{STATS}\n"a{ROW}\n'}, "report x", "topology_stats.csv"),
    *((f"study.json: {name}", GOOD | {"study.json": content}, "report x", "x/study.json") for name, content in (
        ("empty", ""), ("not JSON", "{"), ("a list", "[]"), ("a number", "3"), ("deep", DEEP), ("not UTF-8", b"\xff"),
        ("a title of a list", '{"title": []}'), ("models of a word", '{"models": "a"}'),
        ("models of numbers", '{"models": [3]}'), ("notes of a word", '{"notes": "a"}'),
        ("roles of a list", '{"roles": []}'), ("versions of a word", '{"versions": "1"}'),
        ("digits", '{"title": ' + "9" * 5000 + "}"),
    )),
    ("no atlas", GOOD, "atlas x", "no feature_atlas among the tables; expected feature_atlas.csv"),
    ("an atlas without columns", {"feature_atlas.csv": "model,layer\na,0\n"}, "atlas x", "are missing"),
    *((f"atlas: {name}", {"feature_atlas.csv": text}, "atlas x", message) for name, text, message in (
        ("contexts that are no JSON", feature(top_contexts="nope"), "top_contexts of row 0 is not JSON"),
        ("contexts of an object", feature(top_contexts="{}"), "top_contexts of row 0 is a dict; expected a JSON list"),
        ("contexts of a number", feature(top_contexts="3"), "top_contexts of row 0 is a int; expected a JSON list"),
        ("deep contexts", feature(top_contexts=DEEP), "top_contexts of row 0 is not JSON"),
        ("a context of a number", feature(top_contexts="[3]"), "row 0"),
        ("a context without acts", feature(top_contexts='[{"tokens": ["a"]}]'), "row 0"),
        ("unlike numbers", feature(top_contexts='[{"tokens": ["a"], "acts": [1, 2], "peak": 0, "value": 1}]'), "row 0"),
        ("acts of words", feature(top_contexts='[{"tokens": ["a"], "acts": ["b"], "peak": 0, "value": 1}]'), "row 0"),
        ("logits of numbers", feature(logit_promoted="[3]"), "row 0"),
        ("logits of one", feature(logit_promoted='[["a"]]'), "row 0"),
        ("logits of words", feature(logit_suppressed='[["a", "b"]]'), "row 0"),
        ("a layer of words", feature(layer="first"), "layer"),
        ("a density of words", feature(density="much"), "density"),
        ("no layer", feature(layer=""), "feature_atlas: layer"),
        ("half a head", feature(head="0.5"), "head is no whole number in some row; expected one in each"),
        ("an endless feature", feature(feature="inf"), "feature_atlas: feature is no whole number in some row"),
    )),
]  # fmt: skip


@pytest.mark.parametrize(("files", "command", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_bad_table_is_one_line(ground, home, tally, files, command, message) -> None:
    Path("x").mkdir()
    for name, content in files.items():
        Path("x", name).write_bytes(content.encode() if isinstance(content, str) else content)
    refuse(ground, tally, "tables of pages", command, 1, message)


@pytest.mark.parametrize("table", ["topology_stats.csv", "study.json"])
@pytest.mark.parametrize("command", ["report x", "atlas x"])
def test_a_table_that_was_altered_since_is_named(ground, home, tally, table, command) -> None:
    shutil.copytree(ground.run("study"), "x")
    text = Path("x", table).read_text()
    Path("x", table).write_text(text.replace("0", "1", 1))
    refuse(ground, tally, "tables of pages", command, 1, f"x/{table} is altered")


@pytest.mark.parametrize("out", ["x/report.html", "x/../x/report.html", "y/report.html", "y/pages/new.html"])
def test_a_page_below_a_run_joins_its_manifest_whichever_way_it_leads_there(ground, home, out) -> None:
    shutil.copytree(ground.run("ablation"), "x")
    Path("y").symlink_to("x")
    assert call("report", "x", "--out", out).exit_code == 0
    assert call("report", "y", "--out", out).exit_code == 0
    assert any(name.endswith(".html") for name in verify_manifest("x")["files"])


@pytest.mark.parametrize("out", ["x/new.html", "new.html", "pages/new", "x/report.html"])
def test_an_atlas_goes_where_it_is_told_and_leaves_the_older_one(ground, home, out) -> None:
    shutil.copytree(ground.run("study"), "x")
    Path("x/atlas.html").write_text("an older page")
    Path("pages").mkdir()
    assert call("atlas", "x", "--out", out).exit_code == 0
    assert "Feature atlas" in Path(out).read_text(encoding="utf-8")
    assert Path("x/atlas.html").read_text() == "an older page"
    Path("x/atlas.html").unlink()
    assert call("atlas", "x").exit_code == 0
    assert verify_manifest("x")["files"]["atlas.html"]["bytes"] > 1000
    assert call("atlas", "x", "--out", "pages").exit_code == 1  # a folder is no page


def test_a_page_drawn_anew_leaves_a_study_whole(ground, home) -> None:
    shutil.copytree(ground.run("study"), "x")
    Path("x/report.html").write_text("an older page")
    assert call("report", "x").exit_code == 0
    assert call("atlas", "x").exit_code == 0
    assert verify_manifest("x")["files"]["report.html"]["bytes"] > 1000
