"""What a family of Hugging Face models says of itself: its configuration and its weights, both ways.

A family is a file of `families/`, named as the `model_type` of its config.json, with a `FAMILY`. Its weights are a
list of `Entry`, each one tensor of theirs beside the parameters of ours that it holds; reading, writing, and the
names and shapes that are expected, all follow from that list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from workbench.models.config import ModelConfig
from workbench.runs import shorten

_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu", "gelu_fast": "gelu_new"}
_EXPRESSED = ("silu", "gelu", "gelu_new", "relu", "relu2")


class Described:
    """The contents of a config.json, asked key by key; what is wrong is said with the file, the key and its value.

    Args:
        values: as in the file.
        source: the file, for messages.
        defaults: what the family's configuration class in transformers takes where the file is silent.
    """

    def __init__(self, values: Mapping[str, Any], source: str, defaults: Mapping[str, Any] | None = None) -> None:
        self.values, self.source = {**(defaults or {}), **values}, source

    def get(self, key: str, default: Any = None) -> Any:
        """What the file says, or the default where it is silent."""
        return self.values.get(key, default)

    def need(self, key: str) -> Any:
        """What the file says.

        Raises:
            ValueError: nothing.
        """
        if self.values.get(key) is None:
            raise ValueError(f"{self.source}: {key} is missing")
        return self.values[key]

    def count(self, key: str) -> int:
        """A whole number, 1 or more.

        Raises:
            ValueError: anything else.
        """
        value = self.need(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, "a whole number, 1 or more")
        return value

    def activation(self, key: str, default: str) -> Any:
        """Our name of an activation.

        Raises:
            ValueError: one that we lack.
        """
        name = self.get(key, default)
        ours = _ACTIVATIONS.get(name, name) if isinstance(name, str) else name
        if ours not in _EXPRESSED:
            raise ValueError(
                f"{self.source}: activation {shorten(repr(ours))}; expected {', '.join(_EXPRESSED[:-1])}, "
                f"gelu_pytorch_tanh or {_EXPRESSED[-1]}"
            )
        return ours

    def only(self, **values: Any) -> None:
        """Raise ValueError where the file says anything but these."""
        for key, wanted in values.items():
            if self.get(key, wanted) != wanted:
                raise ValueError(f"{self.source}: {key} = {shorten(repr(self.get(key)))}; expected {wanted!r}")

    def wrong(self, key: str, expected: str) -> ValueError:
        """The error of a value that cannot be taken."""
        return ValueError(f"{self.source}: {key} is {shorten(repr(self.get(key)))}; expected {expected}")


# --- weights


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs, and the parameters of ours that it holds."""

    theirs: str
    """empty: they have no such tensor"""
    ours: tuple[str, ...]
    shape: tuple[int, ...]
    """of theirs"""
    split: Callable[[Tensor], Sequence[Tensor]]
    """theirs into ours, as views where that can be"""
    join: Callable[..., Tensor]
    """ours, in the order of `ours`, into theirs"""


def whole(theirs: str, ours: str, *shape: int) -> Entry:
    """A tensor that is the same in both."""
    return Entry(theirs, (ours,), shape, lambda t: [t], lambda own: own)


def layer_norm(theirs: str, ours: str, n: int) -> Iterator[Entry]:
    """Weight and bias of a LayerNorm."""
    yield whole(theirs + ".weight", ours + ".w", n)
    yield whole(theirs + ".bias", ours + ".b", n)


def product(theirs: str, ours: str, n_in: int, n_out: int) -> Entry:
    """The weight of a linear layer, [n_out n_in] there and [n_in n_out] here."""
    return Entry(theirs, (ours,), (n_out, n_in), lambda t: [t.T], lambda own: own.T)


def into_heads(theirs: str, ours: str, n_heads: int, d_head: int, d_model: int, turned: bool = False) -> Entry:
    """The weight of queries, keys or values: [(head d_head) d_model] there, [head d_model d_head] here.

    turned: rotary pairs lie side by side here, and in halves there.
    """
    return Entry(
        theirs,
        (ours,),
        (n_heads * d_head, d_model),
        lambda t: [_turn(rearrange(t, "(h e) d -> h d e", h=n_heads), turned, to_halves=False)],
        lambda own: rearrange(_turn(own, turned, to_halves=True), "h d e -> (h e) d"),
    )


def head_bias(theirs: str, ours: str, n_heads: int, d_head: int, turned: bool = False) -> Entry:
    """The bias of queries, keys or values: [(head d_head)] there, [head d_head] here."""
    return Entry(
        theirs,
        (ours,),
        (n_heads * d_head,),
        lambda t: [_turn(t.unflatten(0, (n_heads, -1)), turned, to_halves=False)],
        lambda own: _turn(own, turned, to_halves=True).flatten(),
    )


def head_norm(theirs: str, ours: str, n_heads: int, d_head: int, turned: bool = False) -> Entry:
    """The weight of a norm of queries or keys: of each head (n_heads 1), or of all together."""
    return Entry(
        theirs,
        (ours,),
        (n_heads * d_head,),
        lambda t: [_turn(t.unflatten(0, (n_heads, -1)), turned, to_halves=False).flatten()],
        lambda own: _turn(own.unflatten(0, (n_heads, -1)), turned, to_halves=True).flatten(),
    )


def interleaved(theirs: str, ours: Sequence[str], n_heads: int, d_head: int, d_model: int) -> Entry:
    """Weights of queries, keys and values that are one there, head by head: [(head three d_head) d_model]."""
    return Entry(
        theirs,
        tuple(ours),
        (n_heads * len(ours) * d_head, d_model),
        lambda t: rearrange(t, "(h n e) d -> n h d e", h=n_heads, n=len(ours)).unbind(0),
        lambda *own: rearrange(torch.stack(own), "n h d e -> (h n e) d"),
    )


