"""Readers under random bytes and altered good files: each reads, or refuses by a ValueError in one line."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from foreign_saes_for_tests import write_gemma
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sae
from workbench.data.batteries import read_battery, read_prompts, read_recall
from workbench.data.concepts import read_concepts
from workbench.data.corpus import read_documents
from workbench.data.shards import open_shards
from workbench.models.load import load
from workbench.runs import read_config, verify_manifest
from workbench.study.recipe import load_study
from workbench.training import load_recipe

ROOT = Path(__file__).parents[2]
TOML = ROOT / "workbench"
# reader -> (the file that is altered, in a directory of its own; a good one to begin with; how it is read)
READERS: dict[str, tuple[str, Callable, Callable[[Path], object]]] = {
    "recipe": ("r.toml", lambda g: (TOML / "recipes" / "lang-ddv1-nano.toml").read_bytes(), load_recipe),
    "study": ("s.toml", lambda g: g["tiny.toml"].read_bytes(), lambda p: load_study(p).train_recipes()),
    "concepts": ("c.toml", lambda g: _begin(TOML / "data" / "concepts.toml"), read_concepts),
    "prompts": ("p.toml", lambda g: _begin(TOML / "data" / "prompts.toml"), read_prompts),
    "recall": ("q.toml", lambda g: (TOML / "data" / "recall.toml").read_bytes(), read_recall),
    "battery": ("grammar.toml", lambda g: _begin(TOML / "data" / "grammar.toml"), read_battery),
    "texts": ("t.jsonl", lambda g: b'{"text": "the king", "title": "a"}\n' * 4, read_documents),
    "config": ("config.toml", lambda g: (g.run("train") / "config.toml").read_bytes(), read_config),
    "manifest": ("d/manifest.json", lambda g: g.run("topology"), lambda p: verify_manifest(p.parent)),
    "checkpoint": ("d/hooked_config.json", lambda g: g["model"], lambda p: load(p.parent, "cpu")),
    "weights": ("d/model.safetensors", lambda g: g["mute"], lambda p: load(p.parent, "cpu")),
    "SAEs": ("d/sae.json", lambda g: g.run("saes") / "sae", lambda p: sae.StackedSAE.load(p.parent)),
    "shards": ("d/shards.json", lambda g: g.run("harvest"), lambda p: open_shards(p.parent)),
    "SAELens": ("d/cfg.json", lambda g: _sae_lens(g), lambda p: sae.StackedSAE.from_sae_lens(p.parent)),
    "Gemma Scope": (
        "params.npz",
        lambda g: _gemma_scope(g["gemma_scope"]),
        lambda p: sae.StackedSAE.from_gemma_scope(p, hook_name="hook_mlp_out", layer=1),
    ),
}


# what a reader of files may be: slow, and fed with much
SLOW_OR_LARGE = (
    HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much,
)  # fmt: skip
LONG = "a key\n" * 1000
# what is put in besides words of the file itself
PIECES = (
    b"[", b"]", b"{", b"}", b'"', b"'", b"=", b"\n", b".", b",", b"\0", b"-", b"nan", b"inf", b"1e999", b"9" * 40,
    b"[" * 3000, b"true", b"..", b"/", b"\\u0000", b"\xff", b"null", b"0", b"-1", b"1.5",
)  # fmt: skip


def _sae_lens(ground) -> Path:
    place = ground["sae_lens"]
    if not place.exists():
        sae.StackedSAE.load(ground.run("saes") / "sae").to_sae_lens(place)
    return place / "sae_000"


def _gemma_scope(place: Path) -> bytes:
    return write_gemma(place).read_bytes()


def _begin(file: Path) -> bytes:
    """The first tables of a TOML file."""
    return b"\n[".join(file.read_bytes().split(b"\n[")[:3]) + b"\n"


def altered(good: bytes) -> st.SearchStrategy[bytes]:
    """The good file with a few stretches replaced, taken out or put in; or bytes at random."""
    words = sorted({word for word in good.decode("utf-8", "replace").split() if len(word) < 40})
    pieces = st.one_of(
        st.binary(max_size=8),
        st.sampled_from(PIECES),
        st.sampled_from(words).map(str.encode) if words else st.just(b""),
    )
    places = st.integers(0, len(good))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = good
        for start, length, piece in edits:
            data = data[:start] + piece + data[start + length :]
        return data

    edit = st.tuples(places, st.integers(0, 12), pieces)
    return st.one_of(st.lists(edit, min_size=1, max_size=4).map(apply), st.binary(max_size=200))


@pytest.mark.parametrize("name", list(READERS))
def test_a_reader_reads_or_refuses(ground, home, tally, count, name) -> None:
    file, origin, read = READERS[name]
    path, source = home / file, origin(ground)
    if isinstance(source, Path):
        shutil.copytree(source, path.parent)
        if name != "manifest":  # it would refuse all of them before the reader could
            for record in ("manifest.json", "config.toml"):
                (path.parent / record).unlink(missing_ok=True)
        good = path.read_bytes()
    else:
        good = source
    n_tried, wrong = [0], []

    @settings(max_examples=count("examples"), deadline=None, database=None, derandomize=True,
              suppress_health_check=SLOW_OR_LARGE)  # fmt: skip
    @given(altered(good))
    def run(data: bytes) -> None:
        n_tried[0] += 1
        path.write_bytes(data)
        try:
            read(path)
        except (ValueError, OSError) as error:  # of which the command line makes one line each
            if "\n" in str(error) or len(str(error)) > 2000:
                wrong.append(f"{data[:200]!r}: {error}")
        except Exception as error:
            wrong.append(f"{data[:200]!r}: {type(error).__name__}: {error}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    tally("fuzzing", name, n_tried[0], n_tried[0] - len(wrong))
    assert not wrong, "\n".join(random.Random(0).sample(wrong, min(5, len(wrong))))


def lengthened(content: Any) -> Iterator[Any]:
    """The content with one value after another, at every depth, made long; and an unknown long key in every table."""
    if isinstance(content, dict):
        yield content | {LONG: 1}
        for key, value in content.items():
            yield {LONG if k == key else k: v for k, v in content.items()}
            yield from (content | {key: other} for other in lengthened(value))
    elif isinstance(content, list):
        yield from ([other, *content[1:]] for other in (lengthened(content[0]) if content else ()))
    else:
        yield from (LONG, [LONG], {LONG: LONG})


@pytest.mark.parametrize("name", [name for name, (file, _, _) in READERS.items() if file.endswith(("json", "toml"))])
def test_what_a_file_says_at_length_is_quoted_in_few_words(ground, home, name) -> None:
    file, origin, read = READERS[name]
    path, source = home / file, origin(ground)
    if isinstance(source, Path):
        shutil.copytree(source, path.parent)
        if name != "manifest":
            for record in ("manifest.json", "config.toml"):
                (path.parent / record).unlink(missing_ok=True)
        source = path.read_bytes()
    is_json = file.endswith("json")
    good = json.loads(source) if is_json else tomllib.loads(source.decode())
    said: list[str] = []
    for content in itertools.islice(lengthened(good), 400):
        path.write_text(json.dumps(content) if is_json else tomli_w.dumps(content))
        try:
            read(path)
        except (ValueError, OSError) as error:
            said.append(str(error))
    assert said or name == "config"  # of a run: whatever its verb wrote
    assert not [text for text in said if "\n" in text or len(text) > 2000]


def test_the_good_files_are_read(ground, home) -> None:
    """Else a reader that refuses everything would pass."""
    for name, (file, origin, read) in READERS.items():
        path, source = home / name / file, origin(ground)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path):
            shutil.copytree(source, path.parent, dirs_exist_ok=True)
        else:
            path.write_bytes(source)
        read(path)
    assert json.loads((ground.run("topology") / "manifest.json").read_text())["files"]
