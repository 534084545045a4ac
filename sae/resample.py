"""Dead features given a new start from the inputs that are reconstructed worst."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.stack import StackedSAE

# bounds the memory of the activations, whatever the batch
_TOKENS_AT_ONCE = 4096


@torch.no_grad()
def resample_dead(
    sae: StackedSAE,
    dead: Bool[Tensor, "n_saes d_sae"],
    x: Float[Tensor, "n_inputs tokens d_in"],
    slots: Sequence[int],
    generators: Sequence[torch.Generator],
    scale: float,
    y: Float[Tensor, "n_inputs tokens d_out"] | None = None,
) -> Bool[Tensor, "n_saes d_sae"]:
    """Mask of the features resampled; the stack is changed in place.

    For every SAE with dead features: a token of its input x[slots[k]] is drawn for each with probability proportional
    to its squared loss (without replacement while there are enough tokens), from generators[k]. Its direction
    u = (x − b_dec)/‖x − b_dec‖ becomes the feature's decoder row, with the living rows' mean norm, and its encoder
    column, with `scale` times the living columns' mean norm; its biases and threshold become what they were at the
    start. Of a transcoder, whose losses are of y, the row has the direction of y − recon, and the column that of
    x − mean(x). If no feature lives, decoder_init_norm stands for both means. Nothing is resampled where every token is
    reconstructed exactly.

    Source: Bricken et al. 2023, "Towards Monosemanticity", neuron resampling. Theirs draws from 819,200 inputs, the
    batch of the step here; takes x for the direction, where x − b_dec is what the encoder reads; and has rows of
    norm 1, as a unit-norm decoder has here.
    """
    resampled = torch.zeros_like(dead)
    specs = sae.architecture.tensors(sae.config)
    for k in dead.any(dim=-1).nonzero().flatten().tolist():
        one = sae.select([k])
        tokens = x[slots[k]].to(sae.dtype)
        wanted = tokens if y is None else y[slots[k]].to(sae.dtype)
        parts = zip(tokens.split(_TOKENS_AT_ONCE), wanted.split(_TOKENS_AT_ONCE), strict=True)
        residual = torch.cat([one(own)[1] - target for own, target in parts])
        loss = residual.square().sum(dim=-1).double().cpu()
        centred = tokens - (sae.b_dec[k] if y is None else tokens.mean(dim=0))
        norms = centred.norm(dim=-1)
        weight = torch.where(norms.cpu() > 0, (loss / loss.max()).square(), 0)
        n_candidates = int((weight > 0).sum())
        if n_candidates == 0:
            continue
        n_dead = int(dead[k].sum())
        drawn = torch.multinomial(weight, n_dead, replacement=n_dead > n_candidates, generator=generators[k])
        drawn = drawn.to(tokens.device)
        direction = centred[drawn] / norms[drawn].unsqueeze(-1)
        living = ~dead[k]
        start = direction.new_tensor(sae.config.decoder_init_norm)
        row_norm = sae.W_dec[k][living].norm(dim=-1).mean() if bool(living.any()) else start
        column_norm = sae.W_enc[k][:, living].norm(dim=0).mean() if bool(living.any()) else start
        row = direction if y is None else -residual[drawn] / residual[drawn].norm(dim=-1, keepdim=True)
        sae.W_dec[k, dead[k]] = row * row_norm
        sae.W_enc[k, :, dead[k]] = direction.T * (scale * column_norm)
        for name, spec in specs.items():
            if spec.dims == "d_sae":
                sae.tensors[name][k, dead[k]] = spec.start
        resampled[k] = dead[k]
    return resampled
