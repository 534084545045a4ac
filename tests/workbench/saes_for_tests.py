"""Random SAEs of small models, shared by the tests of what puts SAEs into the forward pass."""

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
