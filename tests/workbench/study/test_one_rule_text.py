"""One rule for verbs and studies: the analyses of text, and harvest, give the same files byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports.tables import read_table
from workbench.cli.app import app
from workbench.data.shards import open_shards
from workbench.runs import read_config

NAMES = ("tiny-recurrent", "tiny-plain")


def call(*arguments: object):
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])


def options(made: Path, analysis: str) -> list[str]:
    """What the study set, as the command line has it."""
    own = read_config(made)["recipe"]["settings"][analysis]
    return [part for key, value in own.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def files_of(directory: Path) -> dict[str, bytes]:
    """What an analysis left at the top of a directory, but for what says when and how it was made."""
    records = ("config.toml", "env.json", "manifest.json")
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file() and path.name not in records}


@pytest.mark.parametrize(
    ("analysis", "names"),
    [("evaluate", NAMES), ("mechanisms", NAMES[:1]), ("text-quality", NAMES), ("harvest", NAMES)],
)
def test_the_verb_writes_what_the_job_wrote(analysis, names, recurrent_study, tmp_path) -> None:
    made = recurrent_study
    for name in names:
        out = tmp_path / name
        result = call(analysis, "--ckpt", made / f"models/{name}-seed0", *options(made, analysis), "--out", out)
        assert result.exit_code == 0, result.output
        found, wanted = files_of(out), files_of(made / analysis / f"{name}-seed0")
        assert found.keys() == wanted.keys()
        assert [file for file in wanted if found[file] != wanted[file]] == []
    assert sorted(p.name for p in (made / analysis).iterdir()) == sorted(f"{name}-seed0" for name in names)


def test_the_verb_ladder_trains_what_the_job_trained(recurrent_study, tmp_path) -> None:
    made = recurrent_study
    recipe = made.parent / "tiny-recurrent.toml"
    result = call("ladder", recipe, "--n-seeds", 1, *options(made, "ladder"), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    job = made / "ladder/tiny-recurrent-seed0"
    assert files_of(tmp_path / "out") == files_of(job)
    rungs = [path.name for path in sorted((job / "rungs").iterdir()) if path.is_dir()]
    assert len(rungs) == 17
    for rung in rungs:
        (own,), (theirs,) = (
            sorted(at.glob(f"rungs/{rung}/step_*/model.safetensors")) for at in (tmp_path / "out", job)
        )
        assert own.read_bytes() == theirs.read_bytes(), rung


def test_several_models_are_told_apart_and_their_continuations_joined(recurrent_study, tmp_path) -> None:
    made = recurrent_study
    models = [part for name in NAMES for part in ("--ckpt", made / f"models/{name}-seed0")]
    result = call("text-quality", *models, *options(made, "text-quality"), "--out", tmp_path / "t")
    assert result.exit_code == 0, result.output
    assert read_table(tmp_path / "t", "text_quality").equals(read_table(made, "text_quality"))
    joined = (tmp_path / "t/continuations.jsonl").read_bytes()
    assert joined == (made / "continuations.jsonl").read_bytes()
    assert joined == b"".join((tmp_path / f"t/{name}-seed0/continuations.jsonl").read_bytes() for name in NAMES)


def test_a_harvest_of_several_models_says_what_is_in_it(recurrent_study, tmp_path) -> None:
    made = recurrent_study
    models = [part for name in NAMES for part in ("--ckpt", made / f"models/{name}-seed0")]
    arguments = ["harvest", *models, *options(made, "harvest"), "--out", tmp_path / "h", "--json"]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    found = [open_shards(tmp_path / f"h/{name}-seed0") for name in NAMES]
    assert facts["n_shards"] == sum(len(own.shards) for own in found) > 2
    assert facts["n_tokens"] == 2 * 3 * 32
    assert facts["hooks"] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert call(*arguments, "--resume").exit_code == 0
    shard = next((tmp_path / "h").rglob("shard_*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert call(*arguments, "--resume").exit_code == 1
