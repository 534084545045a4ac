"""Twins of tables: each row equals the measurement of the text without its block, made anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models_for_tests import small_model, tokens_for

from sae.config import SAEConfig
from sae.stack import StackedSAE
from workbench.analyses.ablate.ablation import ablation_table, iterate_ablation, without_blocks
from workbench.analyses.ablate.records import join
from workbench.analyses.attention.statistics import measure_attention
from workbench.analyses.sae_train import evaluation
from workbench.analyses.sae_train.evaluation import Measured, measure_together, splice_sequences
from workbench.analyses.topology import heads as topology_module
from workbench.analyses.topology.heads import topology_tables
from workbench.data.blocks import block_numbers
from workbench.models.activations import choose_slots
from workbench.training.log import write_left_out
from workbench.training.objective import Batch, block_sums, held_out_loss

EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module", params=["janus-v3", "normed-twice"])
def model(request):
    return small_model(request.param).double()


def without(tokens, block):
    return tokens[torch.tensor(block_numbers(len(tokens))) != block]


@pytest.mark.parametrize("n", [8, 19, 33])
def test_topology(model, n, monkeypatch) -> None:
    monkeypatch.setattr(topology_module, "MIN_TOKENS", 1)
    monkeypatch.setattr(topology_module, "MAP_ELEMENTS", 3 * 4 * 16**2)  # batches that end within blocks
    tokens = tokens_for(model, n, 16)
    stats, _, twin = topology_tables(model, tokens)
    assert sorted(set(twin["block"])) == list(range(min(16, n)))
    columns = ["max_cos", "mean_cos", *topology_module.RANKS]
    for block in (0, 5, max(twin["block"])):
        wanted, _, _ = topology_tables(model, without(tokens, block))
        own = twin[twin["block"] == block]
        assert own[["layer", "basis"]].to_numpy().tolist() == stats[["layer", "basis"]].to_numpy().tolist()
        np.testing.assert_allclose(own[columns], wanted[columns], **EXACT)
        assert own["n_tokens"].tolist() == wanted["n_tokens"].tolist()


def test_topology_of_a_dead_head(monkeypatch) -> None:
    monkeypatch.setattr(topology_module, "MIN_TOKENS", 1)
    model = small_model("janus-v3").double()
    with torch.no_grad():
        model.blocks[1].attn.W_V[2] = 0
    tokens = tokens_for(model, 40, 16)
    _, _, twin = topology_tables(model, tokens)
    wanted, _, _ = topology_tables(model, without(tokens, 3))
    columns = ["max_cos", "mean_cos", *topology_module.RANKS]
    np.testing.assert_allclose(twin[twin["block"] == 3][columns], wanted[columns], **EXACT)


def test_a_model_too_wide_for_its_blocks_has_none(monkeypatch) -> None:
    model = small_model("janus-v3")
    monkeypatch.setattr(topology_module, "BLOCK_BYTES", 8 * 16 * 3 * 32**2)
    monkeypatch.setattr(topology_module, "MIN_TOKENS", 1)
    stats, _, twin = topology_tables(model, tokens_for(model, 16, 16))
    assert len(twin) == 16 * len(stats)
    monkeypatch.setattr(topology_module, "BLOCK_BYTES", 8 * 16 * 3 * 32**2 - 1)
    again, _, none = topology_tables(model, tokens_for(model, 16, 16))
    assert not len(none)
    np.testing.assert_allclose(again["nuclear_rank"], stats["nuclear_rank"], rtol=1e-12)


def test_ablation(model) -> None:
    tokens = tokens_for(model, 21, 16)
    parts = {"components": ("head", "layer", "mlp"), "has_estimate": False}
    twin = without_blocks(join(list(iterate_ablation(model, tokens, **parts))))
    assert sorted(set(twin["block"])) == list(range(16))
    columns = ["base_loss", "ablated_loss", "impact_pct", "kl"]
    for block in (0, 7, 15):
        losses = join(list(iterate_ablation(model, without(tokens, block), **parts)))
        wanted = ablation_table(losses, 16, kind="zero", seed=0, name="a", n_bootstrap=100)
        own = twin[twin["block"] == block]
        assert own[["layer", "head"]].to_numpy().tolist() == wanted[["layer", "head"]].to_numpy().tolist()
        np.testing.assert_allclose(own[columns], wanted[columns], **EXACT)
    assert not len(without_blocks(join(list(iterate_ablation(model, tokens[:7], **parts)))))


@pytest.mark.parametrize("n", [8, 21])
def test_attention(model, n) -> None:
    tokens = tokens_for(model, n, 16)
    found = measure_attention(model, tokens)
    stats, twin = found["attention_stats"], found["attention_stats_blocks"]
    columns = ["entropy", "entropy_share", "bos_mass"]
    assert len(twin) == min(16, n) * len(stats)
    for block in (0, 4, max(twin["block"])):
        wanted = measure_attention(model, without(tokens, block))["attention_stats"]
        np.testing.assert_allclose(twin[twin["block"] == block][columns], wanted[columns], **EXACT)


def test_fewer_than_eight_sequences_have_no_twin(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(topology_module, "MIN_TOKENS", 1)
    tokens = tokens_for(model, 7, 16)
    assert not len(topology_tables(model, tokens)[2])
    assert not len(measure_attention(model, tokens)["attention_stats_blocks"])
    write_left_out(tmp_path, {}, block_sums(model, Batch(tokens), 2), 7)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n", [8, 20])
def test_saes(n, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "BLOCK_TOKENS", 16)  # a sequence at once, so that float32 rounds alike
    model = small_model("janus-v3").double()
    slots = choose_slots(model.cfg)
    config = SAEConfig(n_saes=len(slots), d_in=model.cfg.d_head, d_sae=20, decoder_init_norm=0.5)
    stacks = {
        name: StackedSAE(config, torch.Generator().manual_seed(i)) for i, name in enumerate(("trained", "random"))
    }
    index = range(len(slots))

    def measured(given):
        part = Measured(slots, index, stacks, "trained", torch.Generator().manual_seed(0))
        (found,) = measure_together(model, given, [part])
        return part, found

    tokens = tokens_for(model, n, 16)
    left_out = measured(tokens)[0].without_blocks()
    spliced = splice_sequences(model, tokens, slots, list(index), stacks)
    losses = spliced.losses_without_blocks(list(stacks), 16)
    assert len(left_out) == len(losses) == min(16, n)
    for block in (0, 6, len(left_out) - 1):
        rest = without(tokens, block)
        _, wanted = measured(rest)
        again = splice_sequences(model, rest, slots, list(index), stacks).losses(list(stacks), 16)
        assert losses[block].base == pytest.approx(again.base, rel=1e-10)
        for name in stacks:
            for measure in ("l0", "mse", "fvu", "dead_fraction"):
                values = [getattr(own[name], measure) for own in (left_out[block], wanted)]
                torch.testing.assert_close(*values, **EXACT)
            # reconstructions of all tokens at once, float32: rounded by the size of the product
            torch.testing.assert_close(losses[block].spliced[name], again.spliced[name], rtol=1e-7, atol=0)
        torch.testing.assert_close(losses[block].zero, again.zero, **EXACT)


@pytest.mark.parametrize("n", [9, 37])
def test_the_held_out_loss(n, tmp_path) -> None:
    from reports.tables import read_table

    model = small_model("janus-v3").double()
    tokens = tokens_for(model, n, 16)
    sums = block_sums(model, Batch(tokens), 2)
    assert math.fsum(sums) / n == held_out_loss(model, Batch(tokens), 2)
    row = {"model": "m", "seed": 0, "phase": "language", "step": 3}
    write_left_out(tmp_path, row, sums, n)
    twin = read_table(tmp_path, "train_log_blocks")
    wanted = [held_out_loss(model, Batch(without(tokens, block)), 2) for block in twin["block"]]
    np.testing.assert_allclose(twin["held_out_loss"], wanted, **EXACT)
    assert len(twin) == min(16, n)
