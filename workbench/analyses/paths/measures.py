"""What is measured of a prompt: the task's own effect, or what the next token's distribution says."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from workbench.data.pairs import PairTokens
from workbench.models import HookedLM
from workbench.models.cross_entropy import softcap

Metric = Literal["effect", "logprob", "prob", "kl"]
METRICS: tuple[Metric, ...] = ("effect", "logprob", "prob", "kl")
LOGITS_HELD = 1 << 24  # numbers


def check_metric(metric: str) -> None:
    """Raise ValueError for what is no metric."""
    if metric not in METRICS:
        raise ValueError(f"metric: got {metric!r:.40}; expected one of {', '.join(METRICS)}")


def last_streams(model: HookedLM, tokens: Tensor, pairs: PairTokens) -> Float[Tensor, "pair d_model"]:
    """What the unembedding reads at the last token of prompts of the pairs."""
    stream = model.read_out(model(tokens, return_type=None))
    return model.ln_final(stream[torch.arange(len(stream), device=stream.device), pairs.last.to(stream.device)])


def measure_streams(
    model: HookedLM,
    normed: Float[Tensor, "n pair d_model"],
    pairs: PairTokens,
    metric: Metric,
    clean: Float[Tensor, "pair d_model"] | None = None,
) -> Float64[Tensor, "n pair"]:
    """The measure of each pair, n times over, of what the unembedding reads at its last token; on the CPU.

    effect: the task's measure, of logits' differences without the other logits; logprob, prob: of the answer; kl:
    KL(clean ‖ this), nats. Differentiable.

    clean: what the unembedding reads of the clean prompts, for kl.
    """
    if metric == "effect" and pairs.measure == "logit_difference":
        ids = torch.stack([pairs.answers[:, 0], pairs.foils[:, 0]], dim=1).to(normed.device)
        logits = torch.einsum("npd,pcd->npc", normed, model.W_U.T[ids].to(normed.dtype))
        logits = softcap(logits if model.b_U is None else logits + model.b_U[ids], model.cfg.output_logits_soft_cap)
        return (logits[..., 0] - logits[..., 1]).double().cpu()
    n_together = max(1, LOGITS_HELD // (len(pairs) * model.cfg.d_vocab))
    reference = None
    if metric == "kl":
        assert clean is not None, "kl is from the clean prompts"
        reference = to_logits(model, clean).log_softmax(-1)
    return torch.cat([_measure(model, part, pairs, metric, reference) for part in normed.split(n_together)])


def _measure(model: HookedLM, normed: Tensor, pairs: PairTokens, metric: Metric, reference: Tensor | None) -> Tensor:
    logits = to_logits(model, normed)
    if metric == "kl":
        assert reference is not None, "made by the caller"
        log_p = logits.log_softmax(-1)
        return (reference.exp() * (reference - log_p)).sum(-1).double().cpu()
    found = []
    for own in logits:
        if metric == "effect":
            found.append(pairs.effect(own))
        else:
            logprob = pairs.logprob(own)
            found.append(logprob.exp() if metric == "prob" else logprob)
    return torch.stack(found).double().cpu()


def to_logits(model: HookedLM, normed: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_vocab"]:
    """Capped logits of what the unembedding reads."""
    logits = normed @ model.W_U
    return softcap(logits if model.b_U is None else logits + model.b_U, model.cfg.output_logits_soft_cap)
