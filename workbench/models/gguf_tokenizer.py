"""The tokenizer of a GGUF file, from its `tokenizer.*` keys as llama.cpp reads them: every key is read, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from workbench.models.tokenizer_files import wrap_described
from workbench.runs import shorten

_GGML = "tokenizer.ggml."
# how text is split before merging, by llama.cpp's name (llama-vocab.cpp); the classes of characters are Unicode's
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = rf"{_SHORT}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", rf"{_SHORT}|{_WORDS}|\p{{N}}|{_REST}"
_SPLITS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), (_GPT2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), (_LLAMA3,)),
    **dict.fromkeys(("smaug-bpe", "dbrx"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), (_QWEN2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", _GPT2)),
}
# here a word of the vocabulary is one token, whatever the merges, and BOS begins a text unless the file says otherwise
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2")
# keys that tell ids of tokens with a role
_ROLES = {
    "bos_token_id": "bos_token", "eos_token_id": "eos_token", "unknown_token_id": "unk_token",
    "padding_token_id": "pad_token", "seperator_token_id": "sep_token", "cls_token_id": "cls_token",
    "mask_token_id": "mask_token",
}  # fmt: skip
_STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")
_FILL_IN = ("prefix", "suffix", "middle", *(f"fim_{part}" for part in ("pre", "suf", "mid", "pad", "rep", "sep")))
_READ = {
    *("model", "pre", "tokens", "scores", "token_type", "merges", "add_bos_token", "add_space_prefix"),
    *_ROLES, *_STOPS, *(f"{part}_token_id" for part in _FILL_IN),
}  # fmt: skip
# settings that would change the ids, with the value at which they do nothing
_PLAIN = {"add_eos_token": False, "add_sep_token": False, "remove_extra_whitespaces": False, "token_type_count": 1}
_NORMAL, _CONTROL, _USER = 1, 3, 4  # llama.cpp's kinds of tokens


def read_gguf_tokenizer(fields: Mapping[str, Any], file: Path) -> Any:
    """The Hugging Face fast tokenizer that the `tokenizer.*` keys of a GGUF file describe.

    "gpt2": byte-level BPE, split as `tokenizer.ggml.pre` says. "llama": SentencePiece's BPE with byte fallback, whose
    merges go by the tokens' scores, a space put in front unless `add_space_prefix` is false.

    Raises:
        ValueError: a kind of tokenizer, a splitting or a key that is not known here, each named.
    """
    own = {key.removeprefix(_GGML): value for key, value in fields.items() if key.startswith(_GGML)}
    for key, value in own.items():
        if key not in _READ and _PLAIN.get(key) != value:
            raise ValueError(f"{file}: {_GGML}{key} is {shorten(repr(value))}, which would change the tokens read")
    kind, tokens = own.get("model"), own.get("tokens")
    if kind not in ("gpt2", "llama") or not isinstance(tokens, list):
        raise ValueError(f"{file}: {_GGML}model is {shorten(repr(kind))}; expected 'gpt2' or 'llama', with its tokens")
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"{file}: {_GGML}tokens holds a token twice; expected each once")
    kinds = own.setdefault("token_type", [_NORMAL] * len(tokens))
    if len(kinds) != len(tokens):
        raise ValueError(
            f"{file}: {_GGML}token_type has {len(kinds)} entries; expected one for each of {len(tokens)} tokens"
        )
    for key in (*_ROLES, *_STOPS):
        if own.get(key) is not None:
            _token(own, key, tokens, file)
    build = _byte_level if kind == "gpt2" else _sentencepiece
    try:
        tokenizer = build(own, tokens, file)
    except ValueError:
        raise
    except Exception as error:  # tokenizers raises a bare Exception for merges of what is no token
        raise ValueError(f"{file}: its tokenizer cannot be built ({error})") from error
    added = [(t, k) for t, k in zip(tokens, kinds, strict=True) if k in (_CONTROL, _USER)]
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=k == _CONTROL) for t, k in added])
    settings: dict[str, Any] = {
        name: _token(own, key, tokens, file) for key, name in _ROLES.items() if own.get(key) is not None
    }
    settings["add_bos_token"] = bool(own.get("add_bos_token", kind == "llama" or own.get("pre") in _WHOLE_WORDS))
    templates = dict(_templates(fields))
    if templates:
        settings["chat_template"] = templates["default"] if list(templates) == ["default"] else templates
    return wrap_described(tokenizer, settings, str(file))


def read_gguf_generation(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Every id that ends a generation, as generation_config.json lists them: ends of text, of turn and of message."""
    found = [fields[_GGML + key] for key in _STOPS if fields.get(_GGML + key) is not None]
    return {"eos_token_id": list(dict.fromkeys(int(i) for i in found))} if found else {}


def _byte_level(own: Mapping[str, Any], tokens: list[str], file: Path) -> Tokenizer:
    pre = own.get("pre")
    if pre not in _SPLITS:
        known = ", ".join(sorted(_SPLITS))
        raise ValueError(f"{file}: {_GGML}pre is {shorten(repr(pre))}; how it splits a text is known of {known}")
    merges = own.get("merges")
    if not isinstance(merges, list):
        raise ValueError(f"{file}: {_GGML}merges is missing")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre in _WHOLE_WORDS))  # type: ignore[arg-type]
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _SPLITS[pre]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(own: Mapping[str, Any], tokens: list[str], file: Path) -> Tokenizer:
    ids, scores = {token: i for i, token in enumerate(tokens)}, own.get("scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ValueError(f"{file}: {_GGML}scores do not fit {len(tokens)} tokens; expected one for each")
    has_prefix = bool(own.get("add_space_prefix", True))
    has_bytes = all(f"<0x{byte:02X}>" in ids for byte in range(256))
    unknown = own.get("unknown_token_id", 0)
    words = {token: i for token, i in ids.items() if own["token_type"][i] in (_NORMAL, _USER)}
    tokenizer = Tokenizer(
        models.BPE(ids, _merges(words, scores), unk_token=tokens[unknown], fuse_unk=True, byte_fallback=has_bytes)
    )
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace] if has_prefix else [replace])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if has_prefix else steps)
    return tokenizer


def _merges(ids: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, best score of the whole first: the order of SentencePiece's BPE."""
    pairs = [
        (-scores[i], ids[token[:cut]], ids[token[cut:]], token[:cut], token[cut:])
        for token, i in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]


def _token(own: Mapping[str, Any], key: str, tokens: list[str], file: Path) -> str:
    if not isinstance(own[key], int) or not 0 <= own[key] < len(tokens):
        raise ValueError(f"{file}: {_GGML}{key} is {shorten(repr(own[key]))}; expected 0 to {len(tokens) - 1}")
    return tokens[own[key]]


def _templates(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The chat templates by name."""
    for key, value in fields.items():
        if key == "tokenizer.chat_template":
            yield "default", value
        elif key.startswith("tokenizer.chat_template."):
            yield key.removeprefix("tokenizer.chat_template."), value
