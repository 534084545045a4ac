"""`HookedLM`: embed → blocks → unembed as a fold over a residual state, hooked in TransformerLens's language."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.models.attn_residuals import RoutedStream, Routing, SharedMeans
from workbench.models.block import Block, Blocks, Routed, State
from workbench.models.config import ModelConfig, Recurrence, check_size
from workbench.models.cross_entropy import Scalar, linear_cross_entropy, softcap
from workbench.models.hooks import HookedRootModule, HookPoint
from workbench.models.layers import KeyValueCache, Norm, beside, hook_copy
from workbench.models.learned_blocks import Boundaries, SegmentedStream
from workbench.models.masks import AttentionMask, Padding, read_padding
from workbench.models.recurrence import RecurrentStream, reset_mechanisms
from workbench.models.recurrent import build_chassis
from workbench.models.text_source import TextSource
from workbench.models.tokenization import Tokenized

if TYPE_CHECKING:
    from transformer_lens import FactoredMatrix

ReturnType = Literal["logits", "loss", "both"] | None


class Embed(nn.Module):
    """Token table W_E [d_vocab d_model]."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model, dtype=cfg.dtype))

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(tokens, self.W_E)


class PosEmbed(nn.Module):
    """Learned position table W_pos [n_ctx d_model]."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model, dtype=cfg.dtype))

    def forward(
        self, tokens: Int[Tensor, "batch pos"], offset: int = 0, places: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        if places is not None:
            return F.embedding(places, self.W_pos)
        return self.W_pos[offset : offset + tokens.shape[1]].expand(len(tokens), -1, -1)


class Unembed(nn.Module):
    """W_U [d_model d_vocab] of an untied model; a tied one reads the embedding."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        if not cfg.tie_word_embeddings:
            # laid out as [d_vocab d_model], the form every checkpoint outside TransformerLens has
            self.W_U = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model, dtype=cfg.dtype).T)
        if cfg.extensions.unembed_bias:
            self.b_U = nn.Parameter(torch.empty(cfg.d_vocab, dtype=cfg.dtype))


