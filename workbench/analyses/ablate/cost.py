"""What `ablate` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """The clean pass of a batch and the parts that go on from it, cut as `plan_sizes` cuts them: of each part the
    layers behind it and the logits are run again. A copy in another dtype stands beside the model.
    """
    from workbench.analyses.ablate.ablation import plan_sizes
    from workbench.analyses.ablate.engine import held_bytes
    from workbench.models.checks import choose
    from workbench.models.config import parse_dtype
    from workbench.models.costs import bytes_of, forward_flops, weights_bytes

    narrow = cfg.dtype.itemsize < 4 and settings.dtype is None
    run = cfg.model_copy(update={"dtype": parse_dtype(settings.dtype or ("float32" if narrow else cfg.dtype))})
    weights = weights_bytes(cfg) + (weights_bytes(run) if run.dtype != cfg.dtype else 0)
    layers, heads = choose("layers", settings.layers, cfg.n_layers), choose("heads", settings.heads, cfg.n_heads)
    n_parts = sum(len(heads) if name == "head" else 1 for name in settings.components)
    n_layers, budget = cfg.n_layers - min(layers), bytes_of(settings.memory_gib)
    kinds = [(n_parts, 1)] if settings.pairs is None else [(n_parts, 1), (cfg.n_heads, 2)]
    held = 0
    for n, n_passes in kinds:
        sizes = plan_sizes(run, text.n_ctx, n_layers, n, budget, n_passes=n_passes)
        held = max(held, held_bytes(run, sizes, text, n_layers, n, n_passes=n_passes))
    a_pass = forward_flops(cfg, text.n_windows, text.n_ctx)
    n_passes = 1 + 2 * settings.has_estimate  # a gradient takes two more
    n_passes += settings.n_resamples * n_parts * sum(1 - layer / cfg.n_layers for layer in layers)
    return Cost(flops=n_passes * a_pass, bytes_on_device=weights + held)
