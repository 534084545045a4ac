"""What a model takes, from its configuration alone: parameters, floating-point operations, bytes.

No weight is allocated. Bytes are those of tensors, at the largest moment of a forward pass without gradients; what a
processor's libraries keep for themselves comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from workbench.models.checks import check_hooks, last_layer
from workbench.models.config import ModelConfig
from workbench.models.cross_entropy import chunk_bytes
from workbench.models.hooks import MAPS, HookPoint
from workbench.models.transformer import HookedLM

MEMORY_BUDGET_BYTES = 1 << 30  # held at once besides the weights, by default
# of changed streams, tokens that go on together, and logits held at once: more gain nothing on a CPU
TOKENS_TOGETHER, LOGITS_HELD = 2048, 1 << 22
ON_A_GPU = 16  # times as many of both


def more_on_a_gpu(device: Any) -> int:
    """How many times as much goes on together on a device as on a CPU."""
    return 1 if str(device) == "cpu" else ON_A_GPU


def bytes_of(gib: float) -> int:
    """Bytes of so many GiB."""
    return int(gib * (1 << 30))


def check_budget(budget: int, least: int, of: str) -> None:
    """Raise ValueError for a budget in bytes below the least that something takes."""
    if budget < least:
        raise ValueError(f"memory_budget_bytes: got {budget}; expected at least {least} for {of}")


def on_meta(cfg: ModelConfig) -> HookedLM:
    """The model of `cfg` with parameters that have shapes and no numbers."""
    with torch.device("meta"):
        return HookedLM(cfg.model_copy(update={"device": "meta"}), seed=None)


@lru_cache(maxsize=4)
def _made_once(cfg: Any) -> HookedLM:
    return on_meta(cfg)


def counted(cfg: ModelConfig) -> HookedLM:
    """As `on_meta`, made once for each configuration: to count in, not to change."""
    hashable: Any = cfg  # as a frozen record is, though its type does not say so
    return _made_once(hashable)


def without_numbers(cfg: ModelConfig) -> HookedLM:
    """The model of `cfg` for what does not depend on weights: theirs are whatever lay in memory, or, of a large model,
    on meta, whose operations torch takes seconds to load."""
    model = on_meta(cfg)
    return HookedLM(cfg.model_copy(update={"device": "cpu"}), seed=None) if model.n_parameters() < 1e8 else model


def weights_bytes(cfg: ModelConfig) -> int:
    """Bytes of all parameters in the model's dtype."""
    return counted(cfg).n_parameters() * cfg.dtype.itemsize


def loading_bytes(configs: Sequence[ModelConfig]) -> int:
    """The host's peak while models come out of files, one after another: all weights, and the tensor that is being
    copied from its file."""
    largest = max(p.numel() * cfg.dtype.itemsize for cfg in configs for p in counted(cfg).parameters())
    return sum(weights_bytes(cfg) for cfg in configs) + largest


# --- floating-point operations


def forward_flops(cfg: ModelConfig, n_windows: int, n_ctx: int, *, unembedded: int | None = None) -> float:
    """Floating-point operations of a forward pass: 2 for each weight and token, and causal attention's 2 for each
    query, key before it, head and dimension, once for the scores and once for the mixture.

    A weight that a recurrent model passes several times counts as often; tables that are looked up do not.

    unembedded: tokens that logits are made of; all by default.
    """
    n_tokens = n_windows * n_ctx
    model = counted(cfg)
    in_blocks = sum(p.numel() for block in model.blocks for p in block.parameters())
    attention = 2 * cfg.n_layers * cfg.n_heads * cfg.d_head * (n_ctx + 1)
    logits = 2.0 * cfg.d_model * cfg.d_vocab * (n_tokens if unembedded is None else unembedded)
    return float(n_tokens) * (2 * in_blocks + attention) + logits


# --- bytes


def block_width(cfg: ModelConfig) -> int:
    """Numbers per token that are held at the widest point of a block: the state between layers, three streams in the
    making, and the MLP's inner activations or attention's."""
    attention = 6 * cfg.n_heads * cfg.d_head + 4 * cfg.kv_heads * cfg.d_head  # q, k, v, their rotations, repeated k, v
    return (state_streams(cfg) + 3) * cfg.d_model + max(3 * cfg.d_mlp, attention)


