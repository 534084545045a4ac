"""Steering: a model whose activations are pushed along one feature of an SAE, in every forward for a while."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.edits import How, check_steering, steer
from sae.stack import StackedSAE
from workbench.models.activations import Positions, special_ids
from workbench.models.attached import Feature, reading_tokens, standing
from workbench.models.checks import checked_tokens, device_of, last_layer, run_watched
from workbench.models.sae_places import HookSAEs, saes_by_hook, stack_slots

BATCH_TOKENS = 4096


class Constants(NamedTuple):
    """What steering is measured in, on held-out text at the positions that count."""

    max_act: float
    """largest activation of the feature"""
    mean_norm: float
    """mean ‖x‖ of what its SAE stands in for"""


@contextmanager
def steered(
    model: Any,
    sae: StackedSAE,
    feature: Feature,
    how: How = "max_act",
    alpha: float = 0.0,
    *,
    max_act: float | None = None,
    mean_norm: float | None = None,
    include_special: bool | None = None,
) -> Iterator[Any]:
    """The model with the activation that a feature's SAE stands in for, the one it reads or a transcoder's output,
    pushed along the feature's decoder row, in every forward from position 1 on, the prompt's tokens among them; as it
    was when the context ends. See `sae.steer` for the four ways. With a cache and without, the same; contexts may be
    nested to steer by several features.

    Args:
        model, sae, include_special: as for `attached`.
        feature: (layer, head, index); head −1 where the SAE reads the hook whole.
        how, alpha, max_act, mean_norm: as for `sae.steer`; `measure_constants` gives the last two.

    Raises:
        ValueError: as `attached` and `sae.steer`, before anything runs; a feature that never fires with max_act 0.
    """
    check_steering(how, alpha, max_act=max_act, mean_norm=mean_norm)
    place, index = place_of_feature(model, sae, feature)
    row = place.sae.directions[0, index]
    is_everywhere = bool(sae.info.include_special) if include_special is None else include_special
    positions = Positions(special_ids(model), is_everywhere)
    with ExitStack() as stack:
        reading = None if is_everywhere else stack.enter_context(reading_tokens(model))

        def push(x: Tensor, y: Tensor) -> Tensor:
            is_counted = None if reading is None else reading.counted(positions, y, place.hook_name_out)
            acts = place.sae.encode(place.read(x))[0, :, index] if how == "clamp" else None
            own = place.reconstructed(y)
            constants: Any = {"acts": acts, "max_act": max_act, "mean_norm": mean_norm}
            if how in ("max_act", "clamp") and (scale := place.sae.output_scale(own)) is not None:
                new = own[0] + scale[0, :, None] * steer(torch.zeros_like(own[0]), row, how, alpha, **constants)
            else:
                new = steer(own[0], row, how, alpha, **constants)
            return place.written(y, new[None], is_counted)

        stack.enter_context(standing(model, [(place, push)]))
        yield model


# --- each sequence of a batch by a push of its own


@dataclass(frozen=True)
class Pushes:
    """A push for each sequence of a batch: with f the activation of a feature and d its decoder row, what the feature's
    SAE stands in for becomes

        y + (constant + s (constant_acts + per_act · f) + per_dot · y) û

    which is each of `sae.steer`'s four ways for û = d̂ = d/‖d‖. Another û gives a control that moves every activation
    as far, another way. s is what a token's reconstruction is multiplied by where the SAE reads normalised activations,
    else 1.
    """

    direction: Float[Tensor, "row d_out"]
    """û, of length 1"""
    constant: Float[Tensor, " row"]
    constant_acts: Float[Tensor, " row"]
    per_act: Float[Tensor, " row"]
    per_dot: Float[Tensor, "row d_out"]
    """−d̂, or 0"""

    @classmethod
    def of(
        cls,
        how: How,
        alpha: float,
        row: Float[Tensor, " d_out"],
        directions: Float[Tensor, "row d_out"],
        *,
        max_act: float | None = None,
        mean_norm: float | None = None,
    ) -> Pushes:
        """One push along each of the directions, as long as that of `sae.steer` along the decoder row `row`.

        Raises:
            ValueError: as `sae.steer`.
        """
        check_steering(how, alpha, max_act=max_act, mean_norm=mean_norm)
        length = float(row.norm())
        if not length > 0 or not bool((directions.norm(dim=1) > 0).all()):
            raise ValueError("Pushes: got a direction of zeros; expected others")
        n, acts = len(directions), alpha * (max_act or 0.0) * length
        dot = row / -length if how == "remove" else torch.zeros_like(row)
        return cls(
            direction=directions / directions.norm(dim=1, keepdim=True),
            constant=directions.new_full((n,), alpha * (mean_norm or 0.0) if how == "norm" else 0.0),
            constant_acts=directions.new_full((n,), acts if how in ("max_act", "clamp") else 0.0),
            per_act=directions.new_full((n,), -length if how == "clamp" else 0.0),
            per_dot=dot.to(directions).expand(n, -1),
        )

    def rows(self, index: Int[Tensor, " n"]) -> Pushes:
        """The pushes at these places, which may repeat."""
        return Pushes(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def join(parts: Sequence[Pushes]) -> Pushes:
        """The pushes of all parts, one behind the other."""
        return Pushes(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Pushes)))

    def move(
        self, place: HookSAEs, index: int, x: Float[Tensor, "batch pos *width"], y: Float[Tensor, "batch pos *width"]
    ) -> Float[Tensor, "1 tokens d_out"]:
        """What the SAE stands in for of y, pushed; sequence i by push i. x is what the hook that it reads passed."""
        read, own = place.read(x), place.reconstructed(y)
        n = own.shape[1] // len(self.constant)
        size = self.constant_acts.repeat_interleave(n)
        if bool(self.per_act.any()):
            size = size + self.per_act.repeat_interleave(n) * place.sae.encode(read)[0, :, index]
        if (scale := place.sae.output_scale(read)) is not None:
            size = size * scale[0]
        size = size + self.constant.repeat_interleave(n)
        if bool(self.per_dot.any()):
            size = size + torch.einsum("rnd,rd->rn", own[0].unflatten(0, (-1, n)), self.per_dot.to(own)).flatten()
        moved = own[0] + (size[:, None] * self.direction.repeat_interleave(n, dim=0)).to(own)
        return moved[None]


@contextmanager
def pushed(model: Any, place: HookSAEs, index: int, pushes: Pushes) -> Iterator[Any]:
    """The model with sequence i of every batch pushed by push i, from position 1 on; as it was when the context ends.
    For many directions and sizes at once what `steered` is for one; with a cache and without, the same.

    Args:
        place, index: the feature's, of `place_of_feature`.

    Raises:
        ValueError: in a forward: another number of sequences than of pushes, or as `attached`.
    """
    is_everywhere = bool(place.sae.info.include_special)
    positions = Positions(special_ids(model), is_everywhere)
    with ExitStack() as stack:
        reading = None if is_everywhere else stack.enter_context(reading_tokens(model))

        def push(x: Tensor, y: Tensor) -> Tensor:
            if len(y) != len(pushes.constant):
                raise ValueError(f"pushed: got {len(y)} sequences; expected {len(pushes.constant)}, one for each push")
            is_counted = None if reading is None else reading.counted(positions, y, place.hook_name_out)
            return place.written(y, pushes.move(place, index, x, y), is_counted)

        stack.enter_context(standing(model, [(place, push)]))
        yield model


def place_of_feature(model: Any, sae: StackedSAE, feature: Feature) -> tuple[HookSAEs, int]:
    """The one SAE that has a feature, checked against the model, and the feature's index. Raises ValueError for a
    feature that the stack lacks, and as `saes_by_hook`."""
    layer, head, index = feature
    slots = stack_slots(sae)
    own = [i for i, slot in enumerate(slots) if (slot.layer, slot.column) == (layer, head)]
    if not own or not 0 <= index < sae.config.d_sae:
        have = sorted({(slot.layer, slot.column) for slot in slots})
        raise ValueError(
            f"feature: got {layer}.{head}.{index}; expected LAYER.HEAD.FEATURE of the SAEs, with (layer, head) in "
            f"{have} and 0 ≤ feature < {sae.config.d_sae}"
        )
    if not hasattr(model, "hooks"):
        raise ValueError(f"steered: got a {type(model).__name__}, on which no hook stays; expected a HookedLM")
    (place,) = saes_by_hook(model, sae.select(own))
    return place, index


@torch.no_grad()
def measure_constants(
    model: Any,
    sae: StackedSAE,
    feature: Feature,
    tokens: Int[Tensor, "n n_ctx"],
    include_special: bool | None = None,
) -> Constants:
    """f_max and mean ‖x‖ of a feature on these tokens, at the positions that its SAE is meant for.

    Raises:
        ValueError: as `steered`; no token at these positions.
    """
    place, index = place_of_feature(model, sae, feature)
    tokens = checked_tokens("steering", model, tokens)
    is_everywhere = bool(sae.info.include_special) if include_special is None else include_special
    positions = Positions(special_ids(model), is_everywhere)
    most, total, n = 0.0, 0.0, 0
    names = list(dict.fromkeys((place.hook_name, place.hook_name_out)))
    for batch in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1])):
        found = run_watched(model, batch.to(device_of(model)), names, last_layer(names))
        own, out = place.read(found[place.hook_name]), place.reconstructed(found[place.hook_name_out])
        is_counted = positions.of(batch).flatten().to(own.device)
        own, out = own[:, is_counted], out[:, is_counted]
        if own.shape[1]:
            most = max(most, float(place.sae.encode(own)[0, :, index].max()))
            total, n = total + float(out[0].norm(dim=-1).sum(dtype=torch.float64)), n + own.shape[1]
    if not n:
        raise ValueError("steering: got no token but special ones and position 0; expected others")
    return Constants(most, total / n)


def parse_steering(text: str) -> tuple[Feature, float]:
    """The feature and α of LAYER.HEAD.FEATURE:ALPHA, HEAD being `all` where an SAE reads all heads or a whole hook.

    >>> parse_steering("2.1.37:4")
    ((2, 1, 37), 4.0)
    >>> parse_steering("2.all.37:-0.5")
    ((2, -1, 37), -0.5)
    """
    match = re.fullmatch(r"\s*(\d{1,6})\.(\d{1,6}|all)\.(\d{1,9}):(.+)", text)
    try:
        if match is None:
            raise ValueError
        layer, head, index, alpha = match.groups()
        return (int(layer), -1 if head == "all" else int(head), int(index)), float(alpha)
    except ValueError:
        raise ValueError(f"steer: got {text!r:.60}; expected LAYER.HEAD.FEATURE:ALPHA, such as 2.1.37:4") from None
