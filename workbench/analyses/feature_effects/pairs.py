"""What ablating a feature does to a logit difference: m = logit[answer] − logit[foil] behind a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from pydantic import Field, ValidationError
from torch import Tensor

from sae.stack import StackedSAE
from workbench.analyses.feature_effects.effects import (
    Losses,
    changes,
    clean_pass,
    effects_table,
    go_on,
    lenders_of,
    strongest,
)
from workbench.analyses.feature_effects.estimates import (
    Estimates,
    gradients_at,
    lent_activations,
    sum_estimates,
    watched_forward,
)
from workbench.models import HookedLM
from workbench.models.activations import Positions
from workbench.models.checks import device_of
from workbench.models.cross_entropy import softcap
from workbench.models.sae_places import HookSAEs
from workbench.models.tokenizer_files import encode, tokenizer_of
from workbench.models.transformer import check_tokenized
from workbench.runs import read_toml
from workbench.runs.records import Frozen, describe_errors

ROWS_TOGETHER = 256  # prompts that go on together, each without a feature


class PromptPair(Frozen):
    """A prompt with what goes on with it, and what might and does not."""

    prompt: str = Field(description="beginning of a text", min_length=1)
    answer: str = Field(description="what goes on with it, one token behind the prompt, a space before it included")
    foil: str = Field(description="what does not, one token behind the prompt")


class PromptPairs(Frozen):
    """Prompt pairs, as a file has them."""

    pairs: tuple[PromptPair, ...] = Field(description="prompts with answers and foils", min_length=1)


@dataclass(frozen=True)
class EncodedPairs:
    """Prompts as tokens, shorter ones filled up behind."""

    tokens: Int[Tensor, "pair pos"]
    is_token: Bool[Tensor, "pair pos"]
    ids: Int[Tensor, "pair 2"]
    """of answer and foil"""

    @property
    def last(self) -> Int64[Tensor, " pair"]:
        """The position of each prompt's last token."""
        return self.is_token.sum(dim=1) - 1


def read_pairs(file: str | Path) -> tuple[PromptPair, ...]:
    """The pairs of a TOML file: tables `[[pairs]]` of prompt, answer and foil.

    Raises:
        ValueError: naming the file, for one that is missing or not of this form.
    """
    try:
        return PromptPairs.model_validate(read_toml(Path(file), "pairs")).pairs
    except ValidationError as error:
        raise ValueError(f"pairs: {file}: {describe_errors(error)}") from None


def encode_pairs(model: Any, pairs: Sequence[PromptPair]) -> EncodedPairs:
    """The pairs in a model's vocabulary.

    Raises:
        ValueError: a model without tokenizer, a prompt longer than the model's context, an answer or foil that is not
            one token behind its prompt, or both the same.
    """
    check_tokenized("feature-effects", model)
    prompts = [model.to_tokens(pair.prompt, truncate=False)[0].tolist() for pair in pairs]
    tokenizer, ids = tokenizer_of(model), []
    for pair, prompt in zip(pairs, prompts, strict=True):
        if len(prompt) > model.cfg.n_ctx:
            raise ValueError(
                f"prompt: {pair.prompt!r:.60} has {len(prompt)} tokens; expected at most {model.cfg.n_ctx}"
            )
        alone = encode(tokenizer, pair.prompt)
        both = [encode(tokenizer, pair.prompt + own) for own in (pair.answer, pair.foil)]
        for name, whole in zip(("answer", "foil"), both, strict=True):
            if len(whole) != len(alone) + 1 or whole[:-1] != alone:
                got = f"got {getattr(pair, name)!r:.40} behind {pair.prompt!r:.60}"
                raise ValueError(f"{name}: {got}; expected one token, such as ' is'")
        ids.append([whole[-1] for whole in both])
        if ids[-1][0] == ids[-1][1]:
            raise ValueError(f"foil: got {pair.foil!r:.40}, the answer itself; expected another token")
    width = max(map(len, prompts))
    tokens = torch.tensor([[*own, *[0] * (width - len(own))] for own in prompts])
    is_token = torch.arange(width) < torch.tensor([[len(own)] for own in prompts])
    return EncodedPairs(tokens, is_token, torch.tensor(ids))


def logit_differences(
    model: HookedLM, stream: Float[Tensor, "row d_model"], ids: Int[Tensor, "row 2"]
) -> Float[Tensor, " row"]:
    """logit[answer] − logit[foil] of final streams, capped where the model caps."""
    x = model.ln_final(stream[None])[0]
    logits = (x[:, None] * model.W_U.T[ids]).sum(dim=-1)
    logits = softcap(logits if model.b_U is None else logits + model.b_U[ids], model.cfg.output_logits_soft_cap)
    return logits[:, 0] - logits[:, 1]


