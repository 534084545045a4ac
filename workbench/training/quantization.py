"""A model in int8: weight matrices by rows with float16 scales, everything else in float16, packed by zlib.

    q = round(W / s) in −127…127, s = max |row| / 127 in float16; W ≈ q·s

The packed form is one zlib stream (level 9) over an 8-byte length, a JSON header (configuration; name, shape and kind
of every tensor) and the tensors' bytes one after another. A row is one output of the matrix [out, in], or one token of
a table.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from workbench.models import HookedLM, ModelConfig
from workbench.training.optimizers import decays, from_matrix, is_hidden_matrix, to_matrix

FORMAT = "workbench-int8/1"
LEVEL = 9
LARGEST = 127


def quantize_rows(matrix: Float[Tensor, "rows columns"]) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, " rows"]]:
    """(q, s): int8 entries and the float16 scale of each row; a row too small for a scale becomes zeros."""
    wide = matrix.detach().float()
    scale = (wide.abs().amax(dim=1) / LARGEST).half()
    divisor = scale.float()[:, None]
    q = torch.where(divisor > 0, wide / divisor.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    return q.round().clamp(-LARGEST, LARGEST).to(torch.int8), scale


def dequantize_rows(q: Int8[Tensor, "rows columns"], scale: Float[Tensor, " rows"]) -> Float[Tensor, "rows columns"]:
    """q·s in float32."""
    return q.float() * scale.float()[:, None]


def int8_distance(model: HookedLM) -> Float[Tensor, ""]:
    """Mean over all weights of matrices of |W − W'|, W' the int8 round trip of W, a constant to the gradient."""
    total, n = torch.zeros((), device=model.W_E.device), 0
    for name, parameter in model.named_parameters():
        if decays(name):
            rows = _rows(name, parameter)
            total = total + (rows - dequantize_rows(*quantize_rows(rows)).to(rows.dtype)).abs().sum()
            n += parameter.numel()
    return total / n


def pack_model(model: HookedLM) -> bytes:
    """The model's configuration and parameters in the packed form. Matrices `W_*` go to int8, the rest to float16.

    Raises:
        ValueError: weights that float16 scales, or float16 itself, cannot hold.
    """
    entries, blobs = [], []
    for name, parameter in model.named_parameters():
        is_matrix = decays(name)
        entries.append({"name": name, "shape": list(parameter.shape), "kind": "int8" if is_matrix else "float16"})
        if is_matrix:
            q, scale = quantize_rows(_rows(name, parameter))
            if not bool(scale.isfinite().all()):
                largest = float(parameter.detach().abs().max())
                raise ValueError(f"int8: {name} reaches {largest:.3g}; expected finite weights, at most 8.3e6")
            blobs += [q.cpu().contiguous().numpy().tobytes(), scale.cpu().numpy().astype("<f2").tobytes()]
            continue
        half = parameter.detach().cpu().half()
        if not bool(half.isfinite().all()):
            raise ValueError(
                f"int8: {name} reaches {float(parameter.detach().abs().max()):.3g}; expected at most 65504"
            )
        blobs.append(half.contiguous().numpy().astype("<f2").tobytes())
    header = {"format": FORMAT, "config": json.loads(model.cfg.to_json()), "tensors": entries}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return zlib.compress(b"".join([len(text).to_bytes(8, "little"), text, *blobs]), LEVEL)


def unpack_model(data: bytes, *, device: str = "cpu", dtype: torch.dtype | None = None) -> HookedLM:
    """The model that `pack_model` packed, without tokenizer.

    Args:
        dtype: of the weights; that of the model which was packed by default.

    Raises:
        ValueError: data that are no zlib stream, are cut short, or are of another program.
    """
    raw, header = _open(data)
    cfg = ModelConfig.from_json(json.dumps(header["config"]), "packed model")
    model = HookedLM(cfg.model_copy(update={"dtype": torch.float32}), seed=None)
    parameters = dict(model.named_parameters())
    wanted = [(e["name"], tuple(e["shape"])) for e in header["tensors"]]
    if wanted != [(name, tuple(p.shape)) for name, p in parameters.items()]:
        raise ValueError("packed model: its tensors are not those of its configuration; expected what pack_model wrote")
    at = 0

    def take(count: int, kind: str) -> Tensor:
        nonlocal at
        part = raw[at : (at := at + count * np.dtype(kind).itemsize)]
        if len(part) != count * np.dtype(kind).itemsize:
            raise ValueError("packed model: cut short; expected the whole of what pack_model wrote")
        return torch.from_numpy(np.frombuffer(part, dtype=kind).astype(kind[1:] if kind[0] == "<" else kind))

    with torch.no_grad():
        for entry in header["tensors"]:
            parameter = parameters[entry["name"]]
            if entry["kind"] == "int8":
                rows = _rows(entry["name"], parameter)
                q, scale = take(parameter.numel(), "int8").view(rows.shape), take(len(rows), "<f2")
                parameter.copy_(_unrows(entry["name"], dequantize_rows(q, scale), parameter.shape))
            else:
                parameter.copy_(take(parameter.numel(), "<f2").view(parameter.shape))
    return model.to(device=device, dtype=dtype or cfg.dtype).eval()


def _open(data: bytes) -> tuple[memoryview, dict[str, Any]]:
    """(bytes of the tensors, header)."""
    try:
        raw = memoryview(zlib.decompress(data))
        n = int.from_bytes(raw[:8], "little")
        header = json.loads(bytes(raw[8 : 8 + n]).decode())
    except (zlib.error, ValueError, RecursionError) as error:
        raise ValueError(f"packed model: damaged or of another program ({error})") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"packed model: expected format {FORMAT!r}")
    return raw[8 + n :], header


def _rows(name: str, weight: Tensor) -> Float[Tensor, "rows columns"]:
    """A matrix as [out, in]; tables, and others that no optimizer lays out, with their last axis as the row."""
    return to_matrix(name, weight) if is_hidden_matrix(name) else weight.reshape(-1, weight.shape[-1])


def _unrows(name: str, rows: Tensor, shape: torch.Size) -> Tensor:
    return from_matrix(name, rows, shape) if is_hidden_matrix(name) else rows.reshape(shape)
