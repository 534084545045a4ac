"""The same comparisons on one CUDA device: the model beside TransformerLens, SAEs beside SAELens, the trainer beside a
bare loop, interventions beside none; and what the recipes of full size reach there.

Janus v3 chassis of bench_model, 16 sequences of 512 tokens. Without a device it says so and writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from benchmarks.bench_ablation import ablate_only, figure, loop
from benchmarks.bench_model import CONFIG, HOOKS, _autocast_loss, plain_loss, tokens, trainer
from benchmarks.bench_sae import BATCH, L1, LR, SIZES, make_sae_lens
from benchmarks.bench_sae_model import compare_training
from benchmarks.bench_training import bare_loop, gradient_step, steps_of, trainer_of
from benchmarks.turns import by_turns, compare, write
from sae import StackedSAE, TrainConfig, Trainer
from workbench.models import HookedLM, cross_entropy, layers
from workbench.models.transformer_lens import to_hooked_transformer
from workbench.training.objective import reproducible

Row = dict[str, object]
RECIPES = ("janus-small", "janus-v3-control", "janus-v3-adaptive", "p3-muon", "p3-attnres", "nca-002", "recurrent-golf")
CHANGES = {"recurrent-golf": {"data.tokenizer": "embedded-1024", "phases.0.n_accumulation": 4}}
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, the makers' sheets


def model_rows(n_runs: int) -> Iterator[Row]:
    """Training, forward and harvest beside TransformerLens; hooks beside none; device memory."""
    ids, model = tokens(16).cuda(), HookedLM(CONFIG).cuda()
    hooked = to_hooked_transformer(model)
    for dtype in ("fp32", "bf16"):
        sides = [trainer(m, lambda m=m, d=dtype: _autocast_loss(m, ids, d)) for m in (model, hooked)]
        times = by_turns(*sides, n_runs)
        yield compare(f"train step {dtype}", "tokens/s", times, "TransformerLens", "", ids.numel())
        for what, stop in (("forward, 3 hook_z cached", None), ("harvest 3 hook_z, stop after 9", 10)):

            @torch.no_grad()
            def read(subject, dtype=dtype, stop=stop) -> None:
                with torch.autocast("cuda", torch.bfloat16, enabled=dtype == "bf16"):
                    subject.run_with_cache(ids, names_filter=HOOKS, **{"stop_at_layer": stop} if stop else {})

            times = by_turns(lambda f=read: f(model), lambda f=read: f(hooked), n_runs)
            yield compare(f"{what}, {dtype}", "tokens/s", times, "TransformerLens", "", ids.numel())

    step = trainer(model, lambda: _autocast_loss(model, ids, "bf16"))

    def plain() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return plain_loss(model, ids)

    times = by_turns(step, trainer(model, plain), n_runs)
    yield compare("unwatched hooks, train step bf16", "s", times, "same network, no hook points", "")
    peaks = []
    for subject in (model, hooked):
        subject.zero_grad(set_to_none=True)
    for subject in (model, hooked):
        peaks.append(peak_bytes(trainer(subject, lambda m=subject: _autocast_loss(m, ids, "bf16"))))
        subject.zero_grad(set_to_none=True)
    row = compare("device memory that a train step bf16 adds", "bytes", ([peaks[0]], [peaks[1]]), "TransformerLens", "")
    yield row | {"ratio": f"{peaks[0] / peaks[1]:.3f}", "ratio_low": "", "ratio_high": ""}


def peak_bytes(step: Callable[[], None]) -> int:
    """Device memory of two steps, beyond what was held before."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    step()
    return torch.cuda.max_memory_allocated() - before


def sae_rows(n_runs: int) -> Iterator[Row]:
    """A step of 24 SAEs on activations on the device, then from the model's forward on."""
    sizes = SIZES.model_copy(update={"n_saes": 24})
    x = torch.randn(sizes.n_saes, BATCH, sizes.d_in, device="cuda")
    for case, settings, autocast in (
        ("fp32", {}, False),
        ("bf16", {"use_bf16": True}, True),
        ("bf16 compiled", {"use_bf16": True, "use_compile": True}, True),
    ):
        stack = StackedSAE(sizes, torch.Generator().manual_seed(0), device="cuda")
        theirs = [make_sae_lens(stack, k, 10_000, autocast, "cuda") for k in range(sizes.n_saes)]
        ours = Trainer(stack, TrainConfig(n_steps=10_000, lr=LR, **settings), L1, torch.Generator().manual_seed(0))

        def step_all(theirs=theirs) -> None:
            for k, one in enumerate(theirs):
                one.step(x[k])

        def step_ours(ours=ours) -> None:
            for _ in range(20):
                ours.step(x)

        times = by_turns(step_ours, step_all, n_runs)
        n = sizes.n_saes * BATCH
        times = [t / 20 for t in times[0]], times[1]
        yield compare(f"SAE step, 24 SAEs, {case}", "token·SAEs/s", times, "SAELens", "", n)
    yield from compare_training("fp32", torch.float32, "", n_runs, "cuda")
    yield from compare_training("bf16 (SAELens: autocast)", torch.bfloat16, "", n_runs, "cuda")


def ablation_rows(n_runs: int) -> Iterator[Row]:
    """All 96 heads on 8 windows beside a run_with_hooks loop over one head a layer, counted as so many token·heads."""
    ids, model = tokens(8).cuda(), HookedLM(CONFIG).cuda()
    hooked = to_hooked_transformer(model)
    n_heads = CONFIG.n_layers * CONFIG.n_heads
    some = [(layer, layer % CONFIG.n_heads) for layer in range(CONFIG.n_layers)]
    for dtype in ("float32", "bfloat16"):
        subject, peer = (m if dtype == "float32" else m.to(torch.bfloat16) for m in (model, hooked))
        run = by_turns(lambda s=subject, d=dtype: ablate_only(s, ids, d), lambda p=peer: loop(p, ids, some), n_runs)
        scaled = run[0], [t * n_heads / len(some) for t in run[1]]
        yield compare(
            f"zero-ablation of all heads, {dtype}",
            "token·heads/s",
            scaled,
            "TransformerLens",
            "",
            ids.numel() * n_heads,
        )


