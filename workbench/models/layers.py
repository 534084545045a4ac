"""The parts of a block: norms, rotary positions, attention, feed-forward; TransformerLens's names, shapes and hooks.

Whatever only a watcher needs (attention scores, patterns, per-head results and inputs, a norm's scale) is computed only
while a hook stands on it; unwatched, attention is one fused kernel and a norm one fused call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from workbench.models.alignment import n_missing, pad
from workbench.models.config import ModelConfig
from workbench.models.hooks import HookPoint
from workbench.models.masks import Padding, causal
from workbench.models.rotary import Rotary

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def is_watched(*points: HookPoint) -> bool:
    """Whether any hook, forward or backward, stands on any of these points."""
    return any(p._forward_hooks or p._backward_hooks or p._backward_pre_hooks for p in points)


def hook_copy(point: HookPoint, x: Tensor) -> Tensor:
    """`point` of a copy of x while it is watched, else of x: for an x that is read elsewhere as well, where what a hook
    writes into its tensor must not show (TransformerLens clones at the same points)."""
    return point(x.clone() if is_watched(point) else x)


def beside(x: Tensor, weight: Tensor) -> Tensor:
    """x on the device of a weight: another than its own only where layers are spread over several."""
    return x if x.device == weight.device else x.to(weight.device)


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=dtype))


def _head_parameter(n_heads: int, d_model: int, d_head: int, dtype: torch.dtype) -> nn.Parameter:
    """A [n_heads d_model d_head] weight laid out in memory as [d_model, n_heads·d_head], so that one plain matrix
    product projects all heads without copying the weight."""
    return nn.Parameter(torch.empty(d_model, n_heads, d_head, dtype=dtype).permute(1, 0, 2))


class Norm(nn.Module):
    """LayerNorm (`w`, `b`) or RMSNorm (`w`) over the last axis, of any length; `gain` is what it multiplies by."""

    def __init__(self, cfg: ModelConfig, length: int | None = None, kind: str | None = None) -> None:
        super().__init__()
        self.length, self.eps, self.kind = length or cfg.d_model, cfg.eps, kind or cfg.normalization_type
        self.w = nn.Parameter(torch.ones(self.length, dtype=cfg.dtype))
        if self.kind == "LN":
            self.b = nn.Parameter(torch.zeros(self.length, dtype=cfg.dtype))
        self.plus_one = cfg.extensions.norm_plus_one
        self.hook_scale = HookPoint()  # [batch pos 1]
        self.hook_normalized = HookPoint()  # [batch pos length]

    @property
    def gain(self) -> Float[Tensor, "length"]:
        """w, or 1 + w where the configuration says so, then in float32 or float64."""
        return 1.0 + self.w.to(torch.promote_types(self.w.dtype, torch.float32)) if self.plus_one else self.w

    def forward(self, x: Float[Tensor, "*batch length"]) -> Float[Tensor, "*batch length"]:
        if x.dtype != self.w.dtype:  # a bfloat16 product under autocast, or a caller's float64
            x = x.to(self.w.dtype)
        if is_watched(self.hook_scale, self.hook_normalized):
            return self._explicit(x)
        if self.kind == "LN":
            return F.layer_norm(x, (self.length,), self.gain, self.b, self.eps)
        if self.plus_one and x.dtype in (torch.bfloat16, torch.float16):  # where 1 + w would be rounded to w's grain
            return F.rms_norm(x.float(), (self.length,), self.gain, self.eps).to(x.dtype)
        return F.rms_norm(x, (self.length,), self.gain, self.eps)

    def _explicit(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        if self.kind == "LN":
            wide = wide - wide.mean(-1, keepdim=True)
        scale = self.hook_scale((wide.square().mean(-1, keepdim=True) + self.eps).sqrt())
        normalized = self.hook_normalized(wide / scale)
        if self.plus_one:
            return (normalized * self.gain).to(x.dtype)
        normalized = normalized.to(x.dtype)
        return normalized * self.gain + self.b if self.kind == "LN" else normalized * self.gain


class KeyValueCache:
    """Keys (rotated) and values of the tokens seen so far, a pair of [batch pos kv_head d_head] per layer.

    Room is allocated once for `capacity` positions; `length` counts those filled.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}
        self.filled: dict[int, int] = {}  # layer -> positions of its pair that hold something
        self.is_token: Bool[Tensor, "batch length"] | None = None  # False at padding; None: there has been none
        self.sums: dict[int, Tensor] = {}  # pass -> Σ over the tokens seen of what its carry reads, [batch d_model]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v behind what layer already holds; return all of both.

        Raises:
            ValueError: a layer that an earlier call did not run, or another number of sequences than before.
        """
        if self.filled.get(layer, 0) < self.length:
            raise ValueError(
                f"past_kv_cache: layer {layer} has read {self.filled.get(layer, 0)} of {self.length} tokens; "
                f"expected the "
                "same start_at_layer and stop_at_layer, or none, in every call"
            )
        if layer not in self.pairs:
            room = (k.shape[0], self.capacity, *k.shape[2:])
            self.pairs[layer] = (k.new_empty(room), v.new_empty(room))
        n_sequences, end = len(self.pairs[layer][0]), self.length + k.shape[1]
        if len(k) != n_sequences:
            raise ValueError(f"past_kv_cache: got {len(k)} sequences; expected {n_sequences}, as in earlier calls")
        self.filled[layer] = end
        for store, new in zip(self.pairs[layer], (k, v), strict=True):
            store[:, self.length : end] = new
        return self.pairs[layer][0][:, :end], self.pairs[layer][1][:, :end]

    def prefix_sum(self, index: int, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """Σ of x over positions up to each one, those of earlier calls for pass `index` included."""
        sums = x.cumsum(1)
        if index in self.sums:
            sums = sums + self.sums[index][:, None]
        self.sums[index] = sums[:, -1]
        return sums


class Attention(nn.Module):
    """Causal multi-head attention; grouped keys, QK-norm and rotary positions where the config says so."""

    W_Q: nn.Parameter
    W_K: nn.Parameter
    W_V: nn.Parameter
    b_K: nn.Parameter
    b_V: nn.Parameter

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.cfg, self.layer = cfg, layer
        h, kv, d, e = cfg.n_heads, cfg.kv_heads, cfg.d_model, cfg.d_head
        self.is_grouped = cfg.n_key_value_heads is not None
        self.window = cfg.window_size if cfg.is_local(layer) else None
        self.W_Q = _head_parameter(h, d, e, cfg.dtype)
        # TransformerLens stores grouped weights as _W_K, _W_V and shows them repeated to all heads as W_K, W_V
        prefix = "_" if self.is_grouped else ""
        for name, rank in (("W_K", cfg.extensions.k_rank), ("W_V", cfg.extensions.v_rank)):
            if rank is None:
                self.register_parameter(prefix + name, _head_parameter(kv, d, e, cfg.dtype))
                continue
            self.register_parameter(f"{name}_in", _parameter(d, rank, dtype=cfg.dtype))
            self.register_parameter(f"{name}_out", _head_parameter(kv, rank, e, cfg.dtype))
        self.W_O = _parameter(h, e, d, dtype=cfg.dtype)
        if cfg.extensions.qkv_bias:
            self.b_Q = _parameter(h, e, dtype=cfg.dtype)
            self.register_parameter(prefix + "b_K", _parameter(kv, e, dtype=cfg.dtype))
            self.register_parameter(prefix + "b_V", _parameter(kv, e, dtype=cfg.dtype))
        if cfg.extensions.out_bias:
            self.b_O = _parameter(d, dtype=cfg.dtype)
        if cfg.use_qk_norm:
            wide = cfg.extensions.wide_qk_norm
            self.q_norm, self.k_norm = (Norm(cfg, n * e if wide else e, "RMS") for n in (h, kv))
        if cfg.extensions.q_gain is not None:
            self.q_gain = _parameter(h, dtype=cfg.dtype)
        self.hook_q, self.hook_k, self.hook_v, self.hook_z = HookPoint(), HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern = HookPoint(), HookPoint()  # [batch head query key], when watched
        self.hook_result = HookPoint()  # [batch pos head d_model], when watched
        if cfg.positional_embedding_type == "rotary":
            self.hook_rot_q, self.hook_rot_k = HookPoint(), HookPoint()
            self.is_turned = layer not in (cfg.extensions.unrotated_layers or ())
            self.rotary = Rotary(cfg, layer)

    def __getattr__(self, name: str):  # W_K, W_V, b_K, b_V of grouped or low-rank attention, repeated to all heads
        parameters = self.__dict__.get("_parameters", {})
        if name in ("W_K", "W_V", "b_K", "b_V") and (f"_{name}" in parameters or f"{name}_in" in parameters):
            return self.stored(name).repeat_interleave(self.cfg.n_heads // self.cfg.kv_heads, dim=0)
        return super().__getattr__(name)

    def stored(self, name: str) -> Tensor:
        """W_K, W_V, b_K or b_V with one entry a key/value head: the parameter, or the product of its two factors."""
        if (inner := self._parameters.get(f"{name}_in")) is not None:
            return einsum(inner, self.get_parameter(f"{name}_out"), "d rank, head rank e -> head d e")
        return self.get_parameter(f"_{name}" if self.is_grouped else name)

    def _keys_or_values(self, x: Tensor, which: str) -> Float[Tensor, "batch pos kv_head d_head"]:
        bias = self.stored(f"b_{which}") if self.cfg.extensions.qkv_bias else None
        if (inner := self._parameters.get(f"W_{which}_in")) is None:
            return _project(x, self.stored(f"W_{which}"), bias)
        return _project(x @ inner.to(_product_dtype(x)), self.get_parameter(f"W_{which}_out"), bias)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"] | tuple[Tensor, Tensor, Tensor],
        cache: KeyValueCache | None = None,
        padding: Padding | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Attention of normalised input x; a triple gives q, k, v their own inputs, [batch pos head d_model] each."""
        q, k, v = self.project(x)
        offset = cache.length if cache is not None else 0
        q, k = self.turn(q, k, offset, padding)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        return self.output(self.hook_z(self.mix(q, k, v, padding)))

    def project(self, x: Tensor | tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """q [batch pos head d_head], k and v [batch pos kv_head d_head] of normalised input, as hooks see them."""
        # under autocast each of three products would cast x for itself, and keep its own copy for the backward pass
        inputs = x if isinstance(x, tuple) else (x.to(_product_dtype(x)),) * 3
        clip = _clipped(self.cfg.clip_qkv)
        b_Q = self.b_Q if self.cfg.extensions.qkv_bias else None
        q = self.hook_q(clip(_project(inputs[0], self.W_Q, b_Q)))
        k = self.hook_k(clip(self._keys_or_values(inputs[1], "K")))
        return q, k, self.hook_v(clip(self._keys_or_values(inputs[2], "V")))

    def turn(
        self, q: Tensor, k: Tensor, offset: int = 0, padding: Padding | None = None
    ) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch pos kv_head d_head"]]:
        """q and k as scores are made of them: behind their norm, gain and rotation, the first at position `offset`."""
        if self.cfg.use_qk_norm:
            q, k = self._normed(self.q_norm, q).to(q.dtype), self._normed(self.k_norm, k).to(k.dtype)
        if self.cfg.extensions.q_gain is not None:
            q = q * self.q_gain.to(q.dtype)[:, None]
        if self.cfg.positional_embedding_type == "rotary":
            places = None if padding is None else padding.places
            turned = (self.rotary(q, offset, places), self.rotary(k, offset, places)) if self.is_turned else (q, k)
            q, k = self.hook_rot_q(turned[0]), self.hook_rot_k(turned[1])
        return q, k

    def _normed(self, norm: Norm, x: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos head d_head"]:
        """A norm's hooks see [batch pos head d_head], or, of one over all heads together, [batch pos head·d_head]."""
        return norm(x.flatten(2)).unflatten(2, x.shape[2:]) if self.cfg.extensions.wide_qk_norm else norm(x)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, padding: Padding | None = None
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Σ over keys of pattern · v: fused unless someone watches the scores or the pattern."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [batch head pos d_head]
        groups = self.cfg.n_heads // self.cfg.kv_heads
        if groups > 1:
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        cap = self.cfg.attn_scores_soft_cap
        if cap <= 0 and not is_watched(self.hook_attn_scores, self.hook_pattern):
            n_queries, n_keys = q.shape[2], k.shape[2]
            is_whole = self.window is None or n_keys <= self.window
            is_plain = is_whole and n_queries in (1, n_keys) and padding is None
            mask = None if is_plain else self._allowed(q, k, padding)
            return _fused(q, k, v, mask, is_plain and n_queries > 1, 1 / self.cfg.scale).transpose(1, 2)
        pattern = self.hook_pattern(self._softmax(self.hook_attn_scores(self._scores(q, k, padding))))
        return (pattern.to(v.dtype) @ v).transpose(1, 2)

    def pattern_of(
        self, q: Float[Tensor, "batch pos head d_head"], k: Float[Tensor, "batch pos head d_head"]
    ) -> Float[Tensor, "batch head query key"]:
        """The attention map of turned q and of turned k, repeated to all heads; no hook sees it."""
        return torch.softmax(self._scores(q.transpose(1, 2), k.transpose(1, 2), None), dim=-1)

    def _scores(self, q: Tensor, k: Tensor, padding: Padding | None) -> Float[Tensor, "batch head query key"]:
        """Capped and masked, of q and k [batch head pos d_head]."""
        cap = self.cfg.attn_scores_soft_cap
        scores = (q @ k.transpose(2, 3)) / self.cfg.scale
        if cap > 0:
            scores = cap * torch.tanh(scores / cap)
        return scores.masked_fill(~self._allowed(q, k, padding), -torch.inf)

    def _allowed(self, q: Tensor, k: Tensor, padding: Padding | None) -> Tensor:
        """[query key], or with padding [batch 1 query key]: True where a query may read a key."""
        if padding is not None:
            return padding.allowed(self.window)
        return causal(q.shape[2], k.shape[2], q.device, self.window)

    def _softmax(self, scores: Tensor) -> Float[Tensor, "batch head query key"]:
        """Softmax over keys; zeros where a hook has masked every key, as in TransformerLens."""
        if not is_watched(self.hook_attn_scores):  # the mask leaves every query itself
            return torch.softmax(scores, dim=-1)
        # masked before the softmax as well, of which the backward pass would be nan in such a row
        is_masked = (scores == -torch.inf).all(-1, keepdim=True)
        return torch.softmax(scores.masked_fill(is_masked, 0.0), dim=-1).masked_fill(is_masked, 0.0)

    def output(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """What heads write together: Σ z W_O[head] + b_O."""
        if is_watched(self.hook_result):
            product = einsum(z, self.W_O.to(z.dtype), "batch pos head e, head e d -> batch pos head d")
            out = self.hook_result(product).sum(2)
        else:
            out = z.flatten(2) @ self.W_O.flatten(0, 1).to(_product_dtype(z))
        return out + self.b_O if self.cfg.extensions.out_bias else out


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float) -> Tensor:
    # torch's CPU kernel is up to four times slower backward in bfloat16 than in float32, save wide heads over long keys
    is_small = q.shape[-1] <= 32 or k.shape[2] <= 256
    is_slow = q.device.type == "cpu" and v.dtype == torch.bfloat16 and is_small and torch.is_grad_enabled()
    if not is_slow:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    with torch.autocast("cpu", enabled=False):
        z = F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), attn_mask=mask, is_causal=is_causal, scale=scale
        )
    return z.to(v.dtype)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A context in which products keep their inputs' dtype."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype a product with x will run in: autocast's where it is on, else x's."""
    kind = x.device.type
    # meta has none
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else x.dtype


