"""The one description of a model: a flat record in TransformerLens's field names.

The fields are grouped by subject in small base classes and joined in `ModelConfig`. Every field outside `Extensions`
has the name and meaning of the same field of `transformer_lens.HookedTransformerConfig`, so that the JSON form, less
its `extensions` object, is what that class takes.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from workbench.runs import shorten
from workbench.runs.memory import check_memory
from workbench.runs.records import Frozen, describe_errors, is_default

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype called `name` (float64, float32, bfloat16, float16; a `torch.` prefix is allowed).

    Raises:
        ValueError: for any other name.
    """
    if isinstance(name, torch.dtype):
        return name
    short = str(name).removeprefix("torch.")
    if short not in DTYPES:
        raise ValueError(f"dtype: got {shorten(repr(name))}; expected one of {', '.join(DTYPES)}")
    return DTYPES[short]


Dtype = Annotated[
    torch.dtype, BeforeValidator(parse_dtype), PlainSerializer(lambda d: str(d).removeprefix("torch."), return_type=str)
]


class Shape(Frozen):
    """Sizes of the whole, and where the weights live."""

    model_name: str = Field(default="custom", description="name shown in tables")
    n_layers: int = Field(description="number of blocks, effective layers in a recurrent model", ge=1, le=10_000)
    d_model: int = Field(description="width of the residual stream", ge=1)
    n_ctx: int = Field(description="longest sequence, tokens", ge=1)
    d_vocab: int = Field(description="number of token ids", ge=2)
    tie_word_embeddings: bool = Field(default=False, description="unembedding is the transposed embedding")
    output_logits_soft_cap: float = Field(default=-1.0, description="c in c·tanh(logit/c); ≤ 0 is none")
    initializer_range: float = Field(default=0.02, description="standard deviation of initial weights", gt=0)
    device: str = Field(default="cpu", description="torch device of the weights; kept current by the model")
    dtype: Dtype = Field(default=torch.float32, description="dtype of the weights; kept current by the model")
    default_prepend_bos: bool = Field(
        default=True, description="whether a token begins a text; set by load from the tokenizer"
    )
    tokenizer_name: str | None = Field(default=None, description="where the tokenizer came from, for the record")


class AttentionFields(Frozen):
    """Heads and their scores."""

    n_heads: int = Field(description="query heads", ge=1)
    n_key_value_heads: int | None = Field(default=None, description="key/value heads; none means n_heads", ge=1)
    d_head: int = Field(description="width of one head", ge=1)
    use_qk_norm: bool = Field(default=False, description="RMSNorm of each head's q and k, before rotation")
    attn_scale: float = Field(default=-1.0, description="scores are divided by this; ≤ 0 means √d_head")
    attn_scores_soft_cap: float = Field(default=-1.0, description="c in c·tanh(score/c); ≤ 0 is none")
    clip_qkv: float | None = Field(
        default=None, description="q, k and v are kept within ± this; none: not", gt=0, exclude_if=is_default
    )
    window_size: int | None = Field(
        default=None,
        description="tokens that a query of a local layer sees, itself included",
        ge=1,
        exclude_if=is_default,
    )
    attn_types: tuple[Literal["global", "local"], ...] | None = Field(
        default=None,
        description="which layers see window_size tokens alone (local); none: all, where there is a window",
        exclude_if=is_default,
    )


class PositionFields(Frozen):
    """Where a token stands."""

    positional_embedding_type: Literal["standard", "rotary"] = Field(
        default="rotary", description="learned table, or RoPE"
    )
    rotary_base: float = Field(default=10000.0, description="θ of RoPE", gt=0)
    rotary_dim: int | None = Field(default=None, description="rotated dimensions of a head; none means d_head", ge=2)
    rotary_adjacent_pairs: bool = Field(default=False, description="True: pairs (0,1),(2,3)…; False: halves (0,d/2)…")
    rotary_scaling_factor: float = Field(default=1.0, description="linear stretching of positions", gt=0)
    use_NTK_by_parts_rope: bool = Field(default=False, description="Llama 3.1's frequency-dependent stretching")
    NTK_by_parts_low_freq_factor: float = Field(default=1.0, description="see Peng et al. 2023, §3.2", gt=0)
    NTK_by_parts_high_freq_factor: float = Field(default=4.0, description="see Peng et al. 2023, §3.2", gt=0)
    NTK_by_parts_factor: float = Field(default=8.0, description="stretch of the lowest frequencies", gt=0)
    NTK_original_ctx_len: int = Field(default=8192, description="context of the unstretched model, tokens", ge=1)
    rotary_base_local: float | None = Field(
        default=None, description="θ of local layers, not stretched; none: that of all", gt=0, exclude_if=is_default
    )


