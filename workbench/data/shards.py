"""Activations kept on disk: what lies in a harvest's directory, read and checked.

There is `shards.json` (hooks, shapes, counts, and of each shard its rows, bytes and sha256) and
`shard_00000.safetensors` …, each holding one row per token: a tensor for each hook, and `token`, `sequence`,
`position`. Attention maps (`hook_pattern`, `hook_attn_scores`) have no row per token: of these a shard holds one map
[head query key] per sequence, and `map_sequence` and `map_tokens` say of which.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from workbench.models.streams import is_map
from workbench.runs import read_json, sha256_file, shorten, verify_files

INDEX, FORMAT = "shards.json", "workbench-shards/1"
MAPS_FORMAT = "workbench-shards/2"  # with maps, which a reader of the first would take for rows
INDEX_COLUMNS = ("token", "sequence", "position")  # int64 per row: what was read, and where it stood in `tokens`
MAP_COLUMNS = ("map_sequence", "map_tokens")  # int64 a map: its sequence's place in `tokens`, and its tokens
_SHARD_NAME = re.compile(r"^shard_\d{5}\.safetensors$")


@dataclass(frozen=True)
class Shard:
    """One file of a harvest."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shards:
    """A harvest on disk."""

    path: Path
    """the run directory"""
    hooks: dict[str, tuple[int, ...]]
    """shape of one token's activation at each hook; of a map, of one sequence's [head query key]"""
    dtype: str
    """of the activations"""
    n_tokens: int
    n_ctx: int
    model_sha256: str
    """`weights_sha256` of the model that was harvested"""
    shards: tuple[Shard, ...]


def open_shards(path: str | Path) -> Shards:
    """The harvest in `path`, its index read and its files' sizes checked (not their contents: see `read_shards`).

    Raises:
        ValueError: no harvest there, an index that cannot be read, or a shard that is missing or truncated (named).
    """
    path = Path(path)
    file = path / INDEX
    verify_files(path, lambda name: name == INDEX)
    index = read_json(file, "shards", "a harvest's directory")
    try:
        if index.pop("format") not in (FORMAT, MAPS_FORMAT):
            raise ValueError(f"another format than {FORMAT} and {MAPS_FORMAT}")
        shards = tuple(Shard(**entry) for entry in index.pop("shards"))
        hooks = {name: tuple(shape) for name, shape in index.pop("hooks").items()}
        found = Shards(path=path, hooks=hooks, shards=shards, **index)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"shards: {file} cannot be read ({shorten(str(error))}); expected the index that a harvest wrote"
        ) from None
    _check_index(found, file)
    for shard in shards:
        if not _SHARD_NAME.match(shard.file):
            raise ValueError(f"shards: {file} names {shorten(repr(shard.file))}; expected shard_NNNNN.safetensors")
        at = path / shard.file
        n_bytes = at.stat().st_size if at.is_file() and not at.is_symlink() else None
        if n_bytes != shard.bytes:
            what = "missing" if n_bytes is None else f"altered, {n_bytes} bytes"
            raise ValueError(f"shards: {at} is {what}; expected {shard.bytes} bytes")
    return found


def _check_index(found: Shards, file: Path) -> None:
    """Raise ValueError unless the index holds counts and names where they belong."""
    counts = [found.n_tokens, found.n_ctx, *(n for shape in found.hooks.values() for n in shape)]
    counts += [n for shard in found.shards for n in (shard.rows, shard.bytes)]
    names = [found.dtype, found.model_sha256, *(name for shard in found.shards for name in (shard.file, shard.sha256))]
    if not all(type(n) is int and n > 0 for n in counts) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"shards: {file} holds what is no count or no name; expected the index that a harvest wrote")


def check_shard(path: Path, shard: Shard) -> None:
    """Raise ValueError naming the shard if its contents are not those that were written."""
    got = sha256_file(path / shard.file)
    if got != shard.sha256:
        raise ValueError(f"shards: {path / shard.file} is altered, sha256 {got}; expected {shard.sha256}")


def read_shards(
    path: str | Path, hooks: Sequence[str] | None = None, *, verify: bool = True, device: str | torch.device = "cpu"
) -> Iterator[dict[str, Tensor]]:
    """Shard by shard {hook: [rows …], "token", "sequence", "position": [rows]}, in the shuffled order.

    Where maps are among the hooks, {hook: [sequences head query key], "map_sequence": [sequences], "map_tokens":
    [sequences n_ctx]} as well.

    Args:
        hooks: those wanted; all by default.
        verify: compare the sha256 of what was read with the index's.

    Raises:
        ValueError: as `open_shards`; a hook that was not harvested; a shard that is altered (named).
    """
    found = open_shards(path)
    wanted = list(found.hooks) if hooks is None else list(hooks)
    for name in wanted:
        if name not in found.hooks:
            raise ValueError(f"shards: {path} has no {name!r}; expected some of {shorten(', '.join(found.hooks), 400)}")
    columns = (*INDEX_COLUMNS, *(MAP_COLUMNS if any(map(is_map, wanted)) else ()))
    for shard in found.shards:
        tensors = read_shard(found.path, shard, verify=verify)
        yield {name: tensors[name].to(device) for name in (*wanted, *columns)}


def read_shard(path: Path, shard: Shard, *, verify: bool = True) -> dict[str, Tensor]:
    """All tensors of a shard, from one reading of its file.

    Raises ValueError naming the shard if it is missing or, with verify, not what was written.
    """
    file = path / shard.file
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"shards: {file} cannot be read ({error.strerror}); expected {shard.bytes} bytes") from None
    if verify and (got := hashlib.sha256(data).hexdigest()) != shard.sha256:
        raise ValueError(f"shards: {file} is altered, sha256 {got}; expected {shard.sha256}")
    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(f"shards: {file} is damaged ({error}); expected the file that the harvest wrote") from None
