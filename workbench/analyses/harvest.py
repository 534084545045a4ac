"""Activations of a model: streamed batch by batch, or kept in checksummed shards, from which a killed run continues.

A harvest is a run directory with `shards.json` (hooks, shapes, counts, and of each shard its rows, bytes and sha256)
and `shard_00000.safetensors` …, each holding one row per token: a tensor for each hook, and `token`, `sequence`,
`position`. Attention maps (`hook_pattern`, `hook_attn_scores`) have no row per token: of these a shard holds one map
[head query key] per sequence, and `map_sequence` and `map_tokens` say of which.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from workbench.models.checks import MAPS, check_hooks, checked_tokens, count_bad, device_of, last_layer, run_watched
from workbench.models.config import parse_dtype
from workbench.models.weights import weights_sha256
from workbench.runs import Run, atomic_write, open_run, read_json, sha256_file, shorten, verify_files

INDEX, FORMAT = "shards.json", "workbench-shards/1"
MAPS_FORMAT = "workbench-shards/2"  # with maps, which a reader of the first would take for rows
INDEX_COLUMNS = ("token", "sequence", "position")  # int64 per row: what was read, and where it stood in `tokens`
MAP_COLUMNS = ("map_sequence", "map_tokens")  # int64 a map: its sequence's place in `tokens`, and its tokens
SHARD_BYTES = 256 << 20
TOKENS_A_BATCH = 8192
MAP_ELEMENTS_A_BATCH = 1 << 26  # of all maps of a batch together: 256 MiB in float32
SPARE_BYTES = 64 << 20  # left free on the disk beyond the shards
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


def stream(
    model: Any, tokens: Int[Tensor, "n n_ctx"], hooks: Sequence[str], batch_size: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Activations {hook: tensor [batch pos …]} of consecutive sequences, from one forward a batch.

    The forward ends with the last layer that a hook needs. Tensors are the model's own, on its device and in its dtype.

    Args:
        batch_size: sequences per forward; by default about 8,192 tokens, and fewer where maps would take more than
            256 MiB in float32.

    Raises:
        ValueError: a hook that does not exist (the nearest are named) or did not fire, or tokens that do not fit.
    """
    tokens = checked_tokens("stream", model, tokens)
    check_hooks(model, hooks)
    batch_size = default_batch_size(model.cfg, tokens.shape[1], hooks) if batch_size is None else batch_size
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; expected at least 1")
    stop = last_layer(hooks)
    for part in tokens.split(batch_size):
        yield run_watched(model, part.to(device_of(model)), hooks, stop)


