"""Ablated losses of one batch: all heads of a layer continue together from the clean stream.

One clean forward keeps, per layer, the state after attention and z. The state without some heads is that state plus
Σ (z'_h − z_h) W_O[h], or, where a norm stands behind attention, has that sum ahead of the norm: everything before it is
shared, so an ablation costs the layers behind it and the unembedding.
An ablated MLP begins at the same state, with its output replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int
from torch import Tensor

from workbench.analyses.ablate.attribution import attribute
from workbench.analyses.ablate.losses import MAX_COLUMNS, compare, reference
from workbench.analyses.ablate.records import CleanPass, Part, Replacements, SequenceLosses, losses_of
from workbench.extend import TextSize
from workbench.models import HookedLM, ModelConfig
from workbench.models.block import Attended, Block
from workbench.models.costs import (
    LOGITS_HELD,
    TOKENS_TOGETHER,
    block_width,
    check_budget,
    more_on_a_gpu,
    state_streams,
)
from workbench.models.transformer import State

# --- what fits into memory


@dataclass(frozen=True)
class Sizes:
    """How the work is cut: sequences a batch, sequences (of all heads) that continue together, logits held at once."""

    batch_size: int
    n_together: int
    logits_held: int


def plan_sizes(cfg: ModelConfig, n_ctx: int, n_layers: int, n_heads: int, budget: int, *, n_passes: int = 1) -> Sizes:
    """The cut that keeps what is held at once (weights and tokens apart) below `budget` bytes.

    Args:
        n_layers, n_heads: how many layers the clean forward keeps, and how many parts of each are ablated.
        n_passes: forwards of a batch that are kept at once: two where a second head is taken out behind the first.

    Raises:
        ValueError: a budget too small for one head of one sequence.
    """
    scale = more_on_a_gpu(cfg.device)
    clean, continued = bytes_per_sequence(cfg, n_ctx, n_layers, n_heads)
    clean *= n_passes
    fixed = _block_bytes(cfg)
    least = fixed + 3 * 4 * cfg.d_vocab + clean + continued
    check_budget(budget, least, "one head of one sequence")
    wanted_logits = max(cfg.d_vocab, min(scale * LOGITS_HELD, budget // 32))
    logits_held = min(wanted_logits, (budget - fixed - clean - continued) // (3 * 4))
    rest = budget - fixed - 3 * 4 * logits_held
    wanted = max(1, scale * TOKENS_TOGETHER // n_ctx)
    batch_size = max(1, min(wanted, rest // 2 // clean, rest // 2 // continued))
    n_together = max(batch_size, min(wanted, batch_size * n_heads, (rest - batch_size * clean) // continued))
    return Sizes(batch_size, n_together // batch_size * batch_size, logits_held)


def held_bytes(
    cfg: ModelConfig, sizes: Sizes, text: TextSize, n_layers: int, n_heads: int, *, n_passes: int = 1
) -> int:
    """What is held at once of a text that is cut like this, which `plan_sizes` keeps below its budget."""
    clean, continued = bytes_per_sequence(cfg, text.n_ctx, n_layers, n_heads)
    n_batch = min(sizes.batch_size, text.n_windows)
    n_together = min(sizes.n_together, n_batch * n_heads)
    logits = min(sizes.logits_held, max(1, n_batch * n_heads * text.n_ctx) * cfg.d_vocab)
    return n_passes * n_batch * clean + n_together * continued + _block_bytes(cfg) + 3 * 4 * logits


def _block_bytes(cfg: ModelConfig) -> int:
    """A block of W_U, rounded."""
    return 2 * 4 * min(MAX_COLUMNS, cfg.d_vocab) * cfg.d_model


def bytes_per_sequence(cfg: ModelConfig, n_ctx: int, n_layers: int, n_heads: int) -> tuple[int, int]:
    """(clean, continued) bytes that one sequence holds: kept of the clean forward; at the widest point of a block."""
    width_z = cfg.n_heads * cfg.d_head
    # of each layer: state after attention, z, and a donor's z; then final state, x, W_U p (twice), W_U[target], their
    # difference and its gradient; final residuals of a layer's parts, and their changes (twice)
    kept = n_layers * (_streams_of_a_layer(cfg) * cfg.d_model + 2 * width_z)
    kept += (state_streams(cfg) + 6 + 3 * n_heads) * cfg.d_model
    running = block_width(cfg)
    backward = 2 * running  # a layer's graph is held while its gradient is taken
    itemsize = cfg.dtype.itemsize
    return n_ctx * itemsize * (kept + backward), n_ctx * itemsize * running


def _streams_of_a_layer(cfg: ModelConfig) -> int:
    """Tensors [batch pos d_model] that the state after a layer's attention shares with no other layer's."""
    attn_res = cfg.extensions.attn_res
    if attn_res is None:
        return (2 if cfg.parallel_attn_mlp else 1) if cfg.writes_linearly else 3
    has_main = attn_res.streams == "attention"
    return 1 + has_main + (attn_res.n_sums + (not has_main) if attn_res.is_learned else 0)


# --- one batch


def clean_pass(model: HookedLM, tokens: Int[Tensor, "batch pos"], layers: Sequence[int]) -> CleanPass:
    """One forward of `tokens`, keeping what ablations in `layers` start from."""
    return _keep(model, lambda: model.embed_state(tokens), 0, layers)


def pass_behind(model: HookedLM, mid: State | Attended, layer: int, layers: Sequence[int]) -> CleanPass:
    """The forward that goes on from the state `mid` after the attention of `layer`, keeping as `clean_pass` does."""
    return _keep(model, lambda: model.blocks[layer].feed_forward(mid, model.read_out), layer + 1, layers)


def _keep(model: HookedLM, begin: Callable[[], State], first: int, layers: Sequence[int]) -> CleanPass:
    mid: dict[int, State | Attended] = {}
    z: dict[int, Tensor] = {}
    hooks: list = [(f"blocks.{layer}.attn.hook_z", _keeper(z, layer)) for layer in layers]
    with model.hooks(fwd_hooks=hooks):
        state = begin()
        for layer in range(first, model.cfg.n_layers):
            state = model.blocks[layer].attend(state)
            if layer in layers:
                mid[layer] = state
            state = model.blocks[layer].feed_forward(state, model.read_out)
    return CleanPass(mid, z, state)


def _keeper(into: dict[int, Tensor], layer: int) -> Callable[[Tensor, object], None]:
    def keep(tensor: Tensor, hook: object) -> None:
        into[layer] = tensor

    return keep


def ablated_states(
    model: HookedLM, clean: CleanPass, layer: int, heads: Sequence[int], replacement: Tensor | None
) -> State | Attended:
    """States after the attention of `layer` without each head in turn, [head·batch pos d_model].

    replacement: z' of all heads, broadcast to [batch pos head d_head]; None is zero.
    """
    attn, z = model.blocks[layer].attn, clean.z[layer]
    change = -z if replacement is None else replacement - z
    change = rearrange(change[:, :, list(heads)], "batch pos head d_head -> head (batch pos) d_head")
    shared = _added_to(clean.mid[layer]).flatten(0, 1).expand(len(heads), -1, -1)
    summed = torch.baddbmm(shared, change, attn.W_O[list(heads)].to(change.dtype))
    ablated = rearrange(summed, "head (batch pos) d -> (head batch) pos d", pos=z.shape[1])
    return _with_added(model.blocks[layer], clean.mid[layer], ablated, len(heads))


def state_without_heads(model: HookedLM, clean: CleanPass, layer: int, replacement: Tensor | None) -> State | Attended:
    """The state after the attention of `layer` without all of its heads; replacement as `ablated_states`."""
    attn, z = model.blocks[layer].attn, clean.z[layer]
    change = -z if replacement is None else replacement - z
    ablated = _added_to(clean.mid[layer]) + change.flatten(2) @ attn.W_O.flatten(0, 1).to(change.dtype)
    return _with_added(model.blocks[layer], clean.mid[layer], ablated, 1)


def _added_to(mid: State | Attended) -> Float[Tensor, "batch pos d_model"]:
    """The sum that a head's output is a term of: the stream, or, ahead of a norm behind attention, what heads wrote."""
    if isinstance(mid, Tensor):
        return mid
    return mid.written if isinstance(mid, Attended) and mid.written is not None else mid.running


