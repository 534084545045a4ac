"""What an architecture of SAEs says of itself; each is one file of `sae/architectures/`, or of a plug-in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from sae.config import SAEConfig, TrainConfig

Weights = Mapping[str, Tensor]
"""A stack's tensors by name, n_saes leading."""


_DIRECTIONS_AT_ONCE = 256


class TensorSpec(NamedTuple):
    """One tensor of an SAE, behind the stack's leading axis."""

    dims: str
    """Its axes: names of `SAEConfig`'s sizes, or numbers: "d_in d_sae"."""
    unit: Literal["none", "encoder", "decoder", "pre", "input", "output", "skip"] = "none"
    """How it follows a scale of the inputs: see `Architecture.fold_scale`."""
    start: float = 0.0
    """Value at the start, and of a resampled feature. W_enc and b_dec have starts of their own, and W_dec but where
    another activation is reconstructed than is read."""
    is_trained: bool = True
    """Whether gradients move it; else it is a buffer, which `after_step` keeps."""
    is_nonnegative: bool = False
    """Whether a value below 0 is an error."""

    def shape(self, config: SAEConfig) -> tuple[int, ...]:
        """Its shape without the leading axis."""
        return tuple(int(dim) if dim.isdigit() else getattr(config, dim) for dim in self.dims.split())

    @property
    def feature_axis(self) -> int | None:
        """Its axis of features, without the leading axis; None if it has none."""
        dims = self.dims.split()
        return dims.index("d_sae") if "d_sae" in dims else None


class Batch(NamedTuple):
    """What a block of a training step is told besides tensors and inputs."""

    l1: Float[Tensor, " n_saes"]
    """Sparsity coefficients."""
    progress: Float[Tensor, ""]
    """Share of the training's steps that are done, in [0, 1)."""
    dead: Bool[Tensor, "n_saes d_sae"] | None
    """Features that are dead; None if there are none, or it is not known."""
    y: Float[Tensor, "n_saes tokens d_out"] | None = None
    """What is reconstructed; None: the input."""


class Terms(NamedTuple):
    """Terms of the loss of a block, each summed over its tokens."""

    squared_error: Float[Tensor, " n_saes"]
    sparsity: Float[Tensor, " n_saes"]
    """What l1 multiplies."""
    acts: Float[Tensor, "n_saes tokens d_sae"]
    auxiliary: Float[Tensor, " n_saes"] | None = None
    """What else is in the loss."""


class LossAndGradients(NamedTuple):
    """What one batch says of a stack; every mean is over the batch's tokens."""

    squared_error: Float[Tensor, " n_saes"]
    """Squared error summed over d_out, mean."""
    sparsity: Float[Tensor, " n_saes"]
    """Σ acts·‖W_dec row‖, mean; jumprelu: number of active features, mean."""
    n_active: Float[Tensor, "n_saes d_sae"]
    """Tokens on which the feature is active."""
    least_active: Float[Tensor, " n_saes"]
    """Where features are chosen among a batch: smallest positive activation; inf if there is none, and elsewhere."""
    gradients: dict[str, Tensor]
    """Gradient of squared_error + l1·sparsity + auxiliary for every parameter, by its name."""
    auxiliary: Float[Tensor, " n_saes"]
    """Other terms of the loss, mean; 0 where there are none."""


class SAELensForm(NamedTuple):
    """One SAE as SAELens's folder has it."""

    architecture: str
    """SAELens's name."""
    tensors: dict[str, Tensor]
    """By SAELens's names, without the leading axis."""
    fields: dict[str, Any] = {}  # noqa: RUF012  # of a NamedTuple, never changed
    """Fields of cfg.json that this architecture has and others do not."""


LINEAR = {
    "W_dec": TensorSpec("d_sae d_target", "decoder"),
    "W_enc": TensorSpec("d_in d_sae", "encoder"),
    "b_enc": TensorSpec("d_sae", "pre"),
    "b_dec": TensorSpec("d_target", "output"),
}
"""Tensors of an encoder and a decoder that are one product each."""


