"""The trainer: beside a bare loop over the same network, with and without each intervention, and its automata.

One process on the CPU, batches of random tokens, sides by turns. A bare loop is a function of the weights without hook
points, torch's AdamW and nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.turns import by_turns, compare, write
from workbench.data.nca import PRESETS
from workbench.data.nca_sampler import NCASampler
from workbench.models import HookedLM
from workbench.models.cross_entropy import linear_cross_entropy
from workbench.training import apply_overrides, load_recipe
from workbench.training.monitor import measure
from workbench.training.objective import autocast_dtype, precision
from workbench.training.recipe import Recipe, phase_model
from workbench.training.telemetry import telemetry_columns
from workbench.training.trainer import Trainer
from workbench.training.training_data import open_feed

N_STEPS = 10  # a turn


def trainer_of(name: str, device: str = "cpu", graphs: bool = True, **changes: object) -> Trainer:
    """A trainer at its first step, on the embedded text, that measures nothing by itself."""
    embedded = {"source": "embedded", "tokenizer": "embedded", "held_out_fraction": 0.05}
    embedded |= {"documents": None, "held_out_split": None}
    recipe = apply_overrides(load_recipe(name), {f"data.{key}": value for key, value in embedded.items()} | changes)
    autocast = autocast_dtype(device, "auto")
    return Trainer(
        recipe,
        telemetry_columns(recipe),
        open_feed(recipe),
        Path(tempfile.mkdtemp()),
        0,
        device,
        autocast=autocast,
        graphs=graphs,
    )


def steps_of(trainer: Trainer, n: int = N_STEPS) -> Callable[[], None]:
    """n optimizer steps of the trainer, read from the device as the log reads them."""

    def run() -> None:
        for _ in range(n):
            trainer._step()
        trainer._read_window()
        trainer._window = []

    return run


def bare_loop(recipe: Recipe, n: int = N_STEPS, device: str = "cpu") -> Callable[[], None]:
    """The same number of steps of the plain network under torch's AdamW, on fixed random windows."""
    phase, cfg = recipe.phases[-1], phase_model(recipe, -1)
    model, generator = HookedLM(cfg).to(device), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.optimizer.adamw.lr, fused=True)
    shape = (phase.batch_size, cfg.n_ctx)

    def run() -> None:
        for _ in range(n):
            for _ in range(phase.n_accumulation):
                ids = torch.randint(0, cfg.d_vocab, shape, generator=generator).to(device)
                with precision(device, autocast_dtype(device, "auto")):
                    loss = plain_loss(model, ids)
                (loss / phase.n_accumulation).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()

    return run


def plain_loss(model: HookedLM, ids: torch.Tensor) -> torch.Tensor:
    """A SwiGLU network's loss without hook points, grouped keys and QK-norm where the config has them."""
    cfg, x = model.cfg, F.embedding(ids, model.W_E)
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        h = F.rms_norm(x, (cfg.d_model,), block.ln1.w, cfg.eps)
        weights = (attn.W_Q, attn.stored("W_K"), attn.stored("W_V"))
        q, k, v = ((h @ W.permute(1, 0, 2).flatten(1)).unflatten(-1, (W.shape[0], -1)) for W in weights)
        if cfg.use_qk_norm:
            q, k = (F.rms_norm(t.float(), (cfg.d_head,), n.w, cfg.eps) for t, n in ((q, attn.q_norm), (k, attn.k_norm)))
        q, k, v = (t.transpose(1, 2).to(v.dtype) for t in (attn.rotary(q), attn.rotary(k), v))
        groups = cfg.n_heads // cfg.kv_heads
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v)) if groups > 1 else (k, v)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + z @ attn.W_O.flatten(0, 1)
        h = F.rms_norm(x, (cfg.d_model,), block.ln2.w, cfg.eps)
        x = x + (F.silu(h @ mlp.W_gate) * (h @ mlp.W_in)) @ mlp.W_out
    x = F.rms_norm(x, (cfg.d_model,), model.ln_final.w, cfg.eps)[:, :-1]
    return linear_cross_entropy(x.flatten(0, 1), model.W_U, ids[:, 1:].flatten())


def gradient_step(name: str, n_rows: int, n_ctx: int, device: str = "cpu", **changes: object) -> Callable[[], None]:
    """Forward and backward of a recipe's model at its full width, without the optimizer, whose work is the same."""
    recipe = load_recipe(name)
    model = HookedLM(phase_model(recipe, -1).model_copy(update=changes)).to(device)
    ids = torch.randint(0, model.cfg.d_vocab, (n_rows, n_ctx), generator=torch.Generator().manual_seed(0)).to(device)

    def run() -> None:
        with precision(device, autocast_dtype(device, "auto")):
            loss = model(ids, return_type="loss", z_loss=1e-5)
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None

    return run