def _with_added(block: Block, mid: State | Attended, ablated: Tensor, n: int) -> State | Attended:
    """The state `mid` n times over, with another such sum."""
    if isinstance(mid, Tensor):
        return ablated
    if isinstance(mid, Attended) and mid.written is not None:
        return mid.repeated(n, mid.resid_pre.repeat(n, 1, 1) + block.behind_attention(ablated), ablated)
    return mid.repeated(n, ablated)


def residuals_without(
    model: HookedLM,
    clean: CleanPass,
    parts: Sequence[Part],
    replacement: Mapping[str, Tensor | None],
    n_together: int,
) -> Iterator[Float[Tensor, "part rows d_model"]]:
    """Final residuals at the scored positions without each of `parts`, which belong to one layer, in their order."""
    layer = parts[0].layer
    assert all(part.layer == layer for part in parts), parts
    stand_in = replacement[parts[0].hook] if parts[0].component != "mlp" else None
    heads = [part.head for part in parts if part.component == "head"]
    n_heads = max(1, n_together // len(clean.z[layer]))
    for chunk in (heads[i : i + n_heads] for i in range(0, len(heads), n_heads)):
        state = ablated_states(model, clean, layer, chunk, stand_in)
        yield _finished(model, model.blocks[layer].feed_forward(state, model.read_out), layer + 1, len(chunk))
    for part in parts[len(heads) :]:
        hooks: list = []
        if part.component == "layer":
            state = state_without_heads(model, clean, layer, stand_in)
        else:
            state, hooks = clean.mid[layer], [(part.hook, _replacer(replacement[part.hook]))]
        with model.hooks(fwd_hooks=hooks):
            state = model.blocks[layer].feed_forward(state, model.read_out)
        yield _finished(model, state, layer + 1, 1)


def _replacer(stand_in: Tensor | None) -> Callable[[Tensor, object], Tensor]:
    def replace(tensor: Tensor, hook: object) -> Tensor:
        return torch.zeros_like(tensor) if stand_in is None else stand_in.to(tensor.dtype).expand_as(tensor)

    return replace


def _finished(model: HookedLM, state: State, layer: int, n_parts: int) -> Float[Tensor, "part rows d_model"]:
    """What the unembedding reads at the scored positions, from the state entering `layer`."""
    state = model(state, start_at_layer=layer, return_type=None)
    x = model.ln_final(model.read_out(state))[:, :-1]
    return rearrange(x, "(part batch) pos d -> part (batch pos) d", part=n_parts)


def ablate_batch(
    model: HookedLM,
    tokens: Int[Tensor, "batch pos"],
    parts: Sequence[Part],
    replacements: Replacements,
    sizes: Sizes,
    has_estimate: bool,
    tell: Callable[[int], None],
) -> SequenceLosses:
    """The losses of a batch, float64 means over positions, averaged over the replacements.

    Args:
        parts: rows; those of a layer stand together, heads first.
        has_estimate: whether to take the gradient's estimates, too.
        tell: gets the number of parts done.
    """
    layers = range(min(part.layer for part in parts), model.cfg.n_layers)
    clean = clean_pass(model, tokens, layers)
    base = reference(model, clean.final, tokens, sizes.logits_held)
    estimate = torch.full((len(parts), len(tokens)), torch.nan, dtype=torch.float64)
    if has_estimate:
        estimate = attribute(model, clean, base, parts, replacements, sizes.logits_held)
    found: list[Tensor] = []
    for layer in dict.fromkeys(part.layer for part in parts):
        of_layer = [part for part in parts if part.layer == layer]
        of_replacements = []
        for replacement in replacements:
            x = torch.cat(list(residuals_without(model, clean, of_layer, replacement, sizes.n_together)))
            of_replacements.append(sequence_means(compare(model, x, base, sizes.logits_held), len(tokens)))
        found.append(torch.stack(of_replacements).mean(0))
        tell(sum(part.shape[1] for part in found))
    ablated, kl = torch.cat(found, dim=1)
    return losses_of(parts, sequence_means((base.loss[None],), len(tokens))[0, 0], ablated, kl, estimate)


def sequence_means(values: Sequence[Float[Tensor, "part rows"]], n_batch: int) -> Float64[Tensor, "value part batch"]:
    """Means over the positions of each sequence, float64 on the CPU."""
    return torch.stack(
        [rearrange(v.cpu().double(), "part (batch pos) -> part batch pos", batch=n_batch).mean(-1) for v in values]
    )
