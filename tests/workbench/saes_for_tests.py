"""Random SAEs and transcoders of small models, shared by the tests of what puts them into the forward pass."""

from __future__ import annotations

import torch

from sae import SAEConfig, SAESource, StackedSAE, StackInfo
from workbench.models.weights import weights_sha256


def stack_for(model, slots, *, seed=0, dtype=torch.float64, d_sae=12, include_special=None, **config) -> StackedSAE:
    """Random SAEs that read these slots of this model."""
    widths = {"hook_z": model.cfg.d_head if slots[0].head is not None else model.cfg.n_heads * model.cfg.d_head}
    d_in = widths.get(slots[0].hook_name.rsplit(".", 1)[-1], model.cfg.d_model)
    sources = tuple(SAESource(hook_name=s.hook_name, layer=s.layer, head=s.head) for s in slots)
    info = StackInfo(sources=sources, model_sha256=weights_sha256(model), include_special=include_special)
    own = SAEConfig(n_saes=len(slots), d_in=d_in, d_sae=d_sae, decoder_init_norm=1.0, **config)
    sae = StackedSAE(own, torch.Generator().manual_seed(seed), info=info, dtype=dtype)
    with torch.no_grad():
        sae.b_dec.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return sae.requires_grad_(requires_grad=False)


def transcoders_for(model, layers, hook="ln2.hook_normalized", out="hook_mlp_out", *, seed=0, dtype=torch.float64,
                    d_sae=24, include_special=None, **config) -> StackedSAE:  # fmt: skip
    """Random transcoders from one hook of these layers of this model to another, both d_model wide."""
    sources = tuple(
        SAESource(hook_name=f"blocks.{layer}.{hook}", hook_name_out=f"blocks.{layer}.{out}", layer=layer)
        for layer in layers
    )
    info = StackInfo(sources=sources, model_sha256=weights_sha256(model), include_special=include_special)
    sizes = {"n_saes": len(sources), "d_in": model.cfg.d_model, "d_sae": d_sae}
    own = SAEConfig(**sizes, **{"architecture": "skip_transcoder", "b_dec_init": "zero", **config})
    sae = StackedSAE(own, torch.Generator().manual_seed(seed), info=info, dtype=dtype)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in sae.tensors.items():
            tensor.normal_(0, 0.2 if name.startswith("W") else 0.1, generator=generator)
            if name == "threshold":
                tensor.abs_()
    return sae.requires_grad_(requires_grad=False)
