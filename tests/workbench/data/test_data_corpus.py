"""Documents: every form that is read, every fault that is named, and a split that nothing moves."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import environment

from workbench.data.corpus import EMBEDDED, Document, iter_documents, read_documents, split_documents

ROWS = [{"text": "One.\n", "title": "a"}, {"text": "naïve 東京", "source": "s"}, {"text": "  \n"}, {"text": "Three"}]


def _jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(path: Path, rows: list[dict]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


# --- what is read


def test_the_embedded_corpus_is_what_its_provenance_says() -> None:
    documents = read_documents("embedded")
    assert Counter(d.source for d in documents) == {"sotu": 136, "austen": 269, "grimm": 54, "andersen": 3}
    assert sum(len(d.text) for d in documents) == 6_364_538 + 4_016_827 + 394_993 + 55_501
    assert documents[0].title == "State of the Union 1900, McKinley"
    assert len({d.text for d in documents}) == len(documents)


def test_the_embedded_capitals_are_fifty_places_in_the_states() -> None:
    places = json.loads((EMBEDDED / "us_state_capitals.json").read_text())
    assert len({p["state"] for p in places}) == len({p["city"] for p in places}) == 50
    assert all(18 < p["lat"] < 60 and -160 < p["lon"] < -68 for p in places)  # Honolulu to Juneau, Honolulu to Augusta


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", _jsonl(ROWS)),
        ("a.jsonl.gz", gzip.compress(_jsonl(ROWS), mtime=0)),
        ("a.jsonl.xz", lzma.compress(_jsonl(ROWS))),
        ("bom.jsonl", b"\xef\xbb\xbf" + _jsonl(ROWS)),
        ("gaps.jsonl", _jsonl(ROWS).replace(b"\n{", b"\n\n{")),
    ],
)
def test_jsonl_gives_a_document_a_line(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    last = 7 if name == "gaps.jsonl" else 4
    assert read_documents(tmp_path / name) == [
        Document(name, "a", "One.\n"),
        Document("s", f"{name}:{3 if last == 7 else 2}", "naïve 東京"),
        Document(name, f"{name}:{last}", "Three"),
    ]


def test_parquet_gives_a_document_a_row(tmp_path: Path) -> None:
    rows = [{"body": r["text"], "source": r.get("source"), "n": i} for i, r in enumerate(ROWS)] + [
        {"body": None, "n": 9}
    ]
    _parquet(tmp_path / "a.parquet", rows)
    assert read_documents(tmp_path / "a.parquet", text_column="body") == [
        Document("a.parquet", "a.parquet:1", "One.\n"),
        Document("s", "a.parquet:2", "naïve 東京"),
        Document("a.parquet", "a.parquet:4", "Three"),
    ]


@pytest.mark.parametrize("text", ["one\r\ntwo\n\n three", "x", "é" * 100_000])
@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
def test_a_text_file_is_one_document_unchanged(tmp_path: Path, text: str, packing: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[packing]
    file = tmp_path / f"a.txt{packing}"
    file.write_bytes(pack(text.encode()))
    assert read_documents(file) == [Document(file.name, file.name, text)]


def test_a_folder_is_read_by_path_whatever_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "z.txt").write_text("z")
    (folder / "c.jsonl").write_bytes(_jsonl([{"text": "c"}]))
    _parquet(folder / "a.parquet", [{"text": "a"}])
    (folder / "README.md").write_text("not read")
    (folder / ".hidden.txt").write_text("not read")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "c.txt").write_text("not read")
    assert [(d.source, d.text) for d in iter_documents(folder)] == [("books", "a"), ("books", "z"), ("books", "c")]


# --- what is refused


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.txt", b" \n\n", r"a\.txt holds no text"),
        ("a.txt", b"fine\nfine\nbad \xff\n", r"a\.txt line 3 is not UTF-8"),
        ("a.txt", "é".encode("utf-16"), r"a\.txt line 1 is UTF-16; expected UTF-8"),
        ("a.txt.gz", gzip.compress(b"x" * 5000, mtime=0)[:-9], r"a\.txt\.gz is damaged"),
        ("a.txt.gz", b"no gzip", r"a\.txt\.gz is damaged"),
        ("a.txt.xz", lzma.compress(os.urandom(5000).hex().encode())[:-50], r"a\.txt\.xz is damaged"),
        ("a.txt.xz", b"no xz", r"a\.txt\.xz is damaged"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"a\.jsonl line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl line 1 is not JSON"),
        ("a.jsonl", b'["text"]\n', r"line 1 is a list; expected an object with 'text'"),
        ("a.jsonl", b'{"body": "a"}\n', r"line 1 has no 'text'; expected one of body"),
        ("a.jsonl", b"{}\n", r"line 1 has no 'text'"),
        ("a.jsonl", b'{"text": 3}\n', r"line 1 has a int in 'text'; expected text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1 holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": null}\n', r"a\.jsonl holds no text"),
        ("a.parquet", b"PAR1 not really", r"a\.parquet is not Parquet, or damaged"),
        ("a.pdf", b"x", r"a\.pdf is of no known kind; expected one of \.txt, "),
        ("sub/a.pdf", b"x", r"sub holds no file to read"),
    ],
)
def test_faults_name_the_file_and_the_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"data: .*{message}"):
        read_documents(file.parent if "sub" in name else file)


def test_parquet_without_the_column_or_with_numbers_in_it_is_refused(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet", [{"n": 1, "m": 2}])
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'text'; expected one of n, m"):
        read_documents(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet row 1 has a int in 'n'; expected text"):
        read_documents(tmp_path / "a.parquet", text_column="n")
    _parquet(tmp_path / "b.parquet", [{"text": "a"}] * 1030 + [{"text": "long enough to be found"}])
    data = (tmp_path / "b.parquet").read_bytes()
    assert data.count(b"to be found") >= 1
    (tmp_path / "b.parquet").write_bytes(data.replace(b"to be found", b"to \xff\xfe found"))
    documents = iter_documents(tmp_path / "b.parquet")
    assert len([next(documents) for _ in range(1030)]) == 1030
    with pytest.raises(
        ValueError, match=r"b\.parquet row 1031 is not UTF-8 \(invalid start byte\); expected UTF-8 text"
    ):
        next(documents)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:40] + data[60:])
    with pytest.raises(ValueError, match=r"a\.parquet is not Parquet, or damaged"):
        read_documents(tmp_path / "a.parquet", text_column="n")


@pytest.mark.parametrize("name", ["no/such/file.txt", "missing.jsonl", "/nowhere/at/all", "a b c", "", "x\0y"])
def test_a_path_that_is_not_there_is_refused_without_a_network(name: str) -> None:
    with pytest.raises(ValueError, match="data: no file or folder"):
        read_documents(name)


def test_a_hub_name_is_read_from_the_local_cache_offline_and_refused_without(tmp_path: Path) -> None:
    """A data set is put into the hub library's cache as that library leaves it; then there is no network."""
    code = """
        import shutil, sys
        from pathlib import Path
        import datasets
        from datasets.packaged_modules.json.json import Json
        from workbench.data.corpus import read_documents
        home = Path(sys.argv[1])
        (home / "train.jsonl").write_text('{"text": "one", "title": "t"}\\n{"text": "two"}\\n')
        builder = Json(cache_dir=str(home / "b"), dataset_name="tiny", data_files=str(home / "train.jsonl"), hash="01")
        builder.download_and_prepare()
        place = Path(datasets.config.HF_DATASETS_CACHE) / "someone___tiny" / "default" / "0.0.0" / "01"
        shutil.copytree(builder.cache_dir, place)
        for name in ("someone/tiny", "hub:someone/tiny", "someone/tiny:default:train"):
            found = [(d.source, d.title, d.text) for d in read_documents(name)]
            assert found == [("someone/tiny", "t", "one"), ("someone/tiny", "train:2", "two")], found
        for name, column, words in (
            ("someone/absent", "text", "neither a file or folder here nor a hub data set"),
            ("someone/tiny:other", "text", "neither a file or folder here nor a hub data set"),
            ("someone/tiny:default:test", "text", "has no split 'test'; expected one of train"),
            ("someone/tiny", "body", "has no column 'body'; expected one of text, title"),
            ("hub:../etc", "text", "is no hub name"),
        ):
            try:
                read_documents(name, text_column=column)
            except ValueError as error:
                assert words in str(error), error
            else:
                raise AssertionError(name)
    """
    env = environment(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the split


def test_the_embedded_split_is_fixed() -> None:
    """The embedded tokenizer was trained on this train split: a change here is a change of what is held out."""
    documents = read_documents("embedded")
    train, held_out = split_documents(documents)
    assert (len(train), len(held_out)) == (438, 24)
    assert Counter(d.source for d in held_out) == {"austen": 13, "sotu": 7, "grimm": 3, "andersen": 1}
    assert sum(len(d.text) for d in held_out) == 498_238


_TEXTS = st.lists(
    st.builds(Document, st.sampled_from("abc"), st.just("t"), st.text("xyz ", min_size=1, max_size=4)),
    min_size=2,
    max_size=30,
)


@given(documents=_TEXTS, fraction=st.floats(0.01, 0.6), seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_a_split_is_a_partition_that_ignores_order(
    documents: list[Document], fraction: float, seed: int, order: object
) -> None:
    try:
        train, held_out = split_documents(documents, fraction, seed)
    except ValueError as error:
        assert "leave" in str(error)  # noqa: PT017  (some draws have no source of two texts)
        return
    assert Counter(train) + Counter(held_out) == Counter(documents)
    assert not {d.text for d in train} & {d.text for d in held_out}
    moved = list(documents)
    order.shuffle(moved)  # pyright: ignore[reportAttributeAccessIssue]
    train_moved, held_moved = split_documents(moved, fraction, seed)
    assert Counter(train_moved) == Counter(train)
    assert Counter(held_moved) == Counter(held_out)


@pytest.mark.parametrize("seed", range(4))
def test_every_source_of_two_texts_or_more_is_held_out_by_its_share(seed: int) -> None:
    sizes = {"a": 2, "b": 40, "c": 200, "d": 1}
    documents = [Document(s, "", f"{s}{i}") for s, n in sizes.items() for i in range(n)]
    train, held_out = split_documents(documents, 0.05, seed)
    assert Counter(d.source for d in held_out) == {"a": 1, "b": 2, "c": 10}
    assert held_out != split_documents(documents, 0.05, seed + 1)[1]
    more = documents + [Document("e", "", f"e{i}") for i in range(9)]
    assert [d for d in split_documents(more, 0.05, seed)[1] if d.source != "e"] == held_out
    assert [d for d in documents if d not in set(held_out)] == train  # the given order


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("a line of text\n" * 100, 93 * 15),
        ("word " * 300, 279 * 5),
        ("x" * 1000, 930),
        ("one\n" + "x" * 996, 930),  # the only break is far from the place asked for
    ],
)
def test_a_single_document_is_cut_near_the_fraction(text: str, at: int) -> None:
    (train,), (held_out,) = split_documents([Document("s", "t", text)], 0.07)
    assert train.text + held_out.text == text
    assert len(train.text) == at


