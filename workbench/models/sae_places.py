"""Where the SAEs of a stack read: checked against a model, and grouped by hook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from sae.stack import StackedSAE, check_model
from workbench.models.activations import Slot
from workbench.models.checks import check_hooks
from workbench.models.weights import weights_sha256

STREAMS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


def stack_slots(sae: StackedSAE) -> list[Slot]:
    """The slot that each SAE of a stack reads. Raises ValueError if the stack does not say."""
    found = []
    for source in sae.info.sources:
        if source.hook_name is None or source.layer is None:
            break
        found.append(Slot(source.hook_name, source.layer, source.head))
    if len(found) != sae.config.n_saes:
        raise ValueError("SAEs: the stack does not say which hooks it reads; expected one saved by sae-train")
    return found


@dataclass(frozen=True)
class HookSAEs:
    """The SAEs that read one hook: one of all of it, or one for each of some heads."""

    hook_name: str
    layer: int
    index: tuple[int, ...]
    """of each in the whole stack"""
    slots: tuple[Slot, ...]
    sae: StackedSAE

    def read(self, x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "n_saes tokens d_in"]:
        """What each SAE reads of the hook's activation, on the SAEs' device; tokens in the order batch, pos.

        Raises:
            ValueError: an activation of another width.
        """
        rows = self._taken(x)
        if rows.shape[-1] != self.sae.config.d_in:
            got, expected = rows.shape[-1], self.sae.config.d_in
            raise ValueError(f"SAEs: {self.hook_name} is {got} wide; expected {expected}, what they read")
        return rearrange(rows, "batch pos sae d -> sae (batch pos) d").to(self.sae.W_dec.device)

    def written(
        self,
        x: Float[Tensor, "batch pos *width"],
        new: Float[Tensor, "n_saes tokens d_in"],
        is_counted: Tensor | None = None,
    ) -> Float[Tensor, "batch pos *width"]:
        """The hook's activation with these rows in the place of those that were read, at all positions or where
        is_counted [batch pos] says so; x itself is left as it is."""
        rows = rearrange(new, "sae (batch pos) d -> batch pos sae d", batch=len(x)).to(x)
        if is_counted is not None:
            rows = rows.where(is_counted[:, :, None, None], self._taken(x))
        if self.slots[0].head is None:
            return rows.reshape(x.shape)
        whole = x.clone()
        whole[:, :, [slot.head for slot in self.slots]] = rows
        return whole

    def _taken(self, x: Tensor) -> Tensor:
        heads = [slot.head for slot in self.slots]
        return x.flatten(2).unsqueeze(2) if heads == [None] else x[:, :, heads]


def saes_by_hook(model: Any, sae: StackedSAE) -> list[HookSAEs]:
    """The stack's SAEs by hook, in the order of the hooks' layers.

    Raises:
        ValueError: a stack that does not say what it reads, two SAEs in one place, a hook that the model lacks or of
            another width, SAEs that say they are another model's.
    """
    slots = stack_slots(sae)
    if len(set(slots)) < len(slots):
        again = next(slot for slot in slots if slots.count(slot) > 1)
        n = slots.count(again)
        raise ValueError(f"SAEs: got {n} for {_spelt(again)}; expected one (StackedSAE.select takes some of a stack)")
    names = list(dict.fromkeys(slot.hook_name for slot in slots))
    check_hooks(model, names)
    for slot in slots:
        _check_width(model, slot, sae.config.d_in)
    if sae.info.model_sha256 is not None:
        check_model(sae, weights_sha256(model), model.cfg.model_name)
    found = []
    for name in names:
        index = tuple(i for i, slot in enumerate(slots) if slot.hook_name == name)
        own = sae if len(index) == len(slots) else sae.select(index)
        found.append(HookSAEs(name, slots[index[0]].layer, index, tuple(slots[i] for i in index), own))
    return sorted(found, key=lambda place: place.layer)


def _check_width(model: Any, slot: Slot, d_in: int) -> None:
    """Raise ValueError for an SAE that cannot read a slot of this model: another width, a head that it has not, a hook
    that the stream goes past. Widths of hooks other than z and the streams are seen when they are read."""
    leaf, cfg = slot.hook_name.rsplit(".", 1)[-1], model.cfg
    if slot.head is not None and not (leaf == "hook_z" and slot.head < cfg.n_heads):
        raise ValueError(f"SAEs: got {_spelt(slot)}; expected hook_z and a head below {cfg.n_heads}")
    z = cfg.d_head if slot.head is not None else cfg.n_heads * cfg.d_head
    widths = dict.fromkeys(STREAMS, cfg.d_model) | {"hook_z": z}
    if widths.get(leaf, d_in) != d_in:
        raise ValueError(f"SAEs: got one that reads {d_in} numbers of {_spelt(slot)}; expected {widths[leaf]}")
    point = getattr(model.hook_dict[slot.hook_name], "name", slot.hook_name)
    if leaf == "hook_resid_mid" and point != slot.hook_name:  # a bridge's alias for what its second norm reads
        raise ValueError(
            f"SAEs: got {slot.hook_name}, which this model shows to its norm alone; expected hook_resid_pre or "
            "hook_resid_post"
        )


def _spelt(slot: Slot) -> str:
    return slot.hook_name + ("" if slot.head is None else f", head {slot.head}")
