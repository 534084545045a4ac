"""What a folder's files say of its tokenizer is what load, training, import, checkpoints, exports and GGUF say too."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers_for_tests import KINDS, TEXTS, write_folder

from workbench.data.tokenizer import open_tokenizer
from workbench.models.interop import export, import_model
from workbench.models.load import load
from workbench.models.tokenizer_files import (
    begin_ids,
    encode,
    read_tokenizer,
    separator_id,
    special_ids,
    stop_ids,
    unknown_id,
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folder"), KINDS[kind])


@pytest.fixture(scope="module")
def model(kind, folder):
    if KINDS[kind].warns:
        with pytest.warns(UserWarning, match=r"the reading of tokenizer\.json is used"):
            return load(folder)
    return load(folder)


def facts(tokenizer) -> dict[str, object]:
    """Everything that the workbench asks a tokenizer."""
    return {
        "begins": begin_ids(tokenizer), "separator": separator_id(tokenizer, required=False),
        "special": special_ids(tokenizer), "unknown": unknown_id(tokenizer), "pad": tokenizer.pad_token_id,
        "named": tokenizer.special_tokens_map, "all special": tokenizer.all_special_tokens,
        "template": tokenizer.chat_template,
    }  # fmt: skip


def test_what_was_described_answers_as_the_class_around_it_does(folder):
    own = read_tokenizer(folder)
    wrapped = own.wrapped
    for ask in (begin_ids, special_ids, unknown_id, lambda tokenizer: separator_id(tokenizer, required=False)):
        assert ask(own) == ask(wrapped)
    assert (own.bos_token_id, own.eos_token_id) == (wrapped.bos_token_id, wrapped.eos_token_id)
    assert own.get_vocab() == wrapped.get_vocab()
    for text in TEXTS:
        assert encode(own, text) == encode(wrapped, text)
        assert own.encode(text) == wrapped.encode(text)
        assert own.convert_ids_to_tokens(own.encode(text)) == wrapped.convert_ids_to_tokens(wrapped.encode(text))


def test_ids_are_those_of_tokenizer_json_and_survive_every_way(kind, folder, model, tmp_path, record_property):
    from transformers import AutoTokenizer

    truth = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with warnings.catch_warnings(action="ignore" if KINDS[kind].warns else "error"):
        imported = load(import_model(folder, tmp_path / "imported"))
    exported = export(model, "hf", tmp_path / "exported")
    back = load(exported)  # without a warning: what we export, transformers reads as we do
    readers = {
        "load": model.tokenizer,
        "train": open_tokenizer(str(folder)).wrapped,
        "export": back.tokenizer,
        "transformers": AutoTokenizer.from_pretrained(str(exported)),
        "checkpoint": load(import_model(exported, tmp_path / "again")).tokenizer,
        "import": imported.tokenizer,
    }
    wanted = {text: truth.encode(text, add_special_tokens=False).ids for text in TEXTS}
    wrong = [(name, text) for name, own in readers.items() for text in TEXTS if encode(own, text) != wanted[text]]
    assert wrong == []
    begins = KINDS[kind].begins
    assert begin_ids(model.tokenizer) == ([] if begins is None else [truth.token_to_id(begins)])
    assert {name: facts(own) for name, own in readers.items()} == dict.fromkeys(readers, facts(model.tokenizer))
    record_property("ids tried", len(wanted) * len(readers))
    for text in ("a", "the capital"):
        assert model.to_tokens(text)[0].tolist() == model.tokenizer(text).input_ids[: model.to_tokens(text).shape[1]]
        assert model.to_tokens(text).tolist() == back.to_tokens(text).tolist()


def test_stops_survive(kind, folder, model, tmp_path):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = KINDS[kind].settings.get("eos_token")
    eos = eos["content"] if isinstance(eos, dict) else eos
    named = {*KINDS[kind].stops, *([eos] if eos else [])}
    wanted = {tokenizer.token_to_id(token) for token in named}
    assert stop_ids(model) == wanted
    assert stop_ids(load(export(model, "hf", tmp_path / "out"))) == wanted
    assert stop_ids(load(import_model(tmp_path / "out", tmp_path / "ours"))) == wanted


def test_gguf_gives_the_same_ids_where_it_can_hold_them(kind, folder, model, tmp_path):
    keys = KINDS[kind].gguf
    if not keys:
        pytest.skip("the format has no form for this tokenizer")
    from gguf_for_tests import write_gguf

    other = load(write_gguf(tmp_path / "x.gguf", folder, keys))
    wrong = [text for text in TEXTS if encode(other.tokenizer, text) != encode(model.tokenizer, text)]
    assert wrong == []
    assert begin_ids(other.tokenizer) == begin_ids(model.tokenizer)
    assert stop_ids(other) == stop_ids(model)
    assert special_ids(other.tokenizer) == special_ids(model.tokenizer)


@pytest.mark.parametrize(
    ("model_class", "tokenizer_class", "kind"),
    [("Qwen2Config", "Qwen2Tokenizer", "smollm"), ("LlamaConfig", "LlamaTokenizerFast", "sentencepiece")],
)
def test_where_transformers_reads_a_text_otherwise_a_warning_names_both(model_class, tokenizer_class, kind, tmp_path):
    write_folder(tmp_path, KINDS[kind], model_class)
    settings = KINDS[kind].settings | {"tokenizer_class": tokenizer_class}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    truth = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.warns(
        UserWarning, match=r"tokenizer.json gives '.*' the ids \[.*\], \w+Tokenizer \[.*\]; the reading of"
    ):
        model = load(tmp_path)
    assert all(encode(model.tokenizer, t) == truth.encode(t, add_special_tokens=False).ids for t in TEXTS)


def test_a_tokenizer_that_qwen2_s_class_would_alter_is_exported_as_a_llama(tmp_path):
    with pytest.warns(UserWarning, match="the reading of tokenizer.json is used"):
        model = load(write_folder(tmp_path / "in", KINDS["smollm"], "Qwen2Config"))
    out = export(model, "hf", tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert load(out).cfg.extensions == model.cfg.extensions  # no output bias here, for all that Llama's class has one
    qwen = load(write_folder(tmp_path / "qwen", KINDS["qwen2, normalised"], "Qwen2Config"))  # as the class builds it
    kept = json.loads((export(qwen, "hf", tmp_path / "kept") / "config.json").read_text())
    assert kept["model_type"] == "qwen2"


def test_what_the_settings_deny_a_post_processor_does_not_put(tmp_path):
    with pytest.warns(UserWarning, match=r"a text begins with no token, by \w+ with \[0\]"):
        model = load(write_folder(tmp_path, KINDS["bos denied"]))
    assert model.to_tokens("a").tolist() == [encode(model.tokenizer, "a")]