def training_rows(n_runs: int) -> Iterator[Row]:
    """The trainer beside a bare loop, interventions beside none, reproducible kernels beside the default ones."""
    free = trainer_of("janus-v3-control", "cuda")
    n_tokens = free.phase.batch_size * free.phase.n_accumulation * free.recipe.model.n_ctx
    times = by_turns(steps_of(free, 1), bare_loop(free.recipe, 1, "cuda"), n_runs)
    yield compare("trainer, janus-v3-control", "tokens/s", times, "bare PyTorch loop", "", n_tokens)

    def reproducibly(run: Callable[[], None]) -> Callable[[], None]:
        def inside() -> None:
            with reproducible("cuda"):
                run()

        return inside

    for name in ("janus-v3-control", "p3-attnres"):
        changes = {} if name.startswith("janus") else {"phases.0.n_accumulation": 1}
        step, default = (steps_of(trainer_of(name, "cuda", **changes), 1) for _ in range(2))
        times = by_turns(reproducibly(step), default, n_runs)
        yield compare(f"reproducible step, {name}", "s", times, "CUDA's default kernels", "")
    yield from padding_rows(n_runs)
    for name in ("janus-v3-control", "janus-v3-adaptive", "p3-attnres", "recurrent-golf"):
        changes = CHANGES.get(name, {}) | {"phases.0.n_accumulation": 4}
        graphs, launched = (trainer_of(name, "cuda", graphs, **changes) for graphs in (True, False))
        times = by_turns(reproducibly(steps_of(graphs, 1)), reproducibly(steps_of(launched, 1)), n_runs)
        yield compare(f"replayed step, {name}, 4 micro-batches", "s", times, "kernels launched one by one", "")
    pressed = trainer_of("janus-v3-adaptive", "cuda")
    times = by_turns(steps_of(pressed, 1), steps_of(free, 1), n_runs)
    yield compare("VSM on z, step of janus-v3-adaptive", "s", times, "janus-v3-control", "")
    routed, plain = (gradient_step(name, 8, 2048, "cuda") for name in ("p3-attnres", "p3-muon"))
    times = by_turns(routed, plain, n_runs)
    yield compare("AttnRes, 28 layers, N = 7, 8×2,048 tokens", "s", times, "same model without", "")


def padding_rows(n_runs: int) -> Iterator[Row]:
    """Matrices of odd widths with columns of zeros beside the same without, in graphs, where kernels alone count."""

    def recorded(name: str) -> Callable[[], None]:
        one = trainer_of(name, "cuda", **{"phases.0.n_accumulation": 1})
        batch = one._source.next_batch()
        one._gradients(batch, 0.0, 0)  # records the kernels as they are chosen now

        def run() -> None:
            for _ in range(10):
                one._gradients(batch, 0.0, 0)

        return run

    none = lambda width, like: 0  # noqa: E731
    for name in ("janus-v3-control", "p3-muon"):
        padded = recorded(name)
        with mock.patch.object(layers, "n_missing", none), mock.patch.object(cross_entropy, "n_missing", none):
            bare = recorded(name)
        yield compare(f"odd widths padded, 10 micro-batches of {name}", "s", by_turns(padded, bare, n_runs), "bare", "")


def recipe_rows(n_runs: int) -> Iterator[Row]:
    """Tokens a second of a whole optimizer step, as `train` takes it, and its share of the device's peak by 6·N·tokens
    (Kaplan et al. 2020; attention left out)."""
    name = torch.cuda.get_device_name()
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), float("nan"))
    for recipe in RECIPES:
        one = trainer_of(recipe, "cuda", **CHANGES.get(recipe, {}))
        phase = one.phase
        n_tokens = phase.batch_size * phase.n_accumulation * one.recipe.model.n_ctx
        n_parameters = sum(p.numel() for p in one.model.parameters())
        torch.cuda.reset_peak_memory_stats()
        with reproducible("cuda"):
            seconds = statistics.median(by_turns(steps_of(one, 1), lambda: None, n_runs)[0])
        case, rate = f"{recipe}, {n_tokens} tokens a step", n_tokens / seconds
        yield figure(case, "tokens/s", rate, "") | {"n_runs": n_runs}
        yield figure(case, "share of peak FLOP/s", 6 * n_parameters * rate / peak, "") | {"n_runs": n_runs}
        yield figure(case, "GiB of the device at peak", torch.cuda.max_memory_allocated() / 2**30, "")
        del one
        torch.cuda.empty_cache()


GROUPS = {
    "model": model_rows,
    "saes": sae_rows,
    "ablation": ablation_rows,
    "training": training_rows,
    "recipes": recipe_rows,
}


def main(n_runs: int = 7, groups: tuple[str, ...] = tuple(GROUPS)) -> None:
    """Run every case and write benchmarks/results/cuda.csv."""
    if not torch.cuda.is_available():
        print("bench_cuda: no CUDA device; nothing was measured")
        return
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    rows: list[Row] = []
    for name in groups:
        for row in GROUPS[name](n_runs):
            rows.append(row)
            print(row, flush=True)
        write("cuda", rows)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    arguments = parser.parse_args()
    main(arguments.runs, tuple(arguments.groups))
