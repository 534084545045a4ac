"""What the files of a model's folder say of its tokenizer: ids of a text, what begins and ends one, what stops it.

`tokenizer.json` is the truth about ids. Whether a token begins a text is said by `add_bos_token` in
tokenizer_config.json, else by the post-processor in tokenizer.json, else, of a checkpoint of ours, by the model's
configuration; never by the name of a family or of a token. What is found is put into the post-processor of the
tokenizer that is returned, so that every later question is put to the tokenizer itself.

A verb asks for ids and never needs transformers' class around them, which takes half as long to import as torch: what
is read is a `DescribedTokenizer`, and `model.tokenizer` makes that class of it when someone asks.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, models, processors

from workbench.runs import decode_text, shorten
from workbench.runs.foreign_files import read_object, refuse_pointer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
OLD_SETTINGS = "special_tokens.json"  # of checkpoints that version 0.1 wrote first
TOKENIZER_FILES = frozenset((TOKENIZER, SETTINGS, GENERATION, OLD_SETTINGS))
MAX_TOKENIZER_BYTES = 512 << 20
_MODEL_CONFIG, _OLD_SPECIAL, _TEMPLATE, _TEMPLATES = (
    "config.json", "special_tokens_map.json", "chat_template.jinja", "additional_chat_templates",
)  # fmt: skip
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KEPT = ("clean_up_tokenization_spaces", "model_max_length", "padding_side", "truncation_side")
# one token, whatever the text: what a post-processor puts around it can be counted in any vocabulary
_ONE_TOKEN = Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
# texts that tokenizers of different classes or settings read differently
HARD_TEXTS = (
    "In 1999, 12345 men walked 3.14159 miles.", " leading space", "  two leading spaces", "trailing  ", "a  b   c",
    "   ", "\n\nlines\r\nand\ttabs\n", "café", "cafe\u0301", "naïve Ångström", "e\u0301\u0301", "👩‍👩‍👧 🎉x🇫🇷",
    "日本語のテキスト", "العربية",
    "don't DON'T we'll", "snake_case camelCase HTTPServer2", "x = {'a': [1, 2]};  # ok",
    "\u00a0nbsp\u200bzero", "ﬁ ½ ²",
    "<|endoftext|> <s> </s> <unk> [CLS] [SEP]", "a<s>b</s>c", "!!! ... ???", "\ufeffmark", "A", " ",
)  # fmt: skip


@dataclass(frozen=True)
class DescribedTokenizer:
    """A tokenizer with what files say of its tokens: what transformers' class is made of, without that class."""

    backend_tokenizer: Tokenizer
    named: Mapping[str, str] = field(default_factory=dict)
    """role ("eos_token", …) -> token; each is in the vocabulary"""
    extra: Sequence[str] = ()
    """further special tokens"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """chat template and the class's own settings, in the form of tokenizer_config.json"""

    @cached_property
    def wrapped(self) -> PreTrainedTokenizerFast:
        """The Hugging Face fast tokenizer."""
        from transformers import PreTrainedTokenizerFast

        wrapped = PreTrainedTokenizerFast(tokenizer_object=_ONE_TOKEN, **self.settings)
        # the constructor would copy it through its JSON form, a tenth of a second for 50,000 entries
        wrapped._tokenizer = self.backend_tokenizer
        # set afterwards: the constructor would add what the vocabulary lacks
        for name, token in self.named.items():
            setattr(wrapped, name, token)
        wrapped.extra_special_tokens = list(self.extra)
        return wrapped

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text."""
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self._id("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        """Id of what the vocabulary lacks."""
        return self._id("unk_token")

    @property
    def pad_token_id(self) -> int | None:
        """Id of what fills up a shorter text."""
        return self._id("pad_token")

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the tokens with a role, and of the further special ones."""
        ids = (self.backend_tokenizer.token_to_id(token) for token in (*self.named.values(), *self.extra))
        return [i for i in ids if i is not None]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text; special tokens that it spells are recognised."""
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """The entry of each id; None where there is none."""
        return [self.backend_tokenizer.id_to_token(i) for i in ids]

    def get_vocab(self) -> dict[str, int]:
        """Entry -> id."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def _id(self, role: str) -> int | None:
        return self.backend_tokenizer.token_to_id(self.named[role]) if role in self.named else None