class MlpFields(Frozen):
    """Feed-forward sub-layer and norms."""

    d_mlp: int = Field(description="hidden width", ge=1)
    act_fn: Literal["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2"] = Field(
        default="silu", description="nonlinearity; gelu_new is GPT-2's tanh form"
    )
    gated_mlp: bool = Field(default=True, description="act(x W_gate) * (x W_in), else act(x W_in)")
    normalization_type: Literal["LN", "RMS"] = Field(default="RMS", description="LayerNorm with bias, or RMSNorm")
    eps: float = Field(default=1e-5, description="added under the root of a norm", gt=0)
    attn_only: Literal[False] = Field(
        default=False, description="field of TransformerLens; blocks here always have an MLP"
    )
    attention_dir: Literal["causal"] = Field(default="causal", description="field of TransformerLens; causal here")
    parallel_attn_mlp: bool = Field(default=False, description="the MLP reads what attention reads, not what it left")
    use_normalization_before_and_after: bool = Field(
        default=False, description="a norm behind attention and MLP as well as before", exclude_if=is_default
    )


_SOURCE = re.compile(r"^(?:learned|profile:(\d+)):(.+)$", re.DOTALL)  # boundaries that are read off a model


class AttnRes(Frozen):
    """Block attention residuals: routing over committed block sums instead of one running sum."""

    boundaries: tuple[int, ...] | str = Field(
        description="layers at which the partial sum is committed, from 0 on; learned, with n_blocks; in a recipe also "
        "learned:MODEL or profile:N:MODEL, read off that model before training"
    )
    n_blocks: int | None = Field(
        default=None, description="number of learned blocks; none with a list", ge=2, exclude_if=is_default
    )
    streams: Literal["both", "attention"] = Field(
        default="both",
        description="whose outputs enter the block sums; attention: the embedding and MLP outputs add up beside them",
        exclude_if=is_default,
    )

    @model_validator(mode="before")
    @classmethod
    def _forget_blocks(cls, value: Any) -> Any:
        """A list read off a model has no n_blocks, which a base may have set for boundaries learned anew."""
        is_read = isinstance(value, dict) and _SOURCE.match(str(value.get("boundaries")))
        return {**value, "n_blocks": None} if is_read else value

    @model_validator(mode="after")
    def _agree(self) -> AttnRes:
        if isinstance(self.boundaries, str) and self.boundaries != "learned" and self.source is None:
            raise ValueError(
                f"attn_res.boundaries: got {shorten(repr(self.boundaries))}; expected a list of layers, learned, "
                "learned:MODEL or profile:N:MODEL"
            )
        if (self.boundaries == "learned") != (self.n_blocks is not None):
            raise ValueError(
                f"attn_res: got boundaries = {self.boundaries!r} with n_blocks = {self.n_blocks}; expected a list of "
                'layers alone, or boundaries = "learned" with n_blocks'
            )
        return self

    @property
    def is_learned(self) -> bool:
        """Whether the boundaries are trained."""
        return self.n_blocks is not None

    @property
    def source(self) -> tuple[int | None, str] | None:
        """(N, MODEL) of profile:N:MODEL, (None, MODEL) of learned:MODEL; None for boundaries that are known."""
        found = _SOURCE.match(self.boundaries) if isinstance(self.boundaries, str) else None
        return None if found is None else (int(found[1]) if found[1] else None, found[2])

    def commits(self, layer: int) -> bool:
        """Whether a listed block begins at this layer."""
        return not isinstance(self.boundaries, str) and layer in self.boundaries

    @property
    def n_sums(self) -> int:
        """Number of blocks."""
        assert self.source is None, self.boundaries
        return self.n_blocks or len(self.boundaries)