class HookedLM(HookedRootModule, Tokenized):
    """A causal language model of any architecture of the workbench, as a TransformerLens `HookedRootModule`.

    Hook names, shapes, parameter names and config fields are TransformerLens's; attention is fused unless its scores or
    pattern are watched. Building one does not touch the global random state.

    Args:
        cfg: the architecture.
        seed: initial weights, drawn on the CPU by a generator of their own, so equal on every device; None leaves the
            weights unset, for a caller about to fill every one.
        tokenizer: for `to_tokens` and `generate`: a Hugging Face tokenizer, a `DescribedTokenizer`, or none.

    Raises:
        ValueError: a model that memory cannot hold.
    """

    cfg: ModelConfig
    trained_on: TextSource | None = None
    """the text of the run that it was loaded from, where it is one of ours"""
    generation: dict[str, Any] | None = None
    """what its folder's generation_config.json says; `eos_token_id` lists the ids that config.json names too"""
    is_spread = False
    """whether its layers are on several devices: see `spread`"""

    def __init__(self, cfg: ModelConfig, seed: int | torch.Generator | None = 0, tokenizer: Any = None) -> None:
        super().__init__()
        check_size(cfg)
        self.cfg, self.tokenizer = cfg, tokenizer
        self.shares_routing = True  # a block then reads later blocks' queries: not where weights are sharded by block
        self.embed, self.hook_embed = Embed(cfg), HookPoint()
        if cfg.positional_embedding_type == "standard":
            self.pos_embed, self.hook_pos_embed = PosEmbed(cfg), HookPoint()
        if cfg.extensions.recurrence is None:
            self.blocks = Blocks(Block(cfg, layer) for layer in range(cfg.n_layers))
        else:
            build_chassis(self, cfg, cfg.extensions.recurrence)
        if (attn_res := cfg.extensions.attn_res) is not None:
            if attn_res.source is not None:
                raise ValueError(
                    f"attn_res.boundaries: got {attn_res.boundaries!r}, a model's name; expected them read off it"
                )
            self.route_final, self.hook_route_final = Routing(cfg), HookPoint()
            if attn_res.is_learned:
                self.boundaries = Boundaries(cfg, attn_res)
        self.ln_final, self.unembed = Norm(cfg), Unembed(cfg)
        self.setup()
        if seed is not None:
            initialize(self, seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed))
        self.to(cfg.device)

    def forward(
        self,
        input: Int[Tensor, "batch pos"] | str | list[str] | State,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        *,
        prepend_bos: bool | None = None,
        tokens: Int[Tensor, "batch pos"] | None = None,
        loss_mask: Tensor | None = None,
        z_loss: float = 0.0,
        entropy_bonus: Scalar = 0.0,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: KeyValueCache | None = None,
        attention_mask: AttentionMask | None = None,
    ) -> Any:
        """Return logits [batch pos d_vocab], the loss, both (logits, loss: TransformerLens's order), or a state.

        Args:
            input: token ids, text (texts of unequal lengths are padded and masked), or, with `start_at_layer`, the
                state entering that layer.
            return_type: "logits", "loss" (mean nats over pos − 1 predictions), "both" (logits, loss) or None.
            loss_per_token: losses [batch, pos − 1] instead of their mean; 0 where `attention_mask` has padding.
            tokens: the ids to score when `start_at_layer` is given and a loss is wanted.
            loss_mask: [batch, pos − 1], which predictions the mean counts.
            z_loss: weight of logsumexp² added to the loss.
            entropy_bonus: weight of the predictions' entropy taken from the loss.
            start_at_layer: layer to begin at (negative from the end); 0 needs the embedded state.
            stop_at_layer: return the state entering this layer, before any norm.
            past_kv_cache: `KeyValueCache` to read and extend; `input` then holds only the new tokens.
            attention_mask: [batch pos] of the positions of `input`, 1 at a token, 0 at padding, on either side or
                between tokens. A text then reads as without its padding, where the output means nothing; the loss is
                that of its tokens. A cache keeps the mask: later calls give one only for padding of their own.

        Raises:
            ValueError: ids outside the vocabulary, more positions than n_ctx (padding counts), a layer out of range, no
                tokenizer for text, a mask of another shape or with other values, or of a recurrent model.
        """
        start, stop = self._layer(start_at_layer, 0), self._layer(stop_at_layer, self.cfg.n_layers)
        if start_at_layer is None:
            if not isinstance(input, Tensor):
                input, is_token = self.to_batch(input, prepend_bos=prepend_bos)  # type: ignore[arg-type]
                attention_mask = is_token if attention_mask is None else attention_mask
            tokens = self._checked(input, past_kv_cache)
            padding = self._read_padding(attention_mask, tokens.shape, past_kv_cache)
            n_past = 0 if past_kv_cache is None else past_kv_cache.length
            state: State = self.embed_state(tokens, n_past, padding)
        else:
            state = self._checked_state(input)
            padding = self._read_padding(attention_mask, state.shape, past_kv_cache)
        if isinstance(state, RoutedStream) and self.shares_routing:
            state = replace(state, shared=SharedMeans(self._routings()))
        for layer in range(start, stop):
            state = self.blocks[layer](state, past_kv_cache, self.read_out, padding)
        if past_kv_cache is not None:
            past_kv_cache.length += state.shape[1]
            past_kv_cache.is_token = None if padding is None else padding.is_token
        if stop_at_layer is not None or return_type is None:
            return state
        extras = {"per_token": loss_per_token, "z_loss": z_loss, "entropy_bonus": entropy_bonus}
        return self._finish(state, tokens, return_type, padding, loss_mask, **extras)

    def embed_state(self, tokens: Int[Tensor, "batch pos"], offset: int = 0, padding: Padding | None = None) -> State:
        """The state entering layer 0."""
        x, scale = self.embed(tokens), self.cfg.extensions.embed_scale
        x = self.hook_embed(x if scale is None else x * torch.tensor(scale, dtype=x.dtype, device=x.device))
        if self.cfg.positional_embedding_type == "standard":
            places = None if padding is None else padding.places
            x = x + hook_copy(self.hook_pos_embed, self.pos_embed(tokens, offset, places))
        extensions = self.cfg.extensions
        if extensions.recurrence is not None:
            return self._recurrent_state(x, tokens, extensions.recurrence)
        x, attn_res = self._normed(x), extensions.attn_res
        if attn_res is None:
            return x
        if attn_res.is_learned:
            return SegmentedStream.of_embedding(x, self.boundaries)
        return RoutedStream((), x) if attn_res.streams == "both" else RoutedStream((), None, x)

    def _recurrent_state(self, x: Tensor, tokens: Tensor, recurrence: Recurrence) -> RecurrentStream:
        second = self.mechanisms["value_embed"](tokens) if recurrence.value_embed != "off" else None  # type: ignore[index]
        x = self._normed(x + second if second is not None and recurrence.value_embed == "embed" else x)
        x0 = x if recurrence.residual_mix else None
        return RecurrentStream(x, x0, second if recurrence.value_embed == "value" else None)

    def _normed(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, self.cfg.eps) if self.cfg.extensions.embed_norm else x

    def _routings(self) -> Iterator[tuple[int, Routing]]:
        """Every routing in order, with the number of finished sums that it reads."""
        n_committed = 0
        for block in self.blocks:
            if block.route_attn is not None:
                yield n_committed, block.route_attn
            n_committed += block.is_boundary
            yield n_committed, block.route_mlp
        yield n_committed, self.route_final

    def read_out(self, state: State) -> Float[Tensor, "batch pos d_model"]:
        """The stream that the unembedding would read if the model stopped at this state, before the final norm."""
        if isinstance(state, RecurrentStream):
            return state.x
        return state.read(self.route_final, self.hook_route_final) if isinstance(state, Routed) else state

    def to_logits(self, state: State) -> Float[Tensor, "batch pos d_vocab"]:
        """Final norm and unembedding of a state."""
        W_U = self.W_U
        logits = beside(self.ln_final(beside(self.read_out(state), self.ln_final.w)), W_U) @ W_U
        logits = softcap(logits if self.b_U is None else logits + self.b_U, self.cfg.output_logits_soft_cap)
        return beside(logits, self.W_E)

    def state_loss(
        self,
        state: State,
        tokens: Int[Tensor, "batch pos"],
        *,
        per_token: bool = False,
        loss_mask: Tensor | None = None,
        z_loss: float = 0.0,
        entropy_bonus: Scalar = 0.0,
    ) -> Tensor:
        """Next-token loss of a state after the last layer, by chunked cross-entropy: scalar, or [batch, pos − 1]."""
        W_U = self.W_U
        x = beside(self.ln_final(beside(self.read_out(state), self.ln_final.w))[:, :-1], W_U)
        weights = None
        if loss_mask is not None:
            counted = beside(loss_mask, W_U).flatten().to(torch.promote_types(x.dtype, torch.float32))
            weights = counted / counted.sum().clamp_min(1)
        loss = linear_cross_entropy(
            x.flatten(0, 1),
            W_U,
            beside(tokens, W_U)[:, 1:].flatten(),
            b_U=self.b_U,
            weights=weights,
            soft_cap=self.cfg.output_logits_soft_cap,
            z_loss=z_loss,
            entropy_bonus=entropy_bonus,
            per_row=per_token,
        )
        return beside(loss.unflatten(0, x.shape[:2]) if per_token else loss, self.W_E)

    def _finish(
        self, state, tokens, return_type, padding: Padding | None, loss_mask: Tensor | None, **settings: Any
    ) -> Any:
        if return_type == "logits":
            return self.to_logits(state)
        if return_type not in ("loss", "both"):
            raise ValueError(f"return_type: got {return_type!r}; expected 'logits', 'loss', 'both' or None")
        if tokens is None:
            raise ValueError("return_type='loss' with start_at_layer: no tokens given; expected tokens=[batch pos]")
        if tokens.shape[1] < 2:
            raise ValueError(f"loss: got {tokens.shape[1]} token per sequence; expected at least 2")
        is_pair = None if padding is None else padding.pairs()
        if is_pair is not None:
            loss_mask = is_pair if loss_mask is None else is_pair * loss_mask
        loss = self.state_loss(state, tokens, loss_mask=loss_mask, **settings)
        if is_pair is not None and settings["per_token"]:
            loss = loss.masked_fill(~is_pair, 0.0)
        return loss if return_type == "loss" else (self.to_logits(state), loss)

    def _read_padding(
        self, attention_mask: AttentionMask | None, shape: torch.Size, cache: KeyValueCache | None
    ) -> Padding | None:
        if attention_mask is not None:
            attention_mask = torch.as_tensor(attention_mask, device=self.W_E.device)
        past, n_past = (None, None) if cache is None else (cache.is_token, cache.length)
        padding = read_padding(attention_mask, (shape[0], shape[1]), past, n_past)
        if padding is not None and self.cfg.extensions.recurrence is not None:
            raise ValueError(
                "attention_mask: got padding in a recurrent model, whose passes sum over positions; expected texts of "
                "one length (or, on the right, padding without a mask: no token reads what follows it)"
            )
        return padding

    def _layer(self, layer: int | None, default: int) -> int:
        if layer is None:
            return default
        n = self.cfg.n_layers
        if not -n <= layer <= n:
            raise ValueError(f"layer: got {layer}; expected −{n}…{n} in a model of {n} layers")
        return layer + n if layer < 0 else layer

    def _checked(self, tokens: Tensor, cache: KeyValueCache | None) -> Tensor:
        tokens = tokens.to(self.W_E.device)
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise ValueError(
                f"tokens: got shape {tuple(tokens.shape)} of {tokens.dtype}; expected integers [batch pos]"
            )
        past = cache.length if cache is not None else 0
        limit = self.cfg.n_ctx if cache is None else min(self.cfg.n_ctx, cache.capacity)
        if past + tokens.shape[1] > limit:
            raise ValueError(f"tokens: got {past + tokens.shape[1]} positions; expected at most n_ctx = {limit}")
        # on a GPU this look would stop the queue; there the embedding's own device assertion speaks
        if tokens.device.type == "cpu" and tokens.numel():
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.cfg.d_vocab:
                wrong = low if low < 0 else high
                raise ValueError(f"tokens: got id {wrong}; expected 0 ≤ id < d_vocab = {self.cfg.d_vocab}")
        return tokens.long()

    def _checked_state(self, state: Any) -> State:
        extensions = self.cfg.extensions
        if extensions.recurrence is not None:
            kind, held = RecurrentStream, "what the passes of a recurrent model left behind"
        elif extensions.attn_res is not None:
            kind = SegmentedStream if extensions.attn_res.is_learned else RoutedStream
            held = "the sums that attention residuals route"
        else:
            return state
        if not isinstance(state, kind):
            raise ValueError(
                f"start_at_layer: got a {type(state).__name__}; expected a state from stop_at_layer or embed_state, "
                f"which holds {held}"
            )
        return state

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding."""
        return self.embed.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding; the transposed embedding where they are tied."""
        return self.embed.W_E.T if self.cfg.tie_word_embeddings else self.unembed.W_U

    def stacked(self, name: str) -> Tensor:
        """`name` ("attn.W_Q", "mlp.W_out", …) of all blocks, [layer …]; grouped keys repeated to all heads."""
        module, leaf = name.split(".")
        return torch.stack([getattr(getattr(block, module), leaf) for block in self.blocks])

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"] | None:
        """Unembedding bias, where there is one."""
        return self.unembed.b_U if self.cfg.extensions.unembed_bias else None

    @property
    def W_Q(self) -> Tensor:
        """[layer head d_model d_head]"""
        return self.stacked("attn.W_Q")

    @property
    def W_K(self) -> Tensor:
        """[layer head d_model d_head], repeated to all heads where keys are grouped"""
        return self.stacked("attn.W_K")

    @property
    def W_V(self) -> Tensor:
        """[layer head d_model d_head], repeated to all heads where values are grouped"""
        return self.stacked("attn.W_V")

    @property
    def W_O(self) -> Tensor:
        """[layer head d_head d_model]"""
        return self.stacked("attn.W_O")

    @property
    def W_gate(self) -> Tensor:
        """[layer d_model d_mlp], of a gated MLP"""
        return self.stacked("mlp.W_gate")

    @property
    def W_in(self) -> Tensor:
        """[layer d_model d_mlp]"""
        return self.stacked("mlp.W_in")

    @property
    def W_out(self) -> Tensor:
        """[layer d_mlp d_model]"""
        return self.stacked("mlp.W_out")

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_Kᵀ of every head, [layer head d_model d_model]; positions, norms and biases are not in it"""
        return _factored(self.W_Q, self.W_K.mT)

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head, [layer head d_model d_model]"""
        return _factored(self.W_V, self.W_O)

    def n_parameters(self, embeddings: bool = True) -> int:
        """Number of parameters, with or without token and position tables and unembedding."""
        skipped = () if embeddings else ("embed.", "pos_embed.", "unembed.")
        return sum(p.numel() for n, p in self.named_parameters() if not n.startswith(skipped or "\0"))

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        """Every `.to`, `.cuda`, `.double` passes here: `cfg.device` and `cfg.dtype` follow the weights."""
        result = super()._apply(fn, recurse)
        weight = self.embed.W_E
        self.cfg = self.cfg.model_copy(update={"device": str(weight.device), "dtype": weight.dtype})
        self.is_spread = len({p.device for p in self.parameters()}) > 1
        return result

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Float[Tensor, "*tokens d_model"]:
        """The column of W_U that each token's logit reads; of one token, also given as text, [d_model]."""
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        ids = torch.as_tensor(tokens, device=self.W_U.device)
        return self.W_U.T[ids.squeeze() if ids.numel() == 1 else ids]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, "d_model"]:
        """Σ of b_O and, unless told otherwise, b_out of the layers before `layer`; with mlp_input, its b_O as well."""
        if not self.cfg.writes_linearly:
            raise ValueError("accumulated_bias: norms stand behind sub-layers, so that no bias is added as it is")
        total, has = torch.zeros_like(self.ln_final.w), self.cfg.extensions
        for index in range(layer + mlp_input):
            block = self.blocks[index]
            total = total + block.attn.b_O if has.out_bias else total
            total = total + block.mlp.b_out if has.mlp_bias and include_mlp_biases and index < layer else total
        return total

    def _as_cache_object(self, cache: dict[str, Tensor], remove_batch_dim: bool) -> Any:
        made = super()._as_cache_object(cache, remove_batch_dim)
        if not self.cfg.writes_linearly and made is not cache:
            for name in _PER_PART:
                setattr(made, name, functools.partial(_refuse_part, name))
        return made


