"""Direct logit attribution: what each part of a model adds to the difference of two logits, by what it writes itself.

The stream that the final norm reads is a sum of what the embedding, heads, biases and MLPs wrote, so with that norm's
scale kept as it is the logit difference is a sum over them (Elhage et al. 2021; nostalgebraist 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float64, Int
from torch import Tensor

from workbench.models.checks import checked_tokens, run_hooked
from workbench.models.config import ModelConfig
from workbench.models.layers import Norm
from workbench.models.transformer import HookedLM, check_ours

Part = tuple[str, int | None, int | None]


@dataclass(frozen=True)
class DirectEffects:
    """Contributions to a logit difference, in the order of the stream."""

    parts: tuple[Part, ...]
    """(component, layer, head), layer and head where it has one: embed, pos_embed, head, attn_bias (b_O), norm_bias
    (of a LayerNorm behind attention, or of the final one), mlp, unembed_bias"""
    effects: Float64[Tensor, "part batch"]
    difference: Float64[Tensor, " batch"]
    """the logit difference before any soft cap, which the effects add up to"""


@torch.no_grad()
def direct_logit_attribution(
    model: HookedLM,
    tokens: Int[Tensor, "batch pos"],
    answers: Int[Tensor, " answer"],
    foils: Int[Tensor, " foil"] | None = None,
    position: int | Int[Tensor, " sequence"] = -1,
) -> DirectEffects:
    """What each part adds to logit[answer] − logit[foil] at a position, or to logit[answer] where there is no foil.

    attr(c) = u · (γ ⊙ (c − mean c)) / σ, u = W_U[:, answer] − W_U[:, foil]; σ and γ are the final norm's, σ of the
    whole stream (RMSNorm subtracts no mean; γ = 1 + w where the model has it so). c is what a part adds to the stream:
    of a head z W_O[h], behind a norm (Gemma 2, OLMo 2) γ' ⊙ z W_O[h] / σ', σ' of what the heads write together. Sums
    are in float64. TransformerLens's `ActivationCache.stack_head_results` leaves out the norm behind attention, and its
    `logit_attrs` γ where it is not folded into W_U.

    Under attention residuals the final routing is kept as it is: a part counts with the weight α_i of the sum that it
    is in, Σ_i α_i v_i being what the final norm reads.

    position: of all sequences, or of each its own.

    Raises:
        ValueError: a recurrent model, whose passes rescale what was written, or attention residuals of learned blocks,
            which have no boundaries; answers or foils that are not one id per sequence; a position outside the
            sequence.
    """
    check_ours("direct_logit_attribution", model)
    tokens = checked_tokens("direct_logit_attribution", model, tokens)
    _check(model, tokens, answers, foils, position)
    seen = _written(model, tokens, position)
    stream = seen[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    W_U, norm, is_centred = model.W_U.detach().double(), model.ln_final, model.ln_final.kind == "LN"
    u = W_U[:, answers.to(W_U.device)] - (0 if foils is None else W_U[:, foils.to(W_U.device)])
    centred = stream - stream.mean(-1, keepdim=True) if is_centred else stream
    sigma = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    read = norm.gain.detach().double() * u.T / sigma  # [batch d_model]
    found = _routed(model, _contributions(model, seen), seen)
    parts: list[Part] = list(found)
    written = torch.stack(list(found.values()))
    if is_centred:
        written = written - written.mean(-1, keepdim=True)
    effects = [*einsum(written, read, "part batch d, batch d -> part batch")]
    if is_centred:
        parts.append(("norm_bias", None, None))
        effects.append(norm.b.detach().double() @ u)
    if model.cfg.extensions.unembed_bias:
        b_U = model.unembed.b_U.detach().double()
        parts.append(("unembed_bias", None, None))
        effects.append(b_U[answers.to(b_U.device)] - (0 if foils is None else b_U[foils.to(b_U.device)]))
    total = torch.stack(effects)
    difference = einsum(centred, read, "batch d, batch d -> batch") + total[len(found) :].sum(0)
    scale = total.abs().sum(0) + 1e-30
    off = float(((total.sum(0) - difference).abs() / scale).max())
    assert off < 1e3 * torch.finfo(model.cfg.dtype).eps, f"parts do not add up to the stream: {off:.1e} of their sizes"
    return DirectEffects(tuple(parts), total, difference)


def why_no_parts(cfg: ModelConfig) -> str:
    """Why a model's logits are no sum over what its parts write, or nothing."""
    if cfg.extensions.recurrence is not None:
        return "recurrence"
    attn_res = cfg.extensions.attn_res
    return "attention residuals of learned blocks" if attn_res is not None and attn_res.is_learned else ""


