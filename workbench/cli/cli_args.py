"""What the verbs that read a model share: the model, its name, its tokens, settings, and lists such as 0,2,5-7."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cli.errors import UsageError

if TYPE_CHECKING:
    from workbench.models.text_source import TextSource


def parse_list(text: str | None, what: str) -> list[int] | None:
    """The integers of "0,2,5-7", or None (all of them) for None and "all".

    Raises:
        UsageError: anything else, an empty list included.
    """
    if text is None or text.strip() == "all":
        return None
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None:
            raise UsageError(f"{what}: got {text!r}; expected all, or numbers and ranges such as 0,2,5-7")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise UsageError(f"{what}: got {part.strip()!r}; expected a range that rises")
        numbers += range(first, last + 1)
    return numbers


def parse_overrides(settings: Sequence[str] | None) -> dict[str, Any]:
    """The KEY=VALUE pairs of --set; values are read as TOML reads them.

    Raises:
        UsageError: no pair, or a key given twice.
    """
    from workbench.training.recipe import parse_override

    found: dict[str, Any] = {}
    for text in settings or []:
        try:
            key, value = parse_override(text)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if key in found:
            raise UsageError(f"set: {key} is given twice; expected it once")
        found[key] = value
    return found


def parse_settings(settings: Sequence[str] | None, function: Callable, taken: Sequence[str] = ()) -> dict[str, Any]:
    """The KEY=VALUE pairs of --set as keyword arguments of `function`; values are read as TOML reads them.

    Args:
        taken: keyword-only arguments of the function that the verb gives itself.

    Raises:
        UsageError: no pair, a key that is no such argument (the others are named), a value of another type than the
            default's, or a key given twice.
    """
    parameters = inspect.signature(function).parameters.values()
    offered = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in (*taken, "on_progress")]
    known = {p.name: type(p.default) for p in offered}
    found = parse_overrides(settings)
    for key, value in found.items():
        if key not in known:
            raise UsageError(f"set: unknown key {key!r}; expected one of {', '.join(known)}")
        # a default of None leaves the type to the function
        if known[key] is not type(None) and type(value) is not known[key]:
            raise UsageError(f"set: {key} = {value!r}; expected {known[key].__name__}")
    return found


def open_subject(
    ckpt: str, device: str, dtype: str | None, data: str, n_sequences: int, n_ctx: int | None, seed: int
) -> tuple[Any, Any]:
    """(model, tokens [n_sequences n_ctx]): what a verb analyses."""
    from workbench.data.text_windows import analysis_tokens
    from workbench.models.load import load

    model = load(ckpt, device, dtype)
    return model, analysis_tokens(model, data, n_sequences=n_sequences, n_ctx=n_ctx, seed=seed)


def identify(ckpt: str, model: Any, seed: int) -> tuple[str, int]:
    """(name, seed) of a model's rows: the name in its configuration, which of a run of ours is its recipe's, and its
    training seed, or `seed` where it is no run."""
    from workbench.models.checkpoint import training_config

    return model.cfg.model_name, int(training_config(Path(ckpt)).get("seed", seed))


def identify_all(ckpts: Sequence[str], models: Sequence[Any], seed: int) -> list[tuple[str, int]]:
    """`identify` of several models; where two would look alike, all are named by their paths."""
    known = [identify(path, model, seed) for path, model in zip(ckpts, models, strict=True)]
    if len(set(known)) < len(known):
        return [(path, own) for path, (_, own) in zip(ckpts, known, strict=True)]
    return known


def check_selection(model: Any, layers: list[int] | None, heads: list[int] | None = None) -> None:
    """Raise ValueError for a layer or head that the model lacks, before a verb makes its directory."""
    from workbench.models.checks import choose

    choose("layers", layers, model.cfg.n_layers)
    choose("heads", heads, model.cfg.n_heads)


def check_tables(directory: Path) -> None:
    """Raise ValueError naming a table, or study.json, that is not what the run in this directory wrote."""
    from workbench.runs import verify_files

    verify_files(directory, lambda name: "/" not in name and (name.endswith(".csv") or name == "study.json"))


def check_page(out: Path | None) -> None:
    """Raise ValueError for a place of a page where something else is."""
    if out is not None and out.exists() and not (out.is_file() and out.suffix.lower() in (".html", ".htm")):
        raise ValueError(f"out: {out} exists and is no page; expected a new file, or an older page's, ending in .html")


def amend_page(directory: Path, page: Path) -> None:
    """Note a page drawn anew in the manifest of the run that it lies in, whichever way it leads there."""
    from workbench.runs import amend_manifest

    if page.resolve().is_relative_to(directory.resolve()):
        amend_manifest(directory, [page.resolve().relative_to(directory.resolve()).as_posix()])


def digest(tokens: Any) -> str:
    """Hex sha256 of the token ids: so that a resumed verb reads the same text."""
    import hashlib

    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def read_texts(
    data: str, split: str, max_bytes: int | None, trained_on: TextSource | None = None, tokenizer: Any = None
) -> list[str]:
    """The documents of a text, or of a part of it, cut as where a model was trained on it; with max_bytes the beginning
    of each, the same share of all.

    Raises:
        UsageError: an unknown split.
        ValueError: a text that cannot be read, is not UTF-8, or has no held-out part.
    """
    from workbench.data.corpus import as_trained, read_documents, read_parts
    from workbench.models.tokenizer_files import separator_text

    if split not in ("held_out", "train", "all"):
        raise UsageError(f"--split: got {split!r}; expected held_out, train or all")
    read = as_trained(data, trained_on)
    separator = None if tokenizer is None else separator_text(tokenizer)
    if split == "all" and read.held_out_split is None:
        settings = {"text_column": read.text_column, "separator": separator, "documents": read.documents}
        documents = read_documents(read.source, **settings)
    else:
        train, held_out = read_parts(read, separator)
        documents = {"train": train, "held_out": held_out, "all": train + held_out}[split]
    texts = [document.text for document in documents]
    n_bytes = sum(len(text.encode()) for text in texts)
    if max_bytes is None or n_bytes <= max_bytes:
        return texts
    share = max_bytes / n_bytes
    return [part for text in texts if (part := text[: int(len(text) * share)])]