# methods of TransformerLens's ActivationCache that take z W_O[h], or a neuron's W_out, for what enters the stream
_PER_PART = (
    "compute_head_results", "stack_head_results", "get_neuron_results", "stack_neuron_results",
    "get_full_resid_decomposition",
)  # fmt: skip


def _refuse_part(name: str, *_: Any, **__: Any) -> None:
    raise ValueError(
        f"{name}: norms stand behind attention and MLP, so that no head or neuron enters the stream as it is; expected "
        "direct_logit_attribution, or decompose_resid"
    )


def _factored(left: Tensor, right: Tensor) -> FactoredMatrix:
    from transformer_lens import FactoredMatrix  # seconds: whoever asks for a product's factors waits for them

    return FactoredMatrix(left, right)


def check_ours(who: str, model: Any) -> None:
    """Raise ValueError for a model that is no `HookedLM`."""
    if isinstance(model, HookedLM):
        return
    if isinstance(model, Tokenized):
        raise ValueError(
            f"{who}: got {model.cfg.model_name}, a model by the generic path, whose weights have no names here; "
            "expected one of a family (docs/models.md)"
        )
    raise ValueError(
        f"{who}: got a {type(model).__name__}; expected a HookedLM (from_hooked_transformer makes one of that class)"
    )


def check_tokenized(who: str, model: Any) -> None:
    """Raise ValueError for a model that is neither a `HookedLM` nor a `Generic`: its texts would be read by other rules
    than those of its tokenizer's files."""
    if not isinstance(model, Tokenized):
        check_ours(who, model)


