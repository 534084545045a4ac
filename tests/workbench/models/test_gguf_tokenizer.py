"""The `tokenizer.*` keys of GGUF files: all read, or refused by name; SentencePiece's own library is the oracle."""

from __future__ import annotations

import io
from typing import Any

import pytest
from gguf_for_tests import write_gguf
from tokenizers_for_tests import CORPUS, KINDS, TEXTS, write_folder

from workbench.models.gguf_tokenizer import read_gguf_tokenizer
from workbench.models.load import load
from workbench.models.tokenizer_files import begin_ids, encode, special_ids, stop_ids


def fields(**changes: Any) -> dict[str, Any]:
    """Keys of a byte-level tokenizer of three words and a special token, changed; None leaves a key out."""
    own = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab", "<e>"], "token_type": [1, 1, 1, 3]}
    own |= {"merges": ["a b"], "eos_token_id": 3} | changes
    return {f"tokenizer.ggml.{key}": value for key, value in own.items() if value is not None}


@pytest.mark.parametrize("has_prefix", [True, False])
@pytest.mark.parametrize("has_bytes", [True, False])
def test_sentencepiece_s_vocabulary_gives_sentencepiece_s_ids(has_prefix, has_bytes, tmp_path):
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([t for t in CORPUS if "\x00" not in t]), model_writer=written, model_type="bpe",
        vocab_size=430 if has_bytes else 200, byte_fallback=has_bytes, add_dummy_prefix=has_prefix,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, bos_id=1, eos_id=2, unk_id=0,
        character_coverage=0.98 if has_bytes else 1.0,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    n = theirs.get_piece_size()
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in range(n)
    ]
    own = {
        "model": "llama", "tokens": [theirs.id_to_piece(i) for i in range(n)], "token_type": kinds,
        "scores": [theirs.get_score(i) for i in range(n)], "unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "add_space_prefix": has_prefix,
    }  # fmt: skip
    ours = read_gguf_tokenizer({f"tokenizer.ggml.{key}": value for key, value in own.items()}, tmp_path).wrapped
    texts = [
        t for t in TEXTS if "\x00" not in t and "<s>" not in t and "</s>" not in t
    ]  # which llama.cpp takes as tokens
    wrong = [text for text in texts if encode(ours, text) != theirs.encode(text)]
    assert wrong == []
    assert begin_ids(ours) == [1]  # llama.cpp's default for this kind
    for text in texts:
        if 0 not in theirs.encode(text):
            assert ours.decode(encode(ours, text)) == theirs.decode(theirs.encode(text))


@pytest.mark.parametrize(("pre", "begins"), [("gpt-2", []), ("qwen2", []), ("llama-bpe", [3]), ("smollm", [])])
def test_bos_is_llama_cpp_s_where_the_file_is_silent(pre, begins, tmp_path):
    assert begin_ids(read_gguf_tokenizer(fields(pre=pre, bos_token_id=3), tmp_path)) == begins
    for said in (True, False):
        told = read_gguf_tokenizer(fields(pre=pre, bos_token_id=3, add_bos_token=said), tmp_path)
        assert begin_ids(told) == ([3] if said else [])


def test_roles_kinds_and_templates_are_read(tmp_path):
    own = fields(
        tokens=["a", "b", "ab", "<e>", "<u>", "<t>", "my own"], token_type=[1, 1, 1, 3, 3, 3, 4], unknown_token_id=4,
        padding_token_id=4, eot_token_id=5, fim_pre_token_id=4,
    )  # fmt: skip
    templates = {
        "tokenizer.chat_template": "x",
        "tokenizer.chat_template.tools": "y",
        "tokenizer.chat_templates": ["tools"],
    }
    tokenizer = read_gguf_tokenizer(own | templates, tmp_path).wrapped
    assert (tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token) == ("<e>", "<u>", "<u>")
    assert tokenizer.chat_template == {"default": "x", "tools": "y"}
    assert special_ids(tokenizer) == {3, 4, 5}
    assert encode(tokenizer, "abmy own<t>") == [2, 6, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "deepseek-coder"}, "tokenizer.ggml.pre is 'deepseek-coder'; how it splits a text is known of"),
        ({"pre": None}, "tokenizer.ggml.pre is None"),
        ({"model": "rwkv"}, "tokenizer.ggml.model is 'rwkv'; expected 'gpt2' or 'llama'"),
        ({"model": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"merges": ["b a"]}, r"its tokenizer cannot be built \(.*Token `ba` out of vocabulary\)"),
        ({"tokens": ["a", "a", "ab", "<e>"]}, "tokenizer.ggml.tokens holds a token twice"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type has 1 entries; expected one for each of 4 tokens"),
        ({"add_eos_token": True}, "tokenizer.ggml.add_eos_token is True, which would change the tokens read"),
        ({"remove_extra_whitespaces": True}, "tokenizer.ggml.remove_extra_whitespaces is True"),
        ({"precompiled_charsmap": [1]}, r"tokenizer.ggml.precompiled_charsmap is \[1\]"),
        ({"something_new": 1}, "tokenizer.ggml.something_new is 1"),
        ({"eos_token_id": 9}, "tokenizer.ggml.eos_token_id is 9; expected 0 to 3"),
        ({"eot_token_id": 9}, "tokenizer.ggml.eot_token_id is 9; expected 0 to 3"),
        ({"model": "llama", "scores": [0.0]}, "tokenizer.ggml.scores do not fit 4 tokens"),
    ],
)
def test_what_is_not_known_is_refused_by_name(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_gguf_tokenizer(fields(**changes), tmp_path / "x.gguf")


def test_parts_and_pointers_are_named(tmp_path):
    folder = write_folder(tmp_path / "in", KINDS["smollm"])
    more = {"split.no": 1, "split.count": 3, "split.tensors.count": 12}
    with pytest.raises(ValueError, match="x.gguf: part 2 of 3; expected one file: join the parts"):
        load(write_gguf(tmp_path / "x.gguf", folder, KINDS["smollm"].gguf, **more))
    (tmp_path / "y.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ValueError, match="y.gguf: a Git LFS pointer, not the file itself"):
        load(tmp_path / "y.gguf")


def test_ends_of_text_turn_and_message_all_stop(tmp_path):
    folder = write_folder(tmp_path / "in", KINDS["smollm"])
    model = load(write_gguf(tmp_path / "x.gguf", folder, KINDS["smollm"].gguf | {"eot_token_id": 1, "eom_token_id": 0}))
    assert stop_ids(model) == {0, 1, 2}
