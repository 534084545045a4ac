"""Shared by the fault tests: the ground they stand on, how many of each, and the table of n tried and n right."""

from __future__ import annotations

import csv
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from grounds import Ground, write_ground

# the short form, for every run of the tests; `make faults` gives the counts of the full one
COUNTS = {"kills": 2, "corruptions": 60, "examples": 60, "writes": 6, "tokens": 200, "load-seconds": 60}
COLUMNS = ("kind", "what", "n_tried", "n_right")


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, n in COUNTS.items():
        parser.addoption(f"--{name}", type=int, default=n, help=f"faults: {name} of each kind (default {n})")
    parser.addoption("--tally", metavar="FILE", help="faults: CSV to write with n tried and n right of each kind")


@pytest.fixture(scope="session")
def count(request: pytest.FixtureRequest) -> Callable[[str], int]:
    """How many faults of a sort to try."""
    return lambda name: request.config.getoption(f"--{name}", COUNTS[name])


@pytest.fixture
def tally(record_property) -> Callable[[str, str, int, int], None]:
    """Says, for the table, how many faults of a kind were tried and how many came out right; before any assertion."""
    return lambda kind, what, n_tried, n_right: record_property("fault", (kind, what, n_tried, n_right))


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Small models, texts and run directories of every kind; read only: tests copy what they break."""
    return write_ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The working directory: the test's own, empty; and no way to the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def refuse(*_: object) -> None:
        raise OSError("no network in the fault tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not (path := config.getoption("--tally", None)):
        return
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.stats.get(outcome, [])]
    found: dict[tuple[str, str], list[int]] = {}
    for report in reports:
        for name, value in report.user_properties:
            if name == "fault":
                kind, what, n_tried, n_right = value
                total = found.setdefault((kind, what), [0, 0])
                total[0] += n_tried
                total[1] += n_right
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([*key, *total] for key, total in sorted(found.items()))
