"""`workbench text-quality`: its files against the function, its plan, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from reports.tables import read_table
from workbench import runs
from workbench.analyses.text_quality import quality
from workbench.analyses.text_quality.quality import text_quality
from workbench.cli.app import app
from workbench.data.batteries import read_batteries, read_prompts, read_recall
from workbench.models.load import load

PROMPTS = '[a]\nprompts = ["The cat", "A river of the"]\n'
RECALL = """[hats]
statement = "{name} is {value}."
question = "{name} is {value}"
names = ["Mary", "Henry"]
values = ["good", "ill"]
"""
SUMS = '[plural]\nscenarios = [["The cat", "is", "The cats", "are"]]\n'
FILES = ("--prompts", "prompts.toml", "--recall", "recall.toml", "--battery", "grammar.toml", "--battery", "sums.toml")


def call(*arguments):
    return CliRunner().invoke(app, ["text-quality", *(str(a) for a in arguments)])


@pytest.fixture(autouse=True)
def files(at_home):
    Path("prompts.toml").write_text(PROMPTS)
    Path("recall.toml").write_text(RECALL)
    for name in ("grammar", "sums"):
        Path(f"{name}.toml").write_text(SUMS)


def test_it_writes_what_the_function_returns(place):
    settings = ("--n-samples", 3, "--max-new-tokens", 9, "--tagger", "none", "--seed", 2, "--temperature", 0.9)
    arguments = ("--ckpt", place / "model", *FILES, *settings, "--out", "t")
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(Path.cwd() / "t")
    wanted = text_quality(
        load(place / "model"),
        read_prompts("prompts.toml"),
        read_recall("recall.toml"),
        read_batteries(["grammar.toml", "sums.toml"]),
        n_samples=3,
        max_new_tokens=9,
        temperature=0.9,
        tagger="none",
        seed=2,
    )
    pd.testing.assert_frame_equal(read_table("t", "text_quality"), wanted.table, check_dtype=False)
    assert Path("t/continuations.jsonl").read_text(encoding="utf-8") == wanted.to_jsonl()
    runs.verify_manifest("t")
    assert call(*arguments).exit_code == 1, "not without --resume"
    again = call(*arguments, "--resume")
    assert again.exit_code == 0
    assert again.stdout == result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-new-tokens", 30), "max_new_tokens: got 30; expected less than the model's n_ctx = 24"),
        (("--prompts", "no.toml"), "prompts: no file 'no.toml'"),
        (("--recall", "prompts.toml"), "[a] statement: Field required"),
        (("--battery", "no.toml"), "battery: no file 'no.toml'"),
        (("--battery", "recall.toml"), "batteries: 'recall' stands twice"),
        (("--battery", "sums.toml"), "battery: 'sums' stands twice"),
        (("--tagger", "no_such_pipeline"), "tagger: "),
    ],
)
def test_what_cannot_be_done_is_an_error_before_any_directory(place, arguments, message):
    result = call("--ckpt", place / "model", *FILES, "--max-new-tokens", 5, *arguments, "--out", "t")
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(Path.cwd().glob("t*"))


def test_none_leaves_the_batteries_of_the_package_out(place):
    options = ("--prompts", "prompts.toml", "--recall", "recall.toml", "--n-samples", 1, "--max-new-tokens", 3)
    result = call("--ckpt", place / "model", *options, "--tagger", "none", "--battery", "none", "--out", "t")
    assert result.exit_code == 0, result.output
    measures = set(read_table("t", "text_quality")["measure"])
    assert "recall" in measures
    assert not measures & {"grammar", "cause"}


def test_an_item_too_long_is_said_before_anything_is_sampled(place, monkeypatch):
    monkeypatch.setattr(quality, "sample_continuations", None)
    Path("recall.toml").write_text(RECALL.replace("{name} is {value}.", "{name} is {value}" + " and so on" * 99 + "."))
    with pytest.raises(ValueError, match=r"recall: an item has \d+ tokens; expected at most the model's n_ctx = "):
        text_quality(load(place / "model"), read_prompts("prompts.toml"), read_recall("recall.toml"), ())
    result = call("--ckpt", place / "model", *FILES, "--max-new-tokens", 2, "--tagger", "none", "--out", "t")
    assert result.exit_code == 1
    assert "recall: an item has" in result.output
    assert not list(Path().glob("t*"))
