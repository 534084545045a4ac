"""An option that is given is read, or refused by name: over the source of every verb, and over every void combination.

--dry-run is left out of this: it asks what the rest of the command line would take.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from typer.testing import CliRunner

from workbench.cli.app import VERBS, app

OF_EVERY_VERB = {"ctx", "debug", "as_json"}  # the library's, read by `guarded`, and how the result is said
PREVIEW = {"dry_run", "as_json"}  # an `if` on these may end a verb early


def source_of(module: str) -> ast.FunctionDef:
    function = inspect.unwrap(getattr(importlib.import_module(f"workbench.cli.{module}"), module))
    (tree,) = ast.parse(inspect.getsource(function)).body
    assert isinstance(tree, ast.FunctionDef)
    return tree


def read_in(nodes: list[ast.stmt] | list[ast.expr]) -> set[str]:
    """The names that are read in these nodes, those of options that `refuse_unused` is given among them."""
    found = {n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    texts = [n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return found | ({str(text.value) for text in texts} if "refuse_unused" in found else set())


def unread(tree: ast.FunctionDef) -> list[tuple[int, set[str]]]:
    """(line, options that are neither read nor refused) of every way that leads out of the verb."""
    options = {a.arg for a in (*tree.args.args, *tree.args.kwonlyargs)} - OF_EVERY_VERB
    found, seen = [], set()
    for statement in tree.body[1:]:  # behind the docstring
        if isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Return):
            condition = read_in([statement.test])
            if not condition <= PREVIEW:
                found.append((statement.lineno, options - seen - condition - read_in(statement.body)))
            seen |= condition
        else:
            seen |= read_in([statement])
    found.append((tree.end_lineno or 0, options - seen))
    return [(line, left) for line, left in found if left]


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_way_through_a_verb_reads_or_refuses_each_option(verb: str) -> None:
    assert unread(source_of(VERBS[verb])) == []


def test_an_option_that_one_way_does_not_read_is_found() -> None:
    code = 'def verb(a, b, c=0):\n    """."""\n    if a:\n        print(b)\n        return\n    print(b, c)\n'
    (tree,) = ast.parse(code).body
    assert isinstance(tree, ast.FunctionDef)
    assert unread(tree) == [(3, {"c"})]
    (tree,) = ast.parse(code.replace("print(b)", 'refuse_unused(ctx, "c", where="", expected=""); print(b)')).body
    assert isinstance(tree, ast.FunctionDef)
    assert unread(tree) == []


# what is typed -> the options that the line names
VOID = {
    "atlas {d} --sae x --ckpt y": None,  # neither of the two ways
    "atlas {d} --l1 3 --ckpt y --device cuda:7": "--ckpt, --device, --l1",
    "atlas {d} --n-contexts 3 --data a --n-tokens 96 --n-ctx 8": "--data, --n-contexts, --n-ctx, --n-tokens",
    "atlas {d} --seed 0 --dtype float32 --resume": "--dtype, --resume, --seed",
    "ablate --ckpt x --components mlp --heads 0": "--heads",
    "ablate --ckpt x --components layer,mlp --heads all --pairs 0.1+0.2": "--heads",
    "ablate --ckpt x --n-resamples 1": "--n-resamples",
    "ablate --ckpt x --kind mean --n-resamples 3": "--n-resamples",
    "export --ckpt x --to sae-lens --dtype float32": "--dtype",
    "generate --ckpt x hello --temperature 0 --top-k 3": "--top-k",
    "generate --ckpt x hello --temperature 0 --top-p .5 --seed 0": "--top-p, --seed",
    "study --ray-address auto": "--ray-address",
    "study --jobs 2 --executor ray": "--jobs",
    "study --seeds 2 --set n_seeds=3": "n_seeds",
    "study --claims a.toml --set claims=[]": "claims",
    "train x --device cpu --graphs": "--graphs",
    "train x --data a --set data.source=b": "data.source",
    "train x --keep 2 --set checkpoint.keep=2": "checkpoint.keep",
    "train x --tokenizer a --set data.tokenizer=b": "data.tokenizer",
    "sae-train --ckpt x --hook z --set hook=z_concat": "hook",
}


@pytest.mark.parametrize("command", list(VOID))
def test_an_option_that_nothing_reads_is_refused_by_name(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "atlas.html").write_text("an older page")
    found = CliRunner().invoke(app, command.format(d="d").split())
    assert found.exit_code == 2, found.output
    assert len(found.stderr.splitlines()) == 1
    named = VOID[command]
    if named is not None:
        start = f"error: {named}: got " if named.startswith("--") else f"error: set: {named} "
        assert found.stderr.startswith(start), found.stderr
        assert "expected" in found.stderr
    assert (tmp_path / "d" / "atlas.html").read_text() == "an older page"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]
