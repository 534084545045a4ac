"""Windows to analyse a model on: whose text, which windows, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import wikitext_for_tests as wikitext
from models_for_tests import small_model, worded_model

from workbench.data.corpus import Document, read_documents, split_documents
from workbench.data.text_windows import analysis_tokens, spread_documents, text_of
from workbench.data.tokenizer import load_tokenizer
from workbench.data.tokens import pack
from workbench.models.load import load
from workbench.models.text_source import TextSource
from workbench.runs import amend_manifest
from workbench.study.job_runners import make_job
from workbench.study.jobs import Context, PlannedJob
from workbench.study.recipe import StudyRecipe
from workbench.training import train
from workbench.training.recipe import parse_recipe
from workbench.training.training_data import evaluation_windows, open_feed


@pytest.fixture(scope="module")
def model():
    return worded_model("janus-v3")


@pytest.fixture
def text(tmp_path):
    """Forty files of a few hundred words, each with words of its own."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(40):
        words = np.random.default_rng(i).choice(["the", "cat", "river", "stone", "of", "a", "blue"], 300)
        (folder / f"{i:02d}.txt").write_text(f"Chapter {i}. " + " ".join(words))
    return folder


def test_windows_are_held_out_text_that_the_model_can_read(model, text, tmp_path):
    tokens = analysis_tokens(model, text, n_sequences=4, cache=tmp_path / "cache")
    assert tokens.shape == (4, 24)
    train, held_out = split_documents(read_documents(text))
    files = {name: pack(part, load_tokenizer("embedded"), tmp_path / name) for name, part in
             (("train", train), ("held", held_out))}  # fmt: skip
    windows = {name: {tuple(file.tokens[i * 24 : i * 24 + 24].tolist()) for i in range(file.n_tokens // 24)}
               for name, file in files.items()}  # fmt: skip
    assert {tuple(row) for row in tokens.tolist()} <= windows["held"]
    of_train = analysis_tokens(model, text, n_sequences=4, split="train", cache=tmp_path / "cache")
    assert {tuple(row) for row in of_train.tolist()} <= windows["train"] - windows["held"]


def test_a_model_of_ours_is_analysed_on_what_its_own_training_held_out(tmp_path):
    """A smaller share than usual, of another column: with the defaults most of it would have been trained on."""
    words = ["the", "cat", "river", "stone", "of", "a", "blue"]
    texts = [f"{i} " + " ".join(np.random.default_rng(i).choice(words, 60)) for i in range(200)]
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    data = {"source": str(file), "tokenizer": "embedded-300", "text_column": "body", "held_out_fraction": 0.01}
    recipe = {
        "name": "tiny",
        "model": {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 8, "n_ctx": 16, "d_vocab": 300},
        "data": data,
        "phases": [{"n_steps": 1, "batch_size": 1}],
        "monitor": {"every": 0},
    }
    out = train(parse_recipe(recipe), tmp_path / "run", device="cpu", progress=False, cache=tmp_path / "cache")
    model = load(out, "cpu")
    wanted = split_documents(read_documents(file, text_column="body"), 0.01)[1]
    assert len(wanted) == 2
    another_name = tmp_path / "run" / ".." / "text.jsonl"
    assert spread_documents(text_of(model, another_name)) == [document.text for document in wanted]
    packed = pack(wanted, load_tokenizer("embedded-300"), tmp_path / "held")
    n = packed.n_tokens // 16
    rows = analysis_tokens(model, another_name, n_sequences=n, cache=tmp_path / "cache")
    assert rows.tolist() == packed.tokens[: n * 16].reshape(n, 16).tolist()
    # any other text is cut as ever
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert len(spread_documents(text_of(model, other))) == 10


@pytest.fixture(scope="module")
def of_wikitext(tmp_path_factory):
    """(a run trained on the official split of a folder in WikiText's shape, that folder, its recipe)."""
    place = tmp_path_factory.mktemp("wikitext")
    folder = wikitext.write_raw(place / "w")
    recipe = parse_recipe({
        "name": "tiny",
        "model": {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 8, "n_ctx": 8, "d_vocab": 300},
        "data": {"source": str(folder), "tokenizer": "embedded-300", "documents": "articles",
                 "held_out_split": "validation"},
        "phases": [{"n_steps": 1, "batch_size": 1}],
        "monitor": {"every": 0},
    })  # fmt: skip
    return train(recipe, place / "run", device="cpu", progress=False, cache=place / "cache"), folder, recipe


def test_every_reader_of_held_out_text_reads_the_official_split(of_wikitext, tmp_path, monkeypatch):
    """Training, its log, `evaluate` and the like, windows to analyse, SAEs, studies."""
    run, folder, recipe = of_wikitext
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    packed = {}
    for split in ("train", "validation"):
        documents = [Document("w", "", text) for text in wikitext.texts(split)]
        packed[split] = pack(documents, load_tokenizer("embedded-300"), tmp_path / split)
    train_ids, held_ids = (packed[split].tokens.tolist() for split in ("train", "validation"))
    feed = open_feed(recipe)
    assert (feed.train.tokens.tolist(), feed.held_out.tokens.tolist()) == (train_ids, held_ids)
    n = len(held_ids) // 8
    windows = [held_ids[i * 8 : i * 8 + 8] for i in range(n)]
    assert evaluation_windows(feed, recipe).tolist() == windows

    model = load(run, "cpu")
    assert model.trained_on == recipe.data.text
    text = text_of(model, folder)
    for split, name in (("train", "train"), ("held_out", "validation")):
        assert spread_documents(text, split=split) == wikitext.texts(name)
    assert spread_documents(text, split="all") == wikitext.texts("train") + wikitext.texts("validation")
    assert analysis_tokens(model, folder, n_sequences=n).tolist() == windows
    of_train = analysis_tokens(model, folder, n_sequences=len(train_ids) // 8, split="train")
    assert of_train.flatten().tolist() == train_ids[: of_train.numel()]
    # a share that is asked for is one of all that the source holds, as of any other text
    assert analysis_tokens(model, folder, n_sequences=1, held_out_fraction=0.3).tolist()[0] not in windows

    study = StudyRecipe(name="s", models=("tiny",), analyses=("topology", "evaluate"))
    context = Context(study, (recipe,), tmp_path, "cpu")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/tiny-seed0").symlink_to(run)
    topology, evaluate = (
        make_job(PlannedJob(kind, (("tiny", 0),)), context, study.settings_of(kind)) for kind in study.analyses
    )
    assert topology.tokens.tolist() == windows
    assert topology.windows(split="train", n_tokens=10**6).tolist() == of_train.tolist()
    assert evaluate.texts == wikitext.texts("validation")


def test_what_a_run_was_trained_on_before_there_were_official_splits_still_loads(of_wikitext, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(of_wikitext[0], run)
    config = run / "config.toml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith(("documents", "held_out_split"))))
    amend_manifest(run, ["config.toml"])
    trained_on = load(run, "cpu").trained_on
    assert trained_on == TextSource(str(of_wikitext[1]), held_out_fraction=0.05)
    config.write_text("".join(lines).replace('documents = "articles"', "documents = 3"))
    amend_manifest(run, ["config.toml"])
    with pytest.raises(ValueError, match=r"config: .* has data .*3.*; expected a text's"):
        load(run, "cpu")


@pytest.mark.parametrize("n", [1, 5, 7])
def test_windows_are_distinct_and_from_all_of_the_text(model, text, tmp_path, n):
    held_out = split_documents(read_documents(text))[1]
    file = pack(held_out, load_tokenizer("embedded"), tmp_path / "held")
    places = {tuple(file.tokens[i * 24 : i * 24 + 24].tolist()): i for i in range(file.n_tokens // 24)}
    rows = analysis_tokens(model, text, n_sequences=n, cache=tmp_path / "cache").tolist()
    assert [places[tuple(row)] for row in rows] == [i * len(places) // n for i in range(n)], "evenly spaced, in order"


def test_every_window_can_be_had_and_no_more(model, text, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(
        ValueError, match=r"\(held-out\) has (\d+) tokens, \d+ windows of 24; expected at least 100000"
    ) as e:
        analysis_tokens(model, text, n_sequences=100_000, cache=cache)
    n = int(str(e.value).split(" windows")[0].rsplit(" ", 1)[1])
    assert len(analysis_tokens(model, text, n_sequences=n, cache=cache)) == n
    with pytest.raises(ValueError, match=f"{n} windows of 24; expected at least {n + 1}"):
        analysis_tokens(model, text, n_sequences=n + 1, cache=cache)


def test_a_text_shorter_than_one_window_is_refused(model, tmp_path):
    (tmp_path / "a.txt").write_text("One line.\nTwo lines.\n" * 3)
    with pytest.raises(ValueError, match=r"a\.txt \(held-out\) has \d+ tokens, 0 windows of 24; expected at least 1"):
        analysis_tokens(model, tmp_path / "a.txt", n_sequences=1, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_sequences": 0}, "n_sequences: got 0; expected at least 1"),
        ({"n_ctx": 25}, "n_ctx: got 25; expected 2 to the model's n_ctx = 24"),
        ({"n_ctx": 1}, "n_ctx: got 1; expected 2"),
        ({"split": "test"}, "split: got 'test'; expected one of held_out, train"),
        ({"data": "nowhere.txt"}, "data: no file or folder 'nowhere.txt'"),
    ],
)
def test_bad_input_is_refused(model, text, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        analysis_tokens(model, **{"data": text, "n_sequences": 2, "cache": tmp_path} | arguments)


def test_a_model_without_tokenizer_is_refused(text):
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        analysis_tokens(small_model("janus-v3"), text, n_sequences=1)
