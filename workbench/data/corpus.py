"""Documents: read from the embedded text, files, folders or a hub, and split into train and held-out, by document or as
the text comes split."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import lzma
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from workbench.data.articles import join_articles
from workbench.data.splits import files_of_split, split_name, split_of
from workbench.models.text_source import TextSource
from workbench.runs import decode_text
from workbench.runs.foreign_files import refuse_pointer

EMBEDDED = Path(__file__).parent / "embedded"
_PACKINGS = ("", ".gz", ".xz")
SUFFIXES = tuple(f"{kind}{packing}" for kind in (".txt", ".jsonl") for packing in _PACKINGS) + (".parquet",)
# lines too, as WikiText is distributed; read only where articles are asked for, since elsewhere .raw is a photograph
LINE_SUFFIXES = tuple(f"{kind}{packing}" for kind in (".raw", ".tokens") for packing in _PACKINGS)
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+){0,2}$")
_UNKNOWN_SPLIT = re.compile(r'Unknown split ".*"\. Should be one of \[(.*)\]')  # of the datasets library


@dataclass(frozen=True)
class Document:
    """One text, kept whole."""

    source: str
    """what the text belongs to (a book, a file, a folder, a hub name); the split holds out some of every source"""
    title: str
    """name for people: the file and, in a file of many, the line or row"""
    text: str
    """the text itself, never blank"""


def as_trained(source: str | os.PathLike[str], trained_on: TextSource | None) -> TextSource:
    """How to read `source`: where it is what a model was `trained_on`, as then, so that what is held out is what the
    model never saw; else with the defaults."""
    return trained_on if trained_on is not None and trained_on.is_named(source) else TextSource(os.fspath(source))


def read_parts(text: TextSource, separator: str | None = None) -> tuple[list[Document], list[Document]]:
    """(train, held-out): the documents of a text's official splits where it names one to hold out, else of
    `split_documents`.

    Trained on is the split that the source names (NAME:CONFIG:SPLIT, wiki.train.raw), by default "train".

    Raises:
        ValueError: as `iter_documents`, and if nothing can be held out or the same split is trained on.
    """

    def read(split: str | None = None) -> list[Document]:
        return read_documents(
            text.source, text_column=text.text_column, separator=separator, documents=text.documents, split=split
        )

    if text.held_out_split is None:
        return split_documents(read(), text.held_out_fraction)
    train, held_out = _official_splits(text)
    return read(train), read(held_out)


def local_files(text: TextSource) -> list[Path]:
    """The files that the two parts of a local text are read from; none where it is known by its name alone.

    Raises:
        ValueError: as `text_files` and `files_of_split`.
    """
    path = Path(text.source).expanduser()
    if text.source == "embedded" or "\0" in text.source or not path.exists():
        return []
    files = text_files(path, text.documents)
    if text.held_out_split is None:
        return files
    return [file for split in _official_splits(text) for file in files_of_split(path, files, split)]


def _official_splits(text: TextSource) -> tuple[str, str]:
    """Names of the official splits (trained on, held out) of a text that names one to hold out."""
    path, held_out = Path(text.source).expanduser(), text.held_out_split
    assert held_out is not None
    if path.exists():
        train = (split_of(PurePath(path.name)) if path.is_file() else None) or "train"
    else:
        train = (text.source.split(":")[3 if text.source.startswith("hub:") else 2 :] or ["train"])[0]
    if split_name(held_out) == split_name(train):
        raise ValueError(f"data: {text.source} is trained on its split {train!r}; expected another one held out")
    return train, held_out


def read_documents(
    source: str | os.PathLike[str],
    *,
    text_column: str = "text",
    separator: str | None = None,
    documents: str | None = None,
    split: str | None = None,
) -> list[Document]:
    """All documents of `source` in memory, in the source's order; see `iter_documents`."""
    return list(iter_documents(source, text_column=text_column, separator=separator, documents=documents, split=split))