def _project(x: Tensor, W: Float[Tensor, "head d_model d_head"], b: Tensor | None) -> Tensor:
    """x W + b for all heads, [batch pos head d_head]; x may carry its own head axis."""
    if x.ndim == 4:
        out = einsum(x, W.to(x.dtype), "batch pos head d, head d e -> batch pos head e")
        return out if b is None else out + b
    flat = rearrange(W, "head d e -> d (head e)")  # a view: the weight lies in memory this way
    out = x @ flat
    if b is not None:
        out = out + b.flatten().to(out.dtype)
    return out.unflatten(-1, (W.shape[0], W.shape[2]))


def _clipped(limit: float | None) -> Callable[[Tensor], Tensor]:
    return (lambda x: x) if limit is None else (lambda x: x.clamp(-limit, limit))


class MLP(nn.Module):
    """Feed-forward: act(x W_in) W_out, or gated: (act(x W_gate) * (x W_in)) W_out; biases where the config says so."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg, self.act = cfg, ACTIVATIONS[cfg.act_fn]
        if cfg.gated_mlp:
            self.W_gate = _parameter(cfg.d_model, cfg.d_mlp, dtype=cfg.dtype)
            self.hook_pre_linear = HookPoint()  # [batch pos d_mlp]
        self.W_in = _parameter(cfg.d_model, cfg.d_mlp, dtype=cfg.dtype)
        self.W_out = _parameter(cfg.d_mlp, cfg.d_model, dtype=cfg.dtype)
        if cfg.extensions.mlp_bias:
            self.b_in = _parameter(cfg.d_mlp, dtype=cfg.dtype)
            self.b_out = _parameter(cfg.d_model, dtype=cfg.dtype)
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()  # [batch pos d_mlp]

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        biased = self.cfg.extensions.mlp_bias
        x = x.to(_product_dtype(x))  # once for both products
        n_pad = n_missing(self.cfg.d_mlp, x)
        if n_pad and is_watched(*(m for m in self.children() if isinstance(m, HookPoint))):
            n_pad = 0  # who watches sees d_mlp entries

        def own(name: str, dim: int) -> Tensor:
            """A weight, padded along its axis d_mlp."""
            weight = getattr(self, name)
            return pad(weight.to(x.dtype), n_pad, dim) if n_pad else weight

        if self.cfg.gated_mlp:
            pre = self.hook_pre(x @ own("W_gate", 1))
            post = self.act(pre) * self.hook_pre_linear(x @ own("W_in", 1))
            # TransformerLens adds a gated MLP's b_in after the product
            post = post + own("b_in", 0) if biased else post
        else:
            pre = x @ own("W_in", 1)
            post = self.act(self.hook_pre(pre + own("b_in", 0) if biased else pre))
        out = self.hook_post(post) @ own("W_out", 0)
        return out + self.b_out if biased else out


def per_head_copies(x: Tensor, n_heads: int) -> Float[Tensor, "batch pos head d_model"]:
    """x once for each head, as a view."""
    return repeat(x, "batch pos d -> batch pos head d", head=n_heads)
