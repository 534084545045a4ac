"""A user's own claims: the example of the docs on a small study, when the ledger is drawn anew, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import tomli_w
from studies_for_tests import tiny, write_place
from typer.testing import CliRunner

from reports.contract import declared
from reports.tables import MADE, find_tables, read_table
from workbench.analyses.ablate.load_bearing import LOAD_BEARING_UP_TO
from workbench.cli.app import app
from workbench.data.claims import collect_claims, read_claims
from workbench.runs import sha256_file, verify_manifest
from workbench.study.claim_checks import collect_checked
from workbench.study.claims import judge_claims
from workbench.study.recipe import StudyRecipe
from workbench.study.study import study

PAGE = Path(__file__).parents[3] / "docs" / "claims.md"
OWN = ["heads-write-apart", "heads-write-apart-last"]
RUN = CliRunner()
# too few held-out tokens for ranks
pytestmark = pytest.mark.filterwarnings("ignore:topology. .* tokens:probes.SmallSampleWarning")


def example() -> str:
    """The file of claims that the page shows."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return text


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A study of two tiny models that judges the example's claims too; its text and recipes lie beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        place = write_place(tmp_path_factory.mktemp("own"))
        recipe = {key: tiny(place)[key] for key in ("name", "title", "models", "roles")}
        (place / "tiny.toml").write_text(tomli_w.dumps(recipe | {"analyses": ["topology"]}))
        (place / "mine.toml").write_text(example(), encoding="utf-8")
        yield study(place / "tiny.toml", place / "made", device="cpu", claims=place / "mine.toml")


def test_the_example_of_the_page_is_judged_behind_the_published_claims(made) -> None:
    rows = read_table(made, "claims").set_index("claim_id")
    assert list(rows.index) == [*(claim.id for claim in read_claims()), *OWN]
    stats = read_table(made, "topology_stats").groupby(["basis", "model", "layer"]).mean()
    for claim_id, own in zip(OWN, (stats, stats.xs(1, level="layer", drop_level=False)), strict=True):
        alike, used = (
            own.loc[basis, name].groupby("model").mean()
            for basis, name in (("residual", "mean_cos"), ("z", "rank_utilization"))
        )
        change = alike["tiny-adaptive"] / alike["tiny-control"] - 1
        assert rows.loc[claim_id, "effect"] == pytest.approx(change)
        assert rows.loc[claim_id, "interval"] == "own"
        assert used["tiny-adaptive"] > 0.9 * used["tiny-control"]
        said = f"They are no less alike here: {alike['tiny-control']:.3f} → {alike['tiny-adaptive']:.3f}."
        if change < 0:
            shares = [100 * used[name] for name in ("tiny-adaptive", "tiny-control")]
            said = "They use {:.1f} % of their dimensions, the reference {:.1f} %.".format(*shares)
        assert rows.loc[claim_id, "why"].startswith(said)
    assert "; on z " in rows.loc[OWN[0], "measured"]
    assert "Heads under pressure write less alike" in (made / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("cos", "used", "said"),
    [
        (0.2, 0.3, "They differ by using less: 30.0 % of their dimensions, 60 % of what the reference uses."),
        (0.2, 0.48, "They use 48.0 % of their dimensions, the reference 50.0 %."),
        (0.5, 0.3, "They are no less alike here: 0.400 → 0.500."),
        (0.2, None, "The dimensions were not measured."),
    ],
)
def test_the_first_case_that_holds_is_said(cos, used, said, tmp_path) -> None:
    last = '[[remarks.dimensions.cases]]\nsay = "The dimensions were not measured."\n'
    (tmp_path / "a.toml").write_text(example() + last, encoding="utf-8")
    rows = [
        (name, 0, 0, basis, *own) for name, *own in (("a", 0.4, 0.5), ("b", cos, used)) for basis in ("z", "residual")
    ]
    table = pd.DataFrame(rows, columns=["model", "seed", "layer", "basis", "mean_cos", "rank_utilization"])
    claim = read_claims(tmp_path / "a.toml")[0]
    (row,) = judge_claims({"topology_stats": table}, {"control": "a", "adaptive": "b"}, [claim]).to_dict("records")
    missing = (
        "The study has no topology_stats_blocks.csv, which is not written of fewer than 8 sequences or documents nor "
        "where its sums would take too much memory: no interval over text."
    )
    assert row["why"] == f"{said} {missing}"