def iter_documents(
    source: str | os.PathLike[str],
    *,
    text_column: str = "text",
    separator: str | None = None,
    documents: str | None = None,
    split: str | None = None,
) -> Iterator[Document]:
    """The documents of `source`, one at a time; blank texts are left out.

    source: "embedded" (10.8M characters of public-domain English that come with the package); a file: .txt (one
    document, or several with `separator` between them: the tokenizer's end-of-text token, say), .jsonl or .parquet (one
    per row, the text in `text_column`; a row's own "source" and "title" are taken if they are strings), .txt and .jsonl
    also as .gz and .xz; a folder of such files, at any depth, by path, what is hidden left out; or a name on the
    Hugging Face hub, NAME[:CONFIG[:SPLIT]] with or without "hub:" before it (split "train" by default).
    Only a hub name uses the network, and where there is none the local cache is used; a data set's code is never run.

    documents: None for documents as stored, or "articles": rows, and the lines of text files (.raw and .tokens too),
    are joined into articles, see `join_articles`; `separator` then separates nothing.
    split: only the documents of this official split: the hub's, or the files of that name, see `files_of_split`.

    Raises ValueError naming the file and the row: nothing there, nothing in it, not UTF-8, not JSON or Parquet, a
    damaged archive, no such column, a value that is not text, no article's heading; and for a hub name that cannot be
    had or a split that is not there.
    """
    if documents not in (None, "articles"):
        raise ValueError(f"data: got documents = {documents!r}; expected articles, or none")
    name = os.fspath(source)
    files: Iterable[Iterator[Document]]  # of each file, what is stored in it: rows, lines or whole texts
    path, hub_name = Path(name).expanduser(), name.removeprefix("hub:")
    if name == "embedded":
        if split is not None:
            raise ValueError(f"data: embedded has no split {split!r}, nor any other; expected no data.held_out_split")
        files, origin = [_read_jsonl(EMBEDDED / "corpus.jsonl.xz", "embedded", text_column="text")], name
    elif name and not name.startswith("hub:") and "\0" not in name and path.exists():
        files, origin = _read_path(path, text_column, separator, documents, split), path.name
    elif name.startswith("hub:") or (_HUB_NAME.match(name) and not name.endswith(SUFFIXES)):
        files, origin = [_read_hub(hub_name, text_column, split)], hub_name.split(":")[0]
    else:
        raise ValueError(f"data: no file or folder {name!r}; expected one, 'embedded', or the name of a hub data set")
    stored = itertools.chain.from_iterable(files)
    return _non_empty(stored if documents is None else _articles(files, origin, name), name)


def split_documents(
    documents: Iterable[Document], held_out_fraction: float = 0.05, seed: int = 0
) -> tuple[list[Document], list[Document]]:
    """(train, held-out), each in the given order: of every source with two texts or more, at least one is held out.

    In each source the texts are ranked by SHA-256 of (seed, text) and the first max(1, round(fraction·n)) held out, so
    that the split depends neither on the order of documents nor on other sources. Equal texts fall on one side. A text
    with which more than half of its source's characters (or the fraction, if that is more) would be held out is
    passed over for the next, so that of two files the larger is never held out.
    A single document is cut instead: its last part, from a line break (or a space) near the fraction, is held out.

    Raises ValueError if the fraction is not in (0, 1), or nothing can be held out.
    """
    if not 0 < held_out_fraction < 1:
        raise ValueError(f"split: held_out_fraction is {held_out_fraction}; expected a number between 0 and 1")
    documents = list(documents)
    if len(documents) == 1:
        train, held_out = _cut(documents[0], held_out_fraction)
        return [train], [held_out]
    digests = [hashlib.sha256(f"{seed}\n{d.text}".encode()).digest() for d in documents]
    source_of: dict[bytes, str] = {}
    for digest, document in zip(digests, documents, strict=True):
        source_of[digest] = min(document.source, source_of.get(digest, document.source))
    by_source = defaultdict(list)
    for digest in sorted(source_of):
        by_source[source_of[digest]].append(digest)
    sizes: dict[bytes, int] = defaultdict(int)
    for digest, document in zip(digests, documents, strict=True):
        sizes[digest] += len(document.text)
    held = {
        digest
        for ranked in by_source.values()
        if len(ranked) > 1
        for digest in _choose_held_out(ranked, sizes, held_out_fraction)
    }
    train = [d for d, digest in zip(documents, digests, strict=True) if digest not in held]
    held_out = [d for d, digest in zip(documents, digests, strict=True) if digest in held]
    if not train or not held_out:
        raise ValueError(
            f"split: {len(documents)} documents of {len(by_source)} sources leave {len(train)} to train on and "
            f"{len(held_out)} held out; expected a source with two texts or more, and a smaller fraction of it"
        )
    return train, held_out