class Architecture:
    """An SAE whose methods are pure functions of its tensors. As it stands, that of relu:

        acts = relu((x − b_dec) W_enc + b_enc),  recon = acts W_dec + b_dec,
        loss = mean over tokens of ( ‖recon − x‖² + l1 · Σ acts · ‖W_dec row‖ )

    An architecture overrides what differs; a file hands on an instance, from which on its name is known. Gradients are
    autograd's of `terms`, unless `sum_block` and `finish` are overridden. In training, what a method is given may be
    of a few SAEs of the stack and a few tokens of the batch, and matrices may be in bfloat16.
    """

    name: str
    """What `SAEConfig.architecture` says."""
    options: frozenset[str] = frozenset()
    """Fields of `SAEConfig` that it reads and not every architecture does: k, widths, gate_detach …"""
    has_penalty: bool = True
    """Whether l1 makes it sparse; else k alone does."""
    chooses_in_batch: bool = False
    """Whether a token's features depend on the batch's other tokens in training."""
    uses_dead: bool = False
    """Whether its loss has a term of dead features."""
    reads_pair: bool = False
    """Whether it reconstructs another activation y than the x that it reads: W_dec then starts at its `TensorSpec`'s
    value, since it is no transpose of W_enc."""
    has_skip: bool = False
    """Whether a reconstruction needs x beside the activations: see `skip`."""
    defaults: Mapping[str, Any] = MappingProxyType({})
    """Fields of `SAEConfig` whose default is another for it."""
    forms: Mapping[str, Architecture] = MappingProxyType({})
    """Its forms by what `SAEConfig.activation` says, the first one by default; empty where it has one form."""
    step_numbers: float = 6.0
    """Numbers per token and feature that a block of a training step holds at once, by which memory is planned."""
    read_from: str | None = None
    """SAELens's name of what is read as this architecture; None if nothing is."""

    # --- what it is

    def check(self, config: SAEConfig) -> None:
        """Raise ValueError for options that do not fit."""

    def tensors(self, config: SAEConfig) -> dict[str, TensorSpec]:
        """Its tensors by name; W_enc, W_dec and b_dec among them."""
        return LINEAR

    def fold_scale(
        self,
        config: SAEConfig,
        w: Weights,
        scale: Float[Tensor, " n_saes"],
        scale_out: Float[Tensor, " n_saes"] | None = None,
    ) -> dict[str, Tensor]:
        """Tensors that do on x what these do on scale·x, the reconstruction over scale_out, which is scale by default.

        The scale goes into W_enc, and over scale_out into W_dec, and activations stay as they are; where decoder rows
        are held at norm 1, W_dec stays, and pre-activations are over scale_out. What has the inputs' or the
        reconstruction's unit is over its scale in both; a product of x that enters the reconstruction is times one
        over the other.
        """
        out = scale if scale_out is None else scale_out
        times, over = {"encoder": scale, "skip": scale}, {"input": scale, "output": out, "skip": out}
        if config.use_unit_norm_decoder:
            over |= {"pre": out, "encoder": out}
        else:
            over["decoder"] = out
        if scale_out is None:  # the two cancel, to the last bit
            shared = [unit for unit in times if unit in over]
            times = {unit: factor for unit, factor in times.items() if unit not in shared}
            over = {unit: factor for unit, factor in over.items() if unit not in shared}
        folded = {}
        for name, spec in self.tensors(config).items():
            folded[name] = w[name]
            sizes = (-1, *[1] * (w[name].ndim - 1))
            if spec.unit in times:
                folded[name] = folded[name] * times[spec.unit].view(sizes)
            if spec.unit in over:
                folded[name] = folded[name] / over[spec.unit].view(sizes)
        return folded

    # --- at inference

    def encode(
        self, config: SAEConfig, w: Weights, x: Float[Tensor, "n_saes tokens d_in"]
    ) -> Float[Tensor, "n_saes tokens d_sae"]:
        """Activations of x."""
        return self.activate(config, w, stacked_matmul(centre(config, w, x), w["W_enc"], w["b_enc"]))

    def activate(
        self, config: SAEConfig, w: Weights, pre: Float[Tensor, "n_saes tokens d_sae"]
    ) -> Float[Tensor, "n_saes tokens d_sae"]:
        """Activations of pre-activations, which may be overwritten where no gradient is asked for."""
        return pre.relu() if torch.is_grad_enabled() else pre.relu_()

    def decode(
        self, config: SAEConfig, w: Weights, acts: Float[Tensor, "n_saes tokens d_sae"]
    ) -> Float[Tensor, "n_saes tokens d_out"]:
        """The reconstruction that activations make."""
        return stacked_matmul(acts, w["W_dec"], w["b_dec"])

    def directions(self, config: SAEConfig, w: Weights) -> Float[Tensor, "n_saes d_sae d_out"]:
        """What one unit of each feature's activation adds to the reconstruction: its decoder row, unless `decode` is an
        architecture's own, which may fold norms: then by that."""
        W_dec = w["W_dec"]
        if type(self).decode is Architecture.decode:
            return W_dec
        zero = self.decode(config, w, W_dec.new_zeros(len(W_dec), 1, config.d_sae))
        parts = []
        for rows in torch.eye(config.d_sae, dtype=W_dec.dtype, device=W_dec.device).split(_DIRECTIONS_AT_ONCE):
            parts.append(self.decode(config, w, rows.expand(len(W_dec), -1, -1).contiguous()) - zero)
        return torch.cat(parts, dim=1)

    def skip(
        self, config: SAEConfig, w: Weights, x: Float[Tensor, "n_saes tokens d_in"]
    ) -> Float[Tensor, "n_saes tokens d_out"]:
        """What of x enters the reconstruction past the features; asked for where `has_skip`."""
        raise NotImplementedError

    # --- in training

    def activate_in_training(
        self, config: SAEConfig, w: Weights, pre: Float[Tensor, "n_saes tokens d_sae"]
    ) -> Float[Tensor, "n_saes tokens d_sae"]:
        """Activations of the pre-activations of a batch."""
        return self.activate(config, w, pre)

    def sparsity(
        self, config: SAEConfig, w: Weights, acts: Float[Tensor, "n_saes tokens d_sae"], batch: Batch
    ) -> Float[Tensor, " n_saes"]:
        """What l1 multiplies, summed over tokens."""
        return (acts.sum(dim=1) * decoder_norms(w["W_dec"].to(acts.dtype))).sum(dim=-1)

    def inputs_and_target(
        self, config: SAEConfig, w: Weights, x: Float[Tensor, "n_saes tokens d_in"], batch: Batch
    ) -> tuple[Float[Tensor, "n_saes tokens d_in"], Float[Tensor, "n_saes tokens d_out"]]:
        """(what the encoder reads, in the products' dtype; what the features have to add up to, in that of sums)."""
        target = (x if batch.y is None else batch.y).to(w["b_dec"].dtype) - w["b_dec"].unsqueeze(1)
        return (target if config.apply_b_dec_to_input else x).to(w["W_enc"].dtype), target

    def terms(self, config: SAEConfig, w: Weights, x: Float[Tensor, "n_saes tokens d_in"], batch: Batch) -> Terms:
        """The loss of a block, differentiable. W_enc and W_dec set the dtype of the products, b_dec that of sums."""
        narrow, wide = w["W_enc"].dtype, w["b_dec"].dtype
        inputs, target = self.inputs_and_target(config, w, x, batch)
        pre = torch.bmm(inputs, w["W_enc"]).to(wide) + w["b_enc"].unsqueeze(1)
        acts = self.activate_in_training(config, w, pre)
        residual = torch.bmm(acts.to(narrow), w["W_dec"]).to(wide) - target
        return Terms(residual.square().sum(dim=(1, 2)), self.sparsity(config, w, acts, batch), acts)

    def prepare(self, config: SAEConfig, w: Weights, l1: Float[Tensor, " n_saes"]) -> dict[str, Tensor]:
        """What all blocks of a step are given besides the tensors, n_saes leading."""
        return {}

    def sum_block(
        self, config: SAEConfig, w: Weights, x: Float[Tensor, "n_saes tokens d_in"], batch: Batch
    ) -> dict[str, Tensor]:
        """Sums over the tokens of a block, for `finish`. Pure tensor arithmetic, so it compiles."""
        trained = {name: w[name] for name, spec in self.tensors(config).items() if spec.is_trained}

        def loss(trained: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            terms = self.terms(config, {**w, **trained}, x, batch)
            total = terms.squared_error + batch.l1.to(terms.sparsity) * terms.sparsity
            if terms.auxiliary is not None:
                total = total + terms.auxiliary
            return total.sum(), {name: term for name, term in terms._asdict().items() if term is not None}

        gradients, sums = torch.func.grad(loss, has_aux=True)(trained)
        acts = sums.pop("acts")
        sums["n_active"] = acts.sign().sum(dim=1)
        if self.chooses_in_batch:
            sums["least_active"] = least_positive(acts)
        return sums | {f"grad.{name}": gradient for name, gradient in gradients.items()}

    def finish(
        self, config: SAEConfig, w: Weights, l1: Float[Tensor, " n_saes"], n_tokens: int, sums: dict[str, Tensor]
    ) -> LossAndGradients:
        """Means and gradients from the sums over all tokens, which may be overwritten."""
        trained = [name for name, spec in self.tensors(config).items() if spec.is_trained]
        return LossAndGradients(
            sums["squared_error"] / n_tokens,
            sums["sparsity"] / n_tokens,
            sums["n_active"],
            sums.get("least_active", torch.full_like(sums["squared_error"], torch.inf)),
            {name: sums[f"grad.{name}"].div_(n_tokens) for name in trained},
            sums.get("auxiliary", torch.zeros_like(sums["squared_error"])) / n_tokens,
        )

    def after_step(self, config: SAEConfig, w: Weights, result: LossAndGradients, train: TrainConfig) -> None:
        """Change tensors in place after an optimizer step: what training keeps rather than learns."""

    # --- SAELens

    def to_sae_lens(self, config: SAEConfig, w: Weights) -> SAELensForm:
        """One SAE, whose tensors have no leading axis, as an inference SAE of SAELens."""
        return SAELensForm("standard", dict(w))

    def options_from_sae_lens(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of `SAEConfig` that cfg.json says."""
        return {}

    def tensors_from_sae_lens(self, fields: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors of SAELens's, both without the leading axis."""
        return tensors


def centre(
    config: SAEConfig, w: Weights, x: Float[Tensor, "n_saes tokens d_in"]
) -> Float[Tensor, "n_saes tokens d_in"]:
    """What the encoder reads of x."""
    return x - w["b_dec"].unsqueeze(1) if config.apply_b_dec_to_input else x


def check_k(config: SAEConfig) -> None:
    """Raise ValueError unless 0 < k ≤ d_sae."""
    if config.k is None or not 0 < config.k <= config.d_sae:
        raise ValueError(
            f"SAEConfig.k: got {config.k} for {config.architecture}; expected 0 < k ≤ d_sae = {config.d_sae}"
        )


def decoder_norms(W_dec: Float[Tensor, "*n d_sae d_in"]) -> Float[Tensor, "*n d_sae"]:
    """Euclidean norm of every decoder row."""
    return W_dec.norm(dim=-1)


def weigh_by_norms(
    W_dec: Float[Tensor, "n_saes d_sae d_in"],
    l1: Float[Tensor, " n_saes"],
    mean_acts: Float[Tensor, "n_saes d_sae"],
    grad_W_dec: Float[Tensor, "n_saes d_sae d_in"],
) -> Float[Tensor, " n_saes"]:
    """Σ mean_acts · ‖W_dec row‖; l1 times its gradient for W_dec is added to `grad_W_dec`, in place."""
    norms = decoder_norms(W_dec)
    # a zero row has no direction: its norm's subgradient 0 is taken
    pull = torch.where(norms > 0, l1.to(norms).unsqueeze(1) * mean_acts / norms, 0)
    grad_W_dec.addcmul_(pull.unsqueeze(-1), W_dec)
    return (mean_acts * norms).sum(dim=-1)


def keep_top(pre: Float[Tensor, "... n"], k: int) -> Float[Tensor, "... n"]:
    """relu of the k largest entries along the last axis, 0 elsewhere."""
    values, index = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, index, values.relu())


def least_positive(acts: Float[Tensor, "n_saes tokens d_sae"]) -> Float[Tensor, " n_saes"]:
    """Smallest positive activation of every SAE; inf if there is none."""
    return torch.where(acts > 0, acts, torch.inf).amin(dim=(1, 2))


def running_decay(train: TrainConfig) -> float:
    """Weight of the newest batch in the running threshold."""
    return train.batchtopk_decay or min(1.0, max(0.01, 10 / train.n_steps))


def stacked_matmul(
    x: Float[Tensor, "n_saes tokens i"], W: Float[Tensor, "n_saes i o"], b: Float[Tensor, "n_saes o"] | None = None
) -> Float[Tensor, "n_saes tokens o"]:
    """x[k] @ W[k] + b[k] for every k; without b the products alone.

    On a CPU each SAE is a product of its own: as fast there as a batched one, and the same bits as the SAE alone has
    (the batched kernel sums in another order for some shapes) where tokens · i and tokens · o fill whole cache lines;
    elsewhere some processors sum an unaligned part in another order.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled():
        on_cpu = x.device.type == "cpu"
        product = torch.stack([x[k] @ W[k] for k in range(len(x))]) if on_cpu else torch.bmm(x, W)
        return product if b is None else product + b.unsqueeze(1)
    product = torch.empty(x.shape[0], x.shape[1], W.shape[2], dtype=x.dtype)
    for k in range(len(x)):
        torch.mm(x[k], W[k], out=product[k])
    return product if b is None else product.add_(b.unsqueeze(1))