def interleaved_bias(theirs: str, ours: Sequence[str], n_heads: int, d_head: int) -> Entry:
    """Their biases, likewise."""
    return Entry(
        theirs,
        tuple(ours),
        (n_heads * len(ours) * d_head,),
        lambda t: rearrange(t, "(h n e) -> n h e", h=n_heads, n=len(ours)).unbind(0),
        lambda *own: rearrange(torch.stack(own), "n h e -> (h n e)"),
    )


def given(ours: str, value: float, n: int) -> Entry:
    """A parameter of ours that their architecture does not have, at the value at which it does nothing."""

    def join(own: Tensor) -> Tensor:
        if bool((own != value).any()):
            raise ValueError(f"{ours} is not {value:g} everywhere; expected that, in a family without this parameter")
        return own

    return Entry("", (ours,), (n,), lambda t: [torch.full_like(t, value)], join)


def shared(theirs: str, ours: Sequence[str], n: int) -> Entry:
    """One vector of theirs that is several parameters of ours, which are equal."""

    def join(*own: Tensor) -> Tensor:
        if any(not torch.equal(own[0], other) for other in own[1:]):
            raise ValueError(f"{ours[1]} is not {ours[0]}; expected equal ones, in a family that has one for both")
        return own[0]

    return Entry(theirs, tuple(ours), (n,), lambda t: [t] * len(ours), join)


def out_of_heads(theirs: str, ours: str, n_heads: int, d_head: int, d_model: int) -> Entry:
    """The output weight of attention: [d_model (head d_head)] there, [head d_head d_model] here."""
    return Entry(
        theirs,
        (ours,),
        (d_model, n_heads * d_head),
        lambda t: [rearrange(t, "d (h e) -> h e d", h=n_heads)],
        lambda own: rearrange(own, "h e d -> d (h e)"),
    )


def transposed(entry: Entry) -> Entry:
    """The entry of a matrix that lies there the other way round."""
    return Entry(
        entry.theirs, entry.ours, entry.shape[::-1], lambda t: entry.split(t.T), lambda *own: entry.join(*own).T
    )


def joined(theirs: str, parts: Sequence[Entry]) -> Entry:
    """Several tensors that are one there, one behind the other along its first axis."""
    sizes = [part.shape[0] for part in parts]

    def split(t: Tensor) -> list[Tensor]:
        return [own for part, piece in zip(parts, t.split(sizes), strict=True) for own in part.split(piece)]

    def join(*own: Tensor) -> Tensor:
        left, pieces = list(own), []
        for part in parts:
            pieces.append(part.join(*left[: len(part.ours)]))
            del left[: len(part.ours)]
        return torch.cat(pieces)

    return Entry(
        theirs,
        tuple(name for part in parts for name in part.ours),
        (sum(sizes), *parts[0].shape[1:]),
        split,
        join,
    )


def _turn(W: Tensor, turned: bool, *, to_halves: bool) -> Tensor:
    return swap_pairing(W, to_halves) if turned else W


def swap_pairing(W: Tensor, to_halves: bool) -> Tensor:
    """W with its last axis reordered from adjacent rotary pairs to halves, or back: the same function under the other
    convention."""
    if to_halves:
        return rearrange(W, "... (pair two) -> ... (two pair)", two=2)
    return rearrange(W, "... (two pair) -> ... (pair two)", two=2)


# --- the family


@dataclass(frozen=True)
class Family:
    """One `model_type` of config.json."""

    model_type: str
    architecture: str
    """class of transformers"""
    read: Callable[[Described], ModelConfig]
    """Our configuration of their file. Raises ValueError naming the key and value that cannot be expressed."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """Their file of our configuration. What the family cannot express need not be looked for: the configuration is
    read back, and must be what it was."""
    layout: Callable[[ModelConfig, Mapping[str, Any]], Iterator[Entry]]
    """Every tensor of the model of this configuration and this file, save an unembedding that is the embedding"""
    embedding: str
    """their name of the embedding"""
    head: str = "lm_head.weight"
    """their name of the unembedding"""
    base: str = "model."
    """what names begin with in a model with a head, and not without one"""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """what the configuration class of transformers takes where the file is silent"""
    passed_over: tuple[str, ...] = (".rotary_emb.inv_freq",)
    """ends of names of buffers that old files carry"""
    stand_in: tuple[str, Mapping[str, Any]] | None = None
    """(model_type, keys): a family as which the model is written where transformers' tokenizer class for this one
    reads texts in its own way, and what its file then says besides"""


# --- layers with windows, as several families name them


def read_layer_types(config: Described, default: Sequence[str]) -> dict[str, Any]:
    """Our fields of `layer_types` and sliding_window; windows as long as the context are none.

    Raises:
        ValueError: types that are not one a layer, or others than full_attention and sliding_attention.
    """
    types = config.get("layer_types") or list(default)
    known = {"full_attention": "global", "sliding_attention": "local"}
    if len(types) != config.count("num_hidden_layers") or not set(types) <= set(known):
        raise config.wrong("layer_types", f"{' or '.join(known)} for each of num_hidden_layers")
    if "sliding_attention" not in types or config.get("sliding_window") is None:
        return {}
    window = config.count("sliding_window")
    if window >= config.count("max_position_embeddings") and not config.get("rope_local_base_freq"):
        return {}
    return {"window_size": window, "attn_types": tuple(known[own] for own in types)}


def layer_types(cfg: ModelConfig) -> list[str]:
    """Their name of each layer's kind."""
    return ["sliding_attention" if cfg.is_local(layer) else "full_attention" for layer in range(cfg.n_layers)]
