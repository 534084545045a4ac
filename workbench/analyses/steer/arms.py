"""The arms of a dose curve: which pushes a feature is compared by, and running many of them at once.

An arm is one form, dose and direction. The sequences of many arms go through the model together, each pushed by its
own; every arm goes on from the same prompts with the same random numbers, and is measured on the same held-out windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from sae.edits import How
from workbench.models.checks import device_of
from workbench.models.generate import continue_prompts
from workbench.models.sae_places import HookSAEs
from workbench.models.steering import Constants, Pushes, pushed
from workbench.models.tokenizer_files import stop_ids

ROWS_TOGETHER = 128  # continuations that grow side by side
TOKENS_TOGETHER = 4096  # of windows whose losses are taken side by side
NOTHING = -1  # behind a continuation's last token


@dataclass(frozen=True)
class Arm:
    """One form, dose and direction."""

    form: str
    """norm, max_act, clamp, remove; none where nothing is pushed"""
    alpha: float
    control: str
    """feature, difference_of_means, random; prompt where nothing is pushed"""
    direction: int = 0
    """number among those of its control"""


PROMPT = Arm("none", 0.0, "prompt")


def plan_arms(forms: Sequence[str], alphas: Sequence[float], n_random: int, *, has_difference: bool) -> list[Arm]:
    """The prompt alone, then of each form and dose the feature, the difference of means, the random directions; of
    `remove` one dose, 1."""
    arms = [PROMPT]
    for form in forms:
        for alpha in (1.0,) if form == "remove" else alphas:
            arms.append(Arm(form, float(alpha), "feature"))
            arms += [Arm(form, float(alpha), "difference_of_means")] * has_difference
            arms += [Arm(form, float(alpha), "random", i) for i in range(n_random)]
    return arms


def draw_directions(n: int, d_in: int, seed: Sequence[int]) -> Float64[Tensor, "n d_in"]:
    """Directions of length 1, uniform over the sphere."""
    drawn = torch.from_numpy(np.random.default_rng(list(seed)).standard_normal((n, d_in)))
    return drawn / drawn.norm(dim=1, keepdim=True)


def pushes_of(
    arms: Sequence[Arm],
    row: Float[Tensor, " d_in"],
    constants: Constants,
    directions: dict[str, Float[Tensor, "n d_in"]],
) -> Pushes:
    """The push of each arm; row: the feature's decoder row, directions: of each control."""
    parts = []
    for arm in arms:
        along = row[None] if arm.control in ("feature", "prompt") else directions[arm.control][arm.direction][None]
        how: How = "norm" if arm.form == "none" else arm.form  # type: ignore[assignment]
        parts.append(Pushes.of(how, arm.alpha, row, along.to(row), **constants._asdict()))
    return Pushes.join(parts)


@dataclass(frozen=True)
class MeasuredText:
    """What every arm is measured on: none of it was used to choose a feature, a target or a constant."""

    prompts: Int[Tensor, "prompt pos"]
    uniforms: Float64[Tensor, "prompt new"]
    """the random numbers that each prompt's continuation is drawn with, in every arm"""
    windows: Int[Tensor, "window n_ctx"]
    temperature: float


@dataclass(frozen=True)
class ArmResults:
    """Of some arms."""

    loss: Float64[Tensor, "arm window"]
    """mean over the window's predictions, nats"""
    tokens: Int[Tensor, "arm prompt new"]
    """the continuations, NOTHING behind their last token"""
    nats: Float64[Tensor, "arm prompt"]
    """mean loss of the continuation's tokens under the model as it is, behind the prompt; nan of an empty one"""


def join_results(parts: Sequence[ArmResults]) -> ArmResults:
    """The arms of all parts."""
    return ArmResults(*(torch.cat([getattr(part, name) for part in parts]) for name in ("loss", "tokens", "nats")))