def state_streams(cfg: ModelConfig) -> int:
    """Tensors [batch pos d_model] in the state between two layers, at most."""
    if (attn_res := cfg.extensions.attn_res) is not None:
        # the embedding, block sums and the current one; of learned blocks what was and what a sub-layer reads
        return 2 * attn_res.n_sums + 4 if attn_res.is_learned else attn_res.n_sums + 1
    if cfg.extensions.recurrence is not None:  # x, x0, value, start, summary, and what skips will add
        return 5 + len(cfg.extensions.recurrence.skip_sources(cfg.n_layers))
    return 1


def forward_bytes(cfg: ModelConfig, n_tokens: int) -> int:
    """The state and a block's inner activations of so many tokens, without logits."""
    return n_tokens * cfg.dtype.itemsize * block_width(cfg)


def map_bytes(cfg: ModelConfig, n_windows: int, n_ctx: int, copied: int = 0) -> int:
    """Scores and pattern of one layer's watched attention, and as many bytes per weight again as a reader copies."""
    return n_windows * cfg.n_heads * n_ctx**2 * (2 * cfg.dtype.itemsize + copied)


def loss_bytes(cfg: ModelConfig, n_tokens: int) -> int:
    """A chunk of logits, of which no more is held while losses are taken."""
    return chunk_bytes(n_tokens, cfg.d_vocab, cfg.dtype.itemsize, cfg.output_logits_soft_cap)


def cache_bytes(cfg: ModelConfig, n_tokens: int) -> int:
    """Keys and values of so many tokens, of all layers."""
    return 2 * cfg.n_layers * n_tokens * cfg.kv_heads * cfg.d_head * cfg.dtype.itemsize


# --- forward passes without numbers


def hook_shapes(cfg: ModelConfig, names: Sequence[str], n_ctx: int = 1) -> dict[str, tuple[int, ...]]:
    """What each hook passes of one token, or, of an attention map, of one window.

    Raises:
        ValueError: a hook that the model lacks (the nearest are named).
    """
    model, found = without_numbers(cfg), {}
    check_hooks(model, names)
    last = last_layer(names)

    def note(x: Tensor, hook: HookPoint) -> None:
        found[hook.name] = tuple(x.shape[1 if str(hook.name).endswith(MAPS) else 2 :])

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, note) for name in names]):
        model(_zeros(model, n_ctx), stop_at_layer=last)
    return {name: found[name] for name in names}


def hooked_tensors(model: Any, n_ctx: int) -> dict[str, Tensor]:
    """For every hook, a tensor of the shape and dtype that it passes of one sequence; of a model by the generic path,
    for every hook that a plain forward passes."""
    tokens = _zeros(model, n_ctx)
    if not isinstance(model, HookedLM):
        return model.hooked_tensors(tokens)
    with torch.no_grad():
        _, shared = model.run_with_cache(tokens, return_cache_object=False)
        # apart: while a head has its own input, the norm before it sees one input a head
        _, apart = model.run_with_cache(tokens, names_filter=lambda name: name not in shared, return_cache_object=False)
    return {name: (apart | shared)[name] for name in model.hook_dict}


def _zeros(model: Any, n_ctx: int) -> Tensor:
    return torch.zeros(1, n_ctx, dtype=torch.int64, device=model.cfg.device)


@contextmanager
def faked(model: HookedLM) -> Iterator[None]:
    """While it lasts, a model of `on_meta` has fake parameters of a CPU, and what is made of them is fake: tensors that
    have shapes, strides and dtypes and no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes seconds to load

    with FakeTensorMode(allow_non_fake_inputs=True), _on_cpu(model):
        yield


@contextmanager
def _on_cpu(model: HookedLM) -> Iterator[None]:
    """While it lasts, and within a mode of fake tensors, `model` has parameters of a CPU in place of those on meta."""
    before = [(module, dict(module._parameters)) for module in model.modules()]
    fakes: dict[int, nn.Parameter] = {}  # a recurrent model has the same one in several modules
    for module, parameters in before:
        for name, p in parameters.items():
            if p is not None and id(p) not in fakes:
                fakes[id(p)] = nn.Parameter(torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device="cpu"))
            module._parameters[name] = None if p is None else fakes[id(p)]
    try:
        yield
    finally:
        for module, parameters in before:
            module._parameters.update(parameters)
