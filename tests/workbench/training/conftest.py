"""A small text for tests that train."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from workbench.data.tokenizer import train_bpe

WORDS = "the a king queen forest river stone walked sang slept under over bright dark and then home away"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Forty small documents of random words, and a tokenizer of 300 entries for them."""
    folder, rng = tmp_path_factory.mktemp("text"), random.Random(0)
    rows = [{"text": " ".join(rng.choices(WORDS.split(), k=120))} for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_bpe((row["text"] for row in rows), 300).save(str(folder / "tokenizer.json"))
    return folder
