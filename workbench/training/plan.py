"""What a training run would take, before anything is read or written: parameters, tokens, operations, bytes.

Nothing is allocated: bytes come from shapes (`footprint`), operations from formulas.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from workbench.data.nca_sampler import block_bytes
from workbench.data.tokenizer import is_local
from workbench.extend import Cost
from workbench.models.costs import counted, forward_flops
from workbench.models.load import resolve_device
from workbench.runs.memory import planned_bytes
from workbench.training.footprint import bytes_of_phase
from workbench.training.objective import autocast_dtype, weights_dtype
from workbench.training.optimizers import is_hidden_matrix
from workbench.training.recipe import Recipe, automata, n_tokens_per_step, phase_model
from workbench.training.training_data import open_feed


def plan(recipe: Recipe, *, device: str = "auto", dtype: str = "auto") -> dict[str, Any]:
    """Parameters, tokens, operations, bytes on disk and in memory of a recipe, by name. Nothing is downloaded.

    Raises:
        ValueError: for a device or dtype that cannot be had.
    """
    import workbench.training.loop  # noqa: F401 - what it loads counts among the bytes in memory

    device = resolve_device(device)
    libraries = planned_bytes(device)  # before anything is made that a training does not make
    cost = cost_of_training(recipe, device, dtype)
    on_host = cost.bytes_in_memory + (0 if "bytes_on_device" in libraries else cost.bytes_on_device)
    added = {"bytes_in_memory": int(on_host), "bytes_on_device": int(cost.bytes_on_device)}
    model = counted(phase_model(recipe, -1))
    tokens = _tokens(recipe)
    return {
        "recipe": recipe.name,
        "device": device,
        "precision": str(autocast_dtype(device, dtype) or weights_dtype(dtype)).removeprefix("torch."),
        "n_parameters": model.n_parameters(),
        "n_parameters_without_embeddings": model.n_parameters(embeddings=False),
        "n_steps": sum(phase.n_steps for phase in recipe.phases),
        "n_tokens": sum(tokens),
        "n_tokens_by_phase": {phase.name: n for phase, n in zip(recipe.phases, tokens, strict=True)},
        "flops": cost.flops,
        "n_checkpoints_kept": _count_checkpoints(recipe)[0],
        "bytes_on_disk": int(cost.bytes_on_disk),
        **{what: n_bytes + added[what] for what, n_bytes in libraries.items()},
    }


def cost_of_training(recipe: Recipe, device: str = "cpu", dtype: str = "auto") -> Cost:
    """All phases one after another. Operations are three forward passes' for each token; bytes on disk, those of the
    checkpoints that are kept and of one more while it is written, which from a GPU passes the host."""
    autocast, itemsize = autocast_dtype(device, dtype), weights_dtype(dtype).itemsize
    flops, held, saved = 0.0, 0, 0
    for index, n_tokens in enumerate(_tokens(recipe)):
        cfg, phase = phase_model(recipe, index), recipe.phases[index]
        flops += 3 * forward_flops(cfg, 1, cfg.n_ctx) * n_tokens / cfg.n_ctx
        drawn = block_bytes(automata(phase), cfg.n_ctx, device) if phase.kind == "nca" else 0
        held = max(held, drawn + bytes_of_phase(recipe, index, autocast) * itemsize // 4)
        sizes = {name: p.numel() for name, p in counted(cfg).named_parameters()}
        n_moments = sum((1 if phase.optimizer.muon and is_hidden_matrix(name) else 2) * n for name, n in sizes.items())
        saved = max(saved, itemsize * (sum(sizes.values()) + n_moments))
    kept, n_checkpoints = _count_checkpoints(recipe)
    on_disk = saved * min(kept + 1, n_checkpoints)
    return Cost(flops, saved if device.startswith("cuda") else 0, held, on_disk)


def _tokens(recipe: Recipe) -> list[int]:
    """Tokens that each phase reads."""
    return [phase.n_steps * n_tokens_per_step(recipe, i) for i, phase in enumerate(recipe.phases)]


def _count_checkpoints(recipe: Recipe) -> tuple[int, int]:
    """(checkpoints that are kept, that are made), at every phase's end too."""
    every, ends = recipe.checkpoint.every, list(itertools.accumulate(phase.n_steps for phase in recipe.phases))
    n = ends[-1] // every + sum(end % every != 0 for end in ends)
    return min(recipe.checkpoint.keep or n, n), n


def count_text(recipe: Recipe) -> dict[str, int]:
    """Tokens to train on and held out, by name, of a recipe's text; nothing of one, or of a tokenizer, that would have
    to be fetched from a hub. The text is packed into the cache, where the training finds it.

    Raises:
        ValueError: as `open_feed`.
    """
    data = recipe.data
    local = data.source == "embedded" or Path(data.source).expanduser().exists()
    if not local or not is_local(data.tokenizer):
        return {}
    feed = open_feed(recipe)
    return {
        "n_train_tokens": feed.train.n_tokens,
        "n_held_out_tokens": feed.held_out.n_tokens,
        "n_train_documents": feed.train.n_documents,
        "n_held_out_documents": feed.held_out.n_documents,
    }
