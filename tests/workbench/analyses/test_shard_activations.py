"""SAEs trained from shards: the rows that were harvested, in their order; nothing foreign, altered or held out."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import small_model, tokens_for

from sae import StackedSAE, Trainer
from workbench.analyses.harvest import storing
from workbench.analyses.harvest.storing import harvest
from workbench.analyses.sae_train.head_saes import sae_train
from workbench.analyses.sae_train.plan import make_plans, stack_config, train_config
from workbench.analyses.sae_train.settings import HeadSaeSettings
from workbench.analyses.sae_train.shard_activations import ShardActivations, check_shards, shards_sha256
from workbench.analyses.sae_train.stack_training import fold_scale, input_scale
from workbench.data.shards import open_shards, read_shards
from workbench.models.activations import Positions, choose_slots
from workbench.models.weights import weights_sha256

Z = [f"blocks.{layer}.attn.hook_z" for layer in range(2)]
QUICK = {"batch_size": 24, "buffer_tokens": 64, "lr": 1e-2, "expansion": 3, "n_ce_tokens": 32, "l1": 1.0}
QUICK |= {"normalize": "none", "n_train_tokens": None}
FILES = ["sae/sae.safetensors", "sae_training_results.csv", "sae_density.csv", "sae_curves.csv"]


@pytest.fixture(scope="module")
def model():
    return small_model("janus-v3", n_layers=2)


@pytest.fixture(scope="module")
def held_out(model):
    return tokens_for(model, batch=6, pos=16, seed=9)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    """11 sequences of 16 tokens in six shards, the last a short one: no multiple of the batch."""
    out = tmp_path_factory.mktemp("shards") / "h"
    harvest(model, tokens_for(model, batch=11, pos=16), [*Z, "blocks.1.hook_resid_post"], out, shard_bytes=14_000)
    assert [shard.rows for shard in open_shards(out).shards] == [32] * 5 + [16]
    return out


@pytest.mark.parametrize("hook", ["z", "z_concat", "hook_resid_post"])
def test_batches_are_the_shards_laid_end_to_end(model, path, hook):
    slots = choose_slots(model.cfg, [1] if hook == "hook_resid_post" else None, hook=hook)
    whole = {name: torch.cat([part[name] for part in read_shards(path)]) for name in open_shards(path).hooks}
    flat = [whole[s.hook_name].flatten(1) if s.head is None else whole[s.hook_name][:, s.head] for s in slots]
    want = torch.stack(flat)
    source = ShardActivations(open_shards(path), slots, batch_size=24, buffer_tokens=70)
    for i in (0, 1, 6, 7, 30, 2):  # over the ends of shards, over the end of all, and back
        rows = (torch.arange(24) + 24 * i) % 176
        assert torch.equal(source.batch(i), want[:, rows])
    assert torch.equal(source.block(0), want[:, :70])
    everything = ShardActivations(open_shards(path), slots, batch_size=24, buffer_tokens=10_000)
    assert torch.equal(everything.block(0), want)


def test_only_rows_at_the_positions_are_given(model, path):
    slots = choose_slots(model.cfg, [1])
    parts = list(read_shards(path))
    whole = {name: torch.cat([part[name] for part in parts]) for name in ("blocks.1.attn.hook_z", "token", "position")}
    special = frozenset(whole["token"][:9].tolist())
    keep = (whole["position"] > 0) & torch.tensor([token not in special for token in whole["token"].tolist()])
    want = whole["blocks.1.attn.hook_z"][keep].transpose(0, 1)
    source = ShardActivations(open_shards(path), slots, batch_size=24, buffer_tokens=70, positions=Positions(special))
    assert source.n_tokens == int(keep.sum()) < 165
    for i in (0, 1, 4, 30, 2):
        assert torch.equal(source.batch(i), want[:, (torch.arange(24) + 24 * i) % source.n_tokens])
    assert torch.equal(source.block(0), want[:, :70])
    with pytest.raises(ValueError, match=r"shards: all tokens of .* are special or at position 0; expected others"):
        ShardActivations(
            open_shards(path), slots, batch_size=24, buffer_tokens=70, positions=Positions(frozenset(range(61)))
        )


def test_bfloat16_shards_are_read_as_float32(model, tmp_path):
    harvest(model, tokens_for(model, 3), [Z[0]], tmp_path / "h", dtype="bfloat16")
    source = ShardActivations(open_shards(tmp_path / "h"), choose_slots(model.cfg, [0]), batch_size=5, buffer_tokens=5)
    stored = next(read_shards(tmp_path / "h"))[Z[0]]
    assert source.batch(0).dtype == torch.float32
    assert torch.equal(source.batch(0)[2], stored[:5, 2].float())


def test_training_is_what_the_trainer_does_on_these_rows(model, path, held_out):
    settings = HeadSaeSettings(**QUICK | {"l1": [1.0], "normalize": "mean_norm", "n_resamples": 1})
    stack, table = sae_train(
        model, path, [1], [0, 2], held_out=held_out, **QUICK | {"normalize": "mean_norm", "n_resamples": 1}
    )
    (plan,) = make_plans(model, [1], [0, 2], 1.0, [0], settings)
    source = ShardActivations(open_shards(path), plan.slots, batch_size=24, buffer_tokens=64, positions=plan.positions)
    scale = input_scale(source.block(0))
    own = StackedSAE(stack_config(settings, plan.kind, 2, 8), plan.generators(0))
    trainer = Trainer(own, train_config(settings, 165 // 24), 1.0, plan.generators(1))
    for step in range(165 // 24):
        trainer.step(source.batch(step) * scale)
    for name, tensor in fold_scale(own, scale[:, 0, 0]).state_dict().items():
        assert torch.equal(stack.state_dict()[name], tensor)
    assert set(table["n_train_tokens"]) == {6 * 24, 0}
    assert stack.info.context_size == 16
    assert stack.info.model_sha256 == weights_sha256(model)


def test_more_tokens_than_were_harvested_pass_over_them_again(model, path, held_out):
    stack, _ = sae_train(model, path, [0], [0], held_out=held_out, **QUICK | {"n_train_tokens": 480})
    assert stack.info.n_train_tokens == 480


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_killed_run_goes_on_bit_for_bit(model, path, held_out, tmp_path, dying_at_step, stop):
    arguments = QUICK | {"held_out": held_out}
    sae_train(model, path, out=tmp_path / "whole", **arguments)
    with dying_at_step(stop):
        sae_train(model, path, out=tmp_path / "run", **arguments)
    sae_train(model, path, out=tmp_path / "run", resume=True, **arguments)
    for name in FILES:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_other_shards_are_another_run(model, path, held_out, tmp_path):
    sae_train(model, path, [0], out=tmp_path / "run", held_out=held_out, **QUICK)
    harvest(model, tokens_for(model, batch=11, pos=16), Z, tmp_path / "h", seed=5)
    assert shards_sha256(open_shards(tmp_path / "h")) != shards_sha256(open_shards(path))
    with pytest.raises(ValueError, match="resume: shards_sha256 is"):
        sae_train(model, tmp_path / "h", [0], out=tmp_path / "run", resume=True, held_out=held_out, **QUICK)
    # the same harvest made again elsewhere is the same
    harvest(model, tokens_for(model, batch=11, pos=16), Z, tmp_path / "again", seed=5)
    assert shards_sha256(open_shards(tmp_path / "again")) == shards_sha256(open_shards(tmp_path / "h"))


def test_one_flipped_bit_in_each_of_fifty_shards_is_caught_by_name(model, held_out, tmp_path):
    out = tmp_path / "h"
    shards = harvest(model, tokens_for(model, batch=50, pos=16), [Z[0]], out, shard_bytes=1)
    assert len(shards.shards) == 50
    sha256 = weights_sha256(model)
    check_shards(shards, sha256, held_out)
    flips = random.Random(0)
    for number, shard in enumerate(shards.shards):
        file = out / shard.file
        whole = file.read_bytes()
        altered = bytearray(whole)
        altered[flips.randrange(len(whole))] ^= 1 << flips.randrange(8)
        file.write_bytes(altered)
        with pytest.raises(ValueError, match=rf"shard_{number:05d}\.safetensors is altered, sha256"):
            check_shards(shards, sha256, held_out)
        # and where a shard changes behind the check, when its rows are read
        source = ShardActivations(shards, choose_slots(model.cfg, [0]), batch_size=16, buffer_tokens=16)
        with pytest.raises(ValueError, match=rf"shard_{number:05d}\.safetensors is altered, sha256"):
            source.batch(number)
        file.write_bytes(whole)
    check_shards(shards, sha256, held_out)


def test_shards_of_another_model_are_refused_by_their_hash(path, held_out):
    other = small_model("janus-v3", seed=3, n_layers=2)
    with pytest.raises(
        ValueError, match=r"holds activations of the model with sha256 \w+; expected this model's, \w{64}"
    ):
        sae_train(other, path, held_out=held_out, **QUICK)


def test_shards_of_held_out_text_are_refused(model, path, held_out):
    seen = tokens_for(model, batch=11, pos=16)[4:5]
    with pytest.raises(ValueError, match=r"shard_0000\d\.safetensors holds a sequence of the held-out tokens"):
        sae_train(model, path, held_out=torch.cat([held_out, seen]), **QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"held_out": None}, "and no held_out; expected tokens to measure on"),
        ({"hook": "hook_resid_mid"}, "has no 'blocks.0.hook_resid_mid'; expected some of blocks.0.attn.hook_z"),
        ({"hook": "hook_resid_post"}, "has no 'blocks.0.hook_resid_post'"),
        ({"batch_size": 64, "n_train_tokens": 30}, "n_train_tokens: got 30; expected at least batch_size = 64"),
    ],
)
def test_what_does_not_fit_the_shards_is_refused(model, path, held_out, arguments, message):
    with pytest.raises(ValueError, match=message):
        sae_train(model, path, **{"held_out": held_out} | QUICK | arguments)


def test_no_harvest_and_half_a_harvest_are_refused(model, held_out, tmp_path):
    with pytest.raises(ValueError, match=r"shards\.json is missing; expected a harvest's directory"):
        sae_train(model, str(tmp_path), held_out=held_out, **QUICK)

    def stop(share):
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(model, tokens_for(model, 4), Z, tmp_path / "h", shard_bytes=1, on_progress=stop)
    with pytest.raises(ValueError, match="holds 32 of 64 tokens; expected a finished harvest"):
        sae_train(model, tmp_path / "h.partial", held_out=held_out, **QUICK)


def test_nan_in_a_shard_names_hook_batch_and_shard(held_out, tmp_path, monkeypatch):
    broken = small_model("janus-v3", n_layers=2)
    with torch.no_grad():
        broken.blocks[1].attn.W_V[0, 0, 0] = math.nan
    with monkeypatch.context() as patch:  # a harvest of today stores none
        patch.setattr(storing, "count_bad", lambda values: 0)
        harvest(broken, tokens_for(broken, 4), Z, tmp_path / "h", shard_bytes=1)
    message = r"blocks\.1\.attn\.hook_z has \d+ nan or inf in batch 2 \(.*shard_00002\.safetensors, rows 0 to 15\)"
    source = ShardActivations(open_shards(tmp_path / "h"), choose_slots(broken.cfg), batch_size=16, buffer_tokens=16)
    with pytest.raises(ValueError, match=message):
        source.batch(2)
    # where it is not read it does no harm
    ShardActivations(open_shards(tmp_path / "h"), choose_slots(broken.cfg, [0]), batch_size=16, buffer_tokens=16).batch(
        2
    )


def test_the_order_of_a_harvest_mixes_sequences_and_positions(model, path):
    """What training relies on: no batch is a run of one text, nor of one position."""
    rows = [torch.stack([part["sequence"], part["position"]]) for part in read_shards(path)]
    sequence, position = torch.cat(rows, dim=1)
    assert len(set(position[:24].tolist())) > 8
    assert sorted(set(sequence[:32].tolist())) != [0, 1]


@pytest.mark.parametrize(("n_with", "wanted"), [(11, True), (10, False), (0, False)])
def test_a_stack_says_whether_its_sequences_began_with_bos(held_out, tmp_path, n_with, wanted):
    model = small_model("janus-v3", n_layers=2)
    model.tokenizer = SimpleNamespace(bos_token_id=7)
    tokens = tokens_for(model, batch=11, pos=16)
    tokens[:, 0], tokens[:n_with, 0] = 3, 7
    harvest(model, tokens, Z, tmp_path / "h")
    for source in (tokens, tmp_path / "h"):
        stack, _ = sae_train(model, source, held_out=held_out, **QUICK)
        assert stack.info.prepend_bos is wanted
    model.tokenizer = None
    assert sae_train(model, tokens, held_out=held_out, **QUICK)[0].info.prepend_bos is False
