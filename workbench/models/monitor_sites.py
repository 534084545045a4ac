"""What a monitor reads: a head's part of a hook, all of it, or a feature of an SAE; and how that is changed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.stack import StackedSAE
from sae.tensors import hash_tensor
from workbench.models.checks import check_hooks, device_of, last_layer, run_watched
from workbench.models.costs import hook_shapes
from workbench.models.hooks import MAPS
from workbench.models.sae_places import HookSAEs
from workbench.models.steering import place_of_feature


@dataclass(frozen=True)
class Site:
    """A place of a model that a probe reads at every token."""

    hook: str
    head: int | None = None
    """None: all of the hook"""
    feature: int | None = None
    place: HookSAEs | None = None
    """of the one SAE that has the feature"""

    def read(self, x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos d"]:
        """What is read of the hook's activation; of a feature its activation, d = 1."""
        if self.place is not None:
            acts = self.place.sae.encode(self.place.read(x))[0, :, self.feature]
            return acts.unflatten(0, x.shape[:2])[..., None].to(x.device)
        return x.flatten(2) if self.head is None else x[:, :, self.head]

    def stood_for(self, x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "batch pos d_in"]:
        """The activation itself that is read, or that the feature's SAE reads."""
        return x.flatten(2) if self.head is None else x[:, :, self.head]

    def changed(
        self,
        x: Float[Tensor, "batch pos *width"],
        is_changed: Bool[Tensor, "batch pos"],
        action: str,
        value: Float[Tensor, " d"],
    ) -> Float[Tensor, "batch pos *width"]:
        """The hook's activation, at the positions that are changed with `value` in the place of what is read (ablate:
        of a feature its activation, the SAE's error kept) or added to it (steer)."""
        if self.place is not None:
            place, read = self.place, self.place.read(x)
            if action == "steer":
                return place.written(x, read + value.to(read), is_changed)
            acts = place.sae.encode(read)
            edited = acts.clone()
            edited[..., self.feature] = value.to(acts)
            return place.written(x, read + place.sae.decode(edited, read) - place.sae.decode(acts, read), is_changed)
        part = x if self.head is None else x[:, :, self.head]
        own = value.to(x).reshape(part.shape[2:])
        where = is_changed.reshape(*is_changed.shape, *(1 for _ in part.shape[2:]))
        new = torch.where(where, own if action == "ablate" else part + own, part)
        if self.head is None:
            return new
        whole = x.clone()
        whole[:, :, self.head] = new
        return whole

    def width(self, model: Any) -> int:
        """Numbers per token that `stood_for` has. Raises ValueError for a head that the hook has not."""
        (shape,) = hook_shapes(model.cfg, [self.hook]).values()
        if self.head is None:
            return torch.Size(shape).numel()
        if len(shape) != 2 or self.head >= shape[0]:
            heads = f"a head below {shape[0]}" if len(shape) == 2 else "none, as for a hook without heads"
            raise ValueError(f"monitor: got head {self.head} of {self.hook}; expected {heads}")
        return shape[1]

    @property
    def sae_sha256(self) -> str | None:
        """What a monitor knows its SAE by: the hash of all its tensors."""
        if self.place is None:
            return None
        parts = [f"{name} {hash_tensor(own)}" for name, own in sorted(self.place.sae.state_dict().items())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def find_site(
    model: Any, hook: str, head: int | None = None, feature: int | None = None, sae: StackedSAE | None = None
) -> Site:
    """The site of a hook's name, checked against the model.

    Raises:
        ValueError: a hook that the model has not, an attention map, one behind the blocks, a head that the hook has
            not; a feature without SAEs, or SAEs without a feature; an SAE that does not reconstruct what it reads.
    """
    check_hooks(model, [hook])
    if hook.endswith(MAPS):
        raise ValueError(f"monitor: got {hook}, an attention map; expected a head's z or a stream")
    if not hook.startswith(("blocks.", "hook_")):
        raise ValueError(f"monitor: got {hook}, which shows the last token alone; expected a hook of a block")
    if (feature is None) != (sae is None):
        got, wanted = ("SAEs", "no feature") if feature is None else ("no SAEs", f"feature {feature}")
        raise ValueError(f"monitor: got {got} for {wanted} of {hook}; expected both or neither")
    place = None
    if sae is not None and feature is not None:
        layer = re.match(r"blocks\.(\d+)\.", hook)
        place, _ = place_of_feature(model, sae, (int(layer[1]) if layer else 0, -1 if head is None else head, feature))
        if place.hook_name != hook or place.hook_name_out != hook:
            got = f"one from {place.hook_name} to {place.hook_name_out}"
            raise ValueError(f"monitor: got {got}; expected an SAE that reads and reconstructs {hook}")
    found = Site(hook, head, feature, place)
    width = found.width(model)
    tokens = torch.zeros(1, 2, dtype=torch.long, device=device_of(model))
    seen = run_watched(model, tokens, [hook], last_layer([hook]))[hook]
    if seen.ndim < 3 or seen.shape[:2] != tokens.shape or found.stood_for(seen).shape != (1, 2, width):
        raise ValueError(f"monitor: {hook} shows {list(seen.shape)} of [1, 2] tokens; expected [batch, token, …]")
    return found
