"""What `sae-train` takes, by formula."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from sae.config import SAEConfig
    from workbench.models.activations import Slot
    from workbench.models.config import ModelConfig


@dataclass(frozen=True)
class _Stack:
    """One of the stacks."""

    groups: dict[str, tuple[list[Slot], int]]
    """slots and their width of the hook that is read, and of what transcoders reconstruct"""
    config: SAEConfig
    n_each: int
    """SAEs of a slot"""

    @property
    def slots(self) -> list[Slot]:
        """Those that are read."""
        return next(iter(self.groups.values()))[0]

    @property
    def width(self) -> int:
        """Numbers of a token that are read, and of those that transcoders reconstruct."""
        return sum(width for _, width in self.groups.values())

    @property
    def n_weights(self) -> int:
        """Numbers in its tensors."""
        from sae.tensors import tensor_shapes

        return sum(math.prod(shape) for shape in tensor_shapes(self.config).values())

    def step_bytes(self, batch_size: int, device: str) -> int:
        """Gradients, those of a block and what a block is made of, and a block's activations."""
        from sae.architectures import architecture_of
        from sae.gradients import block_slices

        saes, tokens = (
            max(part.stop - part.start for part in parts) for parts in block_slices(self.config, batch_size, device)
        )
        acts = architecture_of(self.config).step_numbers * saes * tokens * self.config.d_sae
        return int(4 * (acts + 3 * self.n_weights))

    def control_bytes(self) -> int:
        """What the random dictionary of one SAE is fitted by: the products of tokens with its features, and for their
        quantile a copy of them and 64-bit places."""
        from workbench.analyses.sae_train.evaluation import CONTROL_TOKENS

        return CONTROL_TOKENS * (18 * self.config.d_sae + 4 * self.config.n_saes * self.width)

    def block_bytes(self) -> int:
        """What is held of a block that is measured."""
        from workbench.analyses.sae_train.evaluation import BLOCK_TOKENS

        return 4 * self.config.n_saes * BLOCK_TOKENS * (5 * self.config.d_sae + 3 * self.width)

    def sums_bytes(self) -> int:
        """The sums of each block of the text in both dictionaries, and as many behind those that are left out of one;
        in float64."""
        from workbench.data.blocks import N_BLOCKS

        return 8 * 3 * N_BLOCKS * self.config.n_saes * (self.config.d_sae + self.config.d_target)

    def spliced_bytes(self, cfg: ModelConfig, n_ctx: int) -> int:
        """What is held of the sequences that reconstructions are spliced into."""
        from workbench.analyses.ablate.engine import bytes_per_sequence
        from workbench.analyses.sae_train.evaluation import TOKENS_TOGETHER

        layers = [slot.layer for slot in self.slots]
        n_heads = max(layers.count(layer) for layer in layers)
        n_spliced = max(1, TOKENS_TOGETHER // n_heads // n_ctx)
        kept, continued = bytes_per_sequence(cfg, n_ctx, cfg.n_layers, n_heads)
        a_token = 4 * len(self.slots) * max(self.config.d_in, self.config.d_target)
        return n_spliced * (kept + n_heads * continued + 2 * (1 + 2 * self.n_each) * n_ctx * a_token)


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """The stacks with Adam's two moments, and with the gradients and a block's activations of the one that takes a step
    or with three copies of all while the state is saved; a buffer of shuffled activations for each hook, or a shard;
    what measuring holds of a batch.

    A token takes 12 operations for each weight of an SAE that it trains, two products there and back, and 4 for each
    one that is measured, in the trained, the random and the shuffled dictionary.
    """
    from workbench.analyses.sae_train.evaluation import CONTROL_TOKENS, FORWARD_TOKENS
    from workbench.data.shards import open_shards
    from workbench.models.costs import forward_bytes, forward_flops, weights_bytes

    stacks, n_ctx = _stacks(cfg, settings), text.n_ctx
    n_weights, n_saes = (sum(own.n_weights for own in stacks), sum(own.config.n_saes for own in stacks))
    shards = None if settings.shards is None else open_shards(settings.shards)
    n_train = settings.n_train_tokens or (0 if shards is None else shards.n_tokens)
    # collected: a layer's activations, stacked, laid out anew, and those that count
    groups = {hook: 4 * len(slots) * width for own in stacks for hook, (slots, width) in own.groups.items()}
    a_token = sum(groups.values())
    n_forward = max(n_ctx, FORWARD_TOKENS)
    collected = 4 * n_forward * a_token + forward_bytes(cfg, n_forward)
    stepping = max(own.step_bytes(settings.batch_size, cfg.device) for own in stacks)
    # saved: copies as tensors, as bytes and as the file
    training = 4 * 3 * n_weights + max(stepping, 3 * 4 * 3 * n_weights)
    measuring = 4 * 2 * n_weights + max(
        max(own.control_bytes(), collected + own.block_bytes() + own.sums_bytes(), own.spliced_bytes(cfg, n_ctx))
        for own in stacks
    )
    on_host, n_passes = 0, -(-n_train // n_ctx)
    buffer = settings.buffer_tokens * a_token * n_ctx // max(1, n_ctx - (not settings.include_special))
    if shards is not None:  # one as a file and as tensors
        on_host, n_passes, buffer = 2 * max(shard.bytes for shard in shards.shards), 0, 0
    flops = forward_flops(cfg, n_passes, n_ctx, unembedded=0) + 12.0 * n_train * n_weights
    flops += forward_flops(cfg, -(-settings.n_eval_tokens // n_ctx), n_ctx, unembedded=0)
    flops += 4.0 * n_weights * (2 * settings.n_eval_tokens + CONTROL_TOKENS)
    flops += 3 * n_saes * forward_flops(cfg, max(1, settings.n_ce_tokens // n_ctx), n_ctx) / 2
    return Cost(
        flops=flops,
        bytes_in_memory=on_host,
        bytes_on_device=weights_bytes(cfg) + buffer + max(training, collected, measuring),
        bytes_on_disk=4 * (1 + 3) * n_weights,  # the stacks; while they train, the state with its moments
    )


def _stacks(cfg: ModelConfig, settings: Any) -> list[_Stack]:
    from workbench.analyses.sae_train.plan import slots_of_hook, stack_config
    from workbench.models.costs import hook_shapes

    found = []
    for kind in settings.kinds:
        groups, widths = {}, []
        for hook in kind.hooks:
            slots = slots_of_hook(cfg, settings.layers, settings.heads, hook, settings.hook)
            (shape,) = hook_shapes(cfg, [slots[0].hook_name]).values()
            widths.append(shape[-1] if slots[0].head is not None else math.prod(shape))
            groups[hook] = (slots, widths[-1])
        n_each = len(settings.coefficients_of(kind)) * len(settings.seeds)
        n_slots = len(groups[kind.hooks[0]][0])
        config = stack_config(settings, kind, n_slots * n_each, *widths)
        found.append(_Stack(groups, config, n_each))
    return found