def _choose_held_out(ranked: list[bytes], sizes: dict[bytes, int], fraction: float) -> list[bytes]:
    """The first round(fraction·n) texts of a source, at least one, that together stay within half of it."""
    room = max(0.5, fraction) * sum(sizes[digest] for digest in ranked)
    held: list[bytes] = []
    for digest in ranked:
        if len(held) == max(1, round(fraction * len(ranked))):
            break
        if sizes[digest] <= room:
            held.append(digest)
            room -= sizes[digest]
    return held


def _cut(document: Document, fraction: float) -> tuple[Document, Document]:
    text, at = document.text, round(len(document.text) * (1 - fraction))
    for mark in ("\n", " "):
        where = text.rfind(mark, 1, at) + 1
        # a break far from the place asked for would change the fraction: take the next kind of break
        if where > 0.9 * at:
            at = where
            break
    if not text[:at].strip() or not text[at:].strip():
        raise ValueError(
            f"split: the only document has {len(text)} characters; expected enough to hold out {fraction:.3g}"
        )
    return replace(document, text=text[:at]), replace(document, text=text[at:])


def _non_empty(documents: Iterator[Document], name: str) -> Iterator[Document]:
    is_empty = True
    for document in documents:
        if document.text.strip():
            is_empty = False
            yield document
    if is_empty:
        raise ValueError(f"data: {name} holds no text; expected at least one document that is not blank")


def _articles(files: Iterable[Iterable[Document]], source: str, name: str) -> Iterator[Document]:
    has_heading, is_blank = False, True
    for title, text in join_articles((row.text for row in rows) for rows in files):
        has_heading, is_blank = has_heading or bool(title), False
        yield Document(source, title or name, text)
    if not has_heading and not is_blank:
        raise ValueError(
            f"data: {name} has no article's heading; expected rows such as ' = Title = ' with blank rows around them, "
            f"or no data.documents"
        )


def text_files(path: Path, documents: str | None = None) -> list[Path]:
    """The files that a local source is read from, sorted: the file itself, or those of a known kind in the folder.

    Raises:
        ValueError: neither file nor folder, or none of a known kind.
    """
    suffixes = SUFFIXES if documents is None else (*SUFFIXES, *LINE_SUFFIXES)
    if path.is_file():
        if not path.name.endswith(suffixes):
            raise ValueError(f"data: {path} is of no known kind; expected one of {', '.join(suffixes)}")
        return [path]
    if not path.is_dir():
        raise ValueError(f"data: {path} is neither file nor folder; expected one of them")
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name.endswith(suffixes) and not _is_hidden(f, path))
    if not files:
        raise ValueError(f"data: {path} holds no file to read; expected files ending in {', '.join(suffixes)}")
    return files


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _read_path(
    path: Path, text_column: str, separator: str | None, documents: str | None, split: str | None
) -> Iterator[Iterator[Document]]:
    files = text_files(path, documents)
    if split is not None:
        files = files_of_split(path, files, split)
    for file in files:
        yield _read_file(file, path.name, text_column, separator, has_lines=documents is not None)


def _read_file(file: Path, source: str, text_column: str, separator: str | None, has_lines: bool) -> Iterator[Document]:
    if file.stat().st_size == 0:
        raise ValueError(f"data: {file} is empty; expected text")
    refuse_pointer(file)
    if file.suffix == ".parquet":
        yield from _read_parquet(file, source, text_column)
    elif file.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.xz")):
        yield from _read_jsonl(file, source, text_column)
    elif has_lines:
        for number, line in enumerate(_lines(file), 1):
            yield Document(source, f"{file.name}:{number}", line)
    else:
        text = "".join(_lines(file))
        parts = text.split(separator) if separator else [text]
        if len(parts) == 1:
            yield Document(source, file.name, text)
        else:  # the separator stands on a line of its own, whose breaks belong to neither text
            for number, part in enumerate(parts, 1):
                yield Document(source, f"{file.name}:{number}", part.strip("\r\n"))