def pair_effects(
    model: HookedLM,
    sae: StackedSAE,
    places: Sequence[HookSAEs],
    pairs: Sequence[PromptPair],
    positions: Positions,
    value: Float64[Tensor, "n_saes d_sae"],
    *,
    name: str,
    seed: int,
    kind: str = "zero",
    n_exact: int = 16,
    n_bootstrap: int = 2000,
    bootstrap_seed: int = 0,
) -> pd.DataFrame:
    """The table feature_logit_differences: a row a feature, what m becomes when it is ablated at all positions of the
    prompts that count, its SAE's error kept. Estimated by m's gradient for all, exact for the n_exact of each SAE whose
    estimate is largest; the 95 % bootstrap interval is over pairs. value: f′ for kind "zero" and "mean"; for "source"
    it is the activation at the same position of another pair's prompt.

    Raises:
        ValueError: as `encode_pairs`; "source" with one pair.
    """
    own = encode_pairs(model, pairs)
    donors = lenders_of(own.tokens, kind, bootstrap_seed)
    lender = None if donors is None else own.tokens[donors]
    is_counted = positions.of(own.tokens) & own.is_token
    is_changed = is_counted if donors is None else is_counted & is_counted[donors]
    lent = lent_activations(model, places, lender)
    found = _estimates(model, places, own, is_counted, is_changed, value, lent)
    features = strongest(found, n_exact)
    losses = _exactly(model, places, own, is_changed, features, value, lent)
    about: dict[str, Any] = {"name": name, "seed": seed, "kind": kind, "n_bootstrap": n_bootstrap}
    table = effects_table(sae, found, features, losses, 2, **about, bootstrap_seed=bootstrap_seed)
    names = {"delta_loss": "delta", "n_sequences": "n_pairs", "base_loss": "base_difference"}
    return table.drop(columns=["kl", "n_tokens"]).rename(columns=names)


def _estimates(
    model: HookedLM,
    places: Sequence[HookSAEs],
    own: EncodedPairs,
    is_counted: Tensor,
    is_changed: Tensor,
    value: Tensor,
    lent: dict[str, Tensor],
) -> Estimates:
    """Of every feature, by one backward pass of the sum of m over the pairs."""
    tokens = own.tokens.to(device_of(model))
    final, seen, outputs = watched_forward(model, places, tokens)
    with torch.enable_grad():
        stream = model.read_out(final)[torch.arange(len(tokens)), own.last]
        total = logit_differences(model, stream, own.ids.to(tokens.device)).sum()
    gradients = gradients_at(places, outputs, total)
    n_active = torch.zeros_like(value)
    change = torch.zeros_like(value)
    for place, x, gradient in zip(places, seen, gradients, strict=True):
        index = list(place.index)
        other = lent.get(place.hook_name)
        n_active[index], change[index] = sum_estimates(
            place, x.detach(), gradient, is_counted, value[index], other, is_changed
        )
    return Estimates(int(is_counted.sum()), n_active, value, change / len(tokens))


@torch.no_grad()
def _exactly(
    model: HookedLM,
    places: Sequence[HookSAEs],
    own: EncodedPairs,
    is_changed: Tensor,
    features: Int64[Tensor, "feature 2"],
    value: Tensor,
    lent: dict[str, Tensor],
) -> Losses:
    """m of every pair as it is, and its change without each feature."""
    tokens, last = own.tokens.to(device_of(model)), own.last.to(device_of(model))
    ids, clean = own.ids.to(tokens.device), clean_pass(model, places, tokens)
    base = logit_differences(model, clean.stream[torch.arange(len(tokens)), last], ids)
    change = torch.zeros(len(features), len(tokens), dtype=torch.float64)
    for place in places:
        rows = torch.tensor([i for i, (k, _) in enumerate(features.tolist()) if k in place.index], dtype=torch.int64)
        if not len(rows):
            continue
        which = torch.tensor([[place.index.index(k), j] for k, j in features[rows].tolist()])
        x, other = clean.seen[place.hook_name], lent.get(place.hook_name)
        moves = changes(place, x, which, value[list(place.index)], is_changed, other)
        directions = place.sae.directions
        for part in (moves != 0).any(dim=2).nonzero().split(ROWS_TOGETHER):
            feature, pair = part.unbind(1)
            saes, index = which.to(part.device)[feature].unbind(1)
            delta = moves[feature, pair][..., None] * directions[saes, index][:, None]
            stream = go_on(model, place, clean, tokens, pair.to(tokens.device), saes.tolist(), delta)
            there = pair.to(tokens.device)
            new = logit_differences(model, stream[torch.arange(len(part)), last[there]], ids[there])
            change[rows[feature.cpu()], pair.cpu()] = (new - base[there]).double().cpu()
    return Losses(base.double().cpu(), change, torch.zeros_like(change))