class Recurrence(Frozen):
    """Depth recurrence: n_unique blocks run n_passes times, with mechanisms between the passes, each a switch.

    What every mechanism computes stands in `recurrence.py`; turned off, it is absent, which is its identity.
    """

    n_unique: int = Field(
        description="blocks with weights of their own; effective layer l uses block l mod n_unique", ge=1
    )
    n_passes: int = Field(description="times that the blocks run; n_layers = n_unique · n_passes", ge=1)
    attn_scale: bool = Field(default=False, description="a scale [d_model] of attention's output, per effective layer")
    mlp_scale: bool = Field(default=False, description="a scale [d_model] of the MLP's output, per effective layer")
    residual_mix: bool = Field(default=False, description="layers read m₀x + m₁x₀, x₀ the embedding stream")
    value_embed: Literal["off", "value", "embed"] = Field(
        default="off", description="a second token table, added to what V reads (value) or to the embedding (embed)"
    )
    resonance: bool = Field(default=False, description="positions that modulate the stream at each pass; d_model even")
    carry_rank: int | None = Field(
        default=None, description="rank of the gated carry of the prefix mean; none: off", ge=1
    )
    confidence: bool = Field(default=False, description="each pass reads the previous pass's exit gate")
    memory: bool = Field(default=False, description="each pass reads how far the previous one moved the stream")
    skips: Literal["off", "mirror"] | tuple[tuple[int, int], ...] = Field(
        default="off", description="layers whose output a later one adds: mirror (l to n_layers − 1 − l) or pairs"
    )
    td_rank: int | None = Field(default=None, description="rank of the temporal-difference correction; none: off", ge=1)
    exit_gate: Literal["off", "read", "act"] = Field(
        default="off", description="per token and pass: computed (read), and freezing what has halted (act)"
    )
    n_routes: int | None = Field(default=None, description="directions that choose MLP gains; none: off", ge=1)
    routes: Literal["free", "orthonormal"] = Field(
        default="free",
        description="those directions: columns of norm 1, or an orthonormal basis of the space they span",
        exclude_if=is_default,
    )

    @model_validator(mode="after")
    def _agree(self) -> Recurrence:
        if self.confidence and self.exit_gate == "off":
            raise ValueError('confidence: it reads the exit gate, which is off; expected exit_gate = "read" or "act"')
        if self.routes != "free" and self.n_routes is None:
            raise ValueError(f'routes: got "{self.routes}" without routes; expected n_routes as well')
        between = {
            "carry_rank": self.carry_rank is not None,
            "confidence": self.confidence,
            "memory": self.memory,
            "td_rank": self.td_rank is not None,
            "exit_gate": self.exit_gate != "off",
        }
        on = [name for name, is_on in between.items() if is_on]
        if self.n_passes < 2 and on:
            raise ValueError(f"{on[0]}: acts between passes, and n_passes = {self.n_passes}; expected 2 or more")
        return self

    def skip_sources(self, n_layers: int) -> dict[int, int]:
        """target layer -> the earlier layer whose output it adds."""
        if self.skips == "off":
            return {}
        if self.skips == "mirror":
            return {n_layers - 1 - source: source for source in range(n_layers // 2)}
        return {target: source for source, target in self.skips}


class RopeScaling(Frozen):
    """RoPE beyond the trained context, in transformers' names; `rotary.py` says what each kind computes."""

    rope_type: Literal["dynamic", "yarn", "longrope"] = Field(description="which way")
    factor: float | None = Field(default=None, description="how many times as long; none: n_ctx / the original", gt=0)
    original_max_position_embeddings: int | None = Field(default=None, description="context before, tokens", ge=2)
    attention_factor: float | None = Field(default=None, description="multiplies cos and sin; none: by its formula")
    beta_fast: float = Field(default=32.0, description="yarn: pairs with more rotations are not stretched", gt=0)
    beta_slow: float = Field(default=1.0, description="yarn: pairs with fewer rotations are stretched whole", gt=0)
    truncate: bool = Field(default=True, description="yarn: whole pairs begin and end the ramp between")
    mscale: float | None = Field(default=None, description="yarn: weight in the formula of attention_factor")
    mscale_all_dim: float | None = Field(default=None, description="yarn: weight in what that is divided by")
    short_factor: tuple[float, ...] | None = Field(default=None, description="longrope: divisors up to the original")
    long_factor: tuple[float, ...] | None = Field(default=None, description="longrope: divisors of longer sequences")

    @model_validator(mode="after")
    def _agree(self) -> RopeScaling:
        if self.rope_type != "dynamic" and self.original_max_position_embeddings is None:
            raise ValueError(f"rope: {self.rope_type} without original_max_position_embeddings; expected it")
        if self.rope_type == "longrope" and (self.short_factor is None or self.long_factor is None):
            raise ValueError("rope: longrope without short_factor and long_factor; expected both")
        return self

    @property
    def original_n_ctx(self) -> int:
        """Context before, tokens."""
        assert self.original_max_position_embeddings is not None, "checked above, of those that read it"
        return self.original_max_position_embeddings


class Extensions(Frozen):
    """Fields that HookedTransformerConfig does not have."""

    qkv_bias: bool = Field(default=False, description="b_Q, b_K, b_V exist")
    out_bias: bool = Field(default=False, description="b_O exists")
    mlp_bias: bool = Field(default=False, description="b_in, b_out exist")
    unembed_bias: bool = Field(default=False, description="b_U exists")
    residual_init_scale: float = Field(
        default=-1.0, description="W_O and W_out start with this times initializer_range; ≤ 0 means 1/√(2·n_layers)"
    )
    attn_res: AttnRes | None = Field(default=None, description="attention residuals; none is the plain stream")
    recurrence: Recurrence | None = Field(default=None, description="depth recurrence; none: every layer has weights")
    k_rank: int | None = Field(default=None, description="W_K is a product through this rank; none: full", ge=1)
    v_rank: int | None = Field(default=None, description="W_V is a product through this rank; none: full", ge=1)
    q_gain: float | None = Field(
        default=None, description="initial gain of each head's normalised query, learned; none: no gain", gt=0
    )
    embed_norm: bool = Field(default=False, description="RMSNorm without weight on the embedding stream")
    embed_init: float = Field(
        default=-1.0, description="W_E starts as N(0, (embed_init/√d_model)²); ≤ 0 means initializer_range"
    )
    spectral_init: bool = Field(
        default=False, description="W_E starts with singular values falling as k^(−1/2), its norm kept"
    )
    embed_scale: float | None = Field(
        default=None, description="the embedding stream is this times W_E's rows; none: once", exclude_if=is_default
    )
    norm_plus_one: bool = Field(default=False, description="norms multiply by 1 + w", exclude_if=is_default)
    post_norm: bool = Field(
        default=False, description="norms stand behind attention and MLP, none before", exclude_if=is_default
    )
    wide_qk_norm: bool = Field(
        default=False, description="the norm of queries, and of keys, is over all heads together", exclude_if=is_default
    )
    rope: RopeScaling | None = Field(default=None, description="RoPE beyond the trained context", exclude_if=is_default)
    unrotated_layers: tuple[int, ...] | None = Field(
        default=None, description="layers whose queries and keys are not rotated", exclude_if=is_default
    )


class ModelConfig(Shape, AttentionFields, PositionFields, MlpFields):
    """A model's architecture; `extensions` holds what TransformerLens cannot say.

    Raises:
        ValueError: (pydantic's ValidationError) when a field is unknown or fields contradict each other.
    """

    extensions: Extensions = Field(default_factory=lambda: Extensions(), description="beyond TransformerLens")

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        kv_heads = self.kv_heads
        if self.n_heads % kv_heads:
            raise ValueError(f"n_key_value_heads: {kv_heads} does not divide n_heads = {self.n_heads}")
        if self.positional_embedding_type == "rotary":
            rotary_dim = self.rotary_dim or self.d_head
            if rotary_dim % 2 or rotary_dim > self.d_head:
                raise ValueError(f"rotary_dim: got {rotary_dim}; expected an even number ≤ d_head = {self.d_head}")
        if self.extensions.attn_res is not None:
            check_boundaries(self.extensions.attn_res, self.n_layers)
        check_ranks(self)
        check_layers(self)
        if self.extensions.recurrence is not None:
            check_recurrence(self.extensions.recurrence, self)
        return self

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads (n_heads where none is named)."""
        return self.n_key_value_heads or self.n_heads

    def is_local(self, layer: int) -> bool:
        """Whether a layer's queries see window_size tokens alone."""
        return self.window_size is not None and (self.attn_types is None or self.attn_types[layer] == "local")

    @property
    def writes_linearly(self) -> bool:
        """Whether what a head writes, z W_O[h], enters the stream unchanged: no norm stands behind attention."""
        return not (self.use_normalization_before_and_after or self.extensions.post_norm)

    @property
    def d_vocab_out(self) -> int:
        """Width of the logits: always d_vocab."""
        return self.d_vocab

    @property
    def scale(self) -> float:
        """What attention scores are divided by."""
        return self.attn_scale if self.attn_scale > 0 else self.d_head**0.5

    def to_json(self) -> str:
        """The `hooked_config.json` of a checkpoint: every field, `device` left out (it belongs to the machine)."""
        return json.dumps(self.model_dump(mode="json", exclude={"device"}), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "hooked_config.json") -> ModelConfig:
        """Read `to_json`'s form.

        Raises:
            ValueError: naming `source` and every field that is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            raise ValueError(f"{source}: {describe_errors(error, cls.model_fields)}") from error
        except (ValueError, RecursionError) as error:  # json's own is a ValueError, but not for numbers without end
            raise ValueError(f"{source}: not JSON ({error}); expected a model configuration") from error


def n_stored_blocks(cfg: ModelConfig) -> int:
    """Blocks with weights of their own: every layer's, or a recurrent model's unique ones."""
    recurrence = cfg.extensions.recurrence
    return cfg.n_layers if recurrence is None else recurrence.n_unique


def least_bytes(cfg: ModelConfig) -> int:
    """Bytes of the large matrices that every model of these sizes has: no more than all of its weights."""
    n_weights = cfg.d_model * (cfg.d_vocab + 2 * n_stored_blocks(cfg) * (cfg.d_mlp + cfg.n_heads * cfg.d_head))
    return n_weights * cfg.dtype.itemsize


def check_size(cfg: ModelConfig) -> None:
    """Raise ValueError for a model that memory cannot hold; on meta, where there are shapes alone, any can be."""
    if cfg.device == "meta":
        return
    check_memory(f"a model of d_model = {cfg.d_model:,}", least_bytes(cfg), cfg.device)


def check_boundaries(attn_res: AttnRes, n_layers: int) -> None:
    """Raise ValueError unless boundaries rise strictly from 0 and stay below n_layers, or there are enough layers."""
    boundaries = attn_res.boundaries
    if isinstance(boundaries, str):
        if attn_res.source is None and attn_res.n_sums > n_layers:
            raise ValueError(f"attn_res.n_blocks: got {attn_res.n_sums}; expected at most n_layers = {n_layers}")
        return
    rising = all(a < b for a, b in zip(boundaries, boundaries[1:], strict=False))
    if not boundaries or boundaries[0] != 0 or not rising or boundaries[-1] >= n_layers:
        raise ValueError(
            f"attn_res.boundaries: got {list(boundaries)}; expected layers that rise from 0 and stay below {n_layers}"
        )


def check_layers(cfg: ModelConfig) -> None:
    """Raise ValueError unless what single layers have fits the model."""
    if cfg.attn_types is not None and (cfg.window_size is None or len(cfg.attn_types) != cfg.n_layers):
        raise ValueError(
            f"attn_types: got {len(cfg.attn_types)} of them and window_size = {cfg.window_size}; expected one for each "
            f"of {cfg.n_layers} layers, and a window_size"
        )
    extensions = cfg.extensions
    outside = [layer for layer in extensions.unrotated_layers or () if not 0 <= layer < cfg.n_layers]
    if outside:
        raise ValueError(f"unrotated_layers: got {outside[0]}; expected layers 0 to {cfg.n_layers - 1}")
    if cfg.use_normalization_before_and_after and extensions.post_norm:
        raise ValueError("post_norm: does not go with use_normalization_before_and_after; expected one of them")
    n_pairs = (cfg.rotary_dim or cfg.d_head) // 2
    for name in ("short_factor", "long_factor"):
        factors = None if extensions.rope is None else getattr(extensions.rope, name)
        if factors is not None and len(factors) != n_pairs:
            raise ValueError(f"rope.{name}: got {len(factors)} factors; expected {n_pairs}, one a rotated pair")
    is_plain = extensions.attn_res is None and extensions.recurrence is None
    if not is_plain and not (cfg.writes_linearly and not cfg.parallel_attn_mlp):
        raise ValueError("parallel blocks and norms behind sub-layers: not with attention residuals or recurrence")


def check_ranks(cfg: ModelConfig) -> None:
    """Raise ValueError for a rank above what it factors, and for a q_gain without the norm that it scales."""
    extensions, width = cfg.extensions, cfg.kv_heads * cfg.d_head
    for name, rank in (("k_rank", extensions.k_rank), ("v_rank", extensions.v_rank)):
        if rank is not None and rank > min(cfg.d_model, width):
            raise ValueError(
                f"{name}: got {rank}; "
                f"expected at most {min(cfg.d_model, width)}, the smaller of d_model = {cfg.d_model} "
                f"and kv_heads · d_head = {width}"
            )
    if extensions.q_gain is not None and not cfg.use_qk_norm:
        raise ValueError("q_gain: scales normalised queries, and use_qk_norm is false; expected it true, or no q_gain")


def check_recurrence(recurrence: Recurrence, cfg: ModelConfig) -> None:
    """Raise ValueError unless passes, skips and ranks fit the model."""
    n_layers, d_model = cfg.n_layers, cfg.d_model
    if recurrence.n_unique * recurrence.n_passes != n_layers:
        raise ValueError(
            f"recurrence: {recurrence.n_unique} unique blocks × {recurrence.n_passes} passes are "
            f"{recurrence.n_unique * recurrence.n_passes} effective layers; expected n_layers = {n_layers}"
        )
    if cfg.extensions.attn_res is not None:
        raise ValueError("recurrence: does not go with attn_res; expected one of them")
    for name, rank in (("carry_rank", recurrence.carry_rank), ("td_rank", recurrence.td_rank)):
        if rank is not None and rank > d_model:
            raise ValueError(f"recurrence.{name}: got {rank}; expected at most d_model = {d_model}")
    if recurrence.n_routes is not None and recurrence.n_routes > d_model:
        raise ValueError(f"recurrence.n_routes: got {recurrence.n_routes}; expected at most d_model = {d_model}")
    if recurrence.resonance and d_model % 2:
        raise ValueError(f"recurrence.resonance: d_model is {d_model}; expected an even width, frequencies are doubled")
    if isinstance(recurrence.skips, str):
        return
    for source, target in recurrence.skips:
        if not 0 <= source < target < n_layers:
            raise ValueError(
                f"recurrence.skips: got a skip from layer {source} to {target}; "
                f"expected 0 ≤ source < target < {n_layers}"
            )
    if len({target for _, target in recurrence.skips}) < len(recurrence.skips):
        raise ValueError(f"recurrence.skips: got {list(recurrence.skips)}; expected at most one into each layer")


def features_of_our_own(cfg: ModelConfig) -> list[str]:
    """What a model has, attention residuals apart, that no class of TransformerLens or Hugging Face expresses."""
    extensions = cfg.extensions
    features = {
        "depth recurrence (layers that share weights, mechanisms between passes)": extensions.recurrence is not None,
        "low-rank keys or values": extensions.k_rank is not None or extensions.v_rank is not None,
        "a gain on normalised queries": extensions.q_gain is not None,
        "a norm on the embedding stream": extensions.embed_norm,
    }
    return [name for name, is_on in features.items() if is_on]
