"""`python tests/faults/fuzz_readers.py manifest|recipe|concepts [-max_total_time=60]`: a reader under atheris.

Coverage leads the bytes, which begin as good files: bytes at random hardly come to be TOML or JSON. Anything but a
ValueError in one line is a crash, which atheris then writes to a file. `make fuzz` installs atheris and calls this; the
tests do without it (see `test_fuzz`).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["workbench", "tomllib"]):
    from workbench.data.concepts import EMBEDDED_SETS, read_concepts
    from workbench.runs import verify_manifest, write_manifest
    from workbench.training import load_recipe
    from workbench.training.recipe import RECIPES


def _manifests(place: Path) -> list[bytes]:
    write_manifest(place)
    return [(place / "manifest.json").read_bytes()]


def _recipes(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(RECIPES.glob("*-nano.toml"))]


def _concepts(_: Path) -> list[bytes]:
    """The first sets of the package's own."""
    return [b"\n[".join(EMBEDDED_SETS.read_bytes().split(b"\n[")[:3]) + b"\n"]


# name -> (the file that is written, good files to begin with, how it is read)
READERS: dict[str, tuple[str, Callable[[Path], list[bytes]], Callable[[Path], object]]] = {
    "manifest": ("manifest.json", _manifests, lambda path: verify_manifest(path.parent)),
    "recipe": ("recipe.toml", _recipes, load_recipe),
    "concepts": ("concepts.toml", _concepts, read_concepts),
}


def main() -> None:
    """Fuzz the reader that the first argument names, until the time is over."""
    file, begin, read = READERS[sys.argv.pop(1)]
    place, corpus = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    (place / "data").write_text("x")
    for i, good in enumerate(begin(place)):
        (corpus / str(i)).write_bytes(good)

    def one(data: bytes) -> None:
        (place / file).write_bytes(data)
        try:
            read(place / file)
        except ValueError as error:
            if "\n" in str(error):
                raise

    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