def test_a_ledger_is_drawn_anew_where_its_file_has_changed_and_only_then(made) -> None:
    file, record = made.parent / "mine.toml", made / "study.json"
    assert json.loads(record.read_text())["claims"] == {str(file): sha256_file(file)}
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.glob("*.*")}

    def resumed() -> None:
        study(made.parent / "tiny.toml", made, device="cpu", claims=[file], resume=True)
        verify_manifest(made)

    resumed()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.glob("*.*")} == before
    try:
        file.write_text(example().replace("Heads of the last layer", "Those of the last layer"), encoding="utf-8")
        resumed()
        rows = read_table(made, "claims").set_index("claim_id")
        assert rows.loc[OWN[1], "claim"] == "Those of the last layer write less alike"
        assert json.loads(record.read_text())["claims"] == {str(file): sha256_file(file)}
        changed = {name for name, (content, _) in before.items() if (made / name).read_bytes() != content}
        assert {name for name in changed if name.endswith(".csv")} == {"claims.csv"}
        assert "Those of the last layer" in (made / "report.html").read_text(encoding="utf-8")
    finally:
        file.write_text(example(), encoding="utf-8")
    resumed()
    assert (made / "claims.csv").read_bytes() == before["claims.csv"][0]


def test_the_verb_takes_files_of_claims(made, monkeypatch) -> None:
    monkeypatch.chdir(made.parent)
    typed = "study tiny.toml --out other --device cpu --claims mine.toml --dry-run --json"
    found = RUN.invoke(app, typed.split())
    assert found.exit_code == 0, found.output
    (made.parent / "twice.toml").write_text(example())
    for files, said in (
        (
            "--claims mine.toml --claims twice.toml",
            "claims: twice.toml: [heads-write-apart] is a claim of mine.toml",
        ),
        ("--claims none.toml", "claims: no file 'none.toml'; expected a TOML file of claims"),
        ("--claims mine.toml --set roles={}", "claims: got ['mine.toml'] without roles; expected roles"),
    ):
        for end in ("--dry-run", ""):
            found = RUN.invoke(app, f"study tiny.toml --out other --device cpu {files} {end}".split())
            assert found.exit_code == 1, found.output
            assert len(found.stderr.splitlines()) == 1
            assert said in found.stderr
    assert not (made.parent / "other").exists()


