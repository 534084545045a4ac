"""What a tokenizer's files say is asked of the tokenizer, whole texts are decoded, and odd files are one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, models, processors
from tokenizers_for_tests import KINDS, TEXTS, sentencepiece, write_folder

from workbench.data.tokenizer import load_tokenizer, open_tokenizer, train_bpe
from workbench.models.load import load
from workbench.models.tokenizer_files import (
    begin_ids,
    decode_continuation,
    different_text,
    encode,
    read_generation,
    read_tokenizer,
    separator_id,
    separator_text,
    special_ids,
    stop_ids,
    unknown_id,
    wrap_tokenizer,
    write_tokenizer,
)


@pytest.mark.parametrize("name", ["embedded", "gpt2", "embedded-300"])
def test_texts_of_our_own_tokenizers_follow_the_token_that_ends_one(name):
    tokenizer = open_tokenizer(name)
    end = load_tokenizer(name).token_to_id("<|endoftext|>")
    assert begin_ids(tokenizer) == [end] == [separator_id(tokenizer)]
    assert tokenizer.wrapped("a b").input_ids == tokenizer.encode("a b") == [end, *encode(load_tokenizer(name), "a b")]
    assert separator_text(tokenizer) == "<|endoftext|>"
    assert special_ids(tokenizer) == {end}


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_loading_read_a_folder_alike(kind, tmp_path):
    folder = write_folder(tmp_path, KINDS[kind])
    for source in (folder, folder / "tokenizer.json"):
        own = open_tokenizer(str(source))
        assert different_text(own, read_tokenizer(folder)) is None
        assert begin_ids(own) == begin_ids(read_tokenizer(folder))
        assert separator_id(own, required=False) == separator_id(read_tokenizer(folder), required=False)


@pytest.mark.filterwarnings("ignore:.*the reading of tokenizer.json is used")
@pytest.mark.parametrize("family", ["LlamaConfig", "MistralConfig", "Qwen2Config", "Qwen3Config", "GPT2Config"])
@pytest.mark.parametrize("kind", ["llama3", "qwen2", "smollm", "sentencepiece", "bos denied"])
def test_no_family_s_name_changes_a_text(family, kind, tmp_path):
    model = load(write_folder(tmp_path, KINDS[kind], family))
    trained = open_tokenizer(str(tmp_path))
    lead = begin_ids(trained)
    assert lead == ([] if KINDS[kind].begins is None else [trained.backend_tokenizer.token_to_id(KINDS[kind].begins)])
    for text in TEXTS:
        assert model.to_tokens(text, truncate=False)[0].tolist() == lead + encode(trained, text), text
    assert separator_id(model.tokenizer) == separator_id(trained)


def test_what_ends_a_text_is_never_guessed_by_name():
    tokenizer = train_bpe(["ab"] * 3, 260)
    assert separator_id(tokenizer) == 0  # its only special token
    tokenizer.add_special_tokens(["</s>", "<|im_end|>"])
    with pytest.raises(
        ValueError, match=r"\(special tokens: <\|endoftext\|>, </s>, <\|im_end\|>\); expected eos_token in"
    ):
        separator_id(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    assert separator_id(tokenizer) == tokenizer.token_to_id("</s>")
    assert begin_ids(tokenizer) == []
    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a"))
    assert separator_id(words, required=False) is None  # a word like any other, for all its name


def test_the_model_s_configuration_names_what_the_tokenizer_does_not(tmp_path):
    folder = write_folder(tmp_path, KINDS["no prefix space"], bos_token_id=1, eos_token_id=2)
    (folder / "tokenizer_config.json").write_text("{}")
    tokenizer = read_tokenizer(folder).wrapped
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    (folder / "tokenizer_config.json").write_text('{"eos_token": null}')  # says itself that there is none
    assert read_tokenizer(folder).wrapped.eos_token is None
    # an id of the class's default that is an ordinary token here is not believed
    other = write_folder(tmp_path / "other", KINDS["nothing named"], bos_token_id=77, eos_token_id=78)
    assert read_tokenizer(other).wrapped.eos_token is None


def test_the_model_s_configuration_decides_where_the_files_are_silent(tmp_path):
    folder = write_folder(tmp_path, KINDS["smollm"])
    assert begin_ids(read_tokenizer(folder)) == []
    assert begin_ids(read_tokenizer(folder, begins=True)) == [1]
    settings = KINDS["smollm"].settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": False}))
    assert begin_ids(read_tokenizer(folder, begins=True)) == []


def test_special_tokens_without_an_id_change_no_vocabulary(tmp_path):
    folder = write_folder(tmp_path, KINDS["smollm"])
    more = {"pad_token": "[PAD]", "extra_special_tokens": {"image_token": "<image>", "end": "<|im_end|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(KINDS["smollm"].settings | more))
    tokenizer = read_tokenizer(folder).wrapped
    assert (len(tokenizer), tokenizer.pad_token) == (len(open_tokenizer(str(folder)).get_vocab()), None)
    assert tokenizer.extra_special_tokens == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"tokenizer_config.json": '{"chat_template": "one"}'}, "one"),
        ({"chat_template.jinja": "a file"}, "a file"),
        ({"chat_template.jinja": "a", "additional_chat_templates/tools.jinja": "b"}, {"default": "a", "tools": "b"}),
        (
            {"tokenizer_config.json": '{"chat_template": [{"name": "default", "template": "x"}]}'},
            {"default": "x"},
        ),
    ],
)
def test_chat_templates_are_read_from_wherever_they_lie_and_written_back(files, template, tmp_path):
    folder = write_folder(tmp_path / "in", KINDS["smollm"])
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    tokenizer = read_tokenizer(folder)
    assert tokenizer.wrapped.chat_template == template
    write_tokenizer(tokenizer, tmp_path)
    assert read_tokenizer(tmp_path).wrapped.chat_template == template


def test_every_listed_id_stops(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert read_generation(tmp_path) == {"eos_token_id": [7]}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 8], "temperature": 0.6}')
    assert read_generation(tmp_path) == {"eos_token_id": [9, 8, 7], "temperature": 0.6}
    model = SimpleNamespace(generation=read_generation(tmp_path), tokenizer=SimpleNamespace(eos_token_id=3))
    assert stop_ids(model) == {3, 7, 8, 9}
    (tmp_path / "config.json").write_text('{"eos_token_id": [true]}')
    with pytest.raises(ValueError, match=r"config.json: eos_token_id is \[True\]; expected a token id or a list"):
        read_generation(tmp_path)


@pytest.mark.parametrize("kind", ["prepend", "metaspace", "none"])
@pytest.mark.parametrize(
    ("prompt", "more"), [("the capital", " of France"), ("é", "é🎉"), ("a", "b"), ("It's", " 1 + 2")]
)
def test_a_continuation_is_cut_from_the_whole_text(kind, prompt, more):
    tokenizer = wrap_tokenizer(sentencepiece(kind), bos="<s>", eos="</s>").wrapped
    head, whole = encode(tokenizer, prompt), encode(tokenizer, prompt + more)
    if whole[: len(head)] != head:
        head = whole[:1]
        prompt = tokenizer.decode(head)
    text = decode_continuation(tokenizer, [1, *head], [*whole[len(head) :], 2])
    assert tokenizer.decode([1, *whole, 2], skip_special_tokens=True) == prompt + text


def test_bytes_of_one_character_on_both_sides_of_the_cut_are_not_lost():
    tokenizer = wrap_tokenizer(load_tokenizer("embedded")).wrapped
    ids = encode(tokenizer, "🎉")
    assert len(ids) > 1
    assert decode_continuation(tokenizer, ids[:1], ids[1:]) == "🎉"


def test_what_the_vocabulary_lacks_is_known_without_its_name():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert unknown_id(words) == 0 == unknown_id(wrap_tokenizer(words))
    assert unknown_id(load_tokenizer("embedded")) is None


def test_every_special_token_of_the_file_is_special():
    tokenizer = train_bpe(["ab"] * 3, 260)
    tokenizer.add_special_tokens([AddedToken("<tool>", special=True)])
    tokenizer.add_tokens(["plain"])
    assert special_ids(wrap_tokenizer(tokenizer, eos="<|endoftext|>")) == {0, tokenizer.token_to_id("<tool>")}


def test_a_tokenizer_of_python_s_own_is_asked_too():
    def encode(text, add_special_tokens=True):
        return [5, 9, 6] if add_special_tokens else [9]

    assert begin_ids(SimpleNamespace(encode=encode)) == [5]


def test_different_reading_is_found_by_the_hard_texts():
    kinds = {kind: wrap_tokenizer(sentencepiece(kind), bos="<s>", eos="</s>") for kind in ("prepend", "metaspace")}
    assert different_text(*kinds.values()).startswith(" ")
    assert different_text(kinds["prepend"], kinds["prepend"]) is None


def test_the_battery_is_large_enough():
    assert len(set(TEXTS)) == len(TEXTS) >= 40
    assert len(KINDS) >= 12


def test_settings_that_git_lfs_did_not_fetch_are_named(tmp_path: Path):
    folder = write_folder(tmp_path, KINDS["smollm"])
    (folder / "tokenizer_config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match=r"tokenizer_config.json: a Git LFS pointer, not the file itself"):
        read_tokenizer(folder)
