"""Packed tokens against encoding one document after another; windows against slices; every altered byte found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from workbench.data import tokens
from workbench.data.corpus import Document, read_documents
from workbench.data.tokenizer import END_OF_TEXT, load_tokenizer
from workbench.data.tokens import TokenFile, WindowSampler, held_out_windows, pack, pack_cached
from workbench.models.tokenizer_files import separator_id


def _documents(*texts: str) -> list[Document]:
    return [Document("s", str(i), text) for i, text in enumerate(texts)]


_loaded = lru_cache(load_tokenizer)
SMALL = _documents("Hello world", "naïve 東京\n\n", f"a {END_OF_TEXT} b", "x" * 500, "Twice upon a time " * 30)


@pytest.fixture(scope="module")
def embedded() -> Tokenizer:
    return load_tokenizer("embedded")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, embedded: Tokenizer) -> TokenFile:
    return pack(read_documents("embedded")[:40:4], embedded, tmp_path_factory.mktemp("packed") / "p")


def _numbered(path: Path, n: int) -> TokenFile:
    """A token file whose token i is i: where a window starts is its first token."""
    vocabulary = {END_OF_TEXT: n - 1} | {f"w{i}": i for i in range(n - 1)}
    words = Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([END_OF_TEXT])
    return pack(_documents(" ".join(f"w{i}" for i in range(n - 1))), words, path)


# --- packing


@pytest.mark.parametrize("batch_characters", [1, 100, 10**9])
def test_packing_is_encoding_one_document_after_another(
    tmp_path: Path, embedded: Tokenizer, monkeypatch: pytest.MonkeyPatch, batch_characters: int
) -> None:
    monkeypatch.setattr(tokens, "_BATCH_CHARACTERS", batch_characters)
    file = pack(SMALL, embedded, tmp_path / "p")
    plain = Tokenizer.from_str(embedded.to_str())
    plain.encode_special_tokens = True
    wanted, offsets = [], []
    for document in SMALL:
        offsets.append(len(wanted))
        for token in plain.encode(document.text).ids:
            assert token != 0  # a written "<|endoftext|>" is words
            wanted.append(token)
        wanted.append(0)
    assert file.tokens.tolist() == wanted
    assert file.document_offsets.tolist() == offsets
    assert file.n_tokens == len(wanted)
    assert file.n_bytes == sum(len(d.text.encode()) for d in SMALL)
    assert (file.d_vocab, file.eot_id, file.dtype, file.n_documents) == (4096, 0, "uint16", len(SMALL))
    starts = [*file.document_offsets.tolist(), file.n_tokens]
    texts = [plain.decode(file.tokens[a : b - 1].tolist()) for a, b in zip(starts, starts[1:], strict=False)]
    assert texts == [d.text for d in SMALL]
    assert sorted(p.name for p in file.path.iterdir()) == ["documents.bin", "index.json", "tokens.bin"]
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


@given(texts=st.lists(st.text(min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_any_texts_can_be_read_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    tokenizer = _loaded("embedded")
    file = pack(_documents(*texts), tokenizer, tmp_path_factory.mktemp("t") / "p")
    ends = np.flatnonzero(file.tokens == file.eot_id)
    assert len(ends) == len(texts)
    assert [
        tokenizer.decode(part[1 if i else 0 :].tolist()) for i, part in enumerate(np.split(file.tokens, ends)[:-1])
    ] == texts


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    small, large = _numbered(tmp_path / "small", 1 << 16), _numbered(tmp_path / "large", (1 << 16) + 1)
    assert (small.dtype, large.dtype) == ("uint16", "uint32")
    assert small.tokens.tolist() == list(range(1 << 16))
    assert large.tokens.tolist() == list(range((1 << 16) + 1))


def test_tokens_on_disk_are_little_endian(tmp_path: Path) -> None:
    file = _numbered(tmp_path / "p", 300)
    data = (file.path / "tokens.bin").read_bytes()
    assert [int.from_bytes(data[i : i + 2], "little") for i in range(0, 600, 2)] == list(range(300))
    with pytest.raises(ValueError, match="read-only"):
        file.tokens[0] = 1


def test_a_truncating_padding_prefixing_tokenizer_packs_whole_documents(tmp_path: Path, embedded: Tokenizer) -> None:
    odd = Tokenizer.from_str(embedded.to_str())
    odd.enable_truncation(2)
    odd.enable_padding(length=50)
    odd.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    a, b = pack(SMALL, odd, tmp_path / "a"), pack(SMALL, embedded, tmp_path / "b")
    assert a.tokens_sha256 == b.tokens_sha256


def test_a_packed_directory_is_built_once(tmp_path: Path, embedded: Tokenizer) -> None:
    first = pack(SMALL, embedded, tmp_path / "p")
    before = {p.name: p.stat().st_mtime_ns for p in first.path.iterdir()}
    assert pack(iter(SMALL), embedded, tmp_path / "p") == first == TokenFile.load(tmp_path / "p")
    assert {p.name: p.stat().st_mtime_ns for p in first.path.iterdir()} == before


def test_another_text_or_tokenizer_is_refused(tmp_path: Path, embedded: Tokenizer) -> None:
    pack(SMALL, embedded, tmp_path / "p")
    with pytest.raises(ValueError, match=r"tokens: .*p was packed from another text"):
        pack(SMALL[::-1], embedded, tmp_path / "p")
    with pytest.raises(ValueError, match=r"tokens: .*p was packed from another tokenizer"):
        pack(SMALL, _loaded("gpt2"), tmp_path / "p")


def test_the_cache_tells_texts_and_tokenizers_apart(
    tmp_path: Path, embedded: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "own"))
    first = pack_cached(SMALL, embedded)
    assert first.path.parent == tmp_path / "own" == tokens.cache_directory()
    assert pack_cached(SMALL, embedded) == first
    assert pack_cached(SMALL[1:], embedded).path != first.path
    assert pack_cached(SMALL, _loaded("gpt2")).path != first.path
    assert pack_cached(SMALL, embedded, tmp_path / "given").path.parent == tmp_path / "given"
    monkeypatch.delenv("WORKBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert tokens.cache_directory() == Path("/x/workbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert tokens.cache_directory() == Path("/h/.cache/workbench")


def test_a_corpus_checksum_knows_where_documents_end() -> None:
    assert tokens.corpus_sha256(_documents("ab", "c")) != tokens.corpus_sha256(_documents("a", "bc"))


def test_a_failure_while_packing_leaves_nothing(tmp_path: Path, embedded: Tokenizer) -> None:
    def failing() -> Iterator[Document]:
        yield SMALL[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        pack(failing(), embedded, tmp_path / "p")
    with pytest.raises(ValueError, match="pack: no documents"):
        pack([], embedded, tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_a_kill_while_packing_is_made_good_and_a_second_process_waits(tmp_path: Path, embedded: Tokenizer) -> None:
    code = """
        import sys, time
        from workbench.data.corpus import Document
        from workbench.data.tokenizer import load_tokenizer
        from workbench.data.tokens import pack
        def documents():
            for i, text in enumerate(("one", "two")):
                yield Document("s", str(i), text)
                if i == 0:
                    print("ready", flush=True)
                    time.sleep(float(sys.argv[2]))
        pack(documents(), load_tokenizer("embedded"), sys.argv[1])
    """

    def start(seconds: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "p"), seconds]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    with start("60") as killed:
        os.kill(killed.pid, signal.SIGKILL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.lock", "p.partial"]
    with start("0.5") as other:
        file = pack(_documents("one", "two"), embedded, tmp_path / "p")  # waits, then reuses
    assert other.returncode == 0
    assert file.n_documents == 2
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


# --- corruption


def _edit(path: Path, **changes: object) -> None:
    index = json.loads((path / "index.json").read_text()) | changes
    (path / "index.json").write_text(json.dumps({k: v for k, v in index.items() if v != "gone"}))


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: _flip(p / "tokens.bin"), r"tokens\.bin is altered; expected sha256"),
        (lambda p: _flip(p / "documents.bin"), r"documents\.bin is altered; expected sha256"),
        (lambda p: os.truncate(p / "tokens.bin", 10), r"tokens\.bin is altered, 10 bytes; expected"),
        (lambda p: os.truncate(p / "documents.bin", 0), r"documents\.bin is altered, 0 bytes; expected"),
        (lambda p: (p / "tokens.bin").unlink(), r"tokens\.bin is missing"),
        (lambda p: (p / "documents.bin").unlink(), r"documents\.bin is missing"),
        (lambda p: (p / "index.json").unlink(), r"index\.json is missing; expected a directory of packed tokens"),
        (lambda p: shutil.rmtree(p), r"index\.json is missing"),
        (lambda p: _put(p / "index.json", b"\xff"), r"index\.json is not UTF-8"),
        (lambda p: _put(p / "index.json", b"{"), r"index\.json is not JSON"),
        (lambda p: _put(p / "index.json", b"[" * 100_000), r"index\.json is not JSON"),
        (lambda p: _put(p / "index.json", b"[]"), r"has another format"),
        (lambda p: _edit(p, format="workbench-tokens/2"), r"has another format"),
        (lambda p: _edit(p, extra=1), r"index\.json has \['corpus_sha256', .*; expected"),
        (lambda p: _edit(p, d_vocab="gone"), r"index\.json has .*; expected"),
        (lambda p: _edit(p, n_tokens=-1), r"n_tokens -1; expected a count"),
        (lambda p: _edit(p, n_tokens=0), r"n_tokens 0; expected a count"),
        (lambda p: _edit(p, n_tokens=True), r"n_tokens True; expected a count"),
        (lambda p: _edit(p, n_tokens=10**30), r"n_tokens 1\d+; expected a count"),
        (lambda p: _edit(p, n_tokens=3.0), r"n_tokens 3\.0; expected a count"),
        (lambda p: _edit(p, n_tokens=7), r"tokens\.bin is altered, \d+ bytes; expected 14"),
        (lambda p: _edit(p, eot_id=-1), r"eot_id -1; expected a count"),
        (lambda p: _edit(p, dtype="float64"), r"dtype 'float64'; expected uint16 or uint32"),
        (lambda p: _edit(p, dtype=["u2"]), r"dtype \['u2'\]; expected uint16 or uint32"),
        (lambda p: _edit(p, tokens_sha256=3), r"tokens_sha256 3; expected a sha256"),
    ],
)
def test_every_damage_is_named(tmp_path: Path, embedded: Tokenizer, damage: Callable, message: str) -> None:
    path = tmp_path / "p"
    pack(SMALL, embedded, path)
    damage(path)
    with pytest.raises(ValueError, match=rf"tokens: .*{message}"):
        TokenFile.load(path)
    if path.exists():
        with pytest.raises(ValueError, match=rf"tokens: .*{message}"):
            pack(SMALL, embedded, path)


def test_a_link_in_place_of_the_tokens_is_refused(tmp_path: Path, embedded: Tokenizer) -> None:
    file = pack(SMALL, embedded, tmp_path / "p")
    (file.path / "tokens.bin").rename(tmp_path / "elsewhere")
    (file.path / "tokens.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"tokens\.bin is missing"):
        TokenFile.load(file.path)


@pytest.mark.parametrize("seed", range(20))
def test_any_flipped_bit_of_the_data_is_found(tmp_path: Path, embedded: Tokenizer, seed: int) -> None:
    rng = np.random.default_rng(seed)
    file = pack(SMALL, embedded, tmp_path / "p").path / ("tokens.bin", "documents.bin")[seed % 2]
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{file.name} is altered"):
        TokenFile.load(file.parent)
    assert TokenFile.load(file.parent, verify=False).n_documents == len(SMALL)


# --- windows


def test_held_out_windows_are_contiguous_and_few_of_them_cover_the_file(tmp_path: Path) -> None:
    file = _numbered(tmp_path / "p", 103)
    assert held_out_windows(file, 10).tolist() == [list(range(i, i + 10)) for i in range(0, 100, 10)]
    assert held_out_windows(file, 10, n_max=50).shape == (10, 10)
    assert held_out_windows(file, 10, n_max=3)[:, 0].tolist() == [0, 30, 60]
    assert held_out_windows(file, 103).tolist() == [list(range(103))]


@pytest.mark.parametrize("n_ctx", [0, -1, 21])
def test_windows_that_do_not_fit_are_refused(tmp_path: Path, n_ctx: int) -> None:
    file = _numbered(tmp_path / "p", 20)
    for make in (
        lambda: held_out_windows(file, n_ctx),
        lambda: WindowSampler(file, n_ctx, 1, 0),
    ):
        with pytest.raises(ValueError, match=rf"windows: n_ctx is {n_ctx}, .* has 20 tokens; expected 1 to that"):
            make()
    with pytest.raises(ValueError, match="n_max is 0; expected at least 1"):
        held_out_windows(file, 4, n_max=0)


@pytest.mark.parametrize("seed", [0, 1, 12345678901234567890])
def test_a_resumed_sampler_reads_what_the_uninterrupted_one_reads(packed: TokenFile, seed: int) -> None:
    whole = WindowSampler(packed, 32, 6, seed)
    wanted = [whole.next_batch() for _ in range(10)]
    assert len({tuple(b.flatten().tolist()) for b in wanted}) == 10
    for stop in (0, 1, 7):
        first = WindowSampler(packed, 32, 6, seed)
        for _ in range(stop):
            first.next_batch()
        state = json.loads(json.dumps(first.state_dict()))
        second = WindowSampler(packed, 32, 6, seed)
        second.next_batch()  # where it stood does not matter
        second.load_state_dict(state)
        assert all(torch.equal(second.next_batch(), b) for b in wanted[stop:])
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  (the global state must not matter)
    assert torch.equal(WindowSampler(packed, 32, 6, seed).next_batch(), wanted[0])


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_share_the_global_batch(packed: TokenFile, world_size: int) -> None:
    whole = WindowSampler(packed, 16, 6, 5)
    ranks = [WindowSampler(packed, 16, 6, 5, rank=r, world_size=world_size) for r in range(world_size)]
    for _ in range(3):
        assert torch.equal(torch.cat([r.next_batch() for r in ranks]), whole.next_batch())
    assert all(r.state_dict() == whole.state_dict() for r in ranks)


def test_the_sampler_is_uniform_over_starts(tmp_path: Path) -> None:
    sampler = WindowSampler(_numbered(tmp_path / "p", 20), 5, 80, 0)
    starts = torch.cat([sampler.next_batch()[:, 0] for _ in range(100)])
    counts = torch.bincount(starts, minlength=16)
    assert ((counts - 500) ** 2 / 500).sum() < 44  # as above


def test_a_sampler_refuses_what_is_not_its_own(packed: TokenFile, tmp_path: Path) -> None:
    sampler = WindowSampler(packed, 16, 4, 5)
    state = sampler.state_dict()
    other = WindowSampler(_numbered(tmp_path / "p", 50), 16, 4, 5)
    for bad, message in (
        (WindowSampler(packed, 16, 4, 6).state_dict(), "state is of seed 6; expected 5"),
        (WindowSampler(packed, 17, 4, 5).state_dict(), "state is of n_ctx 17; expected 16"),
        (WindowSampler(packed, 16, 2, 5).state_dict(), "state is of batch_size 2; expected 4"),
        (other.state_dict(), "state is of tokens_sha256 "),
        (state | {"n_batches": -1}, "state has n_batches -1; expected a count"),
        (state | {"n_batches": "3"}, "state has n_batches '3'; expected a count"),
        (state | {"n_batches": True}, "state has n_batches True; expected a count"),
        (state | {"more": 1}, "state has"),
        ({}, "state has"),
    ):
        with pytest.raises(ValueError, match=f"sampler: {message}"):
            sampler.load_state_dict(bad)
    for options, message in (
        ({"world_size": 3}, "batch_size is 4 for 3 processes; expected a positive multiple"),
        ({"rank": 2, "world_size": 2}, "rank is 2; expected 0 to 1"),
        ({"rank": -1}, "rank is -1"),
    ):
        with pytest.raises(ValueError, match=f"sampler: {message}"):
            WindowSampler(packed, 16, 4, 5, **options)
    with pytest.raises(ValueError, match="sampler: seed is -1; expected 0 or more"):
        WindowSampler(packed, 16, 4, -1)
    with pytest.raises(ValueError, match="sampler: batch_size is 0"):
        WindowSampler(packed, 16, 0, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_pinned_memory_needs_cuda(packed: TokenFile) -> None:
    with pytest.raises(ValueError, match="sampler: pin_memory without CUDA"):
        WindowSampler(packed, 16, 4, 5, pin_memory=True)


@pytest.mark.gpu
def test_pinned_batches_are_pinned(packed: TokenFile) -> None:
    batch = WindowSampler(packed, 16, 4, 5, pin_memory=True).next_batch()
    assert batch.is_pinned()
    assert torch.equal(batch, WindowSampler(packed, 16, 4, 5).next_batch())


def test_the_end_of_text_of_a_file_is_its_tokenizers(packed: TokenFile, embedded: Tokenizer) -> None:
    assert packed.eot_id == separator_id(embedded)
    assert (packed.tokens == packed.eot_id).sum() == packed.n_documents
