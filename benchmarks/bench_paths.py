"""Head → head paths of a model beside a naive loop of forward passes with TransformerLens's hooks.

Janus v3 chassis of bench_model, random weights, pairs of 24 tokens that differ from the fifth on. Ours: every head
ahead into q, k and v of one head of every third layer. The peer's forwards cost the same whichever edge is taken, so
its turns are a few edges, spread over layers, counted by the edge: of source, of base with all but the sender frozen,
and of base with the receiver's activation; and the last two alone, where the source's cache is kept for all edges.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch

from benchmarks.bench_ablation import SMOKE
from benchmarks.bench_model import CONFIG
from benchmarks.turns import add, by_turns, machine, write
from workbench.analyses.paths.edges import How, Receiver, Sender, is_ahead, path_effects
from workbench.analyses.paths.parts import plan_sizes
from workbench.data.pairs import PairTokens
from workbench.models import HookedLM
from workbench.models.costs import MEMORY_BUDGET_BYTES
from workbench.models.transformer_lens import to_hooked_transformer

N_POS, FIRST = 24, 4


def pairs_of(config: Any, n: int) -> PairTokens:
    """Random prompts whose sides differ in two tokens."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, config.d_vocab, (n, N_POS), generator=generator)
    corrupt = clean.clone()
    corrupt[:, [FIRST, FIRST + 7]] = clean[:, [FIRST + 7, FIRST]]
    ids = torch.stack([torch.randperm(config.d_vocab, generator=generator)[:2] for _ in range(n)])
    is_token = torch.ones_like(clean, dtype=torch.bool)
    return PairTokens("random", clean, corrupt, is_token, ids[:, :1], ids[:, 1:], torch.arange(n))


def _part(name: str) -> bool:
    return name.endswith(("attn.hook_z", "hook_mlp_out"))


@torch.no_grad()
def naive(
    model: Any,
    pairs: PairTokens,
    edges: list[tuple[Sender, Receiver]],
    base: Any,
    before: torch.Tensor,
    kept: Any = None,
) -> list[torch.Tensor]:
    """The effect of each edge, as one would write it with TransformerLens.

    base, before: activations and measure of the base; kept: activations of the source, by default made for each edge.
    """
    found = []
    for sender, receiver in edges:
        source = kept or model.run_with_cache(pairs.clean, names_filter=_part)[1]

        def freeze(x, hook, s=sender, base=base, source=source):
            out = base[hook.name].clone()
            if hook.name == f"blocks.{s.layer}.attn.hook_z":
                out[:, :, s.head] = source[hook.name][:, :, s.head]
            return out

        seen: dict[str, torch.Tensor] = {}
        name = f"blocks.{receiver.layer}.attn.hook_{receiver.site}"
        keep = (name, lambda x, hook, seen=seen: seen.update(x=x.clone()))
        model.run_with_hooks(pairs.corrupt, fwd_hooks=[(_part, freeze), keep], stop_at_layer=receiver.layer + 1)

        def replace(x, hook, r=receiver, seen=seen):
            x[:, :, r.head] = seen["x"][:, :, r.head]
            return x

        logits = model.run_with_hooks(pairs.corrupt, fwd_hooks=[(name, replace)])
        found.append(pairs.effect(logits[:, -1]) - before)
    return found


def row(quantity: str, n_edges: tuple[int, int], times: tuple[list[float], list[float]], target: str) -> dict[str, Any]:
    """Seconds an edge, and how many times as fast ours is, turn by turn."""
    ours, peer = ([t / n for t in own] for own, n in zip(times, n_edges, strict=True))
    ratios = sorted(p / o for o, p in zip(ours, peer, strict=True))
    middle = lambda values: sorted(values)[len(values) // 2]  # noqa: E731
    return {
        "case": "head to head paths", "quantity": quantity, "ours": f"{middle(ours):.4g}",
        "peer": f"{middle(peer):.4g}",
        "ratio": f"{middle(ratios):.3f}", "ratio_low": f"{ratios[0]:.3f}", "ratio_high": f"{ratios[-1]:.3f}",
        "n_runs": len(ours), "target": target, "peer_name": "TransformerLens hooks", "machine": machine(),
    }  # fmt: skip


def main() -> None:
    """Run and write results/paths.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, one run: that it runs")
    parser.add_argument("--n-runs", type=int, default=3)
    parser.add_argument("--n-pairs", type=int, default=8)
    own = parser.parse_args()
    warnings.simplefilter("ignore")
    config = SMOKE if own.smoke else CONFIG
    model, pairs = HookedLM(config, seed=0), pairs_of(config, own.n_pairs)
    theirs = to_hooked_transformer(model)
    senders = [Sender(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    receivers = [Receiver(layer, site, 1) for layer in range(1, config.n_layers, 3) for site in "qkv"]
    n_ours = sum(is_ahead(s, r, False) for s in senders for r in receivers)
    layers = list(range(1, config.n_layers, 3))
    edges = [(Sender(layer // 2, 0), Receiver(layer, "kvq"[i % 3], 1)) for i, layer in enumerate(layers)]
    sizes = plan_sizes(config, N_POS, len(pairs), len(senders), MEMORY_BUDGET_BYTES)
    ours = lambda: path_effects(model, pairs, senders, receivers, How(), sizes)  # noqa: E731
    found, rows = ours(), []
    logits, base = theirs.run_with_cache(pairs.corrupt, names_filter=_part)
    given = (theirs, pairs, edges, base, pairs.effect(logits[:, -1]))
    for (sender, receiver), expected in zip(edges, naive(*given), strict=True):
        at = found.receivers.index(receiver), found.senders.index(sender)
        off = float((found.effects[at] - expected.double()).abs().max())
        assert off < 1e-4, f"{sender} {receiver}: {off}"  # float32 logits of size 1 to 10
    _, kept = theirs.run_with_cache(pairs.clean, names_filter=_part)
    peers = {
        "source, frozen and patched forwards": (lambda: naive(*given), ">= 10"),
        "frozen and patched forwards, source kept": (lambda: naive(*given, kept), ""),
        "one forward": (lambda: [theirs(pairs.corrupt) for _ in edges], ""),
    }
    for name, (peer, target) in peers.items():
        times = by_turns(ours, peer, 1 if own.smoke else own.n_runs)
        add(rows, row(f"s an edge, beside {name}", (n_ours, len(edges)), times, target))
    if not own.smoke:
        write("paths", rows)


if __name__ == "__main__":
    main()
