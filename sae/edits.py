"""Edits of an activation at one feature of an SAE, everything that the SAE does not explain kept.

With x an activation, f the feature's activation on it and d the feature's decoder row, x = f d + the rest, which is of
the other features, the bias and the error. Every edit changes f or adds a multiple of d, and leaves the rest.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

How = Literal["norm", "max_act", "clamp", "remove"]
HOW: tuple[str, ...] = get_args(How)


def set_feature(
    x: Float[Tensor, "*n d_in"],
    row: Float[Tensor, "d_in"],
    acts: Float[Tensor, "*n"],
    value: Float[Tensor, "*n"] | float = 0.0,
) -> Float[Tensor, "*n d_in"]:
    """x − (f − f′) d: the activation as it would be with the feature at f′, the error kept.

    f′ = 0 ablates the feature; f′ may also be its mean, or its activation on another text; f′ = α f_max clamps it.

    Args:
        x: activations.
        row: the feature's decoder row d.
        acts: the feature's activations f on x.
        value: f′, one number or one for each activation.

    Raises:
        ValueError: shapes that do not fit together.

    >>> import torch
    >>> x, row = torch.tensor([[1.0, 2.0]]), torch.tensor([0.0, 1.0])
    >>> set_feature(x, row, torch.tensor([1.5]))
    tensor([[1.0000, 0.5000]])
    """
    _check_shapes("set_feature", x, row, acts)
    change = (value - acts).unsqueeze(-1) * row
    return x + change.to(x.dtype)


def steer(
    x: Float[Tensor, "*n d_in"],
    row: Float[Tensor, "d_in"],
    how: How,
    alpha: float = 0.0,
    *,
    acts: Float[Tensor, "*n"] | None = None,
    max_act: float | None = None,
    mean_norm: float | None = None,
) -> Float[Tensor, "*n d_in"]:
    """The activation pushed along a feature's decoder row d, with d̂ = d/‖d‖:

        norm      x + α · mean‖x‖ · d̂
        max_act   x + α f_max d
        clamp     x + (α f_max − f) d
        remove    x − (x · d̂) d̂

    mean‖x‖ and f_max are constants measured beforehand, not of x itself: so a token is steered alike whatever is run
    beside it, and with a cache as without.

    Args:
        how: one of the four; remove takes no α.
        acts: the feature's activations f on x, for clamp.
        max_act: f_max, its largest activation on held-out text, for max_act and clamp.
        mean_norm: mean ‖x‖ over held-out text, for norm.

    Raises:
        ValueError: an unknown `how`, α nan or infinite, a measured constant that is missing or no positive number, or a
            row of zeros or another width than x.
    """
    check_steering(how, alpha, max_act=max_act, mean_norm=mean_norm)
    _check_shapes("steer", x, row, acts)
    length = row.norm()
    if not float(length) > 0:
        raise ValueError("steer: got a decoder row of zeros; expected a direction")
    if how == "remove":
        unit = (row / length).to(x.dtype)
        return x - (x @ unit).unsqueeze(-1) * unit
    if how == "norm":
        assert mean_norm is not None, "checked"
        return x + (alpha * mean_norm / length * row).to(x.dtype)
    assert max_act is not None, "checked"
    if how == "max_act":
        return x + (alpha * max_act * row).to(x.dtype)
    if acts is None:
        raise ValueError("steer: got how = 'clamp' without acts; expected the feature's activations on x")
    return set_feature(x, row, acts, alpha * max_act)


def check_steering(how: str, alpha: float, *, max_act: float | None = None, mean_norm: float | None = None) -> None:
    """Raise ValueError for a steering that is not defined; see `steer`."""
    if how not in HOW:
        raise ValueError(f"how: got {how!r}; expected one of {', '.join(HOW)}")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha: got {alpha}; expected a finite number")
    needed = {"norm": ("mean_norm", mean_norm), "max_act": ("max_act", max_act), "clamp": ("max_act", max_act)}
    if how in needed:
        name, value = needed[how]
        if value is None or not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: got {value} with how = {how!r}; expected a finite number above 0")


def _check_shapes(who: str, x: Tensor, row: Tensor, acts: Tensor | None) -> None:
    fits = x.ndim > 0 and row.shape == x.shape[-1:] and (acts is None or acts.shape == x.shape[:-1])
    if not fits:
        shapes = [list(own.shape) for own in (x, row, acts) if own is not None]
        raise ValueError(f"{who}: got shapes {shapes} of x, row and acts; expected [… d_in], [d_in] and […]")
