"""`python tests/faults/fuzz_readers.py manifest|recipe|concepts [-max_total_time=60]`: a reader under atheris.

Coverage leads the bytes; anything but a ValueError in one line is a crash, which atheris then writes to a file.
`make fuzz` installs atheris and calls this; the tests do without it (see `test_fuzz`).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["workbench"]):
    from workbench.data.concepts import read_concepts
    from workbench.runs import verify_manifest
    from workbench.training import load_recipe

# name -> (the file that is written, how it is read)
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "manifest": ("manifest.json", lambda path: verify_manifest(path.parent)),
    "recipe": ("recipe.toml", load_recipe),
    "concepts": ("concepts.toml", read_concepts),
}


def main() -> None:
    """Fuzz the reader that the first argument names, until the time is over."""
    file, read = READERS[sys.argv.pop(1)]
    place = Path(tempfile.mkdtemp())
    (place / "data").write_text("x")

    def one(data: bytes) -> None:
        (place / file).write_bytes(data)
        try:
            read(place / file)
        except ValueError as error:
            if "\n" in str(error):
                raise

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