def interventions(n_runs: int, rows: list[dict[str, object]]) -> None:
    """Attention residuals at 28 layers, pressure on z, and the monitor, each beside the step without it."""
    routed, plain = (gradient_step(name, 2, 256) for name in ("p3-attnres", "p3-muon"))
    times = by_turns(routed, plain, n_runs)
    rows.append(compare("AttnRes, 28 layers, N = 7, d_model 512", "s", times, "same model without", "≥ 0.80 (≤ 1.25×)"))
    small = {
        "phases.0.batch_size": 2,
        "phases.0.n_accumulation": 2,
    }  # of 40M parameters, what two cores step in seconds
    for size, changes, n in (("-nano", {}, N_STEPS), ("", small, 1)):
        free = trainer_of(f"janus-v3-control{size}", **changes)
        for on, most in (("z", 1.05), ("residual", 1.15)):
            own = {**changes, "phases.0.interventions.vsm.on": on}
            pressed = trainer_of(f"janus-v3-adaptive{size}", **own)
            times = by_turns(steps_of(pressed, n), steps_of(free, n), n_runs)
            rows.append(
                compare(
                    f"VSM on {on}{', nano' if size else ''}", "s", times, f"Control{size}",
                    f"≥ {1 / most:.2f} (≤ {most}×)",
                )
            )  # fmt: skip
    free = trainer_of("janus-v3-control-nano")
    monitor = free.recipe.monitor
    started = time.perf_counter()
    for _ in range(3):
        measure(free.model, free._probe.tokens, monitor)
    measured = (time.perf_counter() - started) / 3
    steps = [monitor.every / N_STEPS * t for t in times[1]]
    row = compare("monitor at its default k, nano", "s", ([measured] * n_runs, steps), "k steps", "≤ 0.05 of the peer")
    rows.append(row | {"ratio": f"{measured / sorted(steps)[n_runs // 2]:.4f}", "ratio_low": "", "ratio_high": ""})


def loops(n_runs: int, rows: list[dict[str, object]]) -> None:
    """Trainer and bare loop."""
    for name, changes in (
        ("janus-v3-control-nano", {}),
        ("p1-adamw-nano", {}),
        ("janus-v3-control", {"phases.0.batch_size": 2, "phases.0.n_accumulation": 2}),
    ):
        n = N_STEPS if name.endswith("nano") else 1
        trainer = trainer_of(name, **changes)
        tokens = n * trainer.phase.batch_size * trainer.phase.n_accumulation * trainer.recipe.model.n_ctx
        times = by_turns(steps_of(trainer, n), bare_loop(trainer.recipe, n), n_runs)
        rows.append(compare(f"trainer, {name}", "tokens/s", times, "bare PyTorch loop", "≥ 0.90", tokens))


def automata(n_runs: int, rows: list[dict[str, object]]) -> None:
    """Tokens a second of the generator beside the trainer that reads them."""
    trainer = trainer_of("nca-002-nano")
    n_tokens = N_STEPS * trainer.phase.batch_size * trainer.recipe.model.n_ctx
    sampler = NCASampler(PRESETS["small"], trainer.recipe.model.n_ctx, trainer.phase.batch_size, 1)

    def generate(of: NCASampler, n: int) -> None:
        for _ in range(n):
            of.next_batch()

    # rules are drawn in blocks that fill a dozen batches: only many blocks tell what one batch costs
    n_more = 20
    times = by_turns(lambda: generate(sampler, n_more * N_STEPS), steps_of(trainer), n_runs)
    times = ([t / n_more for t in times[0]], times[1])
    rows.append(compare("NCA generator, nano", "tokens/s", times, "trainer of nca-002-nano", "≥ 10", n_tokens))
    published = NCASampler(PRESETS["kotodama"], 2048, 8, 1)
    step = gradient_step("nca-002", 1, 512, d_vocab=PRESETS["kotodama"].d_vocab)
    times = by_turns(lambda: generate(published, 40), step, n_runs)  # a block fills some 30 batches
    per_batch = (
        [t / 40 for t in times[0]],
        [t * 8 * 2048 / 512 for t in times[1]],
    )  # the same tokens, at 512 a sequence
    rows.append(compare("NCA generator, kotodama", "tokens/s", per_batch, "gradients of 108M", "≥ 10", 8 * 2048))


def main(n_runs: int = 5) -> None:
    """Run every case and write benchmarks/results/training.csv."""
    rows: list[dict[str, object]] = []
    for part in (interventions, loops, automata):
        n_before = len(rows)
        part(n_runs, rows)
        for row in rows[n_before:]:
            print(row, flush=True)
    print(write("training", rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    main(parser.parse_args().runs)