@pytest.mark.parametrize(
    ("documents", "fraction", "message"),
    [
        ([], 0.1, r"split: 0 documents of 0 sources leave 0 to train on"),
        ([Document("s", "", "x")], 0.1, r"split: the only document has 1 characters"),
        ([Document("a", "", "x"), Document("b", "", "y")], 0.1, r"leave 2 to train on and 0 held out"),
        ([Document("a", "", "x"), Document("a", "", "x")], 0.1, r"leave 2 to train on and 0 held out"),
        ([Document("a", "", "x")], 0.0, r"held_out_fraction is 0\.0; expected"),
        ([Document("a", "", "x")], float("nan"), r"held_out_fraction is nan; expected"),
    ],
)
def test_a_split_that_leaves_nothing_is_refused(documents: list[Document], fraction: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_documents(documents, fraction)


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_text_file_that_spells_the_separator_holds_several_documents(tmp_path: Path, packing: str) -> None:
    text = "\n<|end|>\nOnce upon a time.\n\nThe end.\n<|end|>\nA second\r\n<|end|>\r\n  A third, <|en\n<|end|>\n"
    file = tmp_path / f"stories.txt{packing}"
    file.write_bytes(gzip.compress(text.encode()) if packing else text.encode())
    documents = read_documents(file, separator="<|end|>")
    assert [d.text for d in documents] == ["Once upon a time.\n\nThe end.", "A second", "  A third, <|en"]
    assert [d.title for d in documents] == [f"{file.name}:{n}" for n in (2, 3, 4)]
    for other in (None, "<s>"):
        assert [d.text for d in read_documents(file, separator=other)] == [text]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a <|end|> b"}))  # a row is a document, whatever it spells
    assert [d.text for d in read_documents(rows, separator="<|end|>")] == ["a <|end|> b"]


@pytest.mark.parametrize("sizes", [(10, 1000), (1000, 10), (5, 5), (1, 2, 400), (90, 80, 70, 1), (3, 3, 3, 500, 500)])
@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5])
def test_never_more_than_half_is_held_out_of_few_documents(sizes: tuple[int, ...], fraction: float) -> None:
    for seed in range(40):
        documents = [Document("s", f"{i}", f"{i}" * size) for i, size in enumerate(sizes)]
        train, held_out = split_documents(documents, fraction, seed)
        assert train
        assert 1 <= len(held_out) <= max(1, round(fraction * len(sizes)))
        assert sum(len(d.text) for d in held_out) * 2 <= sum(sizes)


@pytest.mark.parametrize("read", [iter_documents, read_documents])
def test_documents_are_frozen(read: Callable) -> None:
    document = next(iter(read("embedded")))
    with pytest.raises(AttributeError):
        document.text = "other"