def _lines(file: Path) -> Iterator[str]:
    """Lines with their breaks as they are in the file, a byte-order mark left out."""
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(file.suffix, Path.open)
    number = 0
    try:
        with opened(file, "rb") as stream:
            for number, line in enumerate(stream, 1):
                yield decode_text(line, f"data: {file} line 1") if number == 1 else line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {file} line {number} is not UTF-8 ({error.reason}); expected UTF-8 text") from None
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"data: {file} is damaged after line {number} ({error}); expected a whole archive") from None


def _read_jsonl(file: Path, source: str, text_column: str) -> Iterator[Document]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        place = f"{file} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"data: {place} is not JSON ({error}); expected one object a line") from None
        if not isinstance(row, dict):
            raise ValueError(f"data: {place} is a {type(row).__name__}; expected an object with {text_column!r}")
        yield _document(row, source, f"{file.name}:{number}", place, text_column)


def _read_parquet(file: Path, source: str, text_column: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            wanted = [n for n in dict.fromkeys((text_column, "source", "title")) if n in names]
            if text_column not in names:
                raise ValueError(f"data: {file} has no column {text_column!r}; expected one of {', '.join(names)}")
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=wanted):
                for row in _rows(batch, file, number):
                    number += 1
                    title = f"{file.name}:{number}"
                    yield _document(row, source, title, f"{file} row {number}", text_column)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"data: {file} is not Parquet, or damaged ({reason}); expected a Parquet file") from None


def _rows(batch: Any, file: Path, n_before: int) -> Iterator[dict]:
    """The rows of a pyarrow.RecordBatch; Parquet does not check what its writer called text, so one may not decode."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for number in range(batch.num_rows):
            try:
                yield from batch.slice(number, 1).to_pylist()
            except UnicodeDecodeError as error:
                place = f"{file} row {n_before + number + 1}"
                raise ValueError(f"data: {place} is not UTF-8 ({error.reason}); expected UTF-8 text") from None


def _read_hub(name: str, text_column: str, split: str | None) -> Iterator[Document]:
    if not _HUB_NAME.match(name):
        raise ValueError(f"data: {name!r} is no hub name; expected NAME[:CONFIG[:SPLIT]], NAME as owner/name")
    import datasets

    repository, *rest = name.split(":")
    config, split = rest[0] if rest else None, split or (rest[1] if len(rest) > 1 else "train")
    try:
        rows = datasets.load_dataset(repository, config, split=split, trust_remote_code=False)
    # the library and what it stands on raise some twenty kinds here, from a refused connection to an unknown split
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if there := _UNKNOWN_SPLIT.match(reason):
            there = there[1].replace("'", "")
            raise ValueError(f"data: {name} has no split {split!r}; expected one of {there}") from error
        raise ValueError(
            f"data: {name!r} is neither a file or folder here nor a hub data set that can be had ({reason}); "
            f"expected a path that exists, a data set in the local cache, or a connection"
        ) from error
    assert isinstance(rows, datasets.Dataset)
    names = rows.column_names
    if text_column not in names:
        raise ValueError(f"data: {name} has no column {text_column!r}; expected one of {', '.join(names)}")
    rows = rows.select_columns([n for n in dict.fromkeys((text_column, "source", "title")) if n in names])
    for number, row in enumerate(rows, 1):
        assert isinstance(row, dict)
        yield _document(row, repository, f"{split}:{number}", f"{name} row {number}", text_column)


def _document(row: dict, source: str, title: str, place: str, text_column: str) -> Document:
    if text_column not in row:
        raise ValueError(
            f"data: {place} has no {text_column!r}; expected one of {', '.join(map(str, row)) or 'its keys'}"
        )
    text = row[text_column]
    if text is None:  # how tables write an empty text
        text = ""
    if not isinstance(text, str):
        raise ValueError(f"data: {place} has a {type(text).__name__} in {text_column!r}; expected text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"data: {place} holds half of a surrogate pair; expected text that UTF-8 can hold") from None
    own = {key: row[key] for key in ("source", "title") if isinstance(row.get(key), str) and key != text_column}
    return Document(own.get("source", source), own.get("title", title), text)
