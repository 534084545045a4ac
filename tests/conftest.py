"""Shared by all tests: one thread per process, checked shapes, the places of helpers, a cache, `--figures`."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

# tests run side by side, and small tensors gain nothing by a second thread; torch reads this once
os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path[:0] = [str(Path(__file__).parent / place) for place in ("workbench", "faults", "sae")]

# shapes of arrays are checked at every call of a function that names them; processes that a test begins do without
WITH_ARRAYS = (
    "sae",
    "probes",
    *(f"workbench.{name}" for name in ("analyses", "data", "models", "training")),
)
jaxtyping.install_import_hook(WITH_ARRAYS, "shapes_for_tests.check_shapes")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Packed tokens go to a directory of the tests' own, also in subprocesses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Wrong arrays reach our own checks, whose errors the test asks for."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _tests_of_bad_input(request: pytest.FixtureRequest) -> None:
    """By this name tests give what is wrong, arrays among it."""
    if request.node.name.startswith("test_bad_"):
        request.getfixturevalue("unchecked_shapes")


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--figures", metavar="FILE", help="CSV to write with what tests measured and recorded (record_property)"
    )


def pytest_sessionstart(session) -> None:
    from workbench.analyses import all_analyses

    all_analyses()  # their tables are known from then on, as where a study reads them


def pytest_terminal_summary(terminalreporter, config) -> None:
    if not (path := config.getoption("--figures")):
        return
    passed = terminalreporter.stats.get("passed", [])
    rows = [(r.nodeid.split("::", 1)[1], what, value) for r in passed for what, value in r.user_properties]
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("test", "quantity", "value"))
        writer.writerows(rows)
    for test, what, value in rows:
        terminalreporter.write_line(f"{test}: {what} = {value}")