@torch.no_grad()
def initialize(model: HookedLM, generator: torch.Generator) -> None:
    """Draw all weights: N(0, initializer_range), residual writers W_O and W_out scaled down, norms one, the rest zero.

    Routing queries start at zero, so a fresh attention-residual model averages its sources. The mechanisms of a
    recurrent model have initial values of their own, drawn last: with or without one, all else starts the same.
    """
    cfg, extensions = model.cfg, model.cfg.extensions
    scale = cfg.extensions.residual_init_scale
    scale = scale if scale > 0 else (2 * cfg.n_layers) ** -0.5
    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if name.startswith("mechanisms."):
            continue
        if leaf == "w":
            parameter.fill_(1.0)
        elif leaf == "q_gain":
            parameter.fill_(extensions.q_gain or 1.0)
        elif leaf.lstrip("_").startswith("W_"):
            deviation = cfg.initializer_range * (scale if leaf in ("W_O", "W_out") else 1.0)
            draw = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, deviation, generator=generator)
            parameter.copy_(draw)
        else:
            parameter.zero_()
    if extensions.embed_init > 0:
        model.W_E.mul_(extensions.embed_init * cfg.d_model**-0.5 / cfg.initializer_range)
    if extensions.spectral_init:
        model.W_E.copy_(fall_off(model.W_E))
    if extensions.recurrence is not None:
        reset_mechanisms(model.mechanisms, generator)  # type: ignore[arg-type]


def fall_off(W: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """W with its singular vectors and Frobenius norm, and singular values proportional to k^(−1/2), k = 1, 2, …"""
    U, sigma, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    wanted = torch.arange(1, len(sigma) + 1, dtype=sigma.dtype, device=sigma.device) ** -0.5
    return (U * (wanted * sigma.norm() / wanted.norm()) @ Vh).to(W.dtype)
