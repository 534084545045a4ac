"""Sparse autoencoders that share one leading axis: encode, decode, start.

The layout is [n_saes, tokens, d_in] everywhere: one batched product serves the stack. A stack of one also takes and
returns tensors without that axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.architecture import Architecture
from sae.architectures import architecture_of
from sae.checkpoint import load_stack, save_stack, shorten
from sae.config import SAEConfig, StackInfo, as_list
from sae.gemma_scope import load_gemma_scope
from sae.sae_lens_format import load_sae_lens, save_sae_lens
from sae.tensors import check_tensors
from sae.token_norms import normalise, output_scale, restore

Acts = Float[Tensor, "n_saes tokens d_sae"] | Float[Tensor, "tokens d_sae"]
Inputs = Float[Tensor, "n_saes tokens d_in"] | Float[Tensor, "tokens d_in"]
Outputs = Float[Tensor, "n_saes tokens d_out"] | Float[Tensor, "tokens d_out"]


def spawn_generators(
    generator: torch.Generator, n: int, keys: Sequence[Sequence[int]] | None = None
) -> list[torch.Generator]:
    """`n` CPU generators: the k-th depends on `generator`'s state and on `keys[k]` (default (k,)), never on the others.

    One number is drawn from `generator`, whatever n is. With keys such as (layer, head, seed) an SAE gets the same
    stream whatever it is trained together with. Raises ValueError for keys that are not n distinct tuples of
    non-negative integers.
    """
    keys = [(k,) for k in range(n)] if keys is None else [tuple(key) for key in keys]
    if len(keys) != n or len(set(keys)) != n or any(part < 0 for key in keys for part in key):
        raise ValueError(f"spawn_generators: keys are {keys}; expected {n} distinct tuples of integers ≥ 0")
    base = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    spawned = []
    for key in keys:
        seed = np.random.SeedSequence(base, spawn_key=key).generate_state(1, np.uint64)[0]
        # torch seeds are signed in state files
        spawned.append(torch.Generator().manual_seed(int(seed) & (2**63 - 1)))
    return spawned


def geometric_median(
    x: Float[Tensor, "... tokens d_in"], n_iterations: int = 200, tolerance: float = 1e-10
) -> Float[Tensor, "... d_in"]:
    """Point with the least summed Euclidean distance to the tokens, float64, for every leading index at once.

    Weiszfeld's iteration from the mean, a token's weight being 1/distance; stops when no point moves by more than
    `tolerance` of the mean distance. Where the iterate is a token itself, the others' pull decides whether it stays
    (Vardi & Zhang 2000). Source: Weiszfeld 1937.
    """
    x = x.double()
    median = x.mean(dim=-2)
    for _ in range(n_iterations):
        distance = (x - median.unsqueeze(-2)).norm(dim=-1)
        mean_distance = distance.mean(dim=-1, keepdim=True)
        is_there = distance <= 1e-12 * mean_distance
        weight = torch.where(is_there, 0, 1 / distance)
        total = weight.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        move = torch.einsum("...td,...t->...d", x - median.unsqueeze(-2), weight / total)
        # a token holds the point against a pull of up to 1, n tokens there against n
        pull = (move * total).norm(dim=-1, keepdim=True)
        held = torch.where(pull > 0, is_there.sum(dim=-1, keepdim=True) / pull, 1.0).clamp_max(1)
        move = move * (1 - held)
        median = median + move
        if bool((move.norm(dim=-1) <= tolerance * mean_distance.squeeze(-1)).all()):
            break
    return median


def check_input_index(
    input_index: Int[Tensor, " n_saes"] | Sequence[int] | int | None, n_saes: int, n_inputs: int
) -> list[int]:
    """Input slot of every SAE as a list; None stands for one slot per SAE.

    Raises ValueError for a wrong length or a slot that does not exist.
    """
    if input_index is None:
        if n_inputs != n_saes:
            raise ValueError(f"input_index: got None with {n_inputs} inputs; expected one for each of {n_saes} SAEs")
        return list(range(n_saes))
    slots = [int(slot) for slot in as_list("input_index", input_index)]
    if len(slots) != n_saes or any(not 0 <= slot < n_inputs for slot in slots):
        raise ValueError(f"input_index: got {slots}; expected {n_saes} slots in [0, {n_inputs})")
    return slots


def check_target(who: str, config: SAEConfig, x: Tensor, y: Tensor | None) -> None:
    """Raise ValueError unless y is there where the SAEs reconstruct another activation than x, of the same slots and
    tokens, and only there."""
    if not architecture_of(config).reads_pair:
        if y is not None:
            raise ValueError(f"{who}: got a y with {config.architecture}, which reconstructs x; expected none")
        return
    expected = (*x.shape[:2], config.d_target)
    if y is None or tuple(y.shape) != expected or not y.is_floating_point():
        got = "no y" if y is None else f"a y of shape {tuple(y.shape)}, {y.dtype},"
        raise ValueError(
            f"{who}: got {got} with {config.architecture}; expected what it reconstructs, floating-point {expected}"
        )


class StackedSAE(nn.Module):
    """A stack of SAEs of one size and architecture. Parameters, with n_saes leading, are those of its architecture's
    file: W_enc [n_saes, d_in, d_sae], W_dec [n_saes, d_sae, d_out] and b_dec [n_saes, d_out] in all, b_enc [n_saes,
    d_sae] in most; some have a threshold. d_out is d_in but of transcoders, which reconstruct another activation.

        acts = A((x − b_dec) W_enc + b_enc),  recon = acts W_dec + b_dec

    (without `− b_dec` if config.apply_b_dec_to_input is False), where A is relu, topk …; gated has two such products.
    Gradients for training come from `loss_and_gradients`, which alone knows the straight-through gradient of a
    threshold; autograd through encode gives it none.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    threshold: Tensor
    W_skip: Tensor

    def __init__(
        self,
        config: SAEConfig,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        *,
        data: Float[Tensor, "n_inputs tokens d_out"] | None = None,
        input_index: Int[Tensor, " n_saes"] | Sequence[int] | int | None = None,
        info: StackInfo | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """A stack at its start.

        Rows of W_dec are uniform directions times decoder_init_norm, W_enc = W_decᵀ; b_dec is 0 or the mean or
        geometric median of `data`, which is of what is reconstructed (`input_index[k]` names SAE k's slot in it).
        A transcoder's W_dec is 0. One generator is spawned into one stream
        per SAE (`spawn_generators`); a sequence gives each SAE its own, so that its start does not depend on the rest
        of the stack. Draws are made in float64 and rounded to `dtype`. Without a generator the parameters are nan until
        they are loaded.

        Raises ValueError for data or generators that do not fit the config.
        """
        super().__init__()
        self.config = config
        self.info = info if info is not None else StackInfo()
        if self.info.sources and len(self.info.sources) != config.n_saes:
            raise ValueError(f"StackedSAE: {len(self.info.sources)} sources; expected {config.n_saes}, one a SAE")
        n = config.n_saes
        start = torch.full((n, config.d_sae, config.d_in), torch.nan, dtype=torch.float64)
        if generator is not None:
            start = _draw_directions(config, generator) * config.decoder_init_norm
        fill = 0.0 if generator is not None else torch.nan

        drawn = {"W_enc": rearrange(start, "n f d -> n d f")}
        if not self.architecture.reads_pair:
            drawn["W_dec"] = start
        if generator is not None:
            drawn["b_dec"] = _start_b_dec(config, data, input_index)
        for name, spec in self.architecture.tensors(config).items():
            values = drawn[name] if name in drawn else torch.full((n, *spec.shape(config)), spec.start + fill)
            tensor = values.to(device=device, dtype=dtype).contiguous().clone()
            if spec.is_trained:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    @classmethod
    def from_tensors(cls, config: SAEConfig, tensors: dict[str, Tensor], info: StackInfo | None = None) -> StackedSAE:
        """A stack with these parameters (`tensor_shapes(config)`), in their dtype and on their device.

        Raises ValueError naming the tensor that is missing, unknown, of another shape, mixed in dtype, or not finite.
        """
        check_tensors(config, tensors)
        first = tensors["W_dec"]
        sae = cls(config, info=info, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            for name, own in sae.state_dict().items():
                own.copy_(tensors[name])
        return sae

    @property
    def architecture(self) -> Architecture:
        """What the stack computes, and how it is trained."""
        return architecture_of(self.config)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, in the architecture's order."""
        return {name: getattr(self, name) for name in self.architecture.tensors(self.config)}

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the parameters."""
        return self.W_dec.dtype

    def encode(self, x: Inputs) -> Acts:
        """Activations of every feature, [n_saes, tokens, d_sae]; [tokens, d_sae] for [tokens, d_in] and one SAE.

        x is cast to the parameters' dtype. Raises ValueError for another shape or an integer tensor.
        """
        stacked = self._with_axis(x, self.config.d_in, "encode: x")
        if (norm := self.config.normalize_inputs) is not None:
            stacked = normalise(norm, stacked)
        acts = self.architecture.encode(self.config, self.tensors, stacked)
        return acts if x.ndim == 3 else acts[0]

    def decode(self, acts: Acts, x: Inputs | None = None) -> Outputs:
        """Reconstruction acts W_dec + b_dec, [n_saes, tokens, d_out]; [tokens, d_out] for [tokens, d_sae] and one SAE.

        x is what was encoded, which changes something, and is needed, in two cases: a skip transcoder adds x W_skipᵀ,
        and where each token is normalised (config.normalize_inputs) the reconstruction is scaled back.

        Raises ValueError for another shape, an integer tensor or an x that is missing.
        """
        stacked, norm = self._with_axis(acts, self.config.d_sae, "decode: acts"), self.config.normalize_inputs
        recon = self.architecture.decode(self.config, self.tensors, stacked)
        if norm is not None or self.architecture.has_skip:
            if x is None or x.shape[:-1] != acts.shape[:-1]:
                got = "none" if x is None else f"shape {tuple(x.shape)}"
                with_norm = "" if norm is None else f" with normalize_inputs = {norm!r}"
                raise ValueError(f"decode: x is {got}; expected what a {self.config.architecture} encoded{with_norm}")
            own = self._with_axis(x, self.config.d_in, "decode: x")
            if self.architecture.has_skip:
                recon = recon + self.architecture.skip(self.config, self.tensors, own)
            recon = recon if norm is None else restore(norm, recon, own)
        return recon if acts.ndim == 3 else recon[0]

    @property
    def directions(self) -> Float[Tensor, "n_saes d_sae d_out"]:
        """What one unit of each feature's activation adds to the reconstruction, without gradient: decoder rows, of an
        architecture that folds their norms those of norm 1; times `output_scale` where tokens are normalised."""
        with torch.no_grad():
            return self.architecture.directions(self.config, self.tensors).detach()

    def output_scale(self, x: Float[Tensor, "n_saes tokens d_in"]) -> Float[Tensor, "n_saes tokens"] | None:
        """What one unit of activation adds to the reconstruction of each token, in multiples of its decoder row; None
        where that is 1 for all, since no token is normalised."""
        norm = self.config.normalize_inputs
        return None if norm is None else output_scale(norm, self._with_axis(x, self.config.d_in, "output_scale: x"))

    def forward(self, x: Inputs) -> tuple[Acts, Outputs]:
        """(acts, recon) of x: `encode`, then `decode`."""
        acts = self.encode(x)
        return acts, self.decode(acts, x)

    def select(self, indices: Sequence[int] | int) -> StackedSAE:
        """A new stack with copies of these SAEs, in this order. Raises ValueError for an index that does not exist."""
        indices = [int(index) for index in as_list("StackedSAE.select", indices)]
        n = self.config.n_saes
        if not indices or any(not 0 <= index < n for index in indices):
            raise ValueError(f"StackedSAE.select: got {indices}; expected at least one index in [0, {n})")
        sources = tuple(self.info.sources[index] for index in indices) if self.info.sources else ()
        config = self.config.model_copy(update={"n_saes": len(indices)})
        info = self.info.model_copy(update={"sources": sources})
        return StackedSAE.from_tensors(config, {name: t[indices] for name, t in self.state_dict().items()}, info)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        """Write the stack into a new directory, see `sae.checkpoint.save_stack`; returns its path."""
        return save_stack(directory, self.config, self.state_dict(), self.info, overwrite=overwrite)

    @staticmethod
    def load(directory: str | Path) -> StackedSAE:
        """The stack that `save` wrote, see `sae.checkpoint.load_stack`."""
        return StackedSAE.from_tensors(*load_stack(directory))

    def to_sae_lens(self, directory: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write one SAELens folder per SAE, see `sae.sae_lens_format.save_sae_lens`; returns their paths."""
        return save_sae_lens(directory, self.config, self.state_dict(), self.info, overwrite=overwrite)

    @staticmethod
    def from_sae_lens(
        directory: str | Path, *, norm_scale: float | None = None, overrides: Mapping[str, Any] | None = None
    ) -> StackedSAE:
        """The stack of one SAELens folder or of a folder of them, see `sae.sae_lens_format.load_sae_lens`."""
        return StackedSAE.from_tensors(*load_sae_lens(directory, norm_scale=norm_scale, overrides=overrides))

    @staticmethod
    def from_gemma_scope(path: str | Path, *, hook_name: str | None = None, layer: int | None = None) -> StackedSAE:
        """The stack of one SAE of Gemma Scope, see `sae.gemma_scope.load_gemma_scope`."""
        return StackedSAE.from_tensors(*load_gemma_scope(path, hook_name=hook_name, layer=layer))

    def _with_axis(self, x: Tensor, width: int, what: str) -> Tensor:
        n = self.config.n_saes
        fits = x.ndim == 3 and x.shape[0] == n or x.ndim == 2 and n == 1
        if not fits or x.shape[-1] != width:
            alone = f" or (tokens, {width})" if n == 1 else ""
            raise ValueError(f"{what} has shape {tuple(x.shape)}; expected ({n}, tokens, {width}){alone}")
        if not x.is_floating_point():
            raise ValueError(f"{what} is {x.dtype}; expected a floating-point tensor")
        return (x if x.ndim == 3 else x.unsqueeze(0)).to(self.dtype)


def check_model(sae: StackedSAE, model_sha256: str, model_name: str | None = None) -> None:
    """Nothing if the SAEs belong to the model whose weights have this sha256.

    Raises ValueError naming both models if they differ, or if the stack does not say whose it is.
    """
    own = sae.info.model_sha256
    given = f"{model_name or 'model'} with sha256 {model_sha256}"
    if own is None:
        raise ValueError(f"check_model: the SAEs do not say which model they belong to; expected {given}")
    if own != model_sha256:
        raise ValueError(
            f"check_model: the SAEs belong to {shorten(sae.info.model_name or 'a model')} with sha256 {shorten(own)}; "
            f"expected {given}"
        )


def _draw_directions(
    config: SAEConfig, generator: torch.Generator | Sequence[torch.Generator]
) -> Float[Tensor, "n_saes d_sae d_in"]:
    if isinstance(generator, torch.Generator):
        generator = spawn_generators(generator, config.n_saes)
    if len(generator) != config.n_saes:
        raise ValueError(
            f"StackedSAE: got {len(generator)} generators; expected one, or one for each of {config.n_saes} SAEs"
        )
    rows = torch.stack(
        [
            torch.randn(config.d_sae, config.d_in, generator=own, device=own.device, dtype=torch.float64).cpu()
            for own in generator
        ]
    )
    return rows / rows.norm(dim=-1, keepdim=True)


def _start_b_dec(
    config: SAEConfig,
    data: Tensor | None,
    input_index: Int[Tensor, " n_saes"] | Sequence[int] | int | None,
) -> Float[Tensor, "n_saes d_out"]:
    if config.b_dec_init == "zero":
        return torch.zeros(config.n_saes, config.d_target, dtype=torch.float64)
    if data is None or data.ndim != 3 or data.shape[1] == 0 or data.shape[2] != config.d_target:
        got = None if data is None else tuple(data.shape)
        raise ValueError(
            f"StackedSAE: data has shape {got}; "
            f"expected (n_inputs, tokens ≥ 1, {config.d_target}) for b_dec_init {config.b_dec_init!r}"
        )
    slots = check_input_index(input_index, config.n_saes, data.shape[0])
    if not bool(data.isfinite().all()):
        raise ValueError("StackedSAE: data has nan or inf; expected finite activations")
    is_mean = config.b_dec_init == "mean"
    centre = reduce(data.double(), "i t d -> i d", "mean") if is_mean else geometric_median(data)
    return centre.cpu()[slots]
