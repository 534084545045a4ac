"""Paths against a naive loop with hooks in float64, each option; a hand-built induction circuit; the job and figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models_for_tests import small_model

from workbench.analyses.paths.edges import WHOLE, How, Receiver, Sender, is_ahead, path_effects
from workbench.analyses.paths.layer_runs import Sizes
from workbench.data.pairs import PairTokens

PLAIN = ["janus-small", "janus-v3", "kotodama", "untied-softcap", "parallel", "normed-twice", "post-normed"]
ATOL = 1e-10  # float64: sums of some hundred terms of size 1


def pairs_for(model, n: int = 3, n_pos: int = 9, seed: int = 0) -> PairTokens:
    """Random prompts of unequal lengths that differ in some tokens from the third on."""
    g = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, model.cfg.d_vocab, (n, n_pos), generator=g)
    corrupt = clean.clone()
    corrupt[:, 3:6] = torch.randint(0, model.cfg.d_vocab, (n, 3), generator=g)
    corrupt[:, 3] = (clean[:, 3] + 1) % model.cfg.d_vocab
    lengths = torch.tensor([n_pos - i % 2 for i in range(n)])
    ids = torch.stack([torch.randperm(model.cfg.d_vocab, generator=g)[:2] for _ in range(n)])
    positions = {"changed": torch.full((n,), 3)}
    is_token = torch.arange(n_pos) < lengths[:, None]
    return PairTokens("by-hand", clean, corrupt, is_token, ids[:, :1], ids[:, 1:], torch.arange(n), positions)


def all_parts(model) -> tuple[list[Sender], list[Receiver]]:
    cfg = model.cfg
    senders = [Sender(layer, head) for layer in range(cfg.n_layers) for head in (WHOLE, *range(cfg.n_heads))]
    receivers = [Receiver(cfg.n_layers, "logits", WHOLE)]
    for layer in range(cfg.n_layers):
        receivers.append(Receiver(layer, "mlp", WHOLE))
        receivers += [Receiver(layer, "q", head) for head in range(cfg.n_heads)]
        receivers += [Receiver(layer, site, head) for site in "kv" for head in range(cfg.kv_heads)]
    return senders, receivers


def turned(model, layer: int, site: str) -> str:
    """Where the naive loop replaces: behind QK-norm and rotation, which a norm over all heads needs."""
    is_rotary = model.cfg.positional_embedding_type == "rotary"
    return f"blocks.{layer}.attn.hook_{'rot_' if is_rotary and site in 'qk' else ''}{site}"


def naive_effect(model, pairs: PairTokens, sender: Sender, receiver: Receiver, how: How) -> torch.Tensor:
    """Three forward passes by hooks: source; base with all frozen but the sender's path; base with the receiver's."""
    base, source = (pairs.corrupt, pairs.clean) if how.direction == "denoise" else (pairs.clean, pairs.corrupt)
    cfg, n = model.cfg, len(pairs)
    names = [f"blocks.{i}.{leaf}" for i in range(cfg.n_layers) for leaf in ("attn.hook_z", "hook_mlp_out")]
    _, base_cache = model.run_with_cache(base, names_filter=lambda name: name in names)
    _, source_cache = model.run_with_cache(source, names_filter=lambda name: name in names)
    at = torch.ones(base.shape, dtype=torch.bool)
    if how.position != "all":
        at = torch.arange(base.shape[1]) == pairs.positions[how.position][:, None]

    def freeze(x, hook):
        out, layer = base_cache[hook.name].clone(), int(hook.name.split(".")[1])
        if layer == sender.layer and hook.name.endswith("hook_z") and sender.head != WHOLE:
            out[:, :, sender.head] = torch.where(
                at[..., None], source_cache[hook.name][:, :, sender.head], out[:, :, sender.head]
            )
        if hook.name.endswith("hook_mlp_out"):
            if layer == sender.layer and sender.head == WHOLE:
                return torch.where(at[..., None], source_cache[hook.name], out)
            if how.mlps == "live" and layer >= sender.layer:
                return x
        return out

    hooks: list[Any] = [(name, freeze) for name in names if not (receiver.site == "mlp" and name == mlp_of(receiver))]
    kept: dict[str, torch.Tensor] = {}
    if receiver.site == "logits":
        with model.hooks(fwd_hooks=hooks):
            logits = model(base)
    else:
        place = mlp_of(receiver) if receiver.site == "mlp" else turned(model, receiver.layer, receiver.site)
        with model.hooks(fwd_hooks=[*hooks, (place, lambda x, hook: kept.update(x=x.clone()))]):
            model(base)

        def replace(x, hook):
            if receiver.head == WHOLE:
                return kept["x"]
            out = x.clone()
            out[:, :, receiver.head] = kept["x"][:, :, receiver.head]
            return out

        with model.hooks(fwd_hooks=[(place, replace)]):
            logits = model(base)
    rows = torch.arange(n)
    return pairs.effect(logits[rows, pairs.last]) - pairs.effect(model(base)[rows, pairs.last])


def mlp_of(receiver: Receiver) -> str:
    return f"blocks.{receiver.layer}.hook_mlp_out"


def check_against_naive(model, pairs, senders, receivers, how: How, n_checked: int = 14) -> None:
    """Some of the paths, drawn by chance with one to each kind of receiver among them."""
    found = path_effects(model, pairs, senders, receivers, how, Sizes(2, 40))
    ahead = [
        (i, j)
        for i, receiver in enumerate(found.receivers)
        for j, sender in enumerate(found.senders)
        if is_ahead(sender, receiver, model.cfg.parallel_attn_mlp)
    ]
    is_known = torch.zeros(found.effects.shape[:2], dtype=torch.bool)
    is_known[tuple(torch.tensor(ahead).T)] = True
    assert torch.equal(is_known[..., None].expand_as(found.effects), ~found.effects.isnan())
    order = torch.randperm(len(ahead), generator=torch.Generator().manual_seed(len(str(how)))).tolist()
    chosen = sorted(order, key=lambda k: [found.receivers[ahead[m][0]].site for m in order[: order.index(k)]].count(
        found.receivers[ahead[k][0]].site))[:n_checked]  # fmt: skip
    for i, j in (ahead[k] for k in chosen):
        with torch.no_grad():
            expected = naive_effect(model, pairs, found.senders[j], found.receivers[i], how)
        where = f"{found.senders[j]} {found.receivers[i]}"
        torch.testing.assert_close(
            found.effects[i, j], expected, atol=ATOL, rtol=ATOL, msg=lambda m, where=where: f"{where}: {m}"
        )
    assert found.effects[is_known].abs().max() > 1e-3


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("how", [How(), How(direction="noise", mlps="live"), How(position="changed")], ids=str)
def test_every_path_is_the_naive_loops(kind, how) -> None:
    model = small_model(kind, n_layers=2 if kind != "normed-twice" else 3).double()
    check_against_naive(model, pairs_for(model), *all_parts(model), how)
