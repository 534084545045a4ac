"""Controls that every table of SAEs carries: a random dictionary, and shuffled activations to train one on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae.config import SAEConfig, as_list
from sae.stack import StackedSAE, check_target


@torch.no_grad()
def random_dictionary(
    config: SAEConfig,
    x: Float[Tensor, "n_saes tokens d_in"],
    l0: Float[Tensor, " n_saes"] | Sequence[float] | float,
    generator: torch.Generator | Sequence[torch.Generator],
    *,
    fit_scale: bool = True,
    y: Float[Tensor, "n_saes tokens d_out"] | None = None,
) -> StackedSAE:
    """A relu stack of the config's size with random features, as sparse on x as asked.

    Decoder rows are uniform unit directions, W_enc = W_decᵀ, b_dec = mean of x. One bias −t serves all features of a
    SAE; t is the value between which l0[k]·tokens of the products (x − b_dec) W_enc stand above, so that the mean
    number of active features on x is l0[k] (to within 1/tokens). With `fit_scale` the decoder rows of an SAE are then
    multiplied by the one number that makes the squared error on x least: without it the control would fail by the
    shrinkage t alone, not for lack of the right directions.

    Of transcoders, which reconstruct y, the control is a relu transcoder: its encoder is as random, of x − mean(x), and
    each row of its decoder is fitted to y by its own feature alone, Σ acts (y − mean y) / Σ acts², since a random row
    would say nothing of the feature. A skip transcoder's W_skip is the least squares of y on x, and rows are fitted to
    what it leaves.

    Raises ValueError for an x or y that does not fit or is not finite, or an l0 outside (0, d_sae).
    """
    wanted = [float(value) for value in as_list("random_dictionary: l0", l0)]
    if x.ndim != 3 or x.shape[0] != config.n_saes or x.shape[1] == 0 or x.shape[2] != config.d_in:
        raise ValueError(
            f"random_dictionary: x has shape {tuple(x.shape)}; expected ({config.n_saes}, tokens ≥ 1, {config.d_in})"
        )
    check_target("random_dictionary", config, x, y)
    target = x if y is None else y
    if not bool(x.isfinite().all() & target.isfinite().all()):
        raise ValueError("random_dictionary: x or y has nan or inf; expected finite activations")
    if len(wanted) != config.n_saes or any(not 0 < value < config.d_sae for value in wanted):
        raise ValueError(f"random_dictionary: l0 is {wanted}; expected {config.n_saes} numbers in (0, d_sae)")
    sizes = {"n_saes": config.n_saes, "d_in": config.d_in, "d_sae": config.d_sae, "d_out": config.d_out}
    architecture = "relu" if y is None else config.architecture
    start = SAEConfig(**sizes, architecture=architecture, decoder_init_norm=1.0, b_dec_init="mean")
    sae = StackedSAE(start, generator, data=target, device=x.device)
    for k, own_l0 in enumerate(wanted):
        centre = sae.b_dec[k] if y is None else x[k].mean(dim=0).to(sae.dtype)
        tokens, left = x[k].to(sae.dtype) - centre, target[k].to(sae.dtype) - sae.b_dec[k]
        pre = tokens @ sae.W_enc[k]
        sae.b_enc[k] = -_level_above(pre, round(own_l0 * len(tokens)))
        acts = (pre + sae.b_enc[k]).relu()
        if y is not None:
            left = _fit_rows(sae, k, tokens, acts, left)
            sae.b_enc[k] -= centre @ sae.W_enc[k]
        if fit_scale:
            recon = acts @ sae.W_dec[k]
            power = recon.double().square().sum()
            if float(power) > 0:
                sae.W_dec[k] *= float((left.double() * recon.double()).sum() / power)
        if sae.architecture.has_skip:
            sae.b_dec[k] -= sae.W_skip[k] @ centre
    return sae


def _fit_rows(sae: StackedSAE, k: int, x: Tensor, acts: Tensor, left: Tensor) -> Tensor:
    """What the linear map of x, if there is one, leaves of the target, by which decoder rows are then set."""
    if sae.architecture.has_skip:
        linear = torch.linalg.pinv(x.double()) @ left.double()
        sae.W_skip[k] = linear.T
        left = left - x @ linear.to(x.dtype)
    power = acts.square().sum(dim=0)
    sae.W_dec[k] = (acts.T @ left) / power.where(power > 0, 1).unsqueeze(1)
    return left


@torch.no_grad()
def shuffle_coordinates(
    x: Float[Tensor, "n_saes tokens d_in"], generator: torch.Generator
) -> Float[Tensor, "n_saes tokens d_in"]:
    """x with every coordinate of every SAE permuted over the tokens, each by a permutation of its own.

    Each coordinate keeps its distribution, all dependence between coordinates goes: what an SAE still reconstructs of
    it is not structure of the model. For a stream, call it on each batch; of a pair of activations, on each. Raises
    ValueError unless x has three axes.
    """
    if x.ndim != 3:
        raise ValueError(f"shuffle_coordinates: x has shape {tuple(x.shape)}; expected (n_saes, tokens, d_in)")
    keys = torch.rand(x.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return x.gather(1, keys.argsort(dim=1).to(x.device))


def _level_above(values: Tensor, n_above: int) -> Tensor:
    """Midpoint between the n_above-th largest value and the next; the ends stand in where there is none."""
    flat = values.flatten()
    n = len(flat)
    upper = flat.kthvalue(n - min(max(n_above, 1), n) + 1).values
    lower = flat.kthvalue(n - min(max(n_above, 1), n - 1)).values if n > 1 else upper
    return (upper + lower) / 2