def default_batch_size(cfg: Any, n_ctx: int, hooks: Sequence[str] = ()) -> int:
    """Sequences of about 8,192 tokens in all, whose maps at these hooks have at most 2²⁶ elements, or one sequence."""
    n_elements = sum(is_map(name) for name in hooks) * cfg.n_heads * n_ctx**2
    size = TOKENS_A_BATCH // n_ctx
    return max(1, min(size, MAP_ELEMENTS_A_BATCH // n_elements) if n_elements else size)


def is_map(name: str) -> bool:
    """Whether a hook shows an attention map, [batch head query key]."""
    return name.endswith(MAPS)


@torch.no_grad()
def harvest(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    hooks: Sequence[str],
    out: str | Path,
    *,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    batch_size: int | None = None,
    resume: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> Shards:
    """The activations of every token at `hooks`, written as a run directory of shards; see `read_shards`.

    The order is shuffled once, in advance, by the seed: first the sequences, then the rows within each shard. Attention
    maps are kept whole, one per sequence, in the order of the sequences: n_heads · n_ctx² numbers each. With
    resume=True a killed run continues after its last whole shard, having verified the shards before it.

    Args:
        out: directory that must not exist yet (unless resume).
        dtype: of the stored activations; the model's own by default.
        shard_bytes: largest size of a shard, unless a single sequence is larger.

    Raises:
        ValueError: as `stream`; a hook without one row per token that is no map; activations that are nan or infinite,
            or become it in the dtype (hook and sequence are named; scores that a mask made −inf stay so); a disk that
            will not hold the shards; a directory in the way; with resume, other settings, another model or an altered
            shard (named).
    """
    tokens = checked_tokens("harvest", model, tokens)
    check_hooks(model, hooks)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes: got {shard_bytes}; expected at least 1")
    shapes, stored = probe_shapes(model, tokens, hooks, dtype)
    n, n_ctx = tokens.shape
    n_bytes = sequence_bytes(shapes, n_ctx, stored)
    n_a_shard = max(1, shard_bytes // n_bytes)
    batch_size = min(n_a_shard, default_batch_size(model.cfg, n_ctx, hooks) if batch_size is None else batch_size)
    index = {
        "format": MAPS_FORMAT if any(map(is_map, hooks)) else FORMAT,
        "hooks": {name: list(shape) for name, shape in shapes.items()},
        "dtype": str(stored).removeprefix("torch."),
        "n_tokens": n * n_ctx,
        "n_ctx": n_ctx,
        "model_sha256": weights_sha256(model),
    }
    config = index | {
        "verb": "harvest",
        "hooks": list(hooks),
        "seed": seed,
        "sequences_a_shard": n_a_shard,
        "batch_size": batch_size,
        "tokens_sha256": hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
    }
    with open_run(out, config, resume=resume, device=str(device_of(model)), seed=seed) as run:
        if not run.is_complete:
            _write_shards(run, model, tokens, index, seed, stored, (n_a_shard, batch_size), n_bytes, on_progress)
    return open_shards(run.out)


def probe_shapes(
    model: Any, tokens: Tensor, hooks: Sequence[str], dtype: str | torch.dtype | None
) -> tuple[dict[str, tuple[int, ...]], torch.dtype]:
    """Shape of one row at each hook, of one sequence at maps, and the dtype to store."""
    first = next(stream(model, tokens[:1], hooks))
    check_rows("harvest", {name: found for name, found in first.items() if not is_map(name)}, (1, tokens.shape[1]))
    kind = parse_dtype(dtype) if dtype is not None else next(iter(first.values())).dtype
    return {name: tuple(tensor.shape[1 if is_map(name) else 2 :]) for name, tensor in first.items()}, kind


def sequence_bytes(shapes: Mapping[str, Sequence[int]], n_ctx: int, dtype: torch.dtype) -> int:
    """Bytes of all that a shard holds of one sequence."""
    n_maps = sum(math.prod(shape) for name, shape in shapes.items() if is_map(name))
    a_row = sum(math.prod(shape) for name, shape in shapes.items() if not is_map(name)) * dtype.itemsize
    index = n_ctx * 8 * len(INDEX_COLUMNS) + (8 * (1 + n_ctx) if n_maps else 0)
    return n_ctx * a_row + n_maps * dtype.itemsize + index


def check_rows(who: str, found: Mapping[str, Tensor], shape: tuple[int, int], n_axes: int = 2) -> None:
    """Raise ValueError naming a hook whose activations are not [batch pos …] of this shape, with n_axes axes
    or more."""
    for name, tensor in found.items():
        if is_map(name):
            raise ValueError(f"{who}: {name} is [batch head query key]; expected a hook with one row per token")
        if tensor.ndim < n_axes or tuple(tensor.shape[:2]) != shape:
            raise ValueError(f"{who}: {name} has shape {list(tensor.shape)}; expected [batch pos …], one row per token")


def _write_shards(
    run: Run,
    model: Any,
    tokens: Tensor,
    index: dict[str, Any],
    seed: int,
    dtype: torch.dtype,
    sizes: tuple[int, int],
    n_bytes: int,
    on_progress: Callable[[float], None] | None,
) -> None:
    n_a_shard, batch_size = sizes
    done = list(open_shards(run.path).shards) if (run.path / INDEX).is_file() else []
    for shard in done:
        check_shard(run.path, shard)
    order = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(len(tokens)))
    groups = order.split(n_a_shard)
    n_left = sum(len(group) for group in groups[len(done) :])
    check_disk(run.path, n_left * n_bytes)
    for number, group in enumerate(groups):
        if number < len(done):
            continue
        rows = torch.from_numpy(np.random.default_rng([seed, 1, number]).permutation(group.numel() * tokens.shape[1]))
        tensors = _collect(model, tokens, group, rows, index["hooks"], dtype, batch_size)
        data = save(tensors, metadata={"format": "pt"})
        name = f"shard_{number:05d}.safetensors"
        atomic_write(run.path / name, data)
        done.append(Shard(name, len(rows), len(data), hashlib.sha256(data).hexdigest()))
        atomic_write(run.path / INDEX, json.dumps(index | {"shards": [asdict(s) for s in done]}, indent=2) + "\n")
        if on_progress is not None:
            on_progress(len(done) / len(groups))


def _collect(
    model: Any,
    tokens: Tensor,
    group: Int64[Tensor, " sequence"],
    rows: Int64[Tensor, " row"],
    shapes: dict[str, Sequence[int]],
    dtype: torch.dtype,
    batch_size: int,
) -> dict[str, Tensor]:
    """One shard's tensors; row i of them is token rows[i] of the group's sequences laid end to end."""
    n_ctx = tokens.shape[1]
    place = torch.empty_like(rows)
    place[rows] = torch.arange(len(rows))
    sizes = {name: len(group) if is_map(name) else len(rows) for name in shapes}
    tensors = {name: torch.empty(sizes[name], *shape, dtype=dtype) for name, shape in shapes.items()}
    start = 0
    for batch in stream(model, tokens[group], list(shapes), batch_size):
        n_here = len(next(iter(batch.values())))
        where = place[start * n_ctx : (start + n_here) * n_ctx]
        for name, tensor in batch.items():
            values = tensor.to("cpu", dtype)
            if n_bad := count_bad(_unmasked(name, tensor, values)):
                raise ValueError(_describe_bad(name, tensor, values, n_bad, group[start:]))
            if is_map(name):
                tensors[name][start : start + n_here] = values
            else:
                tensors[name][where] = values.flatten(0, 1)
        start += n_here
    assert start == len(group), "every token of the group has its row"
    tensors["token"] = tokens[group].flatten()[rows]
    tensors["sequence"], tensors["position"] = group[rows // n_ctx], rows % n_ctx
    if any(map(is_map, shapes)):
        tensors["map_sequence"], tensors["map_tokens"] = group, tokens[group]
    return tensors


def _unmasked(name: str, tensor: Tensor, values: Tensor) -> Tensor:
    """The values as stored, 0 for scores that a mask had made −inf before they were stored."""
    if not name.endswith("hook_attn_scores"):
        return values
    return values.masked_fill((tensor == -torch.inf).to("cpu"), 0.0)


def _describe_bad(name: str, tensor: Tensor, stored: Tensor, n_bad: int, group: Int64[Tensor, " sequence"]) -> str:
    """What is wrong with a batch that has nan or inf as it would be stored; group: the sequences from its first on."""
    stored = _unmasked(name, tensor, stored)
    first = int((~stored.isfinite()).flatten(1).any(dim=1).nonzero()[0])
    where = f"harvest: {name} has {n_bad} nan or inf from sequence {int(group[first])} on"
    if count_bad(_unmasked(name, tensor, tensor.to("cpu"))):
        return f"{where}; expected finite activations"
    kind = str(stored.dtype).removeprefix("torch.")
    largest = torch.finfo(stored.dtype).max
    return f"{where} in {kind}, which ends at {largest:g}; expected bfloat16 or float32 (--store-dtype)"


def check_disk(directory: Path, n_bytes: int) -> None:
    """Raise ValueError where the disk of `directory` has less than n_bytes, and some to spare, free."""
    free = shutil.disk_usage(directory).free
    if n_bytes + SPARE_BYTES > free:
        raise ValueError(
            f"disk: {directory} has {free} bytes free; expected {n_bytes + SPARE_BYTES} for what is to be written"
        )


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
