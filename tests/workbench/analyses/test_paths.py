"""Paths against a naive loop with hooks in float64, each option; a hand-built circuit; the job and figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from induction_for_tests import induction_model, swapped_pairs
from models_for_tests import small_model
from random_pairs_for_tests import pairs_for

from workbench.analyses.paths.edges import WHOLE, How, Receiver, Sender, is_ahead, path_effects
from workbench.analyses.paths.figures import name_path
from workbench.analyses.paths.layer_runs import Sizes, run_layers
from workbench.analyses.paths.mapping import paths
from workbench.data.pairs import PairTokens

PLAIN = ["janus-small", "janus-v3", "kotodama", "untied-softcap", "parallel", "normed-twice", "post-normed"]
ATOL = 1e-10  # float64: sums of some hundred terms of size 1


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


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "normed-twice", "post-normed"])
def test_a_frozen_scale_makes_receivers_add_up(kind) -> None:
    """With its norm's scale kept, what a receiver reads of two senders is the sum of what it reads of each; and the
    effect on the logits is a sum of direct attributions, before a soft cap."""
    model = small_model(kind, output_logits_soft_cap=0.0).double()
    pairs, how = pairs_for(model), How(is_scale_frozen=True)
    senders, _ = all_parts(model)
    found = path_effects(model, pairs, senders, [Receiver(3, "logits", WHOLE)], how, Sizes(3, 100)).effects[0]
    final = run_layers(model, pairs.corrupt, pairs.last).final
    norm = model.ln_final
    centred = final - final.mean(-1, keepdim=True) if norm.kind == "LN" else final
    sigma = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    u = (model.W_U[:, pairs.answers[:, 0]] - model.W_U[:, pairs.foils[:, 0]]).T
    runs = [run_layers(model, own, pairs.last) for own in (pairs.corrupt, pairs.clean)]
    rows = torch.arange(len(pairs))
    with torch.no_grad():
        for i, sender in enumerate(sorted(senders)):
            base, source = (run.layers[sender.layer] for run in runs)
            block = model.blocks[sender.layer]
            if sender.head == WHOLE:
                change = source.mlp_out - base.mlp_out
            else:
                moved = (source.z - base.z)[:, :, sender.head] @ block.attn.W_O[sender.head]
                change = moved
                if block.norm_behind is not None:
                    change = block.behind_attention(base.written + moved) - block.behind_attention(base.written)
            change = change[rows, pairs.last]
            change = change - change.mean(-1, keepdim=True) if norm.kind == "LN" else change
            torch.testing.assert_close(found[i], (u * norm.gain * change / sigma).sum(-1), atol=ATOL, rtol=ATOL)


def test_receivers_with_a_frozen_scale_are_the_naive_ones() -> None:
    """One head into q of another, its norm's scale taken from the base by hand."""
    model = small_model("janus-small", n_layers=2).double()
    pairs = pairs_for(model)
    sender, receiver = Sender(0, 1), Receiver(1, "q", 2)
    found = path_effects(model, pairs, [sender], [receiver], How(is_scale_frozen=True), Sizes(9, 999)).effects[0, 0]
    base, source = (run_layers(model, own, pairs.last).layers for own in (pairs.corrupt, pairs.clean))
    block = model.blocks[1]
    with torch.no_grad():
        change = (source[0].z - base[0].z)[:, :, 1] @ model.blocks[0].attn.W_O[1]
        x = base[1].resid_pre
        scale = ((x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + model.cfg.eps).sqrt()
        read = block.ln1(x) + (change - change.mean(-1, keepdim=True)) / scale * block.ln1.w
        q = read @ block.attn.W_Q[2] + block.attn.b_Q[2]

        def replace(tensor, hook):
            out = tensor.clone()
            out[:, :, 2] = q
            return out

        with model.hooks(fwd_hooks=[("blocks.1.attn.hook_q", replace)]):
            logits = model(pairs.corrupt)
        rows = torch.arange(len(pairs))
        expected = pairs.effect(logits[rows, pairs.last]) - pairs.effect(model(pairs.corrupt)[rows, pairs.last])
    torch.testing.assert_close(found, expected, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize("site", ["k", "v"])
def test_a_query_heads_own_keys_and_values(site) -> None:
    """per_query_head: the z of one query head is what it is when its group's keys or values are replaced; the others'
    stay. All of a group together are not the group, which goes on from all of them at once."""
    model = small_model("kotodama", n_layers=2).double()
    pairs, sender = pairs_for(model), Sender(0, 1)
    receivers = [Receiver(1, site, head) for head in range(4)]
    how = How(is_per_query_head=True)
    found = path_effects(model, pairs, [sender], receivers, how, Sizes(9, 999)).effects[:, 0]
    base, source = (run_layers(model, own, pairs.last).layers for own in (pairs.corrupt, pairs.clean))
    block, place = model.blocks[1], turned(model, 1, site)
    rows = torch.arange(len(pairs))
    with torch.no_grad():
        change = (source[0].z - base[0].z)[:, :, 1] @ model.blocks[0].attn.W_O[1]
        q, k, v = block.attn.project(block.ln1(base[1].resid_pre + change))
        new = {"k": block.attn.turn(q, k)[1], "v": v}[site]
        before = pairs.effect(model(pairs.corrupt)[rows, pairs.last])
        for head in range(4):
            kept: dict[str, torch.Tensor] = {}
            hooks: list[Any] = [
                (place, lambda x, hook: new),
                ("blocks.1.attn.hook_z", lambda x, hook, kept=kept: kept.update(z=x)),
            ]
            with model.hooks(fwd_hooks=hooks):
                model(pairs.corrupt)

            def replace(z, hook, head=head, own=kept):
                out = z.clone()
                out[:, :, head] = own["z"][:, :, head]
                return out

            with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", replace)]):
                after = pairs.effect(model(pairs.corrupt)[rows, pairs.last])
            torch.testing.assert_close(found[head], after - before, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize("metric", ["logprob", "prob", "kl"])
def test_other_metrics_are_of_the_whole_distribution(metric) -> None:
    model = small_model("untied-softcap", n_layers=2).double()
    pairs, receiver = pairs_for(model), Receiver(2, "logits", WHOLE)
    how = How(metric=metric, direction="noise")
    found = path_effects(model, pairs, [Sender(1, 0), Sender(1, WHOLE)], [receiver], how, Sizes(2, 20))
    rows = torch.arange(len(pairs))
    with torch.no_grad():
        clean, corrupt = (model(own)[rows, pairs.last].log_softmax(-1) for own in (pairs.clean, pairs.corrupt))
        own = corrupt.gather(1, pairs.answers)[:, 0]
        base = clean.gather(1, pairs.answers)[:, 0]
        expected = {"logprob": own - base, "prob": own.exp() - base.exp()}
        expected["kl"] = (clean.exp() * (clean - corrupt)).sum(-1)
    torch.testing.assert_close(found.gaps, expected[metric], atol=ATOL, rtol=ATOL)
    assert bool((found.effects.abs().sum(-1) > 1e-4).all())


# --- a circuit that is known


def test_the_paths_of_the_induction_circuit_are_found_and_no_others() -> None:
    model, pairs = induction_model(), swapped_pairs()
    rows = torch.arange(len(pairs))
    with torch.no_grad():
        for own, sign in ((pairs.clean, 1), (pairs.corrupt, -1)):
            assert bool((sign * pairs.effect(model(own)[rows, pairs.last]) > 0.5).all())
    for direction in ("denoise", "noise"):
        table = paths(model, pairs, ["logits", "q", "k", "v", "mlp"], senders=["heads", "mlps"], direction=[direction])
        table["path"] = [name_path(row) for _, row in table.iterrows()]
        circuit = table.set_index("path").loc[["L0 H1 → L1 H2 k", "L1 H2 → logits"]]
        # 1 but for what the norm's scale changes: of a path to the logits σ is that of the base, x 1.00 to two figures
        assert (circuit["recovery"] - 1).abs().max() < 0.02
        assert (circuit["p"] < 0.01).all()
        assert (circuit["ci_low"] > 0.9).all()
        others = table[~table["path"].isin(circuit.index)]
        assert len(others) == len(table) - 2 > 60
        assert others["recovery"].abs().max() < 0.02


def test_strongest_receivers_are_found_by_their_paths_to_the_logits() -> None:
    model, pairs = induction_model(), swapped_pairs()
    table = paths(model, pairs, ["strongest:1"])
    assert {name_path(row) for _, row in table.iterrows()} == {
        f"L0 H{head} → L1 H2 {site}" for head in range(4) for site in "qkv"
    }
    with_position = paths(model, pairs, ["1.2.k"], position=["b", "end"], n_bootstrap=100)
    by_position = with_position[with_position["head_a"] == 1].set_index("position")["recovery"]
    assert abs(by_position["end"]) < 1e-12
    assert by_position["b"] > 0.4  # of the two tokens whose predecessors are exchanged


# --- what is refused


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("recurrent", {}, "paths: custom is recurrent, and its passes"),
        ("attn-res", {}, "paths: custom has attention residuals, whose routing"),
        ("janus-v3", {"into": ["0.1.k"]}, "into: got 0.1.k, which no sender is ahead of; expected one behind layer 0"),
        ("janus-v3", {"into": ["1.q"]}, "into: got '1.q'; expected logits, strongest"),
        ("janus-v3", {"into": ["1.9.q"]}, "into: got 1.9.q; expected one of 3 layers of 4 heads"),
        ("kotodama", {"into": ["1.2.k"]}, "into: got 1.2.k; expected one of 3 layers of 2 key/value heads"),
        ("janus-v3", {"into": ["5.mlp"]}, "into: got 5.mlp; expected one of 3 layers"),
        ("janus-v3", {"into": []}, "into: got nothing; expected logits"),
        ("janus-v3", {"senders": ["neurons"]}, "senders: got 'neurons'; expected some of heads, mlps"),
        ("janus-v3", {"layers": [7]}, "layers: got 7; expected 0…2"),
        ("janus-v3", {"direction": ["up"]}, "direction: got 'up'; expected some of denoise, noise"),
        (
            "janus-v3",
            {"position": ["subject"]},
            "position: got 'subject'; expected all, each, a number or one of end, changed",
        ),
        ("janus-v3", {"metric": "loss"}, "metric: got 'loss'; expected one of effect, logprob, prob, kl"),
        (
            "janus-v3",
            {"memory_budget_bytes": 1000},
            r"memory_budget_bytes: got 1000; expected at least \d+ for one pair",
        ),
    ],
)
def test_what_is_no_path_is_refused_in_one_line(kind, options, message) -> None:
    model = small_model(kind)
    with pytest.raises(ValueError, match=message) as caught:
        paths(model, pairs_for(model), **options)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.usefixtures("unchecked_shapes")
def test_pairs_of_unequal_lengths_are_refused() -> None:
    model = small_model("janus-v3")
    own = pairs_for(model)
    with pytest.raises(ValueError, match="expected prompts of one length, pair by pair"):
        paths(model, replace(own, corrupt=own.corrupt[:, :-1]))
    with pytest.raises(ValueError, match="got pairs of Tensor; expected PairTokens"):
        paths(model, own.clean)  # type: ignore[arg-type]
