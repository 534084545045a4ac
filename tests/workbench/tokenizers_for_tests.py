"""Tokenizers of every kind that models come with, trained in a moment, and the texts on which such kinds differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from workbench.data.tokenizer import load_tokenizer
from workbench.models.tokenizer_files import HARD_TEXTS

TEXTS = (
    *HARD_TEXTS, "the capital of France is Paris", "a", "ab", "  ", "\n", "\t\ttabs", "1", "12", "123", "1234",
    "12345678", "3.14e-10", "It's 10:45pm.", "Tab\tand  two", "ends with space ", "don’t", "ümlaut u\u0308mlaut",
    "Ωmega ℃ ™", "한국어", "<|im_start|>user\nHi<|im_end|>", "<pad><tool>", "</s", "< s >", "[MASK]", "▁low▁line",
    "Ġ byte Ċ", "\x00\x07", "🙂", "mixed 日本 and Latin", "https://example.org/a?b=c&d=%20",
    "def f(x):\n    return x ** 2\n",
)  # fmt: skip
CORPUS = [text for text in TEXTS if "<" not in text] * 3 + ["the capital of France is Paris and the river"] * 9
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"llama3": _SPLIT % "{1,3}", "qwen2": _SPLIT % ""}


@dataclass(frozen=True)
class Kind:
    """A tokenizer with what its folder says besides."""

    build: Callable[[], Tokenizer]
    settings: dict[str, Any]
    """tokenizer_config.json"""
    begins: str | None = None
    """the token that begins a text, as the files say"""
    warns: bool = False
    """transformers reads the folder otherwise"""
    stops: tuple[str, ...] = ()
    """generation_config.json's, by name"""
    gguf: dict[str, Any] = field(default_factory=dict)
    """keys of `tokenizer.ggml.*`, where the format can hold the tokenizer"""


def byte_level(*special: str, splits: tuple[Any, ...] = (), whole: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not any(isinstance(s, str) for s in splits))
    parts = [pre_tokenizers.Split(Regex(s), "isolated") if isinstance(s, str) else s for s in splits]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([*parts, last]), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece(kind: str) -> Tokenizer:
    """Llama 2's form, with byte fallback; kind: "prepend" and "metaspace" put a space in front, "none" does not."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        steps = [normalizers.Prepend("▁"), replace] if kind == "prepend" else [replace]
        tokenizer.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if kind != "none" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # no merge across words, as SentencePiece trains; at the end whole texts are read at once
    words = [word for text in CORPUS for word in text.split(" ") if word]
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    )
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = parts["added_tokens"][:3]  # byte tokens are no special ones
    return Tokenizer.from_str(json.dumps(parts))


def with_template(tokenizer: Tokenizer, single: str, *tokens: str) -> Tokenizer:
    template = processors.TemplateProcessing(
        single=single, special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def word_level() -> Tokenizer:
    words = sorted({word for text in CORPUS for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", "<s>", "</s>", *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def with_normaliser(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def with_added(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_tokens([AddedToken("    "), AddedToken("camelCase", single_word=True), "naïve"])
    tokenizer.add_special_tokens([AddedToken("<|sep|>", lstrip=True, rstrip=True, special=True)])
    return tokenizer


_CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"
_R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
_SP = {"model": "llama", "unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS: dict[str, Kind] = {
    "gpt2": Kind(
        lambda: load_tokenizer("gpt2"),
        {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
        gguf={"model": "gpt2", "pre": "gpt-2", "eos_token_id": 50256, "bos_token_id": 50256},
    ),
    "llama3": Kind(
        lambda: with_template(
            byte_level("<|bos|>", "<|end|>", "<|eot|>", splits=(SPLITS["llama3"],), whole=True), "<|bos|> $A", "<|bos|>"
        ),
        {"bos_token": "<|bos|>", "eos_token": "<|end|>", "chat_template": _CHAT},
        begins="<|bos|>",
        stops=("<|end|>", "<|eot|>"),
        gguf={"model": "gpt2", "pre": "llama-bpe", "bos_token_id": 0, "eos_token_id": 1, "eot_token_id": 2},
    ),
    "qwen2": Kind(
        lambda: byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", splits=(SPLITS["qwen2"],)),
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False},
        stops=("<|im_end|>", "<|endoftext|>"),
        gguf={"model": "gpt2", "pre": "qwen2", "eos_token_id": 2, "eot_token_id": 0, "padding_token_id": 0},
    ),
    "qwen2, normalised": Kind(
        lambda: with_normaliser(byte_level("<|endoftext|>", "<|im_end|>", splits=(SPLITS["qwen2"],))),
        {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False},
    ),
    "smollm": Kind(
        lambda: byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", splits=(pre_tokenizers.Digits(True),)),
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
        gguf={"model": "gpt2", "pre": "smollm", "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": False},
    ),
    "sentencepiece": Kind(
        lambda: sentencepiece("prepend"),
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True},
        begins="<s>",
        warns=True,  # its fifth version passes add_bos_token over
        gguf=_SP,
    ),
    "metaspace": Kind(
        lambda: sentencepiece("metaspace"), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    ),
    "no prefix space": Kind(
        lambda: with_template(sentencepiece("none"), "<s> $A", "<s>"),
        {
            name: {
                "__type": "AddedToken",
                "content": token,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            }
            for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"))
        },
        begins="<s>",
        gguf=_SP | {"add_space_prefix": False},
    ),
    "unigram": Kind(unigram, {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}),
    "word piece": Kind(
        lambda: with_template(word_piece(), "[CLS] $A [SEP]", "[CLS]", "[SEP]"),
        {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "eos_token": "[SEP]"},
        begins="[CLS]",
    ),
    "words": Kind(
        word_level, {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}, begins="<s>", warns=True
    ),
    "nothing named": Kind(lambda: byte_level("~~"), {}),
    "bos denied": Kind(
        lambda: with_template(byte_level("<s>", "</s>"), "<s> $A", "<s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False},
        warns=True,
    ),
    "names of its own": Kind(
        lambda: byte_level(*_R1, "<|eot_id|>", "<|endoftext|>", splits=(SPLITS["llama3"],)),
        {"bos_token": _R1[0], "eos_token": _R1[1], "add_bos_token": True},
        begins=_R1[0],
        warns=True,
        stops=(_R1[1],),
    ),
    "added tokens": Kind(
        lambda: with_added(byte_level("<|endoftext|>")),
        {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|sep|>"]},
    ),
}


def write_folder(directory: Path, kind: Kind, model_class: str = "LlamaConfig", **config: Any) -> Path:
    """A model's folder as transformers and its users leave one, with a tiny random model."""
    import torch
    import transformers

    tokenizer = kind.build()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    own = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 64, "num_key_value_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    torch.manual_seed(0)
    made = getattr(transformers, model_class)(**{**sizes, **own, **ids, **config})
    model = transformers.AutoModelForCausalLM.from_config(made)
    if kind.stops:
        model.generation_config.eos_token_id = [tokenizer.token_to_id(token) for token in kind.stops]
    model.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | kind.settings
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory
