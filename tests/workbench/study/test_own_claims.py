"""A user's own claims: the example of the docs on a small study, when the ledger is drawn anew, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from studies_for_tests import write_place
from typer.testing import CliRunner

from reports.tables import read_table
from workbench.analyses.ablate.load_bearing import LOAD_BEARING_UP_TO
from workbench.cli.app import app
from workbench.data.claims import collect_claims, read_claims
from workbench.runs import sha256_file, verify_manifest
from workbench.study.claims import judge_claims
from workbench.study.study import study

PAGE = Path(__file__).parents[3] / "docs" / "claims.md"
OWN = ["entropy-under-pressure", "entropy-under-pressure-last"]
SMALL = {"analyses": ["attention"]}
RUN = CliRunner()


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
        (place / "mine.toml").write_text(example(), encoding="utf-8")
        yield study(place / "tiny.toml", place / "made", device="cpu", overrides=SMALL, claims=place / "mine.toml")


def test_the_example_of_the_page_is_judged_behind_the_published_claims(made) -> None:
    rows = read_table(made, "claims").set_index("claim_id")
    assert list(rows.index) == [*(claim.id for claim in read_claims()), *OWN]
    heads = read_table(made, "attention_stats")
    for claim_id, own in zip(OWN, (heads, heads[heads["layer"] == 1]), strict=True):
        means = own.groupby("model")["entropy"].mean()
        change = means["tiny-adaptive"] - means["tiny-control"]
        assert rows.loc[claim_id, "effect"] == pytest.approx(change)
        assert rows.loc[claim_id, "verdict"] == "not enough seeds"
        treated = own[own["model"] == "tiny-adaptive"]
        mass, even = 100 * treated["bos_mass"].mean(), 100 * treated["bos_uniform"].mean()
        assert mass < 2 * even
        said = f"Heads attend to no fewer tokens here: {means['tiny-control']:.2f} → {means['tiny-adaptive']:.2f} nats."
        if change < 0:
            said = f"The first position gets {mass:.1f} % of attention, so the heads select other tokens."
        assert rows.loc[claim_id, "why"] == said
    assert "in the first layer" in rows.loc[OWN[0], "measured"]
    assert "Heads under pressure attend to fewer tokens" in (made / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("treated", "mass", "said"),
    [
        (1.5, 0.5, "Heads rest on the first position: 50 % of attention, 5.0 times an even share."),
        (1.5, 0.15, "The first position gets 15.0 % of attention, so the heads select other tokens."),
        (2.5, 0.15, "Heads attend to no fewer tokens here: 2.00 → 2.50 nats."),
        (1.5, None, "The position was not measured."),
    ],
)
def test_the_first_case_that_holds_is_said(treated, mass, said, tmp_path) -> None:
    (tmp_path / "a.toml").write_text(
        example() + '[[remarks.first-position.cases]]\nsay = "The position was not measured."\n'
    )
    rows = [("a", 0, 0, 2.0, 0.3, 0.1), ("b", 0, 0, treated, mass, 0.1)]
    table = pd.DataFrame(rows, columns=["model", "seed", "layer", "entropy", "bos_mass", "bos_uniform"])
    claim = read_claims(tmp_path / "a.toml")[0]
    (row,) = judge_claims({"attention_stats": table}, {"control": "a", "adaptive": "b"}, [claim]).to_dict("records")
    assert row["why"] == said


def test_a_ledger_is_drawn_anew_where_its_file_has_changed_and_only_then(made) -> None:
    file, record = made.parent / "mine.toml", made / "study.json"
    assert json.loads(record.read_text())["claims"] == {str(file): sha256_file(file)}
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.glob("*.*")}

    def resumed() -> None:
        study(made.parent / "tiny.toml", made, device="cpu", overrides=SMALL, claims=[file], resume=True)
        verify_manifest(made)

    resumed()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in made.glob("*.*")} == before
    try:
        file.write_text(example().replace("Heads of the last layer", "Those of the last layer"), encoding="utf-8")
        resumed()
        rows = read_table(made, "claims").set_index("claim_id")
        assert rows.loc[OWN[1], "claim"] == "Those of the last layer attend to fewer tokens"
        changed = {name for name, (content, _) in before.items() if (made / name).read_bytes() != content}
        assert changed == {"claims.csv", "study.json", "report.html", "manifest.json"}
    finally:
        file.write_text(example(), encoding="utf-8")
    resumed()
    assert (made / "claims.csv").read_bytes() == before["claims.csv"][0], "read back, the tables say the same"


def test_the_verb_takes_files_of_claims(made, monkeypatch) -> None:
    monkeypatch.chdir(made.parent)
    typed = 'study tiny.toml --out other --device cpu --set analyses=["attention"] --claims mine.toml --dry-run --json'
    found = RUN.invoke(app, typed.split())
    assert found.exit_code == 0, found.output
    (made.parent / "twice.toml").write_text(example())
    for files, said in (
        (
            "--claims mine.toml --claims twice.toml",
            "claims: twice.toml: [entropy-under-pressure] is a claim of mine.toml",
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
    (tmp_path / "a.toml").write_text(example().replace("[entropy-under-pressure-last]", "[janus-rank]"))
    with pytest.raises(
        ValueError, match=r"a\.toml: \[janus-rank\] is a claim of the package already; expected another"
    ):
        collect_claims([tmp_path / "a.toml"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("share > 2", "share >> 2", "[remarks.first-position] cases.0.when.0: expected \"NAME\", or"),
        ("share > 2", "sharp > 2", "[remarks.first-position] cases.0.when: got 'sharp'; expected one of effect,"),
        ("{mass:.0f}", "{mess:.0f}", "[remarks.first-position] cases.0.say: got 'mess'; expected one of effect,"),
        ("{mass:.0f}", "{mass:.0q}", "[remarks.first-position] cases.0.say: got {mass:.0q}; expected a format of"),
        ("{mass:.0f}", "{mass.real}", "[remarks.first-position] cases.0.say: got 'mass.real'; expected one of"),
        ("{mass:.0f}", "{mass", "[remarks.first-position] cases.0.say: unexpected '{' in field name"),
        ('["mass", "even"]', '["mass", "odd"]', "[remarks.first-position] numbers.share.ratio: got 'odd'; expected"),
        ('of = "treated"', 'of = "each"', "[remarks.first-position] numbers.mass.of: got 'each' without join"),
        ("numbers.share = {", "numbers.role = {", "[remarks.first-position] numbers: got the name 'role'; expected"),
        ("times = 100", "up_to = 1", "[remarks.first-position] numbers.mass: up_to: got 1 without reduce; expected"),
        ("times = 100", 'reduce = "each"', "[remarks.first-position] numbers.mass.reduce: Input should be"),
        ('column = "bos_mass"', 'table = "x"', "[remarks.first-position] numbers.mass: column: got none with"),
        ('of = "treated"', 'reduce = "mean"', "numbers.mass: reduce: got 'mean' with of = 'effect'; expected of ="),
        ('of = "treated"', 'of = "pair", join = ""', "[remarks.first-position] unknown key 'numbers.mass.join'"),
        ('of = "treated"', 'of = "ratio between seeds"', "[entropy-under-pressure] remarks.0.numbers.mass.of: got"),
        ('["first-position"]', '["last"]', "[entropy-under-pressure] remarks.0: expected one of basis, rank,"),
        ('["first-position"]', '"last"', "[entropy-under-pressure] remarks: Input should be a valid tuple"),
        ('layers = "last"', 'layers = "5 of 4"', "[entropy-under-pressure-last] measure.layers: expected a layer,"),
        ('base = "entropy-under-pressure"', 'base = "x"', "[entropy-under-pressure-last] base: got 'x'; expected a"),
        ('unit = "plain"', 'kind = "divergence"', "[entropy-under-pressure] measure.unit: got 'percent' of a"),
        ("beside = [", "besides = [", "[entropy-under-pressure] unknown key 'besides'; nearest: beside"),
        ("[remarks.first-position]", "[remarks]\na = 1\n[remarks.first-position]", "remarks.a is a int; expected a"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_by_file_claim_and_field(old, new, said, tmp_path) -> None:
    assert old in example()
    (tmp_path / "mine.toml").write_text(example().replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        read_claims(tmp_path / "mine.toml")
    assert str(caught.value).startswith(f"claims: {tmp_path / 'mine.toml'}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_the_bound_of_a_load_bearing_head_is_the_analysis_s() -> None:
    (claim,) = (claim for claim in read_claims() if claim.id == "janus-top-head")
    (remark,) = claim.remarks
    assert remark.numbers["n_bearing"].up_to == LOAD_BEARING_UP_TO
    assert f"p ≤ {LOAD_BEARING_UP_TO:g}" in remark.say
