"""Packed tokens: documents encoded once into a memory-mapped file, and the windows that training and evaluation read.

A packed directory holds `tokens.bin` (of every document what the tokenizer begins a text with, its tokens, and the
token that separates documents; one token that does both stands there once; little-endian uint16, or uint32 for
vocabularies above 65,536), `documents.bin` (where each document starts; little-endian int64) and `index.json` (counts,
checksums of both, of the text and of the tokenizer).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt
from torch import Tensor

from workbench import runs
from workbench.data.corpus import Document
from workbench.data.tokenizer import text_encoder, vocabulary_size
from workbench.models.tokenizer_files import begin_ids, separator_id

FORMAT = "workbench-tokens/1"
_BATCH_CHARACTERS = 4 << 20  # encoded at once: enough to keep all cores busy, little enough to hold


@dataclass(frozen=True)
class TokenFile:
    """A packed directory, checked. Compare two by `tokens_sha256`."""

    path: Path
    """the directory"""
    n_tokens: int
    """tokens in all, end-of-text tokens included"""
    n_bytes: int
    """UTF-8 bytes of the documents' text: what bits per byte are counted over"""
    n_documents: int
    """documents packed"""
    d_vocab: int
    """largest id of the tokenizer + 1; every token is below it"""
    eot_id: int
    """id of the token that follows each document"""
    dtype: str
    """uint16 or uint32"""
    tokens_sha256: str
    """of tokens.bin"""
    documents_sha256: str
    """of documents.bin"""
    corpus_sha256: str
    """of the documents' texts in order, see `corpus_sha256`"""
    tokenizer_sha256: str
    """of the tokenizer's JSON form"""

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> TokenFile:
        """The packed tokens in `path`; verify=False skips the two checksums (one read of the files).

        Raises ValueError naming the file that is missing, altered or not understood.
        """
        path = Path(path)
        index = _read_index(path / "index.json")
        token_file = cls(path=path, **index)
        sizes = {
            "tokens.bin": token_file.n_tokens * np.dtype(token_file.dtype).itemsize,
            "documents.bin": token_file.n_documents * 8,
        }
        for name, n_bytes in sizes.items():
            file = path / name
            if file.is_symlink() or not file.is_file():
                raise ValueError(f"tokens: {file} is missing; expected {n_bytes} bytes, or remove {path} to pack again")
            if (got := file.stat().st_size) != n_bytes:
                raise ValueError(
                    f"tokens: {file} is altered, {got} bytes; expected {n_bytes}; remove {path} to pack again"
                )
            wanted = index[name.replace(".bin", "_sha256")]
            if verify and runs.sha256_file(file) != wanted:
                raise ValueError(f"tokens: {file} is altered; expected sha256 {wanted}; remove {path} to pack again")
        return token_file

    @cached_property
    def tokens(self) -> UInt[np.ndarray, " n_tokens"]:
        """All tokens, mapped from the file and read-only."""
        dtype = np.dtype(self.dtype).newbyteorder("<")
        return np.memmap(self.path / "tokens.bin", dtype=dtype, mode="r", shape=(self.n_tokens,))

    @cached_property
    def document_offsets(self) -> Int64[np.ndarray, " n_documents"]:
        """Where each document's first token is in `tokens`, mapped from the file and read-only."""
        return np.memmap(self.path / "documents.bin", dtype="<i8", mode="r", shape=(self.n_documents,))


