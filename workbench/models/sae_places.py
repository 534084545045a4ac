"""Where the SAEs of a stack read and what they stand in for: checked against a model, and grouped by hook."""

from __future__ import annotations

import re
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


def written_slots(sae: StackedSAE) -> list[Slot]:
    """The slot that each SAE of a stack stands in for: the one that it reads, or a transcoder's output.

    Raises:
        ValueError: a stack that does not say what it reads, or where its transcoders write; a transcoder of one head.
    """
    found = []
    for slot, source in zip(stack_slots(sae), sae.info.sources, strict=True):
        name = source.hook_name_out
        if sae.architecture.reads_pair != (name is not None):
            said, expected = ("no hook_name_out", "one") if name is None else (f"hook_name_out {name}", "none")
            raise ValueError(f"SAEs: got {said} for a {sae.config.architecture} of {_spelt(slot)}; expected {expected}")
        if name is not None and slot.head is not None:
            raise ValueError(f"SAEs: got a {sae.config.architecture} of {_spelt(slot)}; expected one of a whole hook")
        layer = re.match(r"blocks\.(\d+)\.", name or "")
        found.append(slot if name is None else Slot(name, int(layer[1]) if layer else slot.layer))
    return found


@dataclass(frozen=True)
class HookSAEs:
    """The SAEs that read one hook, one of all of it or one for each of some heads, and stand in for it; or a
    transcoder, which stands in for another."""

    hook_name: str
    layer: int
    index: tuple[int, ...]
    """of each in the whole stack"""
    slots: tuple[Slot, ...]
    sae: StackedSAE
    hook_name_out: str
    """whose activation they stand in for"""

    def read(self, x: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "n_saes tokens d_in"]:
        """What each SAE reads of hook_name's activation, on the SAEs' device; tokens in the order batch, pos.

        Raises:
            ValueError: an activation of another width.
        """
        return self._rows(x, self.hook_name, self.sae.config.d_in, "read")

    def reconstructed(self, y: Float[Tensor, "batch pos *width"]) -> Float[Tensor, "n_saes tokens d_out"]:
        """What each SAE reconstructs of hook_name_out's activation; otherwise as `read`."""
        return self._rows(y, self.hook_name_out, self.sae.config.d_target, "reconstruct")

    def written(
        self,
        y: Float[Tensor, "batch pos *width"],
        new: Float[Tensor, "n_saes tokens d_out"],
        is_counted: Tensor | None = None,
    ) -> Float[Tensor, "batch pos *width"]:
        """hook_name_out's activation with these rows in the place of those that are reconstructed, at all positions or
        where is_counted [batch pos] says so; y itself is left as it is."""
        rows = rearrange(new, "sae (batch pos) d -> batch pos sae d", batch=len(y)).to(y)
        if is_counted is not None:
            rows = rows.where(is_counted[:, :, None, None], self._taken(y))
        if self.slots[0].head is None:
            return rows.reshape(y.shape)
        whole = y.clone()
        whole[:, :, [slot.head for slot in self.slots]] = rows
        return whole

    def _rows(self, x: Tensor, name: str, width: int, verb: str) -> Tensor:
        rows = self._taken(x)
        if rows.shape[-1] != width:
            raise ValueError(f"SAEs: {name} is {rows.shape[-1]} wide; expected {width}, what they {verb}")
        return rearrange(rows, "batch pos sae d -> sae (batch pos) d").to(self.sae.W_dec.device)

    def _taken(self, x: Tensor) -> Tensor:
        heads = [slot.head for slot in self.slots]
        return x.flatten(2).unsqueeze(2) if heads == [None] else x[:, :, heads]


def saes_by_hook(model: Any, sae: StackedSAE) -> list[HookSAEs]:
    """The stack's SAEs by hook, in the order of the hooks' layers.

    Raises:
        ValueError: a stack that does not say what it reads or writes, two SAEs in one place, a hook that the model
            lacks or of another width, SAEs that say they are another model's.
    """
    slots, outs = stack_slots(sae), written_slots(sae)
    if len(set(outs)) < len(outs):
        again = next(slot for slot in outs if outs.count(slot) > 1)
        n = outs.count(again)
        raise ValueError(f"SAEs: got {n} for {_spelt(again)}; expected one (StackedSAE.select takes some of a stack)")
    check_hooks(model, list(dict.fromkeys(slot.hook_name for slot in (*slots, *outs))))
    for slot, out in zip(slots, outs, strict=True):
        _check_width(model, slot, sae.config.d_in, "reads")
        _check_width(model, out, sae.config.d_target, "writes")
        _check_is_read(model, out)
    if sae.info.model_sha256 is not None:
        check_model(sae, weights_sha256(model), model.cfg.model_name)
    found, hooks = [], [(slot.hook_name, out.hook_name) for slot, out in zip(slots, outs, strict=True)]
    for name, name_out in dict.fromkeys(hooks):
        index = tuple(i for i, own in enumerate(hooks) if own == (name, name_out))
        own = sae if len(index) == len(slots) else sae.select(index)
        found.append(HookSAEs(name, slots[index[0]].layer, index, tuple(slots[i] for i in index), own, name_out))
    return sorted(found, key=lambda place: place.layer)


def _check_width(model: Any, slot: Slot, width: int, verb: str) -> None:
    """Raise ValueError for a slot of another width in this model, or of a head that it has not. Widths of hooks other
    than z and the streams are seen when they are read."""
    leaf, cfg = slot.hook_name.rsplit(".", 1)[-1], model.cfg
    if slot.head is not None and not (leaf == "hook_z" and slot.head < cfg.n_heads):
        raise ValueError(f"SAEs: got {_spelt(slot)}; expected hook_z and a head below {cfg.n_heads}")
    z = cfg.d_head if slot.head is not None else cfg.n_heads * cfg.d_head
    widths = dict.fromkeys(STREAMS, cfg.d_model) | {"hook_z": z}
    if widths.get(leaf, width) != width:
        raise ValueError(f"SAEs: got one that {verb} {width} numbers of {_spelt(slot)}; expected {widths[leaf]}")


def _check_is_read(model: Any, slot: Slot) -> None:
    """Raise ValueError for a hook that the stream goes past, so that what stands there would change nothing."""
    leaf = slot.hook_name.rsplit(".", 1)[-1]
    point = getattr(model.hook_dict[slot.hook_name], "name", slot.hook_name)
    if leaf == "hook_resid_mid" and point != slot.hook_name:  # a bridge's alias for what its second norm reads
        raise ValueError(
            f"SAEs: got {slot.hook_name}, which this model shows to its norm alone; expected hook_resid_pre or "
            "hook_resid_post"
        )


def _spelt(slot: Slot) -> str:
    return slot.hook_name + ("" if slot.head is None else f", head {slot.head}")
