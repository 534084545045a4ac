"""WikiText's shape: where an article begins, that no character is lost, and which split a file is of."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path, PurePath

import pytest
import wikitext_for_tests as wikitext
from hypothesis import given
from hypothesis import strategies as st
from processes import environment

from workbench.data.articles import article_title, join_articles
from workbench.data.corpus import local_files, read_documents, read_parts
from workbench.data.splits import split_of
from workbench.data.tokenizer import load_tokenizer
from workbench.data.tokens import pack
from workbench.models.text_source import TextSource

OFFICIAL = {"documents": "articles", "held_out_split": "validation"}


def texts(documents) -> list[str]:
    return [document.text for document in documents]


# --- articles


@pytest.mark.parametrize(
    ("row", "title"),
    [
        (" = Valkyrie = \n", "Valkyrie"),
        ("= Valkyrie =", "Valkyrie"),
        (" = E = mc ² = \n", "E = mc ²"),
        (" = = ( album ) = \n", "= ( album )"),
        (" = Equals = = \n", "Equals ="),
        (" = = Setting = = \n", None),
        (" = = = First act = = = \n", None),
        (" = \n", None),
        (" = = \n", None),
        (" = = = \n", None),
        (" a = b = \n", None),
        (" = a is b \n", None),
        ("=Setting=\n", None),
        (" = one\n two = \n", None),
        ("", None),
        (" \n", None),
    ],
)
def test_a_heading_of_level_one_names_an_article(row: str, title: str | None) -> None:
    assert article_title(row) == title


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_rows_become_articles_and_stay_what_they_are(split: str) -> None:
    found = list(join_articles([wikitext.rows(split)]))
    assert [title for title, _ in found] == list(wikitext.TITLES[split])
    assert [text for _, text in found] == wikitext.texts(split)
    assert "".join(text for _, text in found) == "".join(wikitext.rows(split))


# lines such as articles have: none is a heading of level 1 by itself, and some look like one
_LINES = st.sampled_from([" words , more words . \n", " = = Part = = \n", " = x = \n", " = \n", "= a =\n", " é \n"])
_TITLES = st.sampled_from(["A", "B = C", "= D", "E ="])


@given(
    articles=st.lists(st.tuples(_TITLES, st.lists(_LINES, max_size=5)), min_size=1, max_size=5),
    n_files=st.integers(1, 4),
)
def test_articles_that_blank_lines_set_off_come_out_whole(articles, n_files) -> None:
    """By another way: the whole text, cut before every heading that stands between two blank lines."""
    rows = [" \n"]
    for title, lines in articles:
        # a line that looks like a heading stands between two others
        rows += [
            f" = {title} = \n",
            " \n",
            " One . \n",
            *(part for line in lines for part in (line, " And . \n")),
            " \n",
        ]
    whole = "".join(rows)
    cuts = [match.start(1) for match in re.finditer(r"(?<= \n)( = (?!= .* = = \n).+ = \n)(?= \n)", whole)]
    # of the cuts, those whose line before is blank
    cuts = [at for at in cuts if whole[:at] == " \n" or whole[:at].endswith("\n \n")]
    expected = [whole[a:b] for a, b in zip([0, *cuts[1:]], [*cuts[1:], len(whole)], strict=True)]
    assert len(expected) == len(articles)
    edges = [i * len(rows) // n_files for i in range(n_files + 1)]
    for files in ([rows], [iter(rows)]):
        assert [text for _, text in join_articles(files)] == expected
    # a file's edge counts as blank, so that a heading is found there too; nothing else changes
    files = [rows[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert "".join(text for _, text in join_articles(files)) == whole


def test_a_copy_without_blank_rows_is_cut_at_every_heading() -> None:
    rows = [row for row in wikitext.rows("train") if row.strip() and row != " = d + t = \n"]
    assert [title for title, _ in join_articles([rows])] == list(wikitext.TITLES["train"])


def test_a_file_may_begin_with_a_heading_and_end_without_a_blank_row() -> None:
    files = [[" = A = \n", " \n", " One . \n"], [" = B = \n", " \n", " Two . \n"], [" goes on . \n"]]
    assert list(join_articles(files)) == [
        ("A", " = A = \n \n One . \n"),
        ("B", " = B = \n \n Two . \n goes on . \n"),
    ]


def test_what_comes_before_the_first_heading_is_a_text_of_its_own() -> None:
    rows = [" \n", " the end of another . \n", " \n", " = A = \n", " \n", " One . \n"]
    assert list(join_articles([rows])) == [("", "".join(rows[:3])), ("A", "".join(rows[3:]))]
    assert list(join_articles([])) == list(join_articles([[" \n", ""]])) == []


def test_rows_without_line_breaks_get_them_between_them() -> None:
    assert list(join_articles([["", "= A =", "", "One .", "Two .\n", "Three .", ""]])) == [
        ("A", "= A =\nOne .\nTwo .\nThree .\n"),
    ]


# --- local copies


@pytest.mark.parametrize("write", [wikitext.write_raw, wikitext.write_parquet, wikitext.write_jsonl])
def test_a_local_copy_is_split_as_it_comes(tmp_path: Path, write) -> None:
    folder = write(tmp_path / "wikitext")
    train, held_out = read_parts(TextSource(str(folder), **OFFICIAL))
    assert [d.title for d in train] == list(wikitext.TITLES["train"])
    assert [d.title for d in held_out] == list(wikitext.TITLES["validation"])
    assert {d.source for d in (*train, *held_out)} == {"wikitext"}
    for split, part in (("train", train), ("validation", held_out)):
        if write is wikitext.write_parquet:  # blank lines are empty rows there
            assert "".join(texts(part)) == "".join(wikitext.stored(split))
        else:  # rows without line breaks have them put between them, so that the last has none
            end = "\n" if write is wikitext.write_jsonl else ""
            assert texts(part) == [text.removesuffix(end) for text in wikitext.texts(split)]
    assert texts(read_documents(folder, documents="articles", split="test"))[0].lstrip().startswith("= Loom =")


@pytest.mark.parametrize("name", ["wiki.train.raw", "wiki.train.tokens", "wiki.train.txt", "wiki.train.raw.gz"])
def test_a_file_names_the_ones_beside_it(tmp_path: Path, name: str) -> None:
    for split, word in (("train", "train"), ("validation", "valid"), ("test", "test")):
        data = "".join(wikitext.rows(split)).encode()
        (tmp_path / name.replace("train", word)).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (tmp_path / "other.valid.txt").write_text(" = Other = \n")
    text = TextSource(str(tmp_path / name), **OFFICIAL)
    train, held_out = read_parts(text)
    assert (texts(train), texts(held_out)) == (wikitext.texts("train"), wikitext.texts("validation"))
    assert [file.name for file in local_files(text)] == [name, name.replace("train", "valid")]


def test_of_a_split_in_parts_a_named_file_is_read_alone(tmp_path: Path) -> None:
    folder = wikitext.write_parquet(tmp_path / "w", n_shards=3)
    text = TextSource(str(folder / "train-00000-of-00003.parquet"), **OFFICIAL)
    train, held_out = read_parts(text)
    assert "".join(texts(train)) == "".join(wikitext.stored("train")[: len(wikitext.stored("train")) // 3])
    assert [d.title for d in held_out] == ["Ada Brook"]
    whole = [file.name for file in local_files(TextSource(str(folder), **OFFICIAL))]
    assert whole == [f"train-0000{i}-of-00003.parquet" for i in range(3)] + ["validation-00000-of-00001.parquet"]


def test_end_of_text_stands_between_articles_and_nowhere_else(tmp_path: Path) -> None:
    train, held_out = read_parts(TextSource(str(wikitext.write_raw(tmp_path / "w")), **OFFICIAL))
    tokenizer = load_tokenizer("embedded")
    for name, part, split in (("t", train, "train"), ("h", held_out, "validation")):
        packed = pack(part, tokenizer, tmp_path / name)
        ids = packed.tokens.tolist()
        ends = [i for i, token in enumerate(ids) if token == packed.eot_id]
        assert packed.n_documents == len(ends) == len(wikitext.TITLES[split])
        assert ends[-1] == len(ids) - 1
        starts = [0, *(end + 1 for end in ends[:-1])]
        decoded = [tokenizer.decode(ids[a:b], skip_special_tokens=False) for a, b in zip(starts, ends, strict=True)]
        assert decoded == wikitext.texts(split)
        assert packed.document_offsets.tolist() == starts
        assert packed.n_bytes == len("".join(wikitext.rows(split)).encode())


def test_articles_of_a_text_without_splits_are_held_out_by_document(tmp_path: Path) -> None:
    file = tmp_path / "all.txt"
    rows = [row for split in wikitext.TITLES for row in wikitext.rows(split)]
    file.write_bytes("".join(rows).encode())
    train, held_out = read_parts(TextSource(str(file), held_out_fraction=0.2, documents="articles"))
    assert (len(train), len(held_out)) == (5, 1)
    assert sum(len(text) for text in texts([*train, *held_out])) == len("".join(rows))


def test_an_official_split_needs_no_articles(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": f"of {split}"}) + "\n")
    train, held_out = read_parts(TextSource(str(tmp_path), held_out_split="validation"))
    assert (texts(train), texts(held_out)) == (["of train"], ["of dev"])


# --- splits by name


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("wiki.train.raw", "train"),
        ("wiki.valid.raw", "validation"),
        ("validation-00000-of-00001.parquet", "validation"),
        ("val/a.txt", "validation"),
        ("Dev/a.txt", "validation"),
        ("train/the-test-of-time.txt", "train"),
        ("data/test_2.jsonl", "test"),
        ("evaluation.txt", "test"),
        ("latest.txt", None),
        ("trained/contest.txt", None),
    ],
)
def test_a_path_names_its_split(path: str, split: str | None) -> None:
    assert split_of(PurePath(path)) == split


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"held_out_split": "heldout"},
            r"wikitext has no split 'heldout'; expected one of train, test, or no data\.held_",
        ),
        ({"held_out_split": "validation"}, r"wikitext has no split 'validation'; expected one of train, test, or no"),
        ({"held_out_split": "train"}, r"wikitext is trained on its split 'train'; expected another one held out"),
        ({"source": "{}/wiki.test.raw", "held_out_split": "test"}, r"wiki\.test\.raw is trained on its split 'test'"),
        (
            {"source": "{}/wiki.test.raw", "held_out_split": "dev"},
            r"raw has no split 'dev'; expected one of train, test",
        ),
        ({"source": "embedded", "documents": None}, r"embedded has no split 'train', nor any other; expected no data"),
        (
            {"source": "embedded", "held_out_split": None},
            r"embedded has no article's heading; expected rows such as ' = T",
        ),
        (
            {"source": "{}/../plain"},
            r"plain has no split 'train'; expected one of train, validation, test in the names",
        ),
        ({"source": "{}/../plain", "held_out_split": None}, r"plain has no article's heading"),
        ({"source": "{}/../both"}, r"train-test\.txt is of the splits test and train by its name; expected one"),
        ({"documents": "sections"}, r"got documents = 'sections'; expected articles, or none"),
        ({"source": "a b c"}, r"no file or folder 'a b c'"),
    ],
)
def test_splits_and_articles_that_are_not_there_are_named_in_one_line(tmp_path: Path, settings, message) -> None:
    folder = wikitext.write_raw(tmp_path / "wikitext")
    (folder / "wiki.valid.raw").unlink()
    for name, file in (("plain", "a.txt"), ("both", "train-test.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("plain text")
    settings = {"source": "{}"} | OFFICIAL | settings
    settings["source"] = settings["source"].format(folder)
    with pytest.raises(ValueError, match=rf"^data: .*{message}") as caught:
        read_parts(TextSource(**settings))
    assert "\n" not in str(caught.value)


def test_a_hub_data_set_is_read_by_its_splits_and_its_rows_joined(tmp_path: Path) -> None:
    """A data set is put into the hub library's cache as that library leaves it; then there is no network."""
    code = """
        import shutil, sys
        from pathlib import Path
        import datasets
        from datasets.packaged_modules.parquet.parquet import Parquet
        from workbench.models.text_source import TextSource
        from workbench.data.corpus import local_files, read_parts
        home = Path(sys.argv[1])
        files = {split: [str(f) for f in sorted((home / "w").glob(f"{split}-*"))] for split in ("train", "validation")}
        builder = Parquet(cache_dir=str(home / "b"), dataset_name="wiki", data_files=files, hash="01")
        builder.download_and_prepare()
        place = Path(datasets.config.HF_DATASETS_CACHE) / "someone___wiki" / "default" / "0.0.0" / "01"
        shutil.copytree(builder.cache_dir, place)
        for name in ("someone/wiki", "hub:someone/wiki:default:train"):
            text = TextSource(name, documents="articles", held_out_split="validation")
            for part in read_parts(text):
                print(*(f"{d.source}|{d.title}|{len(d.text)}" for d in part), sep="; ")
            assert local_files(text) == []
        for settings, words in (
            ({"held_out_split": "test"}, "someone/wiki has no split 'test'; expected one of train, validation"),
            ({"held_out_split": "train"}, "someone/wiki is trained on its split 'train'; expected another one"),
        ):
            try:
                read_parts(TextSource("someone/wiki", documents="articles", **settings))
            except ValueError as error:
                assert words in str(error) and "\\n" not in str(error), error
            else:
                raise AssertionError(settings)
    """
    wikitext.write_parquet(tmp_path / "w")
    env = environment(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [
        "; ".join(
            f"someone/wiki|{title}|{len(''.join(row for row in wikitext.rows_of(title) if row.strip()))}"
            for title in wikitext.TITLES[split]
        )
        for split in ("train", "validation")
    ]
    assert done.stdout.splitlines() == lines * 2