def cache_directory() -> Path:
    """Where packed tokens are kept unless told otherwise: $WORKBENCH_CACHE, else workbench in the user's cache."""
    if own := os.environ.get("WORKBENCH_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "workbench"


def pack_cached(
    documents: Sequence[Document], tokenizer: Any, cache: str | os.PathLike[str] | None = None
) -> TokenFile:
    """The packed `documents`, from the cache directory if the same texts and tokenizer were packed there before.

    cache: directory (made if missing), `cache_directory()` by default.
    """
    read = f"{corpus_sha256(documents)} {tokenizer_sha256(tokenizer)} {separator_id(tokenizer)}"
    key = hashlib.sha256(read.encode()).hexdigest()
    directory = cache_directory() if cache is None else Path(cache)
    return pack(documents, tokenizer, directory / f"tokens-{key[:24]}")


def pack(documents: Iterable[Document], tokenizer: Any, path: str | os.PathLike[str]) -> TokenFile:
    """The packed `documents`: built in `path` if it does not exist, else checked and used as it is.

    tokenizer: a Hugging Face fast tokenizer, or a `tokenizers.Tokenizer`; see `begin_ids` and `separator_id`.

    Special tokens written in a document are text like any other. Built aside and renamed when whole; a second process
    that wants the same `path` waits.

    Raises ValueError if `path` holds something else: other texts, another tokenizer, an altered file. Nothing there is
    ever replaced. And if there is no document, or nothing says which token separates documents.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  (as in runs: normalises, keeps links)
    with runs.locked(path, wait=True):
        if path.exists():
            return _reuse(documents, tokenizer, path)
        partial = path.with_name(path.name + ".partial")
        if partial.exists():
            shutil.rmtree(partial)  # of a process that was killed: the lock is ours
        partial.mkdir()
        try:
            with runs.naming(partial):
                index = _write(documents, tokenizer, partial)
                runs.atomic_write(partial / "index.json", json.dumps({"format": FORMAT} | index, indent=2) + "\n")
                runs.publish(partial, path)
        except BaseException:
            shutil.rmtree(partial)
            raise
    return TokenFile.load(path, verify=False)


def corpus_sha256(documents: Iterable[Document]) -> str:
    """SHA-256 of the texts in order, each preceded by its length in bytes (8 bytes, little-endian)."""
    digest = hashlib.sha256()
    for document in documents:
        _update(digest, document.text.encode())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer's JSON form."""
    return hashlib.sha256(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str().encode()).hexdigest()


# --- windows


def held_out_windows(token_file: TokenFile, n_ctx: int, n_max: int | None = None) -> Int64[Tensor, "n n_ctx"]:
    """Contiguous windows that do not overlap, from the first token on; what is left at the end is dropped.

    n_max: at most so many, evenly spaced over the file, so that a few still come from all of it. None: all.
    """
    _n_starts(token_file, n_ctx)
    n = token_file.n_tokens // n_ctx
    if n_max is not None and n_max < 1:
        raise ValueError(f"held_out_windows: n_max is {n_max}; expected at least 1")
    n_kept = n if n_max is None else min(n, n_max)
    return _gather(token_file, np.arange(n_kept) * n // n_kept * n_ctx, n_ctx)


class WindowSampler:
    """Batches of random windows for training; where it stands is one number.

    Batch i is a function of (seed, i) alone: its starts are the i-th stream of a counter-based generator (Philox4x64,
    Salmon et al. 2011), so that a resumed run reads what the uninterrupted run reads. Under data parallelism every rank
    draws the same global batch and takes its own rows.
    """

    def __init__(
        self,
        token_file: TokenFile,
        n_ctx: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """batch_size: windows in a global batch, a multiple of world_size. pin_memory: page-locked, for CUDA."""
        _n_starts(token_file, n_ctx)
        check_shard(batch_size, rank, world_size)
        if seed < 0:
            raise ValueError(f"sampler: seed is {seed}; expected 0 or more")
        if pin_memory and not torch.cuda.is_available():
            raise ValueError("sampler: pin_memory without CUDA; expected a CUDA device, or pin_memory=False")
        self.token_file, self.n_ctx, self.batch_size, self.seed = token_file, n_ctx, batch_size, seed
        self.rank, self.world_size, self.pin_memory = rank, world_size, pin_memory
        self.n_batches = 0

    def next_batch(self) -> Int64[Tensor, "rows n_ctx"]:
        """The next batch's rows of this rank, batch_size / world_size of them."""
        philox = np.random.Philox(key=self.seed, counter=[0, 0, 0, self.n_batches])
        # raw bits and a remainder, because NumPy keeps no promise on how Generator.integers uses its bits; the bias is
        # below n_tokens / 2^64
        starts = philox.random_raw(self.batch_size) % np.uint64(_n_starts(self.token_file, self.n_ctx))
        self.n_batches += 1
        n = self.batch_size // self.world_size
        rows = _gather(self.token_file, starts[self.rank * n : (self.rank + 1) * n].astype(np.int64), self.n_ctx)
        return rows.pin_memory() if self.pin_memory else rows

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands, and what it samples, as JSON holds it; the same for every rank."""
        return {
            "n_batches": self.n_batches,
            "seed": self.seed,
            "n_ctx": self.n_ctx,
            "batch_size": self.batch_size,
            "tokens_sha256": self.token_file.tokens_sha256,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to `state`: the next batch is the one that would have followed it.

        Raises ValueError if `state` is of other tokens, another seed or another shape.
        """
        check_state(self.state_dict(), state, positions=("n_batches",))
        self.n_batches = state["n_batches"]


def check_shard(batch_size: int, rank: int, world_size: int) -> None:
    """Raise ValueError unless `world_size` ranks can share `batch_size` rows and rank is one."""
    if batch_size < 1 or world_size < 1 or batch_size % world_size:
        raise ValueError(
            f"sampler: batch_size is {batch_size} for {world_size} processes; expected a positive multiple"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"sampler: rank is {rank}; expected 0 to {world_size - 1}")


def check_state(own: dict[str, Any], state: dict[str, Any], positions: tuple[str, ...]) -> None:
    """Raise ValueError unless `state` differs from `own` in counts at `positions` alone."""
    if not isinstance(state, dict) or state.keys() != own.keys():
        raise ValueError(f"sampler: state has {sorted(state)}; expected {sorted(own)}")
    for key, value in own.items():
        got = state[key]
        if key in positions:
            if not isinstance(got, int) or isinstance(got, bool) or got < 0:
                raise ValueError(f"sampler: state has {key} {got!r}; expected a count")
        elif got != value:
            raise ValueError(f"sampler: state is of {key} {got}; expected {value}")


# --- inside


def _n_starts(token_file: TokenFile, n_ctx: int) -> int:
    if not 1 <= n_ctx <= token_file.n_tokens:
        raise ValueError(
            f"windows: n_ctx is {n_ctx}, {token_file.path} has {token_file.n_tokens} tokens; expected 1 to that"
        )
    return token_file.n_tokens - n_ctx + 1


def _gather(token_file: TokenFile, starts: Int64[np.ndarray, " n"], n_ctx: int) -> Int64[Tensor, "n n_ctx"]:
    return torch.from_numpy(token_file.tokens[starts[:, None] + np.arange(n_ctx)].astype(np.int64))


def _update(digest: Any, text: bytes) -> None:
    digest.update(len(text).to_bytes(8, "little"))
    digest.update(text)


def _reuse(documents: Iterable[Document], tokenizer: Any, path: Path) -> TokenFile:
    token_file = TokenFile.load(path)
    for what, old, new in (
        ("tokenizer", token_file.tokenizer_sha256, tokenizer_sha256(tokenizer)),
        ("text", token_file.corpus_sha256, corpus_sha256(documents)),
    ):
        if old != new:
            raise ValueError(
                f"tokens: {path} was packed from another {what} ({old[:12]}…); expected {new[:12]}…, or another path"
            )
    if (end := separator_id(tokenizer)) != token_file.eot_id:
        raise ValueError(
            f"tokens: {path} has token {token_file.eot_id} between documents; expected {end}, or another path"
        )
    return token_file


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    batch, n_characters = [], 0
    for document in documents:
        batch.append(document.text)
        n_characters += len(document.text)
        if n_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


def _write(documents: Iterable[Document], tokenizer: Any, directory: Path) -> dict[str, Any]:
    """What index.json holds, after tokens.bin and documents.bin have been written."""
    end, lead = separator_id(tokenizer), begin_ids(tokenizer)
    lead = [] if lead == [end] else lead
    encoder = text_encoder(tokenizer)
    d_vocab = vocabulary_size(encoder)
    dtype = np.dtype("<u2" if d_vocab <= 1 << 16 else "<u4")
    corpus, n_tokens, n_bytes, offsets = hashlib.sha256(), 0, 0, []
    with (directory / "tokens.bin").open("wb") as file:
        for batch in _batches(documents):
            for text, encoding in zip(batch, encoder.encode_batch_fast(batch, add_special_tokens=False), strict=True):
                data = text.encode()
                _update(corpus, data)
                offsets.append(n_tokens)
                ids = np.array([*lead, *encoding.ids, end], dtype=dtype)
                file.write(ids.tobytes())
                n_tokens += len(ids)
                n_bytes += len(data)
    if not offsets:
        raise ValueError("pack: no documents; expected at least one")
    (directory / "documents.bin").write_bytes(np.array(offsets, dtype="<i8").tobytes())
    return {
        "n_tokens": n_tokens,
        "n_bytes": n_bytes,
        "n_documents": len(offsets),
        "d_vocab": d_vocab,
        "eot_id": end,
        "dtype": f"uint{dtype.itemsize * 8}",
        "tokens_sha256": runs.sha256_file(directory / "tokens.bin"),
        "documents_sha256": runs.sha256_file(directory / "documents.bin"),
        "corpus_sha256": corpus.hexdigest(),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
    }


def _read_index(file: Path) -> dict[str, Any]:
    text = runs.read_settings(file, "tokens", "a directory of packed tokens")
    try:
        index = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tokens: {file} is not JSON ({error}); expected the file that packing wrote") from None
    counts = ("n_tokens", "n_bytes", "n_documents", "d_vocab", "eot_id")
    sums = ("tokens_sha256", "documents_sha256", "corpus_sha256", "tokenizer_sha256")
    if not isinstance(index, dict) or index.pop("format", None) != FORMAT:
        raise ValueError(f'tokens: {file} has another format; expected "format": "{FORMAT}"')
    if index.keys() != {*counts, *sums, "dtype"}:
        got = runs.shorten(repr(sorted(index)), 200)
        raise ValueError(f"tokens: {file} has {got}; expected {sorted([*counts, *sums, 'dtype'])}")
    for key in counts:
        least = 0 if key == "eot_id" else 1
        if type(index[key]) is not int or not least <= index[key] < 1 << 62:
            raise ValueError(f"tokens: {file} has {key} {runs.shorten(repr(index[key]))}; expected a count")
    for key in sums:
        if not isinstance(index[key], str):
            raise ValueError(f"tokens: {file} has {key} {runs.shorten(repr(index[key]))}; expected a sha256")
    if index["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"tokens: {file} has dtype {runs.shorten(repr(index['dtype']))}; expected uint16 or uint32")
    return index
