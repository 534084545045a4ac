"""Dose curves of one feature: what is chosen on one part of the text, and measured on another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.stack import StackedSAE
from workbench.analyses.feature_effects.effects import chosen_saes
from workbench.analyses.feature_effects.estimates import estimate_effects
from workbench.analyses.steer.arms import (
    NOTHING,
    Arm,
    ArmResults,
    MeasuredText,
    ask_for,
    draw_directions,
    join_results,
    plan_arms,
    pushes_of,
    run_arms,
)
from workbench.analyses.steer.tables import Measured
from workbench.analyses.steer.target import Target, find_target, precedes
from workbench.analyses.text_quality.loops import loop_kind
from workbench.models.activations import Positions, special_ids
from workbench.models.attached import Feature
from workbench.models.checks import device_of, run_watched
from workbench.models.sae_places import HookSAEs, saes_by_hook, stack_slots
from workbench.models.steering import Constants, Pushes, measure_constants, place_of_feature
from workbench.models.tokenizer_files import begin_ids, decode_continuation, encode, tokenizer_of

N_PROMPT_TOKENS = 16  # of a held-out window, which a continuation goes on from
ARMS_TOGETHER = 16  # whose results are kept as one file
MODEL_TOKENS = 4096  # of a forward pass
DIFFERENCE, RANDOM, UNIFORMS = 0, 1, 2  # streams of the seed

ASK = Arm("none", 0.0, "asked")


class SteeringWarning(UserWarning):
    """A control that cannot be measured."""


@dataclass(frozen=True)
class Chosen:
    """What one feature is steered with, all of it from text that nothing is measured on."""

    feature: Feature
    target: Target
    constants: Constants
    arms: tuple[Arm, ...]
    pushes: Pushes
    place: HookSAEs
    index: int


def split_text(tokens: Int[Tensor, "n n_ctx"]) -> tuple[Int[Tensor, "m n_ctx"], Int[Tensor, "k n_ctx"]]:
    """(windows to choose by, windows to measure on): the first half of the text and the second, which share no document
    but the one that the middle falls into.

    Raises:
        ValueError: fewer than four windows.
    """
    if len(tokens) < 4:
        raise ValueError(f"steer: got {len(tokens)} windows of text; expected at least 4, half of them to choose by")
    return tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]


def measured_text(
    model: Any,
    windows: Int[Tensor, "n n_ctx"],
    *,
    n_prompts: int,
    n_windows: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> MeasuredText:
    """Prompts, the first N_PROMPT_TOKENS tokens of windows (at most a quarter of the model's context) behind what
    begins a text, and windows for losses; both spread evenly, as many as there are at most.

    Raises:
        ValueError: prompts that with their continuations are longer than the model's context.
    """
    begin = begin_ids(tokenizer_of(model))
    n_prompt = min(N_PROMPT_TOKENS, model.cfg.n_ctx // 4, windows.shape[1])
    n_needed = len(begin) + n_prompt + max_new_tokens
    if n_needed > model.cfg.n_ctx:
        raise ValueError(
            f"max_new_tokens: got {max_new_tokens}, with the prompt {n_needed} tokens; expected at most the model's "
            f"n_ctx = {model.cfg.n_ctx}"
        )
    own = _spread(windows, n_prompts)[:, :n_prompt]
    prompts = torch.cat([torch.tensor(begin, dtype=own.dtype).expand(len(own), -1), own], dim=1)
    uniforms = np.random.default_rng([seed, UNIFORMS]).random((len(own), max_new_tokens))
    return MeasuredText(prompts, torch.from_numpy(uniforms), _spread(windows, n_windows), temperature)


def _spread(windows: Tensor, n: int) -> Tensor:
    n = min(n, len(windows))
    return windows[torch.arange(n) * len(windows) // n]


# --- choosing


def choose_feature(
    model: Any,
    sae: StackedSAE,
    tokens: Int[Tensor, "n n_ctx"],
    target: Target | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Feature, Target]:
    """The feature whose ablation changes the loss most by its gradient, of those that have a target, and its target.

    Raises:
        ValueError: no feature that fires has one.
    """
    places, slots = saes_by_hook(model, sae), stack_slots(sae)
    positions = Positions(special_ids(model), bool(sae.info.include_special))
    found = estimate_effects(model, places, tokens, positions, "zero", on_progress)
    size = found.estimate.abs().masked_fill(found.n_active == 0, 0)
    values, order = size.flatten().sort(descending=True, stable=True)
    for value, place in zip(values.tolist(), order.tolist(), strict=True):
        if not value > 0:
            break
        k, j = divmod(place, size.shape[1])
        feature = (slots[k].layer, slots[k].column, j)
        own = target or target_of(model, sae.select([k]), feature, tokens)
        if own is not None:
            return feature, own
    raise ValueError("steer: got no feature that any word follows more than others; expected more text, or a --target")


def target_of(model: Any, sae: StackedSAE, feature: Feature, tokens: Int[Tensor, "n n_ctx"]) -> Target | None:
    """The words that the text goes on with where a feature is strongest; see `find_target`."""
    (place,), index = saes_by_hook(model, sae), feature[2]
    positions = Positions(special_ids(model), bool(sae.info.include_special))
    acts = [place.sae.encode(x)[0, :, index].view(len(batch), -1) for batch, x, _ in _read(model, place, tokens)]
    return find_target(model.tokenizer, tokens, torch.cat(acts).cpu(), positions.of(tokens))


def choose(
    model: Any,
    sae: StackedSAE,
    feature: Feature,
    target: Target,
    tokens: Int[Tensor, "n n_ctx"],
    *,
    forms: Sequence[str],
    alphas: Sequence[float],
    n_random: int,
    seed: int,
) -> Chosen:
    """Constants, directions and pushes of a feature. Raises ValueError as `place_of_feature`, and for one that fires on
    none of these tokens where a form needs its largest activation."""
    place, index = place_of_feature(model, sae, feature)
    constants = measure_constants(model, sae, feature, tokens)
    row = place.sae.directions[0, index]
    positions = Positions(special_ids(model), bool(sae.info.include_special))
    own_seed = [seed, feature[0], feature[1] + 1, feature[2], RANDOM]
    directions: dict[str, Tensor] = {"random": draw_directions(n_random, len(row), own_seed)}
    before = precedes(model.tokenizer, tokens, target, positions)
    difference = difference_of_means(model, place, tokens, before, positions.of(tokens))
    if difference is None:
        warnings.warn(
            f"steer: difference of means left out: the text holds {int(before.sum())} places before {target}",
            SteeringWarning,
            stacklevel=2,
        )
    else:
        directions["difference_of_means"] = difference[None]
    arms = plan_arms(forms, alphas, n_random, has_difference=difference is not None)
    return Chosen(feature, target, constants, tuple(arms), pushes_of(arms, row, constants, directions), place, index)


def difference_of_means(
    model: Any,
    place: HookSAEs,
    tokens: Int[Tensor, "n n_ctx"],
    is_before: Bool[Tensor, "n n_ctx"],
    is_counted: Bool[Tensor, "n n_ctx"],
) -> Float[Tensor, " d_out"] | None:
    """Mean of what the SAE stands in for before the target, less its mean at all other positions that count; None where
    either is of nothing, or they are equal."""
    sums = torch.zeros(2, place.sae.config.d_target, dtype=torch.float64)
    for at, (batch, _, y) in enumerate(_read(model, place, tokens)):
        first = at * max(1, MODEL_TOKENS // tokens.shape[1])
        rows = slice(first, first + len(batch))
        for i, mask in enumerate((is_before[rows], is_counted[rows] & ~is_before[rows])):
            sums[i] += y[0, mask.flatten().to(y.device)].double().sum(dim=0).cpu()
    counts = torch.stack([is_before.sum(), (is_counted & ~is_before).sum()])
    if not bool((counts > 0).all()):
        return None
    difference = sums[0] / counts[0] - sums[1] / counts[1]
    return difference if bool(difference.norm() > 0) else None


def _read(model: Any, place: HookSAEs, tokens: Tensor) -> Any:
    """(batch of windows, what the SAE reads of them [1 tokens d_in], what it stands in for [1 tokens d_out])."""
    names = list(dict.fromkeys((place.hook_name, place.hook_name_out)))
    for batch in tokens.split(max(1, MODEL_TOKENS // tokens.shape[1])):
        found = run_watched(model, batch.to(device_of(model)), names, place.layer + 1)
        yield batch, place.read(found[place.hook_name]), place.reconstructed(found[place.hook_name_out])


# --- measuring


def asking_for(model: Any, target: Target, text: MeasuredText, ask: str | None) -> list[int] | None:
    """The tokens that ask for a target: `ask`, else the target's words; None of a pattern without.

    Raises:
        ValueError: more than the model's context has room for.
    """
    if ask is None and not target.words:
        return None
    asking = encode(tokenizer_of(model), (f"{', '.join(target.words)}." if ask is None else ask) + " ")
    room = model.cfg.n_ctx - text.prompts.shape[1] - text.uniforms.shape[1]
    if len(asking) > room:
        raise ValueError(f"ask: got {len(asking)} tokens; expected at most {room}, what prompt and continuation leave")
    return asking


def measure_arms(
    model: Any,
    chosen: Chosen,
    text: MeasuredText,
    ask: str | None = None,
    keep: Callable[[int, Callable[[], ArmResults]], ArmResults] = lambda number, make: make(),
) -> tuple[Measured, ArmResults]:
    """(what every arm brings about, its losses and continuations). keep(number, make): a part's results, kept from
    before or made."""
    asking = asking_for(model, chosen.target, text, ask)
    parts = []
    for number, first in enumerate(range(0, len(chosen.arms), ARMS_TOGETHER)):
        index = torch.arange(first, min(first + ARMS_TOGETHER, len(chosen.arms)))
        pushes = chosen.pushes.rows(index.to(chosen.pushes.constant.device))
        parts.append(keep(number, lambda pushes=pushes: run_arms(model, chosen.place, chosen.index, pushes, text)))
    arms = list(chosen.arms)
    if asking is not None:
        begin = len(begin_ids(tokenizer_of(model)))
        parts.append(ask_for(model, asking, begin, text))
        arms.append(ASK)
    results = join_results(parts)
    return judge(model, chosen.target, arms, results, text), results


def judge(model: Any, target: Target, arms: Sequence[Arm], results: ArmResults, text: MeasuredText) -> Measured:
    """What continuations are by their text alone, and losses beside those of the model as it is."""
    shape = results.tokens.shape[:2]
    rate, loops = np.zeros(shape), np.zeros(shape)
    for i, arm in enumerate(results.tokens.tolist()):
        for j, (prompt, padded) in enumerate(zip(text.prompts.tolist(), arm, strict=True)):
            new = padded[: padded.index(NOTHING)] if NOTHING in padded else padded
            said = decode_continuation(model.tokenizer, prompt, new)
            rate[i, j] = target.rate(said)
            loops[i, j] = loop_kind(new, said, is_ended=len(new) < len(padded)) is not None
    change = (results.loss - results.loss[:1]).numpy()
    return Measured(arms, rate, change, results.nats.numpy(), loops)


def read_feature(text: str) -> Feature:
    """The feature of LAYER.HEAD.FEATURE, HEAD being `all` where an SAE reads all heads or a whole hook."""
    from workbench.models.steering import parse_steering

    try:
        return parse_steering(f"{text}:0")[0]
    except ValueError:
        raise ValueError(f"feature: got {text!r:.60}; expected LAYER.HEAD.FEATURE, such as 2.1.37") from None


def saes_of(sae: StackedSAE, layers: Any, heads: Any, features: Sequence[Feature]) -> StackedSAE:
    """The SAEs of these layers and heads; checked to hold the features that are named. Raises ValueError as
    `chosen_saes`, and for layers or heads beside features."""
    if features and (layers is not None or heads is not None):
        raise ValueError("layers, heads: got some beside --feature; expected one of the two")
    return chosen_saes(sae, layers, heads)


def target_of_named(model: Any, sae: StackedSAE, feature: Feature, tokens: Int[Tensor, "n n_ctx"]) -> Target:
    """`target_of` a feature that the user names. Raises ValueError where there is none."""
    place, _ = place_of_feature(model, sae, feature)
    found = target_of(model, place.sae, feature, tokens)
    if found is None:
        layer, head, index = feature
        raise ValueError(
            f"feature: got {layer}.{head}.{index}, where it is strongest no word follows more than elsewhere; "
            "expected a --target"
        )
    return found