@torch.no_grad()
def run_arms(model: Any, place: HookSAEs, index: int, pushes: Pushes, text: MeasuredText) -> ArmResults:
    """Losses and continuations of all these arms."""
    loss = held_out_losses(model, place, index, pushes, text.windows)
    n_prompts, parts = len(text.prompts), []
    rows = torch.arange(len(pushes.constant) * n_prompts)
    for part in rows.split(ROWS_TOGETHER):
        prompt = part % n_prompts
        own = pushes.rows((part // n_prompts).to(pushes.constant.device))
        with pushed(model, place, index, own):
            parts += grow(model, text.prompts[prompt].tolist(), text.uniforms[prompt], text.temperature)
    tokens = _padded(parts, text.uniforms.shape[1]).view(-1, n_prompts, text.uniforms.shape[1])
    return ArmResults(loss, tokens, continuation_losses(model, text.prompts, tokens))


def grow(
    model: Any, prompts: Sequence[Sequence[int]], uniforms: Float64[Tensor, "prompt new"], temperature: float
) -> list[list[int]]:
    """The continuations of prompts, each by its own random numbers, up to what ends a text."""
    stops = stop_ids(model)
    return continue_prompts(model, prompts, uniforms.shape[1], uniforms, temperature=temperature, stop_at=stops)


@torch.no_grad()
def ask_for(model: Any, asking: Sequence[int], begin: int, text: MeasuredText) -> ArmResults:
    """The one arm in which nothing is pushed and the tokens `asking` stand before the prompt, behind the `begin` tokens
    that begin a text: its continuations, and their losses behind the prompt as it is. It has no held-out loss."""
    prompts = [[*own[:begin], *asking, *own[begin:]] for own in text.prompts.tolist()]
    n_new = text.uniforms.shape[1]
    grown = []
    for part in torch.arange(len(prompts)).split(ROWS_TOGETHER):
        grown += grow(model, [prompts[i] for i in part.tolist()], text.uniforms[part], text.temperature)
    tokens = _padded(grown, n_new)[None]
    loss = torch.full((1, len(text.windows)), torch.nan, dtype=torch.float64)
    return ArmResults(loss, tokens, continuation_losses(model, text.prompts, tokens))


def held_out_losses(
    model: Any, place: HookSAEs, index: int, pushes: Pushes, windows: Int[Tensor, "window n_ctx"]
) -> Float64[Tensor, "arm window"]:
    """The mean loss of every window under every push, from the feature's layer on."""
    windows = windows.to(device_of(model))
    start, n = model(windows, stop_at_layer=place.layer), len(windows)
    found = []
    for part in torch.arange(len(pushes.constant) * n).split(max(1, TOKENS_TOGETHER // windows.shape[1])):
        row, arm = (part % n).to(windows.device), (part // n).to(pushes.constant.device)
        settings: dict[str, Any] = {"return_type": "loss", "loss_per_token": True}
        with pushed(model, place, index, pushes.rows(arm)):
            if isinstance(start, Tensor):
                losses = model(start[row], start_at_layer=place.layer, tokens=windows[row], **settings)
            else:  # a state that is more than the stream is made again
                losses = model(windows[row], **settings)
        found.append(losses.double().mean(dim=1).cpu())
    return torch.cat(found).view(-1, n)


def continuation_losses(
    model: Any, prompts: Int[Tensor, "prompt pos"], tokens: Int[Tensor, "arm prompt new"]
) -> Float64[Tensor, "arm prompt"]:
    """Mean loss of each continuation's tokens under the model as it is, nats per token; nan of an empty one."""
    n_arms, n_prompts, _ = tokens.shape
    whole = torch.cat([prompts.expand(n_arms, -1, -1), tokens], dim=2).flatten(0, 1)
    is_new = (whole != NOTHING)[:, prompts.shape[1] :]
    found = []
    for part, own in zip(
        *(own.split(max(1, TOKENS_TOGETHER // whole.shape[1])) for own in (whole, is_new)), strict=True
    ):
        # what stands behind a continuation is read by nothing before it
        losses = model(part.clamp_min(0).to(device_of(model)), return_type="loss", loss_per_token=True)
        losses = losses[:, prompts.shape[1] - 1 :].double().cpu()
        found.append((losses * own).sum(1) / own.sum(1))
    return torch.cat(found).view(n_arms, n_prompts)


def _padded(grown: Sequence[Sequence[int]], n_new: int) -> Int[Tensor, "row new"]:
    return torch.tensor([[*own, *[NOTHING] * (n_new - len(own))] for own in grown], dtype=torch.int64)
