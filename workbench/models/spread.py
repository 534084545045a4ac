"""A model's layers over several GPUs, one after another: what one of them cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import nn

from workbench.models.transformer import HookedLM, check_ours


def spread(model: HookedLM, devices: Sequence[str]) -> HookedLM:
    """Move consecutive layers to the devices, in their order, so that each holds about as many bytes: the embedding
    with the first, the final norm and the unembedding with the last. Returns the model.

    The stream moves from device to device between layers; hooks see activations where they are made. Results are those
    of one device, whose products are the same.

    Raises:
        ValueError: fewer layers than devices, or a model whose layers read more than the stream (attention residuals,
            recurrence).
    """
    check_ours("device, given several", model)
    extensions = model.cfg.extensions
    if extensions.attn_res is not None or extensions.recurrence is not None:
        raise ValueError("device: got several for a model whose layers read more than one stream; expected one")
    if len(devices) > model.cfg.n_layers:
        raise ValueError(f"device: got {len(devices)} for {model.cfg.n_layers} layers; expected a layer for each")
    first = [model.embed, *([model.pos_embed] if model.cfg.positional_embedding_type == "standard" else [])]
    last = [model.ln_final, model.unembed]
    sizes = [n_bytes(block) for block in model.blocks]
    sizes[0] += sum(map(n_bytes, first))
    sizes[-1] += sum(map(n_bytes, last))
    places = assign(sizes, len(devices))
    for part, place in [*((own, 0) for own in first), *zip(model.blocks, places, strict=True),
                        *((own, len(devices) - 1) for own in last)]:  # fmt: skip
        part.to(devices[place])
    model.is_spread = len(set(devices)) > 1
    model.cfg = model.cfg.model_copy(update={"device": devices[0]})
    return model


def n_bytes(part: nn.Module) -> int:
    """Bytes of a part's parameters."""
    return sum(p.numel() * p.element_size() for p in part.parameters())


def assign(sizes: Sequence[int], n_devices: int) -> list[int]:
    """For each layer the device that holds it: consecutive ones, none without a layer, about equal in bytes.

    >>> assign([5, 1, 1, 1, 1, 5], 3)
    [0, 1, 1, 1, 1, 2]
    >>> assign([1, 1, 1, 9], 4)
    [0, 1, 2, 3]
    """
    n_layers, total, places = len(sizes), sum(sizes), []
    for layer, end in enumerate(accumulate(sizes)):
        middle = (end - sizes[layer] / 2) / max(total, 1)
        place = min(int(middle * n_devices), n_devices - 1)
        before = places[-1] if places else -1
        least = max(before if places else 0, n_devices - (n_layers - layer))  # a layer is left for each device to come
        places.append(max(least, min(place, before + 1)))
    return places
