"""Mechanisms of a depth-recurrent model, each a small class, and the state that flows through its passes.

Order within pass p: resonance, carry, confidence, memory; then the blocks; then TD, the new summary, freezing and gate.
Names: x the stream [batch pos d_model], P passes, d = d_model. What belongs to single passes has a leading pass axis:
P entries where every pass has one, P − 1 where the first pass has nothing behind it (entry 0 is the second pass's).
Whatever starts at zero leaves the model, at that moment, as it is without the mechanism.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.models.config import ModelConfig, Recurrence
from workbench.models.hooks import HookPoint
from workbench.models.layers import KeyValueCache, is_watched

RESONANCE, FREQUENCY = 0.1, 0.01  # initial strength s_p; deviation of the frequencies f_p, radians per position
MEMORY, TD_GAIN, GATE_BIAS = 0.1, 0.1, 2.0  # initial m_p, a_p, and bias of the exit gate


@dataclass(frozen=True)
class RecurrentStream:
    """The residual state of a depth-recurrent model; what its mechanisms do not need is None.

    Attributes:
        x: the stream now.
        x0: the embedding stream, for the residual mix.
        value: rows of the value table, for V.
        start: the stream as it entered the current pass (between passes: the pass before).
        summary: the stream at the end of the pass before, ahead of freezing, whose prefix mean the carry reads.
        gate: exit gate of the pass before.
        remaining: share of each token that has not halted, the product of its gates so far.
        kept: outputs of earlier layers that a later one adds, with their layers.
    """

    x: Float[Tensor, "batch pos d_model"]
    x0: Float[Tensor, "batch pos d_model"] | None = None
    value: Float[Tensor, "batch pos d_model"] | None = None
    start: Float[Tensor, "batch pos d_model"] | None = None
    summary: Float[Tensor, "batch pos d_model"] | None = None
    gate: Float[Tensor, "batch pos"] | None = None
    remaining: Float[Tensor, "batch pos"] | None = None
    kept: tuple[tuple[int, Float[Tensor, "batch pos d_model"]], ...] = ()

    @property
    def running(self) -> Float[Tensor, "batch pos d_model"]:
        """The tensor that sub-layers add to."""
        return self.x

    @property
    def shape(self) -> torch.Size:
        """[batch pos d_model], as of the plain stream."""
        return self.x.shape

    def last(self, n: int) -> RecurrentStream:
        """The stream at the last n positions; no pass goes on from it."""
        return RecurrentStream(self.x[:, -n:])

    def repeated(self, n: int, running: Float[Tensor, "n_batch pos d_model"]) -> RecurrentStream:
        """This state n times over along the batch, with `running` in the stream's place."""
        parts = {
            name: None if tensor is None else tensor.repeat(n, *[1] * (tensor.ndim - 1))
            for name in ("x0", "value", "start", "summary", "gate", "remaining")
            for tensor in [getattr(self, name)]
        }
        return RecurrentStream(running, **parts, kept=tuple((layer, t.repeat(n, 1, 1)) for layer, t in self.kept))

    def __add__(self, update: Tensor) -> RecurrentStream:
        return replace(self, x=self.x + update)


def _vector(*shape: int, cfg: ModelConfig) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=cfg.dtype))


def _normal(parameter: Tensor, deviation: float, generator: torch.Generator) -> None:
    parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, deviation, generator=generator))


def add_product(x: Tensor, a: Tensor, b: Tensor, hook: HookPoint) -> Tensor:
    """x + a·b, broadcast; `hook` sees a·b, which is made on its own only while it is watched."""
    if is_watched(hook):
        return x + hook(torch.broadcast_to(a * b, x.shape))
    return torch.addcmul(x, a.to(x.dtype), b.to(x.dtype))


