"""The hooked model beside TransformerLens's HookedTransformer, and beside the same network without hook points.

Janus v3 chassis of 63.5M parameters (12 layers, d_model 512, 8 heads, SwiGLU 1365, vocabulary 50,257), 4 sequences of
512 tokens.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import torch
import torch.nn.functional as F

from benchmarks.turns import add, by_turns, compare, write
from workbench.models import HookedLM, ModelConfig
from workbench.models.cross_entropy import linear_cross_entropy
from workbench.models.transformer_lens import to_hooked_transformer
from workbench.runs.memory import peak_bytes as process_peak_bytes

CONFIG = ModelConfig(
    n_layers=12, d_model=512, n_ctx=512, d_vocab=50257, n_heads=8, d_head=64, d_mlp=1365,
    tie_word_embeddings=True, rotary_adjacent_pairs=True,
)  # fmt: skip
HOOKS = [f"blocks.{layer}.attn.hook_z" for layer in (3, 6, 9)]


def tokens(batch: int = 4, pos: int = 512) -> torch.Tensor:
    """Random ids [batch pos]."""
    return torch.randint(0, CONFIG.d_vocab, (batch, pos), generator=torch.Generator().manual_seed(0))


def trainer(model, loss_of):
    """A closure that makes one AdamW step on a fixed batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def plain_loss(model: HookedLM, ids: torch.Tensor) -> torch.Tensor:
    """The chassis's loss written out without hook points, on the model's own weights."""
    x = F.embedding(ids, model.W_E)
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        h = F.rms_norm(x, (x.shape[-1],), block.ln1.w, CONFIG.eps)
        q, k, v = ((h @ W.permute(1, 0, 2).flatten(1)).unflatten(-1, (8, 64)) for W in (attn.W_Q, attn.W_K, attn.W_V))
        q, k, v = (t.transpose(1, 2) for t in (attn.rotary(q), attn.rotary(k), v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + z @ attn.W_O.flatten(0, 1)
        h = F.rms_norm(x, (x.shape[-1],), block.ln2.w, CONFIG.eps)
        x = x + (F.silu(h @ mlp.W_gate) * (h @ mlp.W_in)) @ mlp.W_out
    x = F.rms_norm(x, (x.shape[-1],), model.ln_final.w, CONFIG.eps)[:, :-1]
    return linear_cross_entropy(x.flatten(0, 1), model.W_U, ids[:, 1:].flatten())


def peak_bytes(which: str, dtype: str) -> int:
    """Peak resident bytes of building a model and training it for two steps, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_model", "--peak", which, "--dtype", dtype]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _print_peak(which: str, dtype: str) -> None:
    ids = tokens()
    model = HookedLM(CONFIG)
    subject = model if which == "ours" else to_hooked_transformer(model)
    if which != "ours":
        del model
    step = trainer(subject, lambda: _autocast_loss(subject, ids, dtype))
    step()
    step()
    print(process_peak_bytes())


def _autocast_loss(model, ids: torch.Tensor, dtype: str) -> torch.Tensor:
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=dtype == "bf16"):
        return model(ids, return_type="loss")


def main(n_runs: int = 5) -> None:
    """Run every case and write benchmarks/results/model.csv."""
    ids, model = tokens(), HookedLM(CONFIG)
    hooked = to_hooked_transformer(model)
    n_tokens, rows = ids.numel(), []
    for dtype, target in (("fp32", "≥ 1.5"), ("bf16", "≥ 1.8")):
        ours = trainer(model, lambda dtype=dtype: _autocast_loss(model, ids, dtype))
        peer = trainer(hooked, lambda dtype=dtype: _autocast_loss(hooked, ids, dtype))
        times = by_turns(ours, peer, n_runs)
        add(rows, compare(f"train step {dtype}", "tokens/s", times, "TransformerLens", target, n_tokens))
    for dtype, target in (("fp32", "≥ 1.5"), ("bf16", "≥ 2.5")):

        @torch.no_grad()
        def forward(subject, dtype=dtype):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
                return subject.run_with_cache(ids, names_filter=HOOKS)

        times = by_turns(lambda f=forward: f(model), lambda f=forward: f(hooked), n_runs)
        add(rows, compare(f"forward, 3 hook_z cached, {dtype}", "tokens/s", times, "TransformerLens", target, n_tokens))

        @torch.no_grad()
        def harvest(subject, dtype=dtype):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
                return subject.run_with_cache(ids, names_filter=HOOKS, stop_at_layer=10)

        times = by_turns(lambda f=harvest: f(model), lambda f=harvest: f(hooked), n_runs)
        add(
            rows,
            compare(f"harvest 3 hook_z, stop after 9, {dtype}", "tokens/s", times, "TransformerLens", "", n_tokens),
        )
    plain = trainer(model, lambda: plain_loss(model, ids))
    times = by_turns(trainer(model, lambda: model(ids, return_type="loss")), plain, n_runs)
    add(rows, compare("unwatched hooks, train step fp32", "s", times, "same network, no hook points", "≥ 0.98"))
    for dtype in ("fp32", "bf16"):
        ours, peer = peak_bytes("ours", dtype), peak_bytes("peer", dtype)
        row = compare(
            f"peak memory, train step {dtype}", "bytes", ([ours], [peer]), "TransformerLens", "ours ≤ 0.7 × peer"
        )
        add(rows, row | {"ratio": f"{ours / peer:.3f}", "ratio_low": "", "ratio_high": ""})
    print(write("model", rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peak", choices=["ours", "peer"])
    parser.add_argument("--dtype", default="fp32")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    if arguments.peak:
        _print_peak(arguments.peak, arguments.dtype)
    else:
        main(arguments.runs)
