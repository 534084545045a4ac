"""Scrubbing circuits: the engine against a naive loop under hooks, a model whose circuit is known, controls, bad input."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.workbench.models_for_tests import small_model, tokens_for
from workbench.analyses.scrub.circuits import Node, every_node, parse_head, read_circuits
from workbench.analyses.scrub.engine import Exchange, Prompts, exchanged_effects, keeping, plan_sizes
from workbench.analyses.scrub.scrubbing import Circuit, Options, Scrubber
from workbench.analyses.scrub.search import lenders, random_circuit, split_clusters, tried_sizes
from workbench.analyses.scrub.tables import circuit_row, head_rows, member_rows
from workbench.data.pairs import PairTokens

KINDS = ["janus-v3", "janus-small", "kotodama", "parallel", "attn-res", "attn-res-learned-attention", "recurrent"]
KINDS += ["normed-twice", "post-normed"]


def pairs_for(model, n=6, n_pos=9, seed=0):
    """Pairs of random prompts of one or two lengths and one last token, filled up behind."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = (tokens_for(model, n, n_pos, seed + i) for i in range(2))
    lengths = torch.tensor([n_pos, n_pos - 2]).repeat(n)[:n]
    if model.cfg.extensions.recurrence is not None:
        lengths[:] = n_pos
    rows = torch.arange(n)
    corrupt[rows, lengths - 1] = clean[rows, lengths - 1]
    ids = torch.stack([torch.randperm(model.cfg.d_vocab, generator=generator)[:2] for _ in range(n)])
    some = torch.randint(1, n_pos - 3, (n,), generator=generator)
    is_token = torch.arange(n_pos) < lengths[:, None]
    positions = {"some": some, "end": lengths - 1}
    return PairTokens("random", clean, corrupt, is_token, ids[:, :1], ids[:, 1:], rows // 2, positions)


def naive(model, prompts, exchange):
    """m of each pair by itself, every replaced activation put in place by a hook of its own."""
    every = every_node(model.cfg)
    found = []
    for row in range(len(prompts.base)):
        own = prompts.pairs.take([row])
        length = int(own.last) + 1
        base, source = prompts.base[row : row + 1, :length], prompts.source[row : row + 1, :length]
        _, cache = model.run_with_cache(source)
        named = {(node.layer, node.head, p) for node in exchange.nodes for p in places(node, own, length)}
        all_places = {(node.layer, node.head, p) for node in every for p in range(length)}
        replaced = all_places - named if exchange.is_complement else named

        def put(layer, head, p, name, cache=cache):
            def hook(x, hook):
                x = x.clone()
                if head < 0:
                    x[:, p] = cache[name][:, p]
                else:
                    x[:, p, head] = cache[name][:, p, head]
                return x

            return name, hook

        hooks = [
            put(layer, head, p, f"blocks.{layer}.hook_mlp_out" if head < 0 else f"blocks.{layer}.attn.hook_z")
            for layer, head, p in sorted(replaced)
        ]
        logits = model.run_with_hooks(base, fwd_hooks=hooks)
        found.append(own.effect(logits[:, -1]))
    return torch.cat(found)


def places(node, pair, length):
    return [int(pair.positions[node.position])] if node.position else range(length)


@pytest.mark.parametrize("kind", KINDS)
def test_effects_equal_the_naive_loop(kind):
    model = small_model(kind).double()
    pairs = pairs_for(model)
    circuit = frozenset([Node(0, 1), Node(1, 2, "some"), Node(1, 3, "end"), Node(2, -1), Node(0, -1, "some")])
    sets = [Exchange(frozenset()), keeping(circuit), Exchange(circuit), Exchange(frozenset([Node(2, 0)])),
            Exchange(frozenset([Node(1, -1, "end"), Node(1, 0)])), keeping(frozenset()), keeping(frozenset(every_node(model.cfg)))]  # fmt: skip
    for base, source in ((pairs.clean, pairs.corrupt), (pairs.corrupt, pairs.clean)):
        prompts = Prompts(base, source, pairs)
        found = exchanged_effects(model, prompts, sets, 1 << 30)
        with torch.no_grad():
            wanted = torch.stack([naive(model, prompts, own) for own in sets])
        assert found == pytest.approx(wanted, abs=1e-10)  # float64: rounding of another batch alone


def test_everything_keeps_all_and_nothing_keeps_none():
    # the last token is the same on both sides: without a head or MLP of the clean prompt, the stream is the corrupt one's
    for kind in ("janus-v3", "kotodama", "attn-res", "normed-twice"):
        model = small_model(kind).double()
        scrubber = Scrubber(model, pairs_for(model), Options())
        everything, nothing = scrubber.controls()
        assert everything.kept == pytest.approx(scrubber.ends.clean, abs=1e-12)
        assert nothing.kept == pytest.approx(scrubber.ends.base, abs=1e-12)


def test_little_memory_gives_the_same():
    model = small_model("kotodama").double()
    pairs = pairs_for(model, n=8)
    sets = [Exchange(frozenset([node])) for node in every_node(model.cfg)]
    prompts = Prompts(pairs.clean, pairs.corrupt, pairs)
    least = plan_bytes(model)
    small = plan_sizes(model.cfg, 8, 9, len(sets), least)
    assert (small.n_pairs, small.n_rows) == (1, 1)
    wide, narrow = (exchanged_effects(model, prompts, sets, budget) for budget in (1 << 30, least))
    assert narrow == pytest.approx(wide, abs=1e-12)
    with pytest.raises(ValueError, match=r"memory_gib: got 1000 bytes; expected at least"):
        exchanged_effects(model, prompts, sets, 1000)


def plan_bytes(model):
    from workbench.analyses.scrub.engine import row_bytes

    return sum(row_bytes(model.cfg, 9))
