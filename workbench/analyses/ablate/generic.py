"""Ablated losses of one batch of any model with TransformerLens's hooks: one whole forward a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int
from torch import Tensor

from workbench.analyses.ablate.engine import Sizes
from workbench.analyses.ablate.records import Part, Replacements, SequenceLosses, losses_of
from workbench.models.checks import Hook, run_hooked
from workbench.models.costs import check_budget


def plan_generic(cfg: Any, n_ctx: int, n_layers: int, n_heads: int, budget: int, *, n_passes: int = 1) -> Sizes:
    """The cut for `ablate_batch_generic`; arguments and errors as `plan_sizes`."""
    logits = 4 * n_ctx * cfg.d_vocab
    width = 8 * cfg.d_model + 3 * (cfg.d_mlp or 0) + 8 * cfg.n_heads * cfg.d_head
    maps = 2 * cfg.n_heads * n_ctx
    # clean and ablated logits, one copy that the model's own forward may make, and the chunk compared; what stands in;
    # of the gradient's pass the graph of all layers
    kept = width + n_layers * (2 * cfg.n_heads * cfg.d_head + cfg.d_model) + maps + cfg.n_layers * (width + maps)
    held = 4 * logits + 4 * n_ctx * kept
    check_budget(budget, held, "one head of one sequence")
    batch_size = max(1, min(budget // held, 8192 // n_ctx))
    return Sizes(batch_size, batch_size, max(cfg.d_vocab, min(1 << 22, logits)))


def ablate_batch_generic(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    parts: Sequence[Part],
    replacements: Replacements,
    sizes: Sizes,
    has_estimate: bool,
    tell: Callable[[int], None],
) -> SequenceLosses:
    """As `ablate_batch`, each part's activation replaced at its hook."""
    clean = run_hooked(model, tokens, [], return_type="logits")
    base, _ = losses_and_kl(clean, clean, tokens, sizes.logits_held)
    estimate = torch.full((len(parts), len(tokens)), torch.nan, dtype=torch.float64)
    if has_estimate:
        estimate = _attribute(model, tokens, parts, replacements)
    found = []
    for part in parts:
        losses = [
            ablated_losses(model, tokens, clean, [replacing_hook(part, replacement)], sizes.logits_held)
            for replacement in replacements
        ]
        found.append(torch.stack(losses).mean(0))
        tell(len(found))
    ablated, kl = torch.stack(found, dim=1)
    return losses_of(parts, base, ablated, kl, estimate)


def ablated_losses(
    model: Any, tokens: Tensor, clean: Tensor, hooks: Sequence[Hook], logits_held: int
) -> Float64[Tensor, "value batch"]:
    """(losses, KL from the clean logits) of each sequence under the hooks."""
    logits = run_hooked(model, tokens, hooks, return_type="logits")
    return torch.stack(losses_and_kl(logits, clean, tokens, logits_held))


def replacing_hook(part: Part, replacement: Mapping[str, Tensor | None]) -> Hook:
    """The hook that puts the replacement in the part's place."""
    stand_in = replacement[part.hook]

    def replace(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        place, value = changed, stand_in
        if part.component == "head":
            place = changed[:, :, part.head]
            value = None if stand_in is None else stand_in[..., part.head, :]
        place.copy_(torch.zeros_like(place) if value is None else value.to(place.dtype).expand_as(place))
        return changed

    return part.hook, replace


def losses_and_kl(
    logits: Float[Tensor, "batch pos d_vocab"], clean: Tensor, tokens: Tensor, logits_held: int
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """Mean next-token loss of each sequence, and mean KL(clean‖logits) at the same positions."""
    flat, flat_clean = (rearrange(t[:, :-1], "batch pos vocab -> (batch pos) vocab") for t in (logits, clean))
    targets, n = tokens[:, 1:].flatten(), max(1, logits_held // logits.shape[-1])
    losses, divergences = [], []
    for rows, rows_clean, target in zip(flat.split(n), flat_clean.split(n), targets.split(n), strict=True):
        wide = torch.promote_types(rows.dtype, torch.float32)
        log_p, log_clean = (torch.log_softmax(t.to(wide), -1) for t in (rows, rows_clean))
        losses.append(-log_p.gather(1, target[:, None]).squeeze(1))
        divergences.append((log_clean.exp() * (log_clean - log_p)).sum(-1))
    means = [torch.cat(p).cpu().double().view(len(tokens), -1).mean(1) for p in (losses, divergences)]
    return means[0], means[1]


def _attribute(
    model: Any, tokens: Tensor, parts: Sequence[Part], replacements: Replacements
) -> Float64[Tensor, "part batch"]:
    """As `attribution.attribute`, by one backward pass over the whole model."""
    caught: dict[str, Tensor] = {}

    def catcher(name: str) -> Callable[[Tensor, Any], Tensor]:
        def catch(activation: Tensor, hook: Any) -> Tensor:
            caught[name] = activation if activation.requires_grad else activation.detach().requires_grad_()
            return caught[name]

        return catch

    names = list(dict.fromkeys(part.hook for part in parts))
    with torch.enable_grad():
        hooks = [(name, catcher(name)) for name in names]
        logits = run_hooked(model, tokens, hooks, return_type="logits")
        log_p = torch.log_softmax(logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)), -1)
        loss = -log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1).mean(1).sum()
        # unused: a bridge that rewrites an output by what its hook returns does not where that equals what came
        found = torch.autograd.grad(loss, [caught[name] for name in names], allow_unused=True)
    gradients = dict(zip(names, found, strict=True))
    if cut := [name for name, gradient in gradients.items() if gradient is None]:
        raise ValueError(f"has_estimate: no gradient reaches hook {cut[0]!r} of this model; expected False")
    estimates = []
    for part in parts:
        activation, gradient = caught[part.hook].detach().double(), gradients[part.hook].double()
        changes = [-activation if (r := own[part.hook]) is None else r.double() - activation for own in replacements]
        products = torch.stack([(change * gradient).sum(1) for change in changes]).mean(0)
        estimates.append((products[:, part.head] if part.component == "head" else products).flatten(1).sum(1))
    return torch.stack(estimates).cpu()
