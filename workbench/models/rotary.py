"""Rotation of queries and keys by position (Su et al. 2021), and the ways in which it is stretched."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.models.config import ModelConfig, RopeScaling


class Rotary(nn.Module):
    """Rotates each pair of a head's dimensions by position × frequency; tables in float32, grown on demand up to n_ctx.

    Pairs are (i, i + d/2) or, with `rotary_adjacent_pairs`, (2i, 2i + 1). Local layers may have a base of their own,
    whose frequencies nothing stretches.
    """

    def __init__(self, cfg: ModelConfig, layer: int = 0) -> None:
        super().__init__()
        self.dim, self.adjacent = cfg.rotary_dim or cfg.d_head, cfg.rotary_adjacent_pairs
        own_base = cfg.rotary_base_local if cfg.is_local(layer) else None
        scaling = cfg.extensions.rope if own_base is None else None
        # no buffers: `.to(dtype)` would round them
        plain = frequencies(own_base or cfg.rotary_base, self.dim)
        self.inverse_frequency = plain if own_base is not None else stretched(plain, cfg)
        self.long_frequency: Tensor | None = None  # of sequences longer than `switch`
        self.switch, self.factor = cfg.n_ctx, 1.0
        if scaling is not None:
            self.factor = attention_factor(scaling, cfg.n_ctx)
            if scaling.rope_type == "longrope":
                self.switch = scaling.original_n_ctx
                self.long_frequency = plain / torch.tensor(scaling.long_factor, dtype=plain.dtype, device="cpu")
        self.tables: dict[tuple[int, bool, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def cos_sin(self, n: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of position × frequency of a sequence of n tokens, [n, dim/2] each, in `dtype`."""
        return self._table(n, self.long_frequency is not None and n > self.switch, device, dtype)

    def cos_sin_at(
        self, places: Int[Tensor, "batch pos"], n: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """As `cos_sin` at places below n of sequences of unequal lengths, [batch pos dim/2] each: every sequence, as
        long as its last place says, has the frequencies that it would have alone."""
        cos, sin = (table[places] for table in self._table(n, False, device, dtype))
        if self.long_frequency is None or n <= self.switch:
            return cos, sin
        is_long = (places[:, -1:] >= self.switch)[..., None]
        long_cos, long_sin = (table[places] for table in self._table(n, True, device, dtype))
        return torch.where(is_long, long_cos, cos), torch.where(is_long, long_sin, sin)

    def _table(self, n: int, is_long: bool, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        size = 1 << max(0, n - 1).bit_length()
        key = (size, is_long, device, dtype)
        if key not in self.tables:
            self.tables = {k: v for k, v in self.tables.items() if k[1:] != key[1:]}
            with torch.inference_mode(False):  # kept for later calls, which may take gradients
                frequency = self.long_frequency if is_long else self.inverse_frequency
                angles = torch.outer(torch.arange(size, dtype=torch.float64, device="cpu"), frequency)  # type: ignore[arg-type]
                cos, sin = angles.cos() * self.factor, angles.sin() * self.factor
                self.tables[key] = (cos.to(device, dtype), sin.to(device, dtype))
        cos, sin = self.tables[key]
        return cos[:n], sin[:n]

    def forward(
        self, x: Float[Tensor, "batch pos head d_head"], offset: int = 0, places: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos head d_head"]:
        """x turned by its positions, `offset` and those behind it, or in each sequence by its own `places`."""
        n = offset + x.shape[1]
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        if places is None:
            cos, sin = (t[offset:, None, :] for t in self.cos_sin(n, x.device, wide))
        else:
            cos, sin = (t[:, :, None, :] for t in self.cos_sin_at(places, n, x.device, wide))
        turned, rest = x[..., : self.dim], x[..., self.dim :]
        if self.adjacent and not torch.compiler.is_compiling():  # the compiler has no complex numbers
            # an adjacent pair is a complex number in memory: one product turns it, where four and two sums would
            # (contiguous copies only what a hook, or a partial rotation, has laid out otherwise)
            pairs = torch.view_as_complex(turned.to(wide).contiguous().unflatten(-1, (-1, 2)))
            turned = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
        elif self.adjacent:
            a, b = turned.unflatten(-1, (-1, 2)).unbind(-1)
            turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        else:
            a, b = turned.chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
        turned = turned.to(x.dtype)
        return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def frequencies(base: float, dim: int) -> Float[Tensor, "half"]:
    """Radians per position of each pair, in float64."""
    # on the CPU also while a model is built on meta: these are numbers, not weights
    return 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)


def stretched(inverse: Float[Tensor, "half"], cfg: ModelConfig) -> Float[Tensor, "half"]:
    """The frequencies as the configuration stretches them: all alike (linear), or slow ones more than fast ones, as
    published for Llama 3.1 (NTK by parts) and by Peng et al. 2023 (YaRN), or each by a factor of its own (LongRoPE,
    Ding et al. 2024; these are those of short sequences). The dynamic kind stretches nothing up to n_ctx."""
    scaling = cfg.extensions.rope
    if cfg.use_NTK_by_parts_rope:
        wavelength = 2 * math.pi / inverse
        low = cfg.NTK_original_ctx_len / cfg.NTK_by_parts_low_freq_factor
        high = cfg.NTK_original_ctx_len / cfg.NTK_by_parts_high_freq_factor
        kept = ((cfg.NTK_original_ctx_len / wavelength) - cfg.NTK_by_parts_low_freq_factor) / (
            cfg.NTK_by_parts_high_freq_factor - cfg.NTK_by_parts_low_freq_factor
        )
        mixed = (1 - kept) * inverse / cfg.NTK_by_parts_factor + kept * inverse
        inverse = torch.where(
            wavelength > low, inverse / cfg.NTK_by_parts_factor, torch.where(wavelength < high, inverse, mixed)
        )
    elif scaling is not None and scaling.rope_type == "yarn":
        kept = 1 - _ramp(scaling, cfg.rotary_base, 2 * len(inverse)).to(inverse.dtype)
        inverse = inverse / stretch_of(scaling, cfg.n_ctx) * (1 - kept) + inverse * kept
    elif scaling is not None and scaling.rope_type == "longrope":
        inverse = inverse / torch.tensor(scaling.short_factor, dtype=inverse.dtype, device="cpu")
    return inverse / cfg.rotary_scaling_factor


def stretch_of(scaling: RopeScaling, n_ctx: int) -> float:
    """How many times as long the context has become."""
    return scaling.factor if scaling.factor is not None else n_ctx / scaling.original_n_ctx


def attention_factor(scaling: RopeScaling, n_ctx: int) -> float:
    """What cosines and sines are multiplied by, so that scores are of their old spread in the longer context."""
    stretch = stretch_of(scaling, n_ctx)
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.rope_type == "dynamic" or stretch <= 1:
        return 1.0
    if scaling.rope_type == "longrope":
        return math.sqrt(1 + math.log(stretch) / math.log(scaling.original_n_ctx))
    weights = (scaling.mscale, scaling.mscale_all_dim) if scaling.mscale and scaling.mscale_all_dim else (1.0, 0.0)
    over, under = (0.1 * weight * math.log(stretch) + 1.0 for weight in weights)
    return over / under


def _ramp(scaling: RopeScaling, base: float, dim: int) -> Float[Tensor, "half"]:
    """How far each pair is stretched, 0 to 1: by the number of its rotations within the old context."""

    def pair_with(rotations: float) -> float:
        return dim * math.log(scaling.original_n_ctx / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    pairs = torch.arange(dim // 2, dtype=torch.float64, device="cpu")
    return ((pairs - low) / (max(high - low, 0.001))).clamp(0, 1)
