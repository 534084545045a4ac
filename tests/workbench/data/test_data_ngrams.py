"""N-gram baselines against dictionaries and loops, and against what must hold of any distribution."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import Tokenizer

from workbench.data import ngrams
from workbench.data.corpus import Document
from workbench.data.ngrams import ngram_baselines
from workbench.data.tokenizer import END_OF_TEXT
from workbench.data.tokens import TokenFile, pack

V = 7


def _packed(path: Path, stream: list[int], d_vocab: int = V) -> TokenFile:
    """A token file of these tokens, the last of them the end of text (id d_vocab − 1)."""
    words = {f"w{i}": i for i in range(d_vocab - 1)} | {END_OF_TEXT: d_vocab - 1}
    tokenizer = Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END_OF_TEXT])
    file = pack([Document("", "", " ".join(f"w{i}" for i in stream[:-1]))], tokenizer, path)
    assert file.tokens.tolist() == stream
    return file


def _stream(seed: int, n: int, d_vocab: int = V) -> list[int]:
    rng = np.random.default_rng(seed)
    return [*(int(x) for x in (rng.pareto(1.0, n) * 2).astype(int) % (d_vocab - 2)), d_vocab - 1]


def _naive(stream: list[int], rows: list[list[int]], d_vocab: int) -> dict[str, float]:
    """The docstring's formulas, one token at a time."""
    c, pairs = Counter(stream), Counter(zip(stream, stream[1:], strict=False))
    after, kinds = Counter(stream[:-1]), Counter(v for v, _ in pairs)
    n1, n2 = sum(x == 1 for x in pairs.values()), sum(x == 2 for x in pairs.values())
    discount = n1 / (n1 + 2 * n2) if n1 else 0.5
    unigram = bigram = 0.0
    targets = [(row[i - 1], row[i]) for row in rows for i in range(1, len(row))]
    for v, w in targets:
        p1 = (c[w] + 1) / (len(stream) + d_vocab)
        p2 = p1
        if after[v]:
            p2 = max(pairs[v, w] - discount, 0) / after[v] + discount * kinds[v] / after[v] * p1
        unigram -= math.log(p1)
        bigram -= math.log(p2)

    def entropy(items: list) -> float:
        return -sum(x / len(items) * math.log(x / len(items)) for x in Counter(items).values())

    return {
        "unigram": unigram / len(targets),
        "bigram": bigram / len(targets),
        "unigram_entropy": entropy([w for _, w in targets]),
        "bigram_entropy": entropy(targets) - entropy([v for v, _ in targets]),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunk", [1, 7, 1 << 23])
def test_baselines_equal_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, chunk: int) -> None:
    monkeypatch.setattr(ngrams, "_CHUNK", chunk)
    stream = _stream(seed, 60)
    rows = np.random.default_rng(seed + 100).integers(V, size=(4, 9))
    found = ngram_baselines(_packed(tmp_path / "p", stream), torch.from_numpy(rows))
    wanted = _naive(stream, rows.tolist(), V)
    assert {b.n_tokens for b in found.values()} == {4 * 8}
    assert {name: b.nats for name, b in found.items()} == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_both_predictions_sum_to_one(tmp_path: Path, seed: int) -> None:
    file = _packed(tmp_path / "p", _stream(seed, 40))
    for v in range(V):
        rows = [torch.tensor([[v, w]]) for w in range(V)]
        for name in ("unigram", "bigram"):
            assert math.fsum(math.exp(-ngram_baselines(file, r)[name].nats) for r in rows) == pytest.approx(
                1, abs=1e-12
            )


def test_known_entropies(tmp_path: Path) -> None:
    """A held-out cycle 0 1 2 3 0 1 …: H(w) = ln 4, H(w|v) = 0; and a train text that says so is believed."""
    cycle = [0, 1, 2, 3] * 50
    file = _packed(tmp_path / "p", [*cycle, V - 1])
    found = ngram_baselines(file, torch.tensor([cycle[:41]] * 3))
    assert found["unigram_entropy"].nats == pytest.approx(math.log(4), abs=1e-12)
    assert found["bigram_entropy"].nats == pytest.approx(0, abs=1e-12)
    assert found["unigram"].nats == pytest.approx(-math.log(51 / (201 + V)), abs=1e-12)
    assert found["bigram"].nats < 0.05
    uniform = ngram_baselines(file, torch.tensor([[5, 5]]))["bigram"].nats
    assert uniform == pytest.approx(-math.log(1 / (201 + V)), abs=1e-12)  # 5 was never seen: back to p₁


def test_the_end_of_training_is_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _stream(0, 60)
    rows = torch.tensor([stream[:20]])
    monkeypatch.setattr(ngrams, "MAX_TRAIN_TOKENS", 30)
    found = ngram_baselines(_packed(tmp_path / "p", stream), rows)
    wanted = _naive(stream[:30], rows.tolist(), V)
    assert {name: b.nats for name, b in found.items()} == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(3, 1, dtype=torch.int64), r"shape \(3, 1\); expected"),
        (torch.zeros(0, 5, dtype=torch.int64), r"shape \(0, 5\); expected"),
        (torch.tensor([[0, V]]), r"span 0 … 7; expected 0 … 6"),
        (torch.tensor([[0, -1]]), r"span -1 … 0; expected 0 … 6"),
    ],
)
def test_tokens_that_cannot_be_predicted_are_refused(tmp_path: Path, tokens: torch.Tensor, message: str) -> None:
    file = _packed(tmp_path / "p", _stream(0, 10))
    with pytest.raises(ValueError, match=rf"ngrams: held-out tokens (have )?{message}"):
        ngram_baselines(file, tokens)
