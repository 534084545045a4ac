"""Settings of a stack of SAEs and of their training: frozen, validated, no side effects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from sae.architectures import architecture_names, architecture_of, find_architecture
from sae.token_norms import TokenNorm

_OPTIONS = (
    "d_out",
    "activation",
    "k",
    "widths",
    "gate_detach",
    "aux_coefficient",
)  # each None where the architecture does not read it


class SAEConfig(BaseModel):
    """What a `StackedSAE` is: its sizes, its activation function and its start."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    n_saes: int = Field(ge=1)
    """SAEs in the stack; the leading axis of every parameter."""
    d_in: int = Field(ge=1)
    """Width of the activations that are read and reconstructed (d_head for one head's z)."""
    d_sae: int = Field(ge=1)
    """Features of one SAE."""
    d_out: int | None = Field(default=None, ge=1)
    """transcoder, skip_transcoder: width of the activations that are reconstructed; by default d_in."""
    architecture: str = "relu"
    """Name of a file of `sae/architectures/`, or of a plug-in's architecture."""
    activation: str | None = None
    """transcoder, skip_transcoder: the activation function, relu (by default), topk, batchtopk or jumprelu."""
    k: float | None = None
    """Features kept per token: an integer for topk, the batch mean for batchtopk and matryoshka. 0 < k ≤ d_sae."""
    widths: tuple[int, ...] | None = None
    """matryoshka: numbers of first features that reconstruct by themselves, rising to d_sae; by default d_sae/16, /8,
    /4, /2 and d_sae."""
    gate_detach: bool | None = None
    """gated: whether what the gates learn from leaves the decoder alone (Rajamanoharan 2024a); by default True."""
    aux_coefficient: float | None = Field(default=None, ge=0)
    """matryoshka: weight of the dead features' reconstruction of what the living leave; by default 1/32."""
    apply_b_dec_to_input: bool = True
    """Whether the encoder reads x − b_dec (metrics' definition) or x; a transcoder's reads x."""
    use_unit_norm_decoder: bool = False
    """Hold every decoder row at norm 1 in training; the gradient is made orthogonal to the row."""
    decoder_init_norm: float = Field(default=0.1, gt=0)
    """Norm of every decoder row at the start; 1 with use_unit_norm_decoder. W_enc starts as W_dec transposed; a
    transcoder's alone has this start, its decoder being 0."""
    b_dec_init: Literal["zero", "mean", "geometric_median"] = "zero"
    """Where b_dec starts; the two others need data of what is reconstructed. A transcoder's default is mean."""
    threshold_init: float = Field(default=0.01, ge=0)
    """jumprelu: threshold of every feature at the start, in units of the pre-activation."""
    bandwidth: float = Field(default=0.05, gt=0)
    """jumprelu: width of the rectangle kernel of the straight-through gradient, in units of the pre-activation."""
    normalize_inputs: TokenNorm | None = None
    """How each token is normalised on the way in and back on the way out (`sae.token_norms`); such SAEs come from
    elsewhere and are not trained here."""

    @property
    def d_target(self) -> int:
        """Width of what is reconstructed."""
        return self.d_in if self.d_out is None else self.d_out

    @model_validator(mode="before")
    @classmethod
    def _fill_own_defaults(cls, given: Any) -> Any:
        name = given.get("architecture") if isinstance(given, dict) else None
        if not isinstance(name, str) or name not in architecture_names():
            return given  # to be refused by its own check, if it is there at all
        return {**find_architecture(name).defaults, **given}

    @field_validator("architecture")
    @classmethod
    def _is_known(cls, name: str) -> str:
        find_architecture(name)
        return name

    @model_validator(mode="after")
    def _check(self) -> SAEConfig:
        own = architecture_of(self)
        for option in _OPTIONS:
            if getattr(self, option) is not None and option not in own.options:
                raise ValueError(
                    f"SAEConfig.{option}: got {getattr(self, option)} for {self.architecture}; expected None"
                )
        own.check(self)
        if self.normalize_inputs is not None and own.reads_pair:
            raise ValueError(
                f"SAEConfig.normalize_inputs: got {self.normalize_inputs!r} for {self.architecture}; expected None"
            )
        if self.normalize_inputs == "layer_norm" and self.d_in == 1:
            raise ValueError("SAEConfig.d_in: got 1 with normalize_inputs = 'layer_norm'; expected ≥ 2")
        if self.use_unit_norm_decoder and self.decoder_init_norm != 1:
            raise ValueError(
                f"SAEConfig.decoder_init_norm: got {self.decoder_init_norm}; expected 1 with use_unit_norm_decoder"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without options that are not set, so that a file stays readable for versions that do not know them; k was
        always written."""
        return {name: value for name, value in handler(self).items() if value is not None or name == "k"}


class TrainConfig(BaseModel):
    """How a stack is trained. Steps are optimizer steps; step t is counted from 0."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    n_steps: int = Field(ge=1)
    """Steps of the whole training; the schedules are laid over them."""
    lr: float = Field(default=3e-4, gt=0)
    """Peak learning rate of AdamW."""
    lr_warm_up_steps: int = Field(default=0, ge=0)
    """Steps w of linear warm-up: lr·(t+1)/w."""
    lr_decay_steps: int = Field(default=0, ge=0)
    """Last steps d of linear decay: lr·(n_steps−t)/d."""
    l1_warm_up_steps: int = Field(default=0, ge=0)
    """Steps w of linear warm-up of the sparsity coefficient: l1·t/w, so the first step has none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's first and second moment, each in [0, 1)."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay; 0 makes AdamW Adam."""
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm of ONE SAE over all its parameters; None: no clip."""
    dead_window: int = Field(default=1000, ge=1)
    """A feature that fired on no token of this many last steps is dead."""
    resample_steps: tuple[int, ...] = ()
    """Numbers of completed steps after which dead features are resampled, increasing, in [1, n_steps)."""
    resample_scale: float = Field(default=0.2, gt=0)
    """Norm of a resampled feature's encoder column, as a share of the living columns' mean norm."""
    batchtopk_decay: float | None = Field(default=None, gt=0, le=1)
    """batchtopk, matryoshka: weight of the newest batch in the running threshold that inference uses; None: .01, or
    10/n_steps where that is more: a mean over more than the last tenth of the steps would still hold the start's."""
    use_bf16: bool = False
    """Multiply in bfloat16; the weights, their gradients' sums and the optimizer stay in the parameters' dtype."""
    use_compile: bool = False
    """Run the step's arithmetic through torch.compile; falls back with a warning; every StepStats says which ran."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"TrainConfig.betas: got {self.betas}; expected each in [0, 1)")
        if self.lr_warm_up_steps + self.lr_decay_steps > self.n_steps:
            raise ValueError(
                f"TrainConfig.lr_warm_up_steps, lr_decay_steps: got {self.lr_warm_up_steps} and {self.lr_decay_steps}; "
                f"expected a sum ≤ n_steps = {self.n_steps}"
            )
        steps = self.resample_steps
        if list(steps) != sorted(set(steps)) or any(not 1 <= step < self.n_steps for step in steps):
            raise ValueError(
                f"TrainConfig.resample_steps: got {steps}; "
                f"expected increasing steps in [1, n_steps) = [1, {self.n_steps})"
            )
        return self


class SAESource(BaseModel):
    """Where one SAE of a stack comes from; what is not known is None."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hook_name: str | None = None
    """TransformerLens name of the hook whose activations it reads, e.g. blocks.9.attn.hook_z."""
    hook_name_out: str | None = None
    """Of a transcoder, the hook whose activations it reconstructs, e.g. blocks.9.hook_mlp_out."""
    layer: int | None = Field(default=None, ge=0)
    """Layer of the hook, from 0."""
    head: int | None = Field(default=None, ge=0)
    """Head of the hook, from 0; None for all heads concatenated or a hook without heads."""
    l1: float | None = Field(default=None, ge=0)
    """Sparsity coefficient of its training."""
    seed: int | None = None
    """Seed of its training."""
    dictionary: Literal["trained", "random", "shuffled"] = "trained"
    """trained, or which control it is."""

    @model_serializer(mode="wrap")
    def _leave_out_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the hook that only a transcoder has, so that a file stays readable for versions without it."""
        return {name: value for name, value in handler(self).items() if value is not None or name != "hook_name_out"}


class StackInfo(BaseModel):
    """What a saved stack says of itself beside its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sources: tuple[SAESource, ...] = ()
    """One per SAE, in the stack's order; empty if not known."""
    model_name: str | None = None
    """Name of the language model."""
    model_sha256: str | None = None
    """sha256 of the language model's weights, hexadecimal; `check_model` compares it."""
    context_size: int | None = Field(default=None, ge=1)
    """Tokens of one sequence at training."""
    prepend_bos: bool | None = None
    """Whether the sequences began with BOS."""
    n_train_tokens: int | None = Field(default=None, ge=0)
    """Tokens that each SAE was trained on."""
    include_special: bool | None = None
    """Whether position 0 and special tokens were among them; None: not known."""


def as_list(what: str, given: Any) -> list[Any]:
    """The values given; a single one is a list of one. Raises ValueError for a string, whose letters are no values."""
    if isinstance(given, str):
        raise ValueError(f"{what}: got {given!r:.80}; expected a number or a list of numbers")
    if hasattr(given, "tolist"):  # of NumPy or torch, to Python's own
        given = given.tolist()
    return list(given) if isinstance(given, Iterable) else [given]
