"""Shared by the tests of verbs: a directory with checkpoints and a text, each test in a directory of its own."""

from __future__ import annotations

import pytest
from models_for_tests import small_model

from workbench.data.tokenizer import load_tokenizer
from workbench.models.checkpoint import save
from workbench.models.tokenizer_files import wrap_tokenizer

CHECKPOINTS = {
    "model": {"kind": "janus-v3"},
    "other": {"kind": "kotodama"},  # grouped queries
    "shallow": {"kind": "janus-v3", "n_layers": 2},
    "shallow-other": {"kind": "janus-v3", "n_layers": 2, "seed": 1},
}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A directory with checkpoints of small models and a text."""
    place = tmp_path_factory.mktemp("cli")
    for name, settings in CHECKPOINTS.items():
        model = small_model(**settings, d_vocab=4096)
        model.tokenizer = wrap_tokenizer(load_tokenizer("embedded"))
        (place / name).mkdir()
        save(model, place / name)
    lines = [f"Line {i} of the text tells of cat number {i * i} and its river.\n" for i in range(3000)]
    (place / "text.txt").write_text("".join(lines))
    return place


@pytest.fixture(autouse=True)
def at_home(place, tmp_path, monkeypatch):
    """Each test in a directory of its own, with one cache of packed tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_CACHE", str(place / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
