"""Tokenizers: the embedded one is what its recipe makes, all are lossless, and none is taken on trust."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import textwrap
from functools import lru_cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import environment
from tokenizers import Tokenizer

from workbench.data.corpus import EMBEDDED, read_documents, split_documents
from workbench.data.tokenizer import (
    END_OF_TEXT,
    _first_entries,
    load_tokenizer,
    text_encoder,
    train_bpe,
    vocabulary_size,
)
from workbench.models.tokenizer_files import separator_id, wrap_tokenizer


@pytest.fixture(scope="module")
def embedded() -> Tokenizer:
    return load_tokenizer("embedded")


@pytest.mark.slow
def test_the_embedded_tokenizer_is_trained_on_the_train_split(embedded: Tokenizer) -> None:
    train, _ = split_documents(read_documents("embedded"))
    trained = train_bpe((d.text for d in reversed(train)), 4096)
    assert json.loads(trained.to_str()) == json.loads(embedded.to_str())


def test_training_is_deterministic_and_lossless() -> None:
    texts = [d.text[:2000] for d in read_documents("embedded")[::20]]
    one, other = train_bpe(texts, 400), train_bpe(reversed(texts), 400)
    assert one.to_str() == other.to_str()
    assert vocabulary_size(one) == 400
    assert one.token_to_id(END_OF_TEXT) == 0
    assert sorted(one.id_to_token(i) for i in range(1, 257)) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert all(one.decode(one.encode(t).ids) == t for t in [*texts, "東京 \U0001f600 \0 é\n\n  x"])


def test_the_first_merges_are_the_most_frequent_pairs() -> None:
    """Counted by hand: within words, 'a b' occurs 5 times, ' a' (the space belongs to the word) 3, 'c d' 2."""
    trained = train_bpe(["ab ab ab ab ab cd cd x"], 259)
    assert trained.token_to_id("ab") == 257
    assert trained.token_to_id("Ġab") == 258


def test_the_embedded_tokenizers_have_their_known_ids(embedded: Tokenizer) -> None:
    gpt2 = load_tokenizer("gpt2")
    assert (vocabulary_size(embedded), separator_id(embedded)) == (4096, 0)
    # GPT-2's ids are public facts: "Hello world" is 15496 995, and the end of text 50256
    assert (vocabulary_size(gpt2), separator_id(gpt2)) == (50257, 50256)
    assert gpt2.encode("Hello world").ids == [15496, 995]
    assert gpt2.encode(f"Hello{END_OF_TEXT}").ids == [15496, 50256]
    assert len(embedded.encode("The State of the Union").ids) <= 6


_loaded = lru_cache(load_tokenizer)


@given(text=st.text(max_size=80))
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("name", ["embedded", "gpt2"])
def test_any_text_comes_back(name: str, text: str) -> None:
    tokenizer = _loaded(name)
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert max(ids, default=0) < {"embedded": 4096, "gpt2": 50257}[name]


def test_files_and_folders_load_without_truncation_or_padding(tmp_path: Path, embedded: Tokenizer) -> None:
    cut = Tokenizer.from_str(embedded.to_str())
    cut.enable_truncation(3)
    cut.enable_padding(length=10)
    cut.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "packed.json.xz").write_bytes(lzma.compress((tmp_path / "tokenizer.json").read_bytes()))
    for source in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path / "packed.json.xz")):
        assert load_tokenizer(source).to_str() == embedded.to_str()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tokenizer.json", b"", "cannot be read"),
        ("tokenizer.json", b"{}", "cannot be read"),
        ("tokenizer.json", b"\xff", "cannot be read"),
        ("tokenizer.json", b"[" * 100_000, "cannot be read"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}}}', "cannot be read"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "None"}}', "cannot be read"),
        ("t.json.xz", b"not xz", "is damaged"),
        ("t.json.xz", lzma.compress(b"{}" * 3000)[:-20], "is damaged"),
        ("other.txt", b"", r"holds no tokenizer\.json"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"tokenizer: .*{message}"):
        load_tokenizer(tmp_path if name == "other.txt" else tmp_path / name)


@pytest.mark.parametrize("name", ["no/such/tokenizer.json", "/nowhere", "", "a b", "x\0y", "missing.json"])
def test_a_path_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="tokenizer: no file or folder"):
        load_tokenizer(name)


def test_too_large_a_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ValueError, match="has 1099511627776 bytes; expected at most"):
        load_tokenizer(tmp_path)


def test_a_hub_name_comes_from_the_cache_offline_or_is_refused(tmp_path: Path, embedded: Tokenizer) -> None:
    """The hub library's cache, laid out as it leaves it: refs/main names a snapshot, which holds the file."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "snapshots" / "0" / "tokenizer.json").parent.mkdir(parents=True)
    embedded.save(str(repository / "snapshots" / "0" / "tokenizer.json"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0")
    code = """
        from workbench.data.tokenizer import load_tokenizer, vocabulary_size
        for name in ("someone/tiny", "hub:someone/tiny"):
            assert vocabulary_size(load_tokenizer(name)) == 4096
        for name, words in (
            ("someone/absent", "neither a file or folder here nor a hub name"),
            ("hub:../x", "no hub name"),
        ):
            try:
                load_tokenizer(name)
            except ValueError as error:
                assert words in str(error), error
            else:
                raise AssertionError(name)
    """
    env = environment(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ids_may_have_gaps() -> None:
    words = {name: i * 7 for i, name in enumerate(("a", "b", "c"))}
    assert vocabulary_size(Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))) == 15


def test_equal_tokenizers_share_one_encoder_of_plain_text() -> None:
    # an encoder of its own for every call would keep every word it met (tokenizers 0.23), megabytes a model loaded
    first, second = load_tokenizer("embedded"), load_tokenizer("embedded")
    first.enable_truncation(3)
    second.enable_truncation(3)
    encoder, text = text_encoder(first), "One two three four five six seven <|endoftext|> eight"
    assert text_encoder(second) is encoder
    assert text_encoder(wrap_tokenizer(first)) is text_encoder(wrap_tokenizer(second))
    assert len(first.encode(text).ids) == 3
    ids = encoder.encode(text).ids
    assert separator_id(first) not in ids
    assert encoder.decode(ids) == text


def test_bpe_needs_room_for_the_bytes() -> None:
    with pytest.raises(ValueError, match="train_bpe: d_vocab is 256; expected at least 257"):
        train_bpe(["a"], 256)


def test_provenance_names_every_embedded_file() -> None:
    text = (EMBEDDED / "PROVENANCE.md").read_text()
    for file in EMBEDDED.iterdir():
        assert file.name == "PROVENANCE.md" or f"`{file.name}`" in text


def test_the_first_entries_are_what_training_with_fewer_gives():
    texts = ["the cat and the hat and the bat", "a cat sat on the mat", "that hat"] * 3
    few, many = train_bpe(texts, 270), train_bpe(texts, 290)
    stopped = _first_entries(many, 270)
    assert stopped.get_vocab() == few.get_vocab()
    assert all(stopped.encode(text).ids == few.encode(text).ids for text in texts)
    tokenizer = load_tokenizer("embedded-1024")
    assert vocabulary_size(tokenizer) == 1024
    text = "Depth recurrence – naïve, <|endoftext|> and all."
    tokenizer.encode_special_tokens = True
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    with pytest.raises(ValueError, match="embedded-256; expected 257"):
        load_tokenizer("embedded-256")
    with pytest.raises(ValueError, match="embedded-5000; expected 257"):
        load_tokenizer("embedded-5000")