class Control(nn.Module):
    """Per effective layer: attn_scale, mlp_scale [L, d], ones; mix [L, 2, d], (1, 0).

    attn_out = attn_scale ⊙ Attn(·), mlp_out = mlp_scale ⊙ MLP(·), and a layer reads m₀ ⊙ x + m₁ ⊙ x₀.
    """

    def __init__(self, cfg: ModelConfig, recurrence: Recurrence) -> None:
        super().__init__()
        if recurrence.attn_scale:
            self.attn_scale = _vector(cfg.n_layers, cfg.d_model, cfg=cfg)
        if recurrence.mlp_scale:
            self.mlp_scale = _vector(cfg.n_layers, cfg.d_model, cfg=cfg)
        if recurrence.residual_mix:
            self.mix = _vector(cfg.n_layers, 2, cfg.d_model, cfg=cfg)

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        for name, parameter in self.named_parameters():
            parameter.fill_(1.0)
            if name == "mix":
                parameter[:, 1] = 0.0


class ValueEmbed(nn.Module):
    """A second token table W_E [d_vocab d], zero; and, for `value`, λ [L], ones: V = W_V(norm(x) + λ_ℓ W_E[token]).

    With `embed` its rows are added to the token embedding instead.
    """

    def __init__(self, cfg: ModelConfig, recurrence: Recurrence) -> None:
        super().__init__()
        self.W_E = _vector(cfg.d_vocab, cfg.d_model, cfg=cfg)
        if recurrence.value_embed == "value":
            self.scale = _vector(cfg.n_layers, cfg=cfg)

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        self.W_E.zero_()
        if "scale" in self._parameters:
            self.scale.fill_(1.0)

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return F.embedding(tokens, self.W_E)


