"""Random generators and stacks of SAEs, shared by the tests of SAEs."""

from __future__ import annotations

import torch

from sae import SAEConfig, StackedSAE
from sae.architectures import BUILT_IN

KINDS = [
    ("relu", None),
    ("topk", 3),
    ("batchtopk", 2.5),
    ("jumprelu", None),
    ("gated", None),
    ("matryoshka", 2.5),
]
"""Every architecture of the package that reconstructs what it reads, with a k."""
PAIRS = [
    (name, activation, k)
    for name in ("transcoder", "skip_transcoder")
    for activation, k in (("relu", None), ("topk", 3), ("batchtopk", 2.5), ("jumprelu", None))
]
"""Every form of those that reconstruct another activation, with a k."""
assert {name for name, *_ in (*KINDS, *PAIRS)} == set(BUILT_IN)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of that seed."""
    return torch.Generator().manual_seed(seed)


def random_stack(architecture: str = "relu", k: float | None = None, *, seed: int = 0, dtype=torch.float64, **sizes):
    """A stack whose every parameter is random, biases and thresholds too."""
    given = {"n_saes": 3, "d_in": 5, "d_sae": 11, "architecture": architecture, "k": k, "b_dec_init": "zero"}
    config = SAEConfig(**(given | sizes))
    sae = StackedSAE(config, seeded(seed), dtype=dtype)
    generator = seeded(seed + 1000)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.5)
            if name.startswith("threshold"):
                tensor.abs_()
    return sae