def read_tokenizer(folder: Path, begins: bool = False) -> DescribedTokenizer:
    """The tokenizer of a folder with a tokenizer.json, as its files describe it.

    Args:
        begins: whether a token begins a text where neither settings nor post-processor say so; it is BOS, or EOS where
            there is no BOS.

    Raises:
        ValueError: a file that cannot be read, or a special token that is no text.
    """
    settings = _read_settings(folder)
    return wrap_described(read_tokenizer_json(folder / TOKENIZER), settings, str(folder), begins=begins)


def read_tokenizer_json(file: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json (also .xz), without the truncation or padding that it may ask for: a document
    is encoded whole. Raises ValueError if the file cannot be read."""
    if (n_bytes := file.stat().st_size) > MAX_TOKENIZER_BYTES:
        raise ValueError(f"tokenizer: {file} has {n_bytes} bytes; expected at most {MAX_TOKENIZER_BYTES}")
    refuse_pointer(file)
    data = file.read_bytes()
    if file.suffix == ".xz":
        try:
            data = lzma.decompress(data)
        except lzma.LZMAError as error:
            raise ValueError(f"tokenizer: {file} is damaged ({error}); expected a whole archive") from None
    try:
        tokenizer = Tokenizer.from_str(decode_text(data, f"tokenizer: {file}"))
    # the library raises a bare Exception for anything that it cannot take
    except Exception as error:
        raise ValueError(f"tokenizer: {file} cannot be read ({error}); expected the tokenizer.json form") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def wrap_described(
    tokenizer: Tokenizer, settings: Mapping[str, Any], source: str, *, begins: bool = False
) -> DescribedTokenizer:
    """`tokenizer`, which is altered, with what `settings` say of it.

    Args:
        settings: in the form of tokenizer_config.json; the contents of config.json under "model_config".
        source: where they come from, for errors.
        begins: as for `read_tokenizer`.
    """
    named = {name: _content(settings[name], name, source) for name in _SPECIAL if settings.get(name) is not None}
    for name in ("bos_token", "eos_token"):
        ids = _ids(settings.get("model_config", {}), f"{name}_id", f"{source}: {_MODEL_CONFIG}")
        if name not in settings and ids and ids[0] in special_ids(tokenizer):
            named[name] = str(tokenizer.id_to_token(ids[0]))
    lead, tail = _around(tokenizer)
    said = settings.get("add_bos_token")
    if not isinstance(said, bool | None):
        raise ValueError(f"{source}: add_bos_token is {shorten(repr(said))}; expected true or false")
    first = named.get("bos_token") or (named.get("eos_token") if begins else None)
    if said is False:
        lead = []
    elif not lead and (said or begins) and first is not None and (known := tokenizer.token_to_id(first)) is not None:
        lead = [known]
    _surround(tokenizer, lead, tail)
    if lead and "bos_token" not in settings:
        named["bos_token"] = str(tokenizer.id_to_token(lead[0]))
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    values = extra.values() if isinstance(extra, dict) else extra
    return _known(tokenizer, named, [_content(token, "extra_special_tokens", source) for token in values], settings)


def wrap_tokenizer(tokenizer: Tokenizer, bos: str | None = None, eos: str | None = None) -> DescribedTokenizer:
    """A `tokenizers.Tokenizer` that comes without further files, as a model of ours is trained with it: every text
    follows the token that ends the one before.

    Args:
        bos: the token that begins a text; its post-processor's, else EOS.
        eos: the token that ends one; its post-processor's last, else its only special token.
    """
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    lead, tail = _around(tokenizer)
    end = separator_id(tokenizer, required=False) if eos is None else tokenizer.token_to_id(eos)
    if bos is not None or not lead:
        begin = end if bos is None else tokenizer.token_to_id(bos)
        lead = [] if begin is None else [begin]
    _surround(tokenizer, lead, tail)
    ids = {"bos_token": lead[0] if lead else None, "eos_token": end}
    named = {name: str(tokenizer.id_to_token(i)) for name, i in ids.items() if i is not None}
    return _known(tokenizer, named, [], {})


def write_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, from which `read_tokenizer` and transformers' AutoTokenizer give
    the same tokenizer: ids, special tokens, what begins and ends a text, chat template."""
    tokenizer = getattr(tokenizer, "wrapped", tokenizer)
    lead, tail = _around(_backend(tokenizer))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {name: None if (token := getattr(tokenizer, name)) is None else str(token) for name in _SPECIAL}
    settings |= {"add_bos_token": bool(lead), "add_eos_token": bool(tail)}
    if extra := [str(token) for token in tokenizer.extra_special_tokens]:
        settings["extra_special_tokens"] = extra
    if template := tokenizer.chat_template:
        is_one = isinstance(template, str)
        settings["chat_template"] = template if is_one else [{"name": n, "template": t} for n, t in template.items()]
    settings |= {name: getattr(tokenizer, name) for name in _KEPT}
    # not by the library's own save, which says of a full disk no more than a bare Exception
    (directory / TOKENIZER).write_text(_backend(tokenizer).to_str(pretty=True), encoding="utf-8")
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (directory / SETTINGS).write_text(text, encoding="utf-8")


def read_generation(folder: Path) -> dict[str, Any]:
    """The contents of a folder's generation_config.json, `eos_token_id` the list of every id that it or config.json
    names; empty where neither says anything.

    Raises:
        ValueError: a file that cannot be read, or ids that are none.
    """
    files = [folder / name for name in (GENERATION, _MODEL_CONFIG)]
    contents = [read_object(file) if file.is_file() else {} for file in files]
    stops = [i for file, own in zip(files, contents, strict=True) for i in _ids(own, "eos_token_id", str(file))]
    return contents[0] | ({"eos_token_id": list(dict.fromkeys(stops))} if stops else {})


def write_generation(generation: Mapping[str, Any] | None, directory: Path) -> None:
    """Write generation_config.json, where there is something to say."""
    if generation:
        text = json.dumps(generation, indent=2, ensure_ascii=False) + "\n"
        (directory / GENERATION).write_text(text, encoding="utf-8")


# --- questions to a tokenizer: a `DescribedTokenizer`, a Hugging Face tokenizer or a `tokenizers.Tokenizer`


def tokenizer_of(model: Any) -> Any:
    """The tokenizer of a model, of ours as it was described; None where there is none. For the questions below."""
    return getattr(model, "own_tokenizer", None) or getattr(model, "tokenizer", None)


def begin_ids(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts before every text; empty where nothing begins one."""
    backend = _backend(tokenizer)
    if isinstance(backend, Tokenizer):
        return _around(backend)[0]
    plain, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(plain)] == plain), [])


def separator_text(tokenizer: Any) -> str | None:
    """The token of `separator_id` as it would be spelled in a text; None where there is none."""
    found = separator_id(tokenizer, required=False)
    return None if found is None else _backend(tokenizer).id_to_token(found)


def separator_id(tokenizer: Any, *, required: bool = True) -> int | None:
    """The id that separates documents: the tokenizer's EOS; of a `tokenizers.Tokenizer`, the last token that its
    post-processor puts behind a text, else its only special token.

    Raises:
        ValueError: there is none, and it is required.
    """
    if isinstance(tokenizer, Tokenizer):
        special, tail = sorted(special_ids(tokenizer)), _around(tokenizer)[1]
        found = tail[-1] if tail else special[0] if len(special) == 1 else None
    else:
        found = tokenizer.eos_token_id
    if found is None and required:
        names = [_backend(tokenizer).id_to_token(i) for i in sorted(special_ids(tokenizer))]
        raise ValueError(
            f"tokenizer: nothing says which token ends a text (special tokens: {shorten(', '.join(names)) or 'none'}); "
            f"expected eos_token in {SETTINGS} beside {TOKENIZER}"
        )
    return found


def pad_id(tokenizer: Any) -> int | None:
    """The id that fills up shorter texts beside longer ones: the tokenizer's pad token, else its EOS, as in
    TransformerLens; None where it names neither. It may stand in a text too: only a mask says which is padding."""
    found = getattr(tokenizer, "pad_token_id", None)
    return separator_id(tokenizer, required=False) if found is None else int(found)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of all special tokens: those marked so in tokenizer.json, and those with a role."""
    backend = _backend(tokenizer)
    own = backend.get_added_tokens_decoder() if isinstance(backend, Tokenizer) else {}
    marked = {i for i, token in own.items() if token.special}
    return frozenset(marked | set(getattr(tokenizer, "all_special_ids", None) or ()))


def unknown_id(tokenizer: Any) -> int | None:
    """The id of what the vocabulary lacks, also where only the model inside tokenizer.json names it."""
    if (named := getattr(tokenizer, "unk_token_id", None)) is not None:
        return int(named)
    backend = _backend(tokenizer)
    token = getattr(backend.model, "unk_token", None) if isinstance(backend, Tokenizer) else None
    return None if token is None else backend.token_to_id(token)


def stop_ids(model: Any) -> frozenset[int]:
    """Every id that ends a generation: what generation_config.json and config.json list, and the tokenizer's EOS."""
    listed = (getattr(model, "generation", None) or {}).get("eos_token_id", [])
    eos = getattr(tokenizer_of(model), "eos_token_id", None)
    return frozenset(listed) | ({eos} if eos is not None else set())


def decode_continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that `new` adds behind `prompt`, special tokens left out: both are decoded together and then cut, since
    a decoder may strip a space in front of what it is given, or join bytes to a character."""
    head = tokenizer.decode(list(prompt), skip_special_tokens=True)
    whole = tokenizer.decode([*prompt, *new], skip_special_tokens=True)
    pairs = zip(head, whole, strict=False)
    return whole[next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(head), len(whole))) :]


def different_text(a: Any, b: Any) -> str | None:
    """The first hard text, special tokens written out among them, that two tokenizers give other ids; None if none."""
    names = [_backend(a).id_to_token(i) for i in sorted(special_ids(a))[:64]]
    for text in (*HARD_TEXTS, *(f"{name}a {name} b" for name in names)):
        if encode(a, text) != encode(b, text):
            return text
    return None


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text and nothing around it, special tokens in it recognised."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return list(ids if isinstance(ids, list) else ids.ids)


# --- inside


def _backend(tokenizer: Any) -> Any:
    return getattr(tokenizer, "backend_tokenizer", tokenizer)


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before and behind a text."""
    if tokenizer.post_processor is None:
        return [], []
    done = tokenizer.post_processor.process(_ONE_TOKEN.encode("x", add_special_tokens=False), None, True)
    at = done.special_tokens_mask.index(0)
    return done.ids[:at], done.ids[at + 1 :]


def _surround(tokenizer: Tokenizer, lead: list[int], tail: list[int]) -> None:
    """Let the post-processor put these ids around every text; one that does so already stays as it is."""
    if (lead, tail) == _around(tokenizer):
        return
    labels = {f"T{i}": i for i in (*lead, *tail)}
    before, behind = ([f"T{i}" for i in ids] for ids in (lead, tail))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        pair=[*before, "$A", *behind, *before, "$B:1", *behind],
        special_tokens=[
            {"id": label, "ids": [i], "tokens": [str(tokenizer.id_to_token(i))]} for label, i in labels.items()
        ],
    )


def _known(
    tokenizer: Tokenizer, named: Mapping[str, str], extra: Sequence[str], settings: Mapping[str, Any]
) -> DescribedTokenizer:
    """Of the tokens named, only those that the vocabulary has."""
    kept = {name: settings[name] for name in (*_KEPT, "chat_template") if settings.get(name) is not None}
    roles = {name: token for name, token in named.items() if tokenizer.token_to_id(token) is not None}
    return DescribedTokenizer(tokenizer, roles, [t for t in extra if tokenizer.token_to_id(t) is not None], kept)


def is_described(folder: Path) -> bool:
    """Whether anything beside tokenizer.json says how a text is read."""
    return any((folder / name).is_file() for name in (SETTINGS, _OLD_SPECIAL, _MODEL_CONFIG, GENERATION, OLD_SETTINGS))


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, joined with what older and newer libraries put into files of their own."""
    settings: dict[str, Any] = {}
    for name in (_OLD_SPECIAL, OLD_SETTINGS, SETTINGS):
        if (folder / name).is_file():
            settings |= read_object(folder / name)
    templates = {file.stem: file for file in sorted((folder / _TEMPLATES).glob("*.jinja"))}
    if (folder / _TEMPLATE).is_file():
        templates = {"default": folder / _TEMPLATE} | templates
    texts = {name: decode_text(file.read_bytes(), str(file)) for name, file in templates.items()}
    if texts:
        settings["chat_template"] = texts["default"] if list(texts) == ["default"] else texts
    if (folder / _MODEL_CONFIG).is_file():
        settings["model_config"] = read_object(folder / _MODEL_CONFIG)
    return settings


def _content(token: Any, name: str, source: str) -> str:
    """The text of a special token, which files give as it is or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"tokenizer: {source} has {name} {shorten(repr(token))}; expected a token")
    return text


def _ids(config: Mapping[str, Any], key: str, source: str) -> list[int]:
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ValueError(f"{source}: {key} is {shorten(repr(value))}; expected a token id or a list of them")
    return ids