class Resonance(nn.Module):
    """x += s_p cos(t f_p) ⊙ x at position t; s [P] = .1, f [P, d/2] ~ N(0, .01²), its cosines doubled to d."""

    def __init__(self, cfg: ModelConfig, recurrence: Recurrence) -> None:
        super().__init__()
        self.strength = _vector(recurrence.n_passes, cfg=cfg)
        self.frequency = _vector(recurrence.n_passes, cfg.d_model // 2, cfg=cfg)

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        self.strength.fill_(RESONANCE)
        _normal(self.frequency, FREQUENCY, generator)

    def forward(self, x: Tensor, index: int, offset: int, hook: HookPoint) -> Tensor:
        frequency = self.frequency[index]
        wide = frequency if frequency.dtype == torch.float64 else frequency.float()
        positions = torch.arange(offset, offset + x.shape[1], device=x.device, dtype=wide.dtype)
        waves = self.strength[index] * torch.cos(positions[:, None] * wide)
        return add_product(x, x, torch.cat((waves, waves), dim=-1).to(x.dtype), hook)


class Carry(nn.Module):
    """x += σ(g_p)·((1 − z) s + z h), z = σ(s A_z B_z), h = tanh(s A_h B_h): a selective GRU over depth.

    s is the causal prefix mean of the previous pass's last stream: at position t the mean over positions ≤ t. (The
    published run took the mean over all positions, which shows a token its future.) A [d, rank] ~ N(0, range²),
    B [rank, d] zero, g [P − 1] zero.
    """

    def __init__(self, cfg: ModelConfig, recurrence: Recurrence) -> None:
        super().__init__()
        rank, self.deviation = recurrence.carry_rank or 1, cfg.initializer_range
        self.W_Az, self.W_Ah = _vector(cfg.d_model, rank, cfg=cfg), _vector(cfg.d_model, rank, cfg=cfg)
        self.W_Bz, self.W_Bh = _vector(rank, cfg.d_model, cfg=cfg), _vector(rank, cfg.d_model, cfg=cfg)
        self.gain = _vector(recurrence.n_passes - 1, cfg=cfg)

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        for parameter in (self.W_Az, self.W_Ah):
            _normal(parameter, self.deviation, generator)
        for parameter in (self.W_Bz, self.W_Bh, self.gain):
            parameter.zero_()

    def forward(self, x: Tensor, summary: Tensor, index: int, cache: KeyValueCache | None, hook: HookPoint) -> Tensor:
        s = prefix_mean(summary, index, cache)
        z = torch.sigmoid((s @ self.W_Az) @ self.W_Bz).to(s.dtype)
        h = torch.tanh((s @ self.W_Ah) @ self.W_Bh).to(s.dtype)
        return add_product(x, torch.lerp(s, h, z), torch.sigmoid(self.gain[index - 1]), hook)


def prefix_mean(
    x: Float[Tensor, "batch pos d_model"], index: int, cache: KeyValueCache | None = None
) -> Float[Tensor, "batch pos d_model"]:
    """Mean over positions up to and with each one; with a cache, tokens seen before count too."""
    sums = x.cumsum(1) if cache is None else cache.prefix_sum(index, x)
    offset = 0 if cache is None else cache.length
    counts = torch.arange(offset + 1, offset + x.shape[1] + 1, device=x.device, dtype=x.dtype)
    return sums / counts[:, None]


class Confidence(nn.Module):
    """x += c·u_p, c the previous pass's exit gate (no gradient); u [P − 1, d] zero."""

    def __init__(self, cfg: ModelConfig, recurrence: Recurrence) -> None:
        super().__init__()
        self.direction = _vector(recurrence.n_passes - 1, cfg.d_model, cfg=cfg)

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        self.direction.zero_()

    def forward(self, x: Tensor, gate: Float[Tensor, "batch pos"], index: int, hook: HookPoint) -> Tensor:
        return add_product(x, gate.detach()[..., None], self.direction[index - 1], hook)


class Memory(nn.Module):
    """x += m_p ⊙ |x − x_prev|, x_prev the stream that entered the previous pass (no gradient); m [P − 1, d] = .1."""

    def __init__(self, cfg: ModelConfig, recurrence: Recurrence) -> None:
        super().__init__()
        self.strength = _vector(recurrence.n_passes - 1, cfg.d_model, cfg=cfg)

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        self.strength.fill_(MEMORY)

    def forward(self, x: Tensor, previous: Tensor, index: int, hook: HookPoint) -> Tensor:
        return add_product(x, (x - previous.detach()).abs(), self.strength[index - 1], hook)


class Skips(nn.Module):
    """A layer adds w_t · (output of an earlier layer); w [number of skips] zero, in the order of target layers."""

    def __init__(self, cfg: ModelConfig, recurrence: Recurrence) -> None:
        super().__init__()
        self.source_of = dict(sorted(recurrence.skip_sources(cfg.n_layers).items()))
        self.scale = _vector(len(self.source_of), cfg=cfg)

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        self.scale.zero_()

    def forward(self, x: Tensor, kept: Sequence[tuple[int, Tensor]], layer: int, hook: HookPoint) -> Tensor:
        earlier = dict(kept)[self.source_of[layer]]
        return add_product(x, earlier, self.scale[list(self.source_of).index(layer)], hook)


class TemporalDifference(nn.Module):
    """x += σ(a_p)·corr, corr = x A B − x_start, x_start the stream that entered the pass; from the second pass on.

    A [d, rank] ~ N(0, range²), B [rank, d] zero, a [P − 1] = .1. Training adds a weight times mean(corr²).
    """

    def __init__(self, cfg: ModelConfig, recurrence: Recurrence) -> None:
        super().__init__()
        rank, self.deviation = recurrence.td_rank or 1, cfg.initializer_range
        self.W_A, self.W_B = _vector(cfg.d_model, rank, cfg=cfg), _vector(rank, cfg.d_model, cfg=cfg)
        self.gain = _vector(recurrence.n_passes - 1, cfg=cfg)

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        _normal(self.W_A, self.deviation, generator)
        self.W_B.zero_()
        self.gain.fill_(TD_GAIN)

    def forward(self, x: Tensor, start: Tensor, index: int, hook: HookPoint) -> Tensor:
        corr = hook(((x @ self.W_A) @ self.W_B).to(x.dtype) - start)
        return torch.addcmul(x, corr, torch.sigmoid(self.gain[index - 1]).to(x.dtype))


class ExitGate(nn.Module):
    """g = σ(x·w + b) per token: the share of it that goes on to the next pass; w [d] zero, b = 2. All passes share it.

    Halting mass before pass p is 1 − r_p with r_p = Π_{q<p} g_q; the pass moves a token by r_p of the way:
    x ← x_start + r_p (x − x_start). The last pass has no gate: behind it there is nothing to freeze.
    """

    def __init__(self, cfg: ModelConfig, recurrence: Recurrence) -> None:
        super().__init__()
        self.weight, self.bias = _vector(cfg.d_model, cfg=cfg), _vector(1, cfg=cfg)

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        self.weight.zero_()
        self.bias.fill_(GATE_BIAS)

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
        return torch.sigmoid((x @ self.weight).to(x.dtype) + self.bias)


def exit_depth(gates: Sequence[Float[Tensor, "batch pos"]]) -> Float[Tensor, "batch pos"]:
    """Expected number of passes of each token, 1 + g₀ + g₀g₁ + …, from the gates of all passes but the last."""
    remaining, depth = torch.ones_like(gates[0]), torch.ones_like(gates[0])
    for gate in gates:
        remaining = remaining * gate
        depth = depth + remaining
    return depth


class Routes(nn.Module):
    """MLP gain 1 + Σ_k α_k γ_k of a token, α = softmax(h D), h the MLP's normalised input.

    D [d, k] is made of W_route [n_unique, d, k] ~ N(0, 1): its columns, each divided by its norm (`free`), or the Q of
    its QR decomposition (`orthonormal`), so that h D are coordinates in one k-dimensional subspace, h's projection on
    it is h D Dᵀ, and no direction repeats another. γ [L, k] zero.
    """

    def __init__(self, cfg: ModelConfig, recurrence: Recurrence) -> None:
        super().__init__()
        n_routes = recurrence.n_routes or 1
        self.is_orthonormal = recurrence.routes == "orthonormal"
        self.W_route = _vector(recurrence.n_unique, cfg.d_model, n_routes, cfg=cfg)
        self.gain = _vector(cfg.n_layers, n_routes, cfg=cfg)

    def reset(self, generator: torch.Generator) -> None:
        """Initial values."""
        _normal(self.W_route, 1.0, generator)
        self.gain.zero_()

    def directions(self, index: int) -> Float[Tensor, "d_model route"]:
        """D of unique block `index`."""
        W = self.W_route[index]
        return orthonormal(W) if self.is_orthonormal else F.normalize(W, dim=0)

    def forward(self, h: Tensor, layer: int, hook: HookPoint) -> Float[Tensor, "batch pos 1"]:
        directions = self.directions(layer % len(self.W_route))
        alpha = hook(torch.softmax((h @ directions.to(h.dtype)).to(h.dtype), dim=-1))
        return 1 + (alpha @ self.gain[layer].to(h.dtype)).to(h.dtype)[..., None]


def orthonormal(W: Float[Tensor, "d_model k"]) -> Float[Tensor, "d_model k"]:
    """Q of W = QR with a positive diagonal of R: an orthonormal basis of the span of W's columns, k ≤ d.

    Gram–Schmidt, each column twice, which leaves rounding alone (Giraud et al. 2005); its gradient is autograd's.
    """
    columns: list[Tensor] = []
    wide = W if W.dtype == torch.float64 else W.float()
    for column in wide.unbind(1):
        for q in columns * 2:
            column = column - (q * column).sum() * q  # a sum stays in float32 under autocast, a product would not
        columns.append(F.normalize(column, dim=0))
    return torch.stack(columns, dim=1).to(W.dtype)


class Pass(nn.Module):
    """What happens before and after the blocks of one pass; holds hooks, the weights are the mechanisms'.

    hook_resonance, hook_carry, hook_confidence, hook_memory [batch pos d_model] see what is added to the stream,
    hook_td corr before its gain, hook_exit_gate [batch pos] the gate g.
    """

    def __init__(self, index: int, recurrence: Recurrence, mechanisms: nn.ModuleDict) -> None:
        super().__init__()
        self.index, self.is_last = index, index == recurrence.n_passes - 1
        self.acts = recurrence.exit_gate == "act"
        self._of = dict(mechanisms.items())  # not registered again: each has its name in the model already
        for name in ("resonance", "carry", "confidence", "memory", "td"):
            if name in self._of and (index or name == "resonance"):
                self.add_module(f"hook_{name}", HookPoint())
        if "exit_gate" in self._of and not self.is_last:
            self.hook_exit_gate = HookPoint()

    def begin(self, state: RecurrentStream, cache: KeyValueCache | None) -> RecurrentStream:
        """The state that the pass's first block reads."""
        x, index, of = state.x, self.index, self._of
        if "resonance" in of:
            x = of["resonance"](x, index, 0 if cache is None else cache.length, self.hook_resonance)
        if index:
            if "carry" in of:
                x = of["carry"](x, state.summary, index, cache, self.hook_carry)
            if "confidence" in of:
                x = of["confidence"](x, state.gate, index, self.hook_confidence)
            if "memory" in of:
                x = of["memory"](x, state.start, index, self.hook_memory)
        return replace(state, x=x, start=state.x)

    def end(self, state: RecurrentStream) -> RecurrentStream:
        """The state after the pass, from the one that its last block leaves."""
        x, index, of = state.x, self.index, self._of
        assert state.start is not None, "a pass that ends has begun"
        if "td" in of and index:
            x = of["td"](x, state.start, index, self.hook_td)
        summary = x if "carry" in of and not self.is_last else None
        if self.acts and state.remaining is not None:
            x = torch.lerp(state.start, x, state.remaining[..., None])
        gate, remaining = state.gate, state.remaining
        if "exit_gate" in of and not self.is_last:
            gate = self.hook_exit_gate(of["exit_gate"](x))
            remaining = gate if remaining is None else remaining * gate
        return replace(state, x=x, summary=summary, gate=gate, remaining=remaining)


def build_mechanisms(cfg: ModelConfig, recurrence: Recurrence) -> nn.ModuleDict:
    """The mechanisms that are switched on, by name."""
    has_control = recurrence.attn_scale or recurrence.mlp_scale or recurrence.residual_mix
    wanted: dict[str, tuple[type[nn.Module], bool]] = {
        "control": (Control, has_control),
        "value_embed": (ValueEmbed, recurrence.value_embed != "off"),
        "resonance": (Resonance, recurrence.resonance),
        "carry": (Carry, recurrence.carry_rank is not None),
        "confidence": (Confidence, recurrence.confidence),
        "memory": (Memory, recurrence.memory),
        "skips": (Skips, bool(recurrence.skip_sources(cfg.n_layers))),
        "td": (TemporalDifference, recurrence.td_rank is not None),
        "exit_gate": (ExitGate, recurrence.exit_gate != "off"),
        "routes": (Routes, recurrence.n_routes is not None),
    }
    return nn.ModuleDict({name: kind(cfg, recurrence) for name, (kind, is_on) in wanted.items() if is_on})


MECHANISMS = (
    "control", "value_embed", "resonance", "carry", "confidence", "memory", "skips", "td", "exit_gate", "routes",
)  # fmt: skip


@torch.no_grad()
def reset_mechanisms(mechanisms: nn.ModuleDict, generator: torch.Generator) -> None:
    """Draw the initial values of all mechanisms, each from a generator of its own: one does not shift another's."""
    for name in MECHANISMS:
        seed = int(torch.randint(1 << 62, (), generator=generator))
        if name in mechanisms:
            mechanisms[name].reset(torch.Generator().manual_seed(seed))  # type: ignore[operator]
