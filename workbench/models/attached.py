"""SAEs in the forward pass: each in the place of what it reconstructs, its error kept or not, its features open to
edits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.stack import StackedSAE
from workbench.models import HookedLM
from workbench.models.activations import Positions, Slot, special_ids
from workbench.models.checks import showing
from workbench.models.sae_places import HookSAEs, saes_by_hook, stack_slots

Feature = tuple[int, int, int]
"""layer, head (−1: the SAE reads the hook whole), index"""
Edit = Callable[[Tensor, Slot], Tensor | None]
"""(activations of an SAE's features [batch pos d_sae], what it reads) -> those to go on with; None: as they are"""
Replace = Callable[[Tensor, Tensor], Tensor | None]
"""(what SAEs read, the activation that they stand in for) -> what takes its place; None: it stays"""
BLOCK_TOKENS = 512  # tokens encoded at once on a CPU: their activations stay in the cache


@contextmanager
def attached(
    model: Any,
    sae: StackedSAE,
    *,
    error: bool = True,
    features: Mapping[Feature, float] | None = None,
    edit: Edit | None = None,
    include_special: bool | None = None,
) -> Iterator[Any]:
    """The model with every SAE of the stack in the place of what it reconstructs; as it was when the context ends, also
    by an exception.

    The activation x becomes x̂ + sg(x − x̂), with sg no gradient: by value x itself, while the gradient flows through the
    features; without `error` it becomes x̂. Edited activations f′ of the features give x̂(f′) + sg(x − x̂(f)). Where
    several SAEs stand, a later one reads what the earlier ones left. A transcoder reads x at one hook and stands in for
    another y of the same forward, which becomes ŷ + sg(y − ŷ); the gradient then flows to x. Contexts may be nested,
    and forwards may use a cache: a token is treated as it is without one.

        with attached(model, sae, features={(2, 1, 37): 0.0}):   # feature 37 of head 1 of layer 2, ablated
            loss = model(tokens, return_type="loss")

    Args:
        model: a `HookedLM`, or a TransformerLens model (without a cache).
        sae: at most one SAE for each hook and head that they stand in for; it must say what it reads (`info.sources`),
            and where it says which model it belongs to, that must be this one.
        error: whether what an SAE does not reconstruct is kept.
        features: (layer, head, index) -> what the feature's activation is set to.
        edit: called with each SAE's activations, behind `features`, in every forward. They are 0 at positions that
            are passed by, and what it puts there is not used.
        include_special: whether position 0 and special tokens are treated as others; by default as the SAEs were
            trained, and without where that is not known.

    Raises:
        ValueError: a stack that does not say what it reads or writes, two SAEs in one place, a hook that the model
            lacks or of another width, SAEs of another model, a feature that the stack lacks or a value that is not
            finite; in a forward: tokens that are not known (`start_at_layer` without `tokens`), or a transcoder's
            output without its input.
    """
    parts = _parts(model, sae, features or {})
    is_everywhere = bool(sae.info.include_special) if include_special is None else include_special
    positions = Positions(special_ids(model), is_everywhere)
    with ExitStack() as stack:
        reading = None if is_everywhere else stack.enter_context(reading_tokens(model))

        def replaced_by(part: _Part) -> Replace:
            def replace(x: Tensor, y: Tensor) -> Tensor | None:
                is_counted = None if reading is None else reading.counted(positions, y, part.at.hook_name_out)
                return part.replace(x, y, is_counted, error, edit)

            return replace

        stack.enter_context(standing(model, [(part.at, replaced_by(part)) for part in parts]))
        yield model


@contextmanager
def standing(model: Any, places: Sequence[tuple[HookSAEs, Replace]]) -> Iterator[None]:
    """Hooks by which each function replaces the activation that its SAEs stand in for, told of what they read in the
    same forward.

    Raises:
        ValueError: in a forward: an activation to be replaced ahead of the one that is read.
    """
    read: dict[int, Tensor] = {}
    writers: list[tuple[str, Callable]] = []
    readers: list[tuple[str, Callable]] = []  # behind all writers, so that at a shared hook they read what was written
    for index, (place, replace) in enumerate(places):

        def keep(x: Tensor, hook: Any, index: int = index) -> None:
            read[index] = x

        def put(y: Tensor, hook: Any, index: int = index, place: HookSAEs = place, replace: Replace = replace) -> Any:
            if place.hook_name_out == place.hook_name:
                return replace(y, y)
            if index not in read:
                raise ValueError(
                    f"attached: {place.hook_name_out} is passed without {place.hook_name}, which its transcoder reads; "
                    "expected a forward that passes it before"
                )
            return replace(read.pop(index), y)

        writers.append((place.hook_name_out, put))
        if place.hook_name_out != place.hook_name:
            readers.append((place.hook_name, keep))
    handle = model.register_forward_pre_hook(lambda *_: read.clear())  # a forward may have stopped in between
    try:
        with showing(model, [name for name, _ in readers]), model.hooks(fwd_hooks=[*writers, *readers]):
            yield
    finally:
        handle.remove()


# --- what stands where


@dataclass(frozen=True)
class _Part:
    """The SAEs of one hook, and what their features are set to."""

    at: HookSAEs
    values: tuple[Mapping[int, float], ...]
    """of each SAE: feature -> its activation"""

    def replace(
        self, x: Tensor, y: Tensor, is_counted: Bool[Tensor, "batch pos"] | None, error: bool, edit: Edit | None
    ) -> Tensor | None:
        """What takes the place of y, where x was read; None where that is y itself."""
        has_edit = edit is not None or any(self.values)
        if error and not has_edit and not torch.is_grad_enabled():
            return None  # ŷ + (y − ŷ)
        own, sae = self.at.read(x), self.at.sae
        stood_for = own if y is x else self.at.reconstructed(y)
        if has_edit:
            acts = sae.encode(own)
            kept = sae.decode(acts, own) if error else None
            recon = sae.decode(self._edited(acts, len(x), is_counted, edit), own)
        else:
            size = BLOCK_TOKENS if own.device.type == "cpu" else max(1, own.shape[1])
            recon = torch.cat([sae(block)[1] for block in own.split(size, dim=1)], dim=1)
            kept = recon if error else None
        # in this order the value is y itself, to the last bit, where no feature is edited
        out = recon if kept is None else stood_for.detach() + (recon - kept.detach()).to(stood_for)
        return self.at.written(y, out, is_counted)

    def _edited(
        self,
        acts: Float[Tensor, "n_saes tokens d_sae"],
        n_batch: int,
        is_counted: Bool[Tensor, "batch pos"] | None,
        edit: Edit | None,
    ) -> Float[Tensor, "n_saes tokens d_sae"]:
        edited = []
        for own, slot, values in zip(acts, self.at.slots, self.values, strict=True):
            new = own
            if values:
                new = own.clone()
                for feature, value in values.items():
                    new[:, feature] = value
            if edit is not None:
                shown = rearrange(new, "(batch pos) feature -> batch pos feature", batch=n_batch)
                shown = shown if is_counted is None else shown * is_counted.to(shown).unsqueeze(-1)
                changed = edit(shown, slot)
                if changed is not None and changed.shape != shown.shape:
                    got, expected = list(changed.shape), list(shown.shape)
                    raise ValueError(f"edit: got activations of shape {got} at {slot.hook_name}; expected {expected}")
                new = new if changed is None else changed.flatten(0, 1)
            edited.append(new)
        return torch.stack(edited)


def _parts(model: Any, sae: StackedSAE, features: Mapping[Feature, float]) -> list[_Part]:
    """The SAEs by hook, checked; errors as `attached`."""
    if not hasattr(model, "hooks"):
        raise ValueError(
            f"attached: got a {type(model).__name__}, on which no hook stays; expected a HookedLM or a TransformerLens "
            "model"
        )
    places = saes_by_hook(model, sae)
    values = _values_of(sae, features)
    return [_Part(place, tuple(values[i] for i in place.index)) for place in places]


def _values_of(sae: StackedSAE, features: Mapping[Feature, float]) -> list[dict[int, float]]:
    """Of each SAE: feature -> value."""
    slots = stack_slots(sae)
    places = {(slot.layer, slot.column): i for i, slot in enumerate(slots)}
    values: list[dict[int, float]] = [{} for _ in slots]
    for (layer, head, feature), value in features.items():
        if (layer, head) not in places or not 0 <= feature < sae.config.d_sae:
            raise ValueError(
                f"features: got {layer}.{head}.{feature}; expected LAYER.HEAD.FEATURE of the stack, with (layer, head) "
                f"in {sorted(places)} and 0 ≤ feature < {sae.config.d_sae}"
            )
        if not math.isfinite(value):
            raise ValueError(f"features: got {value} for {layer}.{head}.{feature}; expected a finite number")
        values[places[layer, head]][feature] = float(value)
    return values


# --- which tokens a forward reads


@dataclass
class ReadTokens:
    """Which tokens the forward in progress reads, and how many of their texts come before them."""

    ids: Int[Tensor, "batch pos"] | None = None
    n_past: int = 0
    is_token: Bool[Tensor, "batch pos"] | None = None
    """False at padding; None: there is none"""

    def counted(self, positions: Positions, x: Tensor, hook_name: str) -> Bool[Tensor, "batch pos"]:
        """Where an SAE stands in for the activation x."""
        if self.ids is None or self.ids.shape != x.shape[:2]:
            got = "none" if self.ids is None else f"those of {list(self.ids.shape)}"
            raise ValueError(
                f"attached: {hook_name} shows {list(x.shape[:2])} positions, and of their tokens {got} are known; "
                "expected tokens=[batch pos] beside start_at_layer, or include_special=True"
            )
        ids = self.ids.to(x.device)
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        if self.is_token is not None:
            place = self.is_token.to(ids).cumsum(1) - 1  # padding in front is before the first token
        return positions.among(ids, place + self.n_past)


@contextmanager
def reading_tokens(model: Any) -> Iterator[ReadTokens]:
    """What is known of the tokens, kept up to date by hooks on the model and on its embedding."""
    reading = ReadTokens()

    def begin(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        cache, mask = kwargs.get("past_kv_cache"), kwargs.get("attention_mask")
        if cache is not None and not isinstance(model, HookedLM):
            raise ValueError(
                f"attached: got a cache with a {type(model).__name__}, which does not say how much it holds; expected "
                "none, or include_special=True"
            )
        is_begun = kwargs.get("start_at_layer") is not None
        reading.ids = kwargs.get("tokens") if is_begun else None
        reading.n_past = 0 if cache is None else cache.length
        reading.is_token = None if mask is None else torch.as_tensor(mask).bool()

    def take(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        reading.ids = args[0] if args else next(iter(kwargs.values()))

    handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    handles.append(model.embed.register_forward_pre_hook(take, with_kwargs=True))
    try:
        yield reading
    finally:
        for handle in handles:
            handle.remove()