def _check(
    model: HookedLM, tokens: Tensor, answers: Tensor, foils: Tensor | None, position: int | Int[Tensor, " sequence"]
) -> None:
    if which := why_no_parts(model.cfg):
        raise ValueError(
            f"direct_logit_attribution: got a model with {which}; expected one whose parts add to sums (what "
            "leaving a part out changes is measured by ablate, what exchanging it changes by attribute's exact)"
        )
    for name, ids in (("answers", answers), ("foils", foils)):
        if ids is not None and tuple(ids.shape) != (len(tokens),):
            raise ValueError(
                f"{name}: got shape {list(ids.shape)}; expected one id for each of {len(tokens)} sequences"
            )
        if ids is not None and not 0 <= int(ids.min()) <= int(ids.max()) < model.cfg.d_vocab:
            raise ValueError(f"{name}: got {ids.tolist()}; expected ids below d_vocab = {model.cfg.d_vocab}")
    at = torch.as_tensor(position)
    if at.is_floating_point() or tuple(at.shape) not in ((), (len(tokens),)):
        raise ValueError(f"position: got shape {list(at.shape)} of {at.dtype}; expected one integer, or one a sequence")
    if not bool(((-tokens.shape[1] <= at) & (at < tokens.shape[1])).all()):
        got = at.tolist() if at.ndim else int(at)
        raise ValueError(f"position: got {got}; expected one of {tokens.shape[1]}")


def _written(model: HookedLM, tokens: Tensor, position: int | Int[Tensor, " sequence"]) -> dict[str, Tensor]:
    """At the position, in float64: the embedding, heads' z, norms' scales, MLPs' outputs, the final routing's weights,
    the stream at the end."""
    names = ["blocks.0.hook_resid_pre", f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    if _has_positions_apart(model):
        names += ["hook_embed", "hook_pos_embed"]
    for layer, block in enumerate(model.blocks):
        names += [f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out"]
        names += [f"blocks.{layer}.{block.norm_behind}.hook_scale"] if block.norm_behind is not None else []
    names += ["hook_route_final"] if model.cfg.extensions.attn_res is not None else []
    seen: dict[str, Tensor] = {}
    at = torch.as_tensor(position, device=model.cfg.device).expand(len(tokens))
    rows = torch.arange(len(tokens), device=model.cfg.device)

    def keep(tensor: Tensor, hook: object) -> None:
        seen[hook.name] = tensor[rows, at].double()  # type: ignore[attr-defined]

    run_hooked(model, tokens.to(model.cfg.device), [(name, keep) for name in names], return_type=None)
    return seen


def _has_positions_apart(model: HookedLM) -> bool:
    return model.cfg.positional_embedding_type == "standard" and not model.cfg.extensions.embed_norm


def _contributions(model: HookedLM, seen: dict[str, Tensor]) -> dict[Part, Tensor]:
    """What each part adds to the stream, [batch d_model]."""
    found: dict[Part, Tensor] = {}
    if _has_positions_apart(model):
        found["embed", None, None], found["pos_embed", None, None] = seen["hook_embed"], seen["hook_pos_embed"]
    else:
        found["embed", None, None] = seen["blocks.0.hook_resid_pre"]
    for layer, block in enumerate(model.blocks):
        z, W_O = seen[f"blocks.{layer}.attn.hook_z"], block.attn.W_O.detach().double()
        written = einsum(z, W_O, "batch h e, h e d -> h batch d")
        own: dict[Part, Tensor] = {("head", layer, head): of_head for head, of_head in enumerate(written)}
        if model.cfg.extensions.out_bias:
            own["attn_bias", layer, None] = block.attn.b_O.detach().double().expand_as(written[0])
        if block.norm_behind is not None:
            norm = getattr(block, block.norm_behind)
            own = _behind(norm, own, seen[f"blocks.{layer}.{block.norm_behind}.hook_scale"])
            if norm.kind == "LN":
                own["norm_bias", layer, None] = norm.b.detach().double().expand_as(written[0])
        found |= own
        found["mlp", layer, None] = seen[f"blocks.{layer}.hook_mlp_out"]
    return found


def _routed(model: HookedLM, written: dict[Part, Tensor], seen: dict[str, Tensor]) -> dict[Part, Tensor]:
    """What the final norm reads of each part: itself, or that by the weight of the sum that it is in."""
    attn_res = model.cfg.extensions.attn_res
    if attn_res is None:
        return written
    alpha, n_committed = seen["hook_route_final"], 0
    source: dict[int | None, int] = {None: 0}
    for layer, block in enumerate(model.blocks):
        n_committed += block.is_boundary
        source[layer] = n_committed
    is_all = attn_res.streams == "both"  # else the embedding and MLPs are in the main stream, which nothing routes
    return {
        part: alpha[:, source[part[1]], None] * own if is_all or part[0] not in ("embed", "pos_embed", "mlp") else own
        for part, own in written.items()
    }


def _behind(norm: Norm, written: dict[Part, Tensor], scale: Float64[Tensor, "batch 1"]) -> dict[Part, Tensor]:
    """What enters the stream of each part behind a norm whose scale is that of their sum."""
    gain = norm.gain.detach().double() / scale
    if norm.kind == "LN":
        written = {part: own - own.mean(-1, keepdim=True) for part, own in written.items()}
    return {part: gain * own for part, own in written.items()}
