"""Tokenizers: the embedded ones, files, folders and hub names; and the training of the embedded one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Tokenizer

from workbench.data.corpus import EMBEDDED
from workbench.models.tokenizer_files import (
    TOKENIZER,
    DescribedTokenizer,
    is_described,
    read_tokenizer,
    read_tokenizer_json,
    wrap_tokenizer,
)

END_OF_TEXT = "<|endoftext|>"  # of the tokenizers that come with the package, and of those that train_bpe makes
_PACKAGED = {"embedded": "bpe4096.json.xz", "gpt2": "gpt2_tokenizer.json.xz"}
# what a hub's repository says of its tokenizer: see tokenizer_files
_HUB_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "additional_chat_templates/*.jinja", "generation_config.json", "config.json",
)  # fmt: skip
_EMBEDDED_PART = re.compile(r"^embedded-(\d+)$")
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def train_bpe(texts: Iterable[str], d_vocab: int = 4096) -> Tokenizer:
    """A byte-level BPE tokenizer of `d_vocab` entries: `<|endoftext|>` (id 0), the 256 bytes, then merges by frequency.

    Any text is encoded and decoded without loss. The same texts give the same tokenizer, in any order. The embedded
    tokenizer is `train_bpe` of the embedded corpus's train split (`split_documents` with its defaults).

    Raises ValueError if d_vocab < 257.
    """
    if d_vocab < 257:
        raise ValueError(f"train_bpe: d_vocab is {d_vocab}; expected at least 257: the bytes and {END_OF_TEXT}")
    tokenizer = Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(source: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of `source`, with neither truncation nor padding.

    source: "embedded" (4,096 entries, trained on the embedded text), "embedded-N" (its first N, 257 to 4,096: what
    training with N entries gives, since merges are chosen one after another), "gpt2" (50,257 entries, comes with the
    package), a tokenizer.json file (also .xz), a folder that holds one, or a name on the Hugging Face hub (with or
    without "hub:"), the only one that uses the network.

    Raises ValueError if there is none, or it cannot be read.
    """
    name = os.fspath(source)
    if name in _PACKAGED:
        tokenizer = read_tokenizer_json(EMBEDDED / _PACKAGED[name])
        # the file of GPT-2 lists its end of text among the words; written in a text it must not end the text
        tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
        return tokenizer
    if match := _EMBEDDED_PART.match(name):
        return _first_entries(load_tokenizer("embedded"), int(match[1]))
    return read_tokenizer_json(find_tokenizer(name))


def open_tokenizer(source: str) -> DescribedTokenizer:
    """The tokenizer of `source` (as `load_tokenizer` takes it) with what the files beside it say; of a
    tokenizer.json alone, as `wrap_tokenizer` takes it.

    Raises:
        ValueError: as `load_tokenizer`, and files that cannot be read.
    """
    if not is_packaged(source):
        file = find_tokenizer(source)
        if file.name == TOKENIZER and is_described(file.parent):
            return read_tokenizer(file.parent)
    return wrap_tokenizer(load_tokenizer(source))


def is_packaged(source: str | os.PathLike[str]) -> bool:
    """Whether `source` names a tokenizer that comes with the package, rather than a file, folder or hub name."""
    name = os.fspath(source)
    return name in _PACKAGED or _EMBEDDED_PART.match(name) is not None


def is_local(source: str | os.PathLike[str]) -> bool:
    """Whether the tokenizer of `source` is had without a network."""
    return is_packaged(source) or Path(source).expanduser().exists()


def find_tokenizer(source: str | os.PathLike[str]) -> Path:
    """The tokenizer.json that a file, a folder or a hub name means, with the files that describe it beside it.

    Raises ValueError if there is none.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if name and not name.startswith("hub:") and "\0" not in name and path.exists():
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"tokenizer: {path} holds no tokenizer.json; expected a folder with one, or the file")
        return file
    if name.startswith("hub:") or (_HUB_NAME.match(name) and not name.endswith((".json", ".xz"))):
        return _from_hub(name.removeprefix("hub:"))
    raise ValueError(f"tokenizer: no file or folder {name!r}; expected one, 'embedded', 'gpt2', or a name on the hub")


def text_encoder(tokenizer: Any) -> Tokenizer:
    """`tokenizer` as it reads plain text: nothing is cut or padded, and a special token's name in a text is text.

    tokenizer: a `tokenizers.Tokenizer` or a Hugging Face fast tokenizer; it is not changed. Equal ones get one and the
    same encoder, which its users must not change.
    """
    return _text_encoder(getattr(tokenizer, "backend_tokenizer", tokenizer).to_str())


# tokenizers (0.23) keeps the words that each tokenizer has met, up to 4 MB for every thread, until the thread ends:
# an encoder of its own for every call would let a long session grow
@lru_cache(maxsize=8)
def _text_encoder(form: str) -> Tokenizer:
    encoder = Tokenizer.from_str(form)
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True  # "<|endoftext|>" written in a text must not end the document
    return encoder


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """The number of rows that an embedding needs: the largest id plus one (ids may have gaps)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def _first_entries(tokenizer: Tokenizer, d_vocab: int) -> Tokenizer:
    """A byte-level BPE tokenizer stopped at d_vocab entries."""
    full, least = vocabulary_size(tokenizer), 257
    if not least <= d_vocab <= full:
        raise ValueError(
            f"tokenizer: embedded-{d_vocab}; expected {least} (the bytes and {END_OF_TEXT}) to {full} entries"
        )
    parts = json.loads(tokenizer.to_str())
    model = parts["model"]
    model["vocab"] = {entry: i for entry, i in model["vocab"].items() if i < d_vocab}
    model["merges"] = model["merges"][: d_vocab - least]
    return Tokenizer.from_str(json.dumps(parts))


def _from_hub(name: str) -> Path:
    if not _HUB_NAME.match(name):
        raise ValueError(f"tokenizer: {name!r} is no hub name; expected owner/name")
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    # from a refused connection to a repository without such a file: a dozen kinds with no common base
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"tokenizer: {name!r} is neither a file or folder here nor a hub name that can be had ({reason}); "
            f"expected a path that exists, a tokenizer in the local cache, or a connection"
        ) from error
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"tokenizer: {name} has no tokenizer.json; expected a repository with one")
    return folder / "tokenizer.json"
