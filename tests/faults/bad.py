"""What a bad input must come to: one line, the right exit code, no traceback, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from grounds import Ground, call
from typer.testing import Result

Tally = Callable[[str, str, int, int], None]


def tree(place: Path) -> dict[str, bytes | str]:
    """Every name below a directory, with what a file holds or a link points to."""
    found: dict[str, bytes | str] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = path.read_bytes() if path.is_file() else "directory" if path.is_dir() else "special"
    return found


def refuse(ground: Ground, tally: Tally, what: str, command: str, code: int, message: str) -> Result:
    """What the verb said, after it was seen to refuse the command as it must, in the working directory.

    It counts as a bad input of sort `what`. The command-line library's own refusals (code 2, no "error: ") may take a
    few lines; ours take one.
    """
    tally("bad input", what, 1, 0)
    before = tree(Path.cwd())
    result = call(*ground.fill(command))
    said = f"{command}\n{result.output}"
    assert result.exit_code == code, said
    assert isinstance(result.exception, SystemExit), said
    assert result.stdout == "", said
    assert "Traceback" not in result.stderr, said
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 1 or errors:
        assert lines == errors[:1], said
        assert "--debug shows where" not in errors[0], said  # that is what a fault of ours says
        # one line of a sensible length, that a terminal shows as it is
        assert len(errors[0]) <= 600, said
        assert errors[0].isprintable(), said
    assert message in " ".join(result.stderr.split()), said
    assert tree(Path.cwd()) == before, said
    tally("bad input", what, 0, 1)
    return result