def test_an_id_of_the_package_is_taken(tmp_path) -> None:
    (tmp_path / "a.toml").write_text(example().replace("[heads-write-apart-last]", "[janus-rank]"))
    with pytest.raises(
        ValueError, match=r"a\.toml: \[janus-rank\] is a claim of the package already; expected another"
    ):
        collect_claims([tmp_path / "a.toml"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kept < 90", "kept << 90", "[remarks.dimensions] cases.0.when.1: expected \"NAME\", or"),
        ("kept < 90", "keep < 90", "[remarks.dimensions] cases.0.when: got 'keep'; expected one of effect,"),
        ("{used:.1f}", "{uses:.1f}", "[remarks.dimensions] cases.0.say: got 'uses'; expected one of effect,"),
        ("{used:.1f}", "{used:.0q}", "[remarks.dimensions] cases.0.say: got {used:.0q}; expected a format of"),
        ("{used:.1f}", "{used.real}", "[remarks.dimensions] cases.0.say: got 'used.real'; expected one of"),
        ("{used:.1f}", "{used", "[remarks.dimensions] cases.0.say: unexpected '{' in field name"),
        ('["used", "before"]', '["used", "odd"]', "[remarks.dimensions] numbers.kept.ratio: got 'odd'; expected"),
        ('of = "reference"', 'of = "each"', "[remarks.dimensions] numbers.before.of: got 'each' without join"),
        ("numbers.kept = {", "numbers.role = {", "[remarks.dimensions] numbers: got the name 'role'; expected"),
        ("times = 100", "up_to = 1", "[remarks.dimensions] numbers.before: up_to: got 1 without reduce; expected"),
        ("times = 100", 'reduce = "each"', "[remarks.dimensions] numbers.before.reduce: Input should be"),
        ('column = "rank_utilization"', 'table = "x"', "[remarks.dimensions] numbers.before: column: got none with"),
        ('of = "reference"', 'reduce = "mean"', "numbers.before: reduce: got 'mean' with of = 'effect'; expected of ="),
        ('of = "reference"', 'of = "pair", join = ""', "[remarks.dimensions] unknown key 'numbers.before.join'"),
        ('of = "reference"', 'of = "ratio between seeds"', "[heads-write-apart] remarks.0.numbers.before.of: got"),
        ('["dimensions"]', '["last"]', "[heads-write-apart] remarks.0: expected one of basis, rank,"),
        ('["dimensions"]', '"last"', "[heads-write-apart] remarks: Input should be a valid tuple"),
        ('layers = "last"', 'layers = "5 of 4"', "[heads-write-apart-last] measure.layers: expected a layer,"),
        ('base = "heads-write-apart"', 'base = "x"', "[heads-write-apart-last] base: got 'x'; expected a"),
        ("measure.table", 'measure.unit = "plain"\nmeasure.table', "measure.unit: got 'plain' of a ratio"),
        ("measure.table", 'measure.kind = "divergence"\nmeasure.table', "measure.kind: got 'divergence'"),
        ("beside = [", "besides = [", "[heads-write-apart] unknown key 'besides'; nearest: beside"),
        ("[remarks.dimensions]", "[remarks]\na = 1\n[remarks.dimensions]", "remarks.a is a int; expected a"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_file_claim_and_field(old, new, said, tmp_path) -> None:
    assert old in example()
    (tmp_path / "mine.toml").write_text(example().replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        read_claims(tmp_path / "mine.toml")
    assert str(caught.value).startswith(f"claims: {tmp_path / 'mine.toml'}: ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"topology_stats"', '"topology_stat"', "measure.table: got 'topology_stat'; expected one of topology_stats"),
        (
            '"mean_cos"',
            '"mean_coss"',
            "measure: got the column 'mean_coss' of topology_stats; expected one of mean_cos",
        ),
        (
            'measure.where = { basis = "residual" }',
            'measure.where = { bases = "z" }',
            "measure: got the column 'bases' of topology_stats; expected one of basis",
        ),
        ('name = "on z"', 'name = "on z", column = "cos"', "beside.0: got the column 'cos' of topology_stats"),
        (
            'column = "rank_utilization", where = { basis = "z" }',
            'column = "rank_use", where = { basis = "z" }',
            "remarks.0.numbers.before: got the column 'rank_use' of topology_stats; expected one of rank_utilization",
        ),
        ('treated = "adaptive"', 'treated = "adaptve"', "role: got 'adaptve'; expected one of adaptive"),
        ('direction = "falls"\n', "", "[heads-write-apart] direction: Field required"),
    ],
)
def test_names_that_are_not_there_are_refused_before_anything_is_trained(
    old, new, said, made, monkeypatch, tmp_path
) -> None:
    assert old in example()
    monkeypatch.chdir(made.parent)
    (tmp_path / "typo.toml").write_text(example().replace(old, new, 1), encoding="utf-8")
    for end in ("--dry-run", ""):
        typed = f"study tiny.toml --out other --device cpu --claims {tmp_path / 'typo.toml'} {end}"
        found = RUN.invoke(app, typed.split())
        assert found.exit_code == 1, found.output
        (line,) = found.stderr.splitlines()
        assert f"typo.toml: [heads-write-apart] {said.removeprefix('[heads-write-apart] ')}" in line
    assert not (made.parent / "other").exists()


def test_roles_of_other_studies_and_columns_of_the_log_are_no_typos(tmp_path) -> None:
    other = example().replace('treated = "adaptive"', 'treated = "lang-ddv1"')
    logged = example().replace('"topology_stats"', '"train_log"').replace('"mean_cos"', '"sigma_z.0"')
    logged = logged.replace('{ basis = "residual" }', "{}").replace(
        'beside = [{ name = "on z", where = { basis = "z" } }]', ""
    )
    for text in (other, logged.replace('remarks = ["dimensions"]', "")):
        (tmp_path / "a.toml").write_text(text, encoding="utf-8")
        roles = {"control": "tiny", "mine": "tiny"}
        recipe = StudyRecipe(name="a", models=("tiny",), roles=roles, claims=(str(tmp_path / "a.toml"),))
        assert [claim.id for claim in collect_checked(recipe)][-2:] == OWN
    mine = example().replace('treated = "adaptive"', 'treated = "mine"')
    (tmp_path / "a.toml").write_text(mine, encoding="utf-8")
    assert [claim.id for claim in collect_checked(recipe)][-2:] == OWN


def test_tables_have_the_columns_that_their_analyses_declare(made, recurrent_study) -> None:
    """What is written and not declared would be refused of a claim as a typo."""
    left = {"train_log", *MADE, "baselines"}  # with columns of layers, places or their own
    for directory in (made, recurrent_study):
        for name in find_tables(directory).keys() - left:
            table = declared()[name]
            known = {*table.leading, *(column.name for column in table.trailing)}
            assert {*read_table(directory, name).columns} <= known, name


def test_the_bound_of_a_load_bearing_head_is_the_analysis_s() -> None:
    (claim,) = (claim for claim in read_claims() if claim.id == "janus-top-head")
    (remark,) = claim.remarks
    assert remark.numbers["n_bearing"].up_to == LOAD_BEARING_UP_TO
    assert f"p ≤ {LOAD_BEARING_UP_TO:g}".replace("0.", ".") in remark.say
