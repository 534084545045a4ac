"""SAEs from elsewhere, made by SAELens itself or as Gemma Scope's files are, shared by the tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

HELD = ("standard", "topk", "jumprelu", "gated")
"""SAELens's inference architectures that the workbench holds."""
NORM_SCALE = 0.37


def build(architecture: str, d_in: int = 12, d_sae: int = 40, *, seed: int = 0, hook: str | None = None, **cfg: Any):
    """SAELens's own SAE with every parameter random; cfg are its configuration's fields."""
    from sae_lens import SAE

    own = {"architecture": architecture, "d_in": d_in, "d_sae": d_sae, "metadata": {"hook_name": hook}, **cfg}
    theirs = SAE.from_dict(own | ({"k": 5} if architecture.endswith("topk") else {}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * 0.5
            parameter.copy_(drawn.abs() if name == "threshold" else drawn)
    return theirs


def save(theirs: Any, folder: Path, **changes: Any) -> Path:
    """The folder that SAELens writes, with fields of cfg.json changed."""
    theirs.save_model(folder)
    file = folder / "cfg.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def gemma_arrays(d_in: int = 6, d_sae: int = 10, *, lower: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Parameters as Gemma Scope's npz has them."""
    rng = np.random.default_rng(seed)
    shapes = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_in),
        "b_enc": (d_sae,),
        "b_dec": (d_in,),
        "threshold": (d_sae,),
    }
    arrays = {name: rng.standard_normal(shape).astype(np.float32) * 0.5 for name, shape in shapes.items()}
    arrays["threshold"] = np.abs(arrays["threshold"])
    return {name.lower() if lower and name.startswith("W_") else name: array for name, array in arrays.items()}


def write_gemma(folder: Path, arrays: dict[str, np.ndarray] | None = None) -> Path:
    """The file params.npz of a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **(gemma_arrays() if arrays is None else arrays))
    return folder / "params.npz"
