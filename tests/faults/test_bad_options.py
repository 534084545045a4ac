"""Every verb with options that it cannot take: {model} and the like stand for what lies in the ground."""

from __future__ import annotations

import itertools
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad import refuse

from workbench.analyses import analysis_names
from workbench.cli.app import VERBS

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

TABLE = Path(__file__).with_name("bad_options.toml")
T = "--data {text.txt}"
FEW = "--prompts {prompts.toml} --recall {recall.toml} --battery none --max-new-tokens 2"


def _cases() -> Iterator[tuple[str, int, str]]:
    """What is typed, exit code, part of the one line."""
    for code, typed, message in tomllib.loads(TABLE.read_text(encoding="utf-8"))["cases"]:
        parts = [[typed]] if isinstance(typed, str) else [[part] if isinstance(part, str) else part for part in typed]
        for command in itertools.product(*parts):
            filled = " ".join(command).replace("{T}", T).replace("{FEW}", FEW).replace("{LONG}", "x" * 5000)
            yield filled, code, message


CASES = list(_cases())


@pytest.mark.parametrize(("command", "code", "message"), CASES, ids=[case[0][:70] for case in CASES])
def test_a_bad_option_is_one_line(ground, home, tally, command, code, message) -> None:
    refuse(ground, tally, "options of verbs", command, code, message)


# name, what lies there first, what is typed, part of the one line; x is a copy of an ablation's whole directory
PLACES = [
    ("inside a finished run", lambda: None, f"topology --ckpt {{model}} {T} --n-tokens 96 --out x/more", "lies in "),
    ("deep inside one", lambda: None, f"topology --ckpt {{model}} {T} --n-tokens 96 --out x/a/b/../c", "lies in "),
    ("below a link to nowhere", lambda: Path("y").symlink_to("nowhere"),
     f"topology --ckpt {{model}} {T} --n-tokens 96 --out y/z", "y is a link that leads nowhere; "
         "expected a directory"),
    ("below a link to itself", lambda: Path("y").symlink_to("y"),
     f"topology --ckpt {{model}} {T} --n-tokens 96 --out y/z", "y is a link that leads nowhere; "
         "expected a directory"),
    ("a page over a table", lambda: None, "report x --out x/ablation_results.csv", "exists and is no page; "
        "expected a new"),
    ("a page over a manifest", lambda: None, "report x --out x/manifest.json", "exists and is no page; expected a new"),
    ("a page over a directory", lambda: Path("y.html").mkdir(), "report x --out y.html", "exists and is no page"),
    ("a page over a device", lambda: None, "report x --out /dev/null", "exists and is no page; expected a new file"),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "command", "message"), [p[1:] for p in PLACES], ids=[p[0] for p in PLACES])
def test_a_bad_place_is_one_line(ground, home, tally, prepare, command, message) -> None:
    shutil.copytree(ground.run("ablation"), "x")
    prepare()
    refuse(ground, tally, "options of verbs", command, 1, message)


def test_every_verb_is_among_them() -> None:
    assert len({command for command, _, _ in CASES}) == len(CASES)
    assert {*VERBS, *analysis_names()} - {"recipes"} <= {command.split()[0] for command, _, _ in CASES}
