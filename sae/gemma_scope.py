"""SAEs of Gemma Scope: params.npz (Gemma 2; Lieberum et al. 2024) or params.safetensors (Gemma 3), with model, hook and
layer in the path alone.

jumprelu with one threshold per feature, whose encoder reads x itself: acts = z·[z > θ], z = x W_enc + b_enc.
Transcoders are such too, from x/rms, what the MLP's norm makes of the stream before its gain, to the MLP's output. All
were trained without special tokens, on sequences of 1024 tokens that begin with BOS. Tensors are named W_enc … or
w_enc ….
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from sae.architectures import find_architecture
from sae.checkpoint import Stored, describe_validation, read_any_tensors, shorten
from sae.config import SAEConfig, SAESource, StackInfo
from sae.tensors import check_tensors

FILES = ("params.npz", "params.safetensors")
CONTEXT_SIZE = 1024
_NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}
# what part of a repository's or a folder's name says of the hook
_HOOKS = {
    "res": "hook_resid_post", "resid_post": "hook_resid_post", "mlp": "hook_mlp_out", "mlp_out": "hook_mlp_out",
    "att": "attn.hook_z", "attn_out": "attn.hook_z", "transcoders": "ln2.hook_normalized",
}  # fmt: skip
_REPOSITORY = re.compile(r"gemma-scope-(2-)?(\d+[bm])-(pt|it)(?:-([a-z]+))?")
_GROWTH = 64  # times as many bytes as the file; float numbers hardly shrink


def find_params(path: str | Path) -> Path | None:
    """The file of parameters that a path names or a folder holds; None if there is none."""
    path = Path(path)
    if path.is_file() and path.suffix == ".npz":
        return path
    return next((path / name for name in FILES if (path / name).is_file()), None)


def load_gemma_scope(path: str | Path, *, hook_name: str | None = None, layer: int | None = None) -> Stored:
    """Config, tensors (float32) and info of one SAE: an .npz file, or a folder with params.npz or params.safetensors.

    The path says `layer_20` and the kind: `gemma-scope-2b-pt-res` (or mlp, att) as a repository's name for Gemma 2,
    `resid_post` (or mlp_out, attn_out) as a folder's for Gemma 3. att reads all heads' hook_z side by side. SAEs of the
    embedding were trained on it without the factor √d_model, which is folded into the weights.

    Args:
        hook_name: where the path does not say: the hook's name, whole or within its block.
        layer: where the path does not say.

    Raises:
        ValueError: naming the file, and the tensor, for what is missing, altered, pickled, nan, of another shape or
            larger than its file can hold; a transcoder of Gemma 3; a hook or layer that is not said, or that the path
            says otherwise.
    """
    file = find_params(path)
    if file is None:
        raise ValueError(f"{path}: holds neither {' nor '.join(FILES)}; expected an SAE of Gemma Scope")
    source, model_name = _read_path(file, hook_name, layer)
    tensors = _named(file, _read_npz(file) if file.suffix == ".npz" else read_any_tensors(file))
    if tensors["W_enc"].ndim != 2:
        raise ValueError(f"{file}: tensor W_enc has shape {tuple(tensors['W_enc'].shape)}; expected (d_in, d_sae)")
    d_in, d_sae = tensors["W_enc"].shape
    try:
        kind: dict[str, Any] = {"architecture": "jumprelu"}
        if source.hook_name_out is not None:
            kind = {"architecture": "transcoder", "activation": "jumprelu", "d_out": tensors["W_dec"].shape[-1]}
        config = SAEConfig(n_saes=1, d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False, **kind)
        info = StackInfo(
            sources=(source,), model_name=model_name, context_size=CONTEXT_SIZE, prepend_bos=True, include_special=False
        )
    except ValidationError as error:
        raise ValueError(f"{file}: {describe_validation(error)}") from error
    stacked = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    check_tensors(config, stacked, f"{file}: ")
    if source.hook_name == "hook_embed":
        scale = torch.tensor([d_in**-0.5])
        stacked = find_architecture("jumprelu").fold_scale(config, stacked, scale)
    return config, stacked, info


# --- what the path says


def _read_path(file: Path, hook_name: str | None, layer: int | None) -> tuple[SAESource, str | None]:
    """(what it reads, the model's name). Only the last folders speak for a layer."""
    text = file.absolute().as_posix()
    repository = next(iter([*_REPOSITORY.finditer(text)][::-1]), None)
    tail = text[repository.end() :] if repository else "/".join(text.split("/")[-5:])
    parts = tail.split("/")
    if re.search("transcoder|/clt", tail):
        raise ValueError(
            f"{file}: is a transcoder of Gemma 3, by its path, which reads behind the norm's gain, where no hook is; "
            "expected resid_post, mlp_out or attn_out"
        )
    own_hook = _HOOKS.get(repository[4] or "") if repository else None
    own_hook = own_hook or next((_HOOKS[own] for part in parts if (own := part.removesuffix("_all")) in _HOOKS), None)
    layers = re.findall(r"layer_(\d{1,6})(?!\d)", tail)
    own_layer = int(layers[-1]) if layers else None
    if is_embedding := "embedding" in parts:
        own_layer, own_hook = 0, "hook_embed"
    layer = _agreed(file, "layer", own_layer, layer)
    if hook_name is not None and (found := re.fullmatch(r"blocks\.(\d{1,6})\.(.+)", hook_name)):
        layer, hook_name = _agreed(file, "layer", layer, int(found[1])), found[2]
    hook_name = _agreed(file, "hook", own_hook, hook_name)
    if hook_name is None or layer is None:
        missing = "hook" if hook_name is None else "layer"
        raise ValueError(
            f"{file}: the path does not say which {missing} it reads; expected …/gemma-scope-2b-pt-res/layer_20/…, or "
            f"{missing}="
        )
    block = "" if is_embedding else f"blocks.{layer}."
    out = f"{block}hook_mlp_out" if own_hook == _HOOKS["transcoders"] else None
    source = SAESource(hook_name=block + hook_name, hook_name_out=out, layer=layer)
    if not repository:
        return source, None
    size, kind = repository[2], repository[3]
    return source, f"gemma-3-{size}-{kind}" if repository[1] else f"gemma-2-{size}" + ("-it" if kind == "it" else "")


def _agreed(file: Path, what: str, said: Any, given: Any) -> Any:
    """What the path says, or else what is given."""
    if said is not None and given is not None and said != given:
        raise ValueError(f"{file}: got {what} {given!r}; expected {said!r}, as the path says")
    return given if said is None else said


# --- tensors


def _named(file: Path, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in float32 by our names."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in found.items():
        name = _NAMES.get(key.lower())
        if name is None or name in tensors:
            raise ValueError(
                f"{file}: holds tensors {shorten(str(sorted(found)), 400)}; expected {sorted(_NAMES.values())}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{file}: tensor {shorten(key)} is {tensor.dtype}; expected floating-point numbers")
        tensors[name] = tensor.float()
    if missing := sorted(set(_NAMES.values()) - set(tensors)):
        raise ValueError(f"{file}: tensor {missing[0]} is missing; expected {sorted(_NAMES.values())}")
    return tensors


def _read_npz(file: Path) -> dict[str, Tensor]:
    """Arrays of an npz file; nothing is unpickled, and sizes are compared with the file before an array is made."""
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                _check_entry(archive, entry, file)
        with np.load(file, allow_pickle=False) as arrays:
            return {key: _native(array) for key, array in arrays.items()}
    except (OSError, EOFError, KeyError, RuntimeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: cannot be read ({shorten(str(error))}); expected an npz file of arrays") from error


def _native(array: np.ndarray) -> Tensor:
    """The array in this machine's order of bytes, copied only where it has another."""
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _check_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: Path) -> None:
    """Raise ValueError for an entry that is no array of floating-point numbers, or not of the size that it says."""
    name = shorten(entry.filename)
    with archive.open(entry) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read(stream)
        except (ValueError, KeyError, SyntaxError, TypeError) as error:
            raise ValueError(f"{file}: {name} is no array ({shorten(str(error))}); expected one") from error
        begin = stream.tell()
    if dtype.kind != "f":
        raise ValueError(f"{file}: {name} holds {shorten(str(dtype))}; expected floating-point numbers")
    n_bytes = int(np.prod([int(dim) for dim in shape], dtype=object)) * dtype.itemsize
    limit = _GROWTH * file.stat().st_size
    if n_bytes + begin != entry.file_size or n_bytes > limit:
        raise ValueError(
            f"{file}: {name} has shape {shorten(str(shape))} of {dtype}, {n_bytes} bytes, and holds "
            f"{entry.file_size - begin}; expected as many, at most {limit}"
        )
