"""SAEs for every head: batches against a naive shuffle, splicing against a hooked forward, resume against no stop."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for

from reports.tables import COLUMNS, read_table
from sae import SAEConfig, StackedSAE, TrainConfig, Trainer, check_model
from sae import architectures as sae_architectures
from workbench.analyses.sae_train import evaluation as sae_evaluation
from workbench.analyses.sae_train import head_saes, stack_training
from workbench.analyses.sae_train.evaluation import (
    BLOCK_TOKENS,
    measure,
    random_control,
    recovered,
    splice,
    splice_sequences,
)
from workbench.analyses.sae_train.head_saes import (
    HeadSaeJob,
    evenly_spaced,
    find_stack,
    one_a_slot,
    sae_train,
)
from workbench.analyses.sae_train.plan import make_plans, train_config
from workbench.analyses.sae_train.settings import HeadSaeSettings
from workbench.analyses.sae_train.stack_tables import share_dense, share_rare
from workbench.analyses.sae_train.stack_training import fold_scale, input_scale
from workbench.models.activations import (
    Positions,
    ShuffledActivations,
    Slot,
    choose_slots,
    collect,
    special_ids,
)
from workbench.models.streams import check_rows
from workbench.models.transformer_lens import to_hooked_transformer
from workbench.models.weights import weights_sha256
from workbench.training.interrupts import Interrupted

# TransformerLens says at every HookedTransformer that the class leaves in 4.0
pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
KINDS = sorted(ARCHITECTURES)
QUICK = {"batch_size": 32, "buffer_tokens": 64, "lr": 1e-2, "expansion": 3, "n_ce_tokens": 32}
QUICK |= {"normalize": "none", "n_train_tokens": None}


@pytest.fixture(scope="module")
def model():
    return small_model("janus-v3", n_layers=2)


@pytest.fixture(scope="module")
def tokens(model):
    return tokens_for(model, batch=22, pos=16)  # 330 tokens behind the first of a window: ten batches


@pytest.fixture(scope="module")
def held_out(model):
    return tokens_for(model, batch=6, pos=16, seed=9)


def random_stack(model, slots, n_each, seed=0, d_sae=20):
    width = len(slots) * n_each
    d_in = model.cfg.d_head if slots[0].head is not None else collect(model, tokens_for(model), slots).shape[-1]
    config = SAEConfig(n_saes=width, d_in=d_in, d_sae=d_sae, decoder_init_norm=0.5)
    return StackedSAE(config, torch.Generator().manual_seed(seed))


# --- which inputs, in which batches


def test_slots_go_layer_by_layer_and_head_by_head(model) -> None:
    slots = choose_slots(model.cfg, layers=[1, 0], heads=[2, 0])
    assert [(s.layer, s.head) for s in slots] == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert [s.hook_name for s in choose_slots(model.cfg, [1], hook="z_concat")] == ["blocks.1.attn.hook_z"]
    assert choose_slots(model.cfg, [1], hook="hook_resid_post") == [Slot("blocks.1.hook_resid_post", 1)]
    assert choose_slots(model.cfg, [1], hook="hook_resid_post")[0].column == -1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [2]}, r"layers: got 2; expected 0…1"),
        ({"layers": []}, "layers: got an empty selection"),
        ({"layers": [0, 0]}, "expected each once"),
        ({"heads": [9]}, r"heads: got 9; expected 0…3"),
        ({"heads": "some"}, "expected 'all' or a list of heads"),
        ({"heads": [0], "hook": "z_concat"}, "which is read whole; expected 'all'"),
    ],
)
def test_slots_out_of_range_are_refused(model, arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        choose_slots(model.cfg, **arguments)


def test_a_stream_that_no_layer_reads_takes_no_sae(tokens) -> None:
    with pytest.raises(
        ValueError, match=r"hook: got blocks\.0\.hook_resid_post; what stands in its place changes no logit"
    ):
        sae_train(small_model("attn-res"), tokens, held_out=tokens, hook="hook_resid_post", **QUICK)


@pytest.mark.parametrize("hook", ["z", "z_concat", "hook_resid_mid", "mlp.hook_post"])
def test_collected_activations_are_the_hooks(model, tokens, hook) -> None:
    slots = choose_slots(model.cfg, hook=hook)
    x = collect(model, tokens, slots)
    _, cache = model.run_with_cache(tokens)
    for row, slot in zip(x, slots, strict=True):
        whole = cache[slot.hook_name]
        want = whole[:, :, slot.head] if slot.head is not None else whole.flatten(2)
        # a batch of another size is multiplied in other blocks: float32 rounding of values of size 1, and no more
        torch.testing.assert_close(row, want.reshape(len(row), -1).float(), atol=5e-6, rtol=1e-5)


def test_nan_activations_name_hook_and_batch(tokens) -> None:
    broken = small_model("janus-v3", n_layers=2)
    with torch.no_grad():
        broken.blocks[1].attn.W_V[0, 0, 0] = math.nan
    source = ShuffledActivations(
        broken, tokens, choose_slots(broken.cfg), batch_size=16, buffer_tokens=64, model_tokens=32
    )
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.hook_z has \d+ nan or inf in batch 4; expected finite"):
        source.batch(2 * source.batches_per_block)


@pytest.mark.parametrize("seed", range(3))
def test_a_pass_through_the_buffer_holds_every_token_once(model, tokens, seed) -> None:
    slots, tokens = choose_slots(model.cfg), tokens[:20]
    source = ShuffledActivations(model, tokens, slots, batch_size=40, buffer_tokens=160, seed=seed)
    n = tokens.numel() // 40
    assert source.batches_per_block == 4
    batches = [source.batch(i).clone() for i in range(n)]
    seen, want = torch.cat(batches, dim=1), collect(model, tokens, slots)

    # equal as sets of rows: every slot at once, so the same token stands in the same row of each
    def order(x):
        flat = x.transpose(0, 1).flatten(1).numpy()
        return flat[np.lexsort(flat.T)]

    # a forward of other sequences beside it may round a row differently
    np.testing.assert_allclose(order(seen), order(want), atol=1e-5)
    assert not torch.allclose(seen, want), "and in another order"


def test_batches_are_a_function_of_their_number(model, tokens) -> None:
    def fresh():
        return ShuffledActivations(model, tokens, choose_slots(model.cfg), batch_size=24, buffer_tokens=64, seed=1)

    source = fresh()
    there = [source.batch(i).clone() for i in range(12)]
    for i in (11, 0, 5):
        torch.testing.assert_close(fresh().batch(i), there[i], atol=0, rtol=0)
    again = ShuffledActivations(model, tokens, choose_slots(model.cfg), batch_size=24, buffer_tokens=64, seed=2)
    assert not torch.equal(again.batch(0), there[0])


def test_a_sequence_stream_goes_on_in_a_new_order(model, tokens) -> None:
    source = ShuffledActivations(model, tokens[:20], choose_slots(model.cfg), batch_size=16, buffer_tokens=16)
    stream = source._sequences(0, 60).view(3, 20)
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in stream)
    assert len({tuple(epoch.tolist()) for epoch in stream}) == 3
    torch.testing.assert_close(source._sequences(17, 9), stream.flatten()[17:26])


@pytest.mark.parametrize("seed", range(3))
def test_the_buffer_gives_the_tokens_that_count(model, tokens, seed) -> None:
    """Windows with unlike numbers of special tokens: blocks hold what counts of theirs, less than a batch is dropped,
    and batch i is the same whether those before it were asked for or not."""
    positions = Positions(frozenset(tokens[3, :9].tolist()))
    slots = choose_slots(model.cfg, [0], [1])
    counts = [
        [place > 0 and token not in positions.special for place, token in enumerate(row)] for row in tokens.tolist()
    ]
    assert torch.equal(positions.of(tokens), torch.tensor(counts))
    assert len({sum(row) for row in counts}) > 4

    def fresh():
        return ShuffledActivations(
            model, tokens, slots, batch_size=20, buffer_tokens=50, model_tokens=32, seed=seed, positions=positions
        )

    source = fresh()
    n_counted = sum(map(sum, counts))
    assert source.n_tokens == n_counted
    wanted = collect(model, tokens, slots)[0].view(22, 16, -1)
    place = 0
    for block in range(6):
        rows = source._sequences(block * source._n_rows, source._n_rows)
        n = sum(sum(counts[row]) for row in rows)
        assert source.block(block).shape[1] == n
        assert source._first[: block + 2] == sorted(source._first[: block + 2])
        for k in range(n // 20):
            batch = source.batch(place)
            assert torch.equal(batch, source.block(block)[:, 20 * k : 20 * (k + 1)])
            # a forward of other sequences beside it may round a row differently
            near = (batch[0, :, None] - wanted[torch.tensor(counts)][None]).abs().amax(dim=-1).amin(dim=1)
            assert float(near.max()) < 1e-5
            torch.testing.assert_close(fresh().batch(place), batch.clone(), atol=0, rtol=0)
            place += 1
    with pytest.raises(ValueError, match="tokens: all are special or at position 0; expected others"):
        ShuffledActivations(
            model, tokens, slots, batch_size=20, buffer_tokens=50, positions=Positions(frozenset(range(61)))
        )


def test_a_buffer_smaller_than_a_batch_is_refused(model, tokens) -> None:
    with pytest.raises(ValueError, match="buffer_tokens: got 8 for batches of 16"):
        ShuffledActivations(model, tokens, choose_slots(model.cfg), batch_size=16, buffer_tokens=8)


# --- splicing and measuring


def replace_at(slot, value):
    def hook(activation, hook):
        activation = activation.clone()
        if slot.head is None:
            activation[:] = value.view_as(activation)
        else:
            activation[:, :, slot.head] = value.view(*activation.shape[:2], -1)
        return activation

    return slot.hook_name, hook


def naive_splice(model, tokens, slots, values, dim=None):
    """Loss of one whole forward a slot, its activation replaced; of every sequence with dim=(1, 2)."""
    losses = []
    with torch.no_grad():
        for slot, value in zip(slots, values, strict=True):
            logits = model.run_with_hooks(tokens, fwd_hooks=[replace_at(slot, value)])
            log_p = torch.log_softmax(logits[:, :-1].double(), -1)
            losses.append(-log_p.gather(-1, tokens[:, 1:, None]).mean(dim))
    return torch.stack(losses)


@pytest.mark.parametrize("kind", KINDS)
def test_spliced_heads_agree_with_a_hooked_forward(kind) -> None:
    model = small_model(kind)
    tokens = tokens_for(model, batch=5)
    slots = choose_slots(model.cfg, heads=[0, 3])
    stacks = {"trained": random_stack(model, slots, 2, 1), "random": random_stack(model, slots, 2, 2)}
    index = [i for i in range(len(slots)) for _ in range(2)]
    losses = splice(model, tokens, slots, index, stacks)
    x = collect(model, tokens, slots)
    # float32 logits of size ten: 1e-5 is their rounding
    torch.testing.assert_close(losses.zero, naive_splice(model, tokens, slots, torch.zeros_like(x)), atol=1e-5, rtol=0)
    for name, stack in stacks.items():
        with torch.no_grad():
            recon = stack(x[index])[1]
        want = naive_splice(model, tokens, [slots[i] for i in index], recon)
        torch.testing.assert_close(losses.spliced[name], want, atol=1e-5, rtol=0)
        change = naive_splice(model, tokens, [slots[i] for i in index], recon, dim=(1, 2)) - naive_splice(
            model, tokens, [slots[i] for i in index], x[index], dim=(1, 2)
        )
        torch.testing.assert_close(losses.spliced_stderr[name], change.std(dim=1) / 5**0.5, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        assert losses.base == pytest.approx(float(model(tokens, return_type="loss")), abs=1e-5)
    assert losses.n_tokens == tokens.numel()
    alone = splice(model, tokens[:1], slots, index, stacks)
    assert bool(alone.zero_stderr.isnan().all())


@pytest.mark.parametrize("hook", ["z_concat", "hook_resid_pre", "hook_resid_post", "mlp.hook_post", "hook_attn_out"])
@pytest.mark.parametrize("kind", ["janus-v3", "janus-small"])
def test_any_hook_is_spliced_as_by_a_whole_forward(kind, hook) -> None:
    model = small_model(kind)
    tokens = tokens_for(model, batch=3)
    slots = choose_slots(model.cfg, hook=hook)
    stack = random_stack(model, slots, 1)
    losses = splice(model, tokens, slots, range(len(slots)), {"trained": stack})
    x = collect(model, tokens, slots)
    with torch.no_grad():
        want = naive_splice(model, tokens, slots, stack(x)[1])
    torch.testing.assert_close(losses.spliced["trained"], want, atol=1e-5, rtol=0)


def test_a_transformer_lens_model_is_spliced_too(model, tokens) -> None:
    slots = choose_slots(model.cfg)
    stack = random_stack(model, slots, 1)
    own = splice(model, tokens[:3], slots, range(len(slots)), {"trained": stack})
    theirs = splice(to_hooked_transformer(model), tokens[:3], slots, range(len(slots)), {"trained": stack})
    assert theirs.base == pytest.approx(own.base, abs=1e-5)
    torch.testing.assert_close(theirs.zero, own.zero, atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs.spliced["trained"], own.spliced["trained"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("hook", ["z", "hook_resid_pre"])
@pytest.mark.parametrize("positions", ["standard", "rotary", "shortformer"])
def test_a_transformer_lens_model_of_any_positions_is_spliced_as_by_a_whole_forward(hook, positions) -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=16, d_head=8, n_heads=2, d_vocab=61, act_fn="relu", d_mlp=16, seed=0,
        positional_embedding_type=positions, rotary_dim=8 if positions == "rotary" else None, init_weights=False,
    )  # fmt: skip
    model = HookedTransformer(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    tokens = torch.randint(30, (3, 12), generator=torch.Generator().manual_seed(0))
    slots = choose_slots(cfg, hook=hook)
    stack = random_stack(model, slots, 1)
    with torch.no_grad():
        losses = splice(model, tokens, slots, range(len(slots)), {"trained": stack})
        assert losses.base == pytest.approx(float(model(tokens, return_type="loss")), abs=1e-5)
        x = collect(model, tokens, slots)
        want = naive_splice(model, tokens, slots, stack(x)[1])
    torch.testing.assert_close(losses.spliced["trained"], want, atol=1e-5, rtol=0)


def test_a_perfect_reconstruction_recovers_all_and_zero_nothing(model, tokens) -> None:
    slots = choose_slots(model.cfg)
    d = model.cfg.d_head
    # features ±e_i with a large bias that b_dec takes back: relu is linear there, so recon = x
    config = SAEConfig(n_saes=len(slots), d_in=d, d_sae=d)
    eye = torch.eye(d).expand(len(slots), d, d)
    exact = {"W_enc": eye, "b_enc": torch.full((len(slots), d), 50.0), "W_dec": eye}
    perfect = StackedSAE.from_tensors(config, exact | {"b_dec": torch.full((len(slots), d), -50.0)})
    # acts = x + 50 + 50, recon = acts − 50 = x + 50: take both biases back
    with torch.no_grad():
        perfect.b_enc.zero_()
        perfect.b_dec.fill_(-50.0)
    nothing = StackedSAE.from_tensors(
        config,
        {"W_enc": eye, "b_enc": torch.full((len(slots), d), -99.0), "W_dec": eye, "b_dec": torch.zeros(len(slots), d)},
    )
    losses = splice(model, tokens, slots, range(len(slots)), {"perfect": perfect, "nothing": nothing})
    one = recovered(losses.base, losses.zero, losses.spliced["perfect"])
    torch.testing.assert_close(one, torch.ones_like(one), atol=1e-2, rtol=0)  # z ± 50 in float32 costs 4e-6 of z
    none = recovered(losses.base, losses.zero, losses.spliced["nothing"])
    torch.testing.assert_close(none, torch.zeros_like(none), atol=1e-9, rtol=0)
    assert recovered(1.0, torch.tensor([1.0]), torch.tensor([1.5])).isnan().all()


def test_a_coefficient_that_kills_every_feature_warns_and_says_so(model, held_out) -> None:
    tokens = tokens_for(model, batch=400, pos=16)
    with (
        pytest.warns(UserWarning, match="all features of SAE .* are dead at step"),
        pytest.warns(UserWarning, match=r"sae_train: step .* features per token are active; expected a lower l1"),
    ):
        _, table = sae_train(model, tokens, [0], l1=1e2, held_out=held_out, **QUICK | {"n_resamples": 0, "lr": 0.03})
    trained = table[table["dictionary"] == "trained"]
    assert (trained["dead_fraction"] == 1).all()
    assert (trained["l0"] == 0).all()


def test_the_shuffled_control_takes_a_part_of_many_tokens(model, tokens, monkeypatch) -> None:
    monkeypatch.setattr(sae_evaluation, "SHUFFLED_TOKENS", 100)
    monkeypatch.setattr(sae_evaluation, "forward_batches", lambda tokens: tokens.split(2))
    slots = choose_slots(model.cfg, layers=[1])
    stack = random_stack(model, slots, 1)
    found = measure(
        model, tokens[:20], slots, range(len(slots)), {"trained": stack}, generator=torch.Generator().manual_seed(0)
    )
    # ten batches of 32 tokens, every fourth
    assert (found["trained"].n_tokens, found["shuffled"].n_tokens) == (320, 96)


def test_measures_are_those_of_all_tokens_at_once(model, tokens) -> None:
    slots = choose_slots(model.cfg, layers=[1])
    stack = random_stack(model, slots, 2)
    index = [i for i in range(len(slots)) for _ in range(2)]
    found = measure(model, tokens, slots, index, {"trained": stack}, generator=torch.Generator().manual_seed(0))
    x = collect(model, tokens, slots)[index].double()
    with torch.no_grad():
        acts, recon = stack(x.float())
    error = (x - recon.double()).square()
    own = found["trained"]
    torch.testing.assert_close(own.mse, error.mean((1, 2)), rtol=1e-6, atol=0)
    spread = (x - x.mean(1, keepdim=True)).square().sum((1, 2))
    torch.testing.assert_close(own.fvu, error.sum((1, 2)) / spread, rtol=1e-6, atol=0)
    torch.testing.assert_close(own.l0, (acts > 0).double().sum(-1).mean(1), rtol=1e-12, atol=0)
    assert own.n_tokens == tokens.numel()
    assert found["shuffled"].n_tokens == tokens.numel()
    assert not torch.allclose(found["shuffled"].fvu, own.fvu)


# --- outlying positions


class Special:
    """As much of a tokenizer as says what is special."""

    all_special_ids = (7, 23)
    bos_token_id = None


@pytest.fixture(scope="module")
def sink():
    """A model whose position 0 and special tokens have activations many times as long as others."""
    own = small_model("janus-small", n_layers=2)
    with torch.no_grad():
        own.pos_embed.W_pos[0] *= 400
        own.embed.W_E[[7, 23]] *= 400
        own.embed.W_E[30:36] *= 34  # long, but not outlying
    own.tokenizer = Special()
    return own


@pytest.mark.filterwarnings("ignore:sae_train.*nearly all:UserWarning")  # of a few steps
@pytest.mark.parametrize("hook", ["z", "hook_resid_post"])
def test_measures_are_of_the_positions_that_count(sink, hook) -> None:
    tokens, held_out = tokens_for(sink, batch=40, pos=16), tokens_for(sink, batch=10, pos=16, seed=3)
    counts = torch.tensor([[p > 0 and t not in (7, 23) for p, t in enumerate(row)] for row in held_out.tolist()])
    n_counted = int(counts.sum())
    assert n_counted < 10 * 15
    quick = QUICK | {"l1": 0.2, "hook": hook, "held_out": held_out, "n_ce_tokens": held_out.numel()}
    stack, table = sae_train(sink, tokens, [1], **quick)
    slots = choose_slots(sink.cfg, [1], hook=hook)
    x = collect(sink, held_out, slots).double()
    with torch.no_grad():
        acts, recon = stack(x.float())
    trained = table[table["dictionary"] == "trained"]
    kept = counts.flatten()

    def fvu(rows):
        own, error = x[:, rows], (x - recon)[:, rows]
        return error.square().sum((1, 2)) / (own - own.mean(1, keepdim=True)).square().sum((1, 2))

    np.testing.assert_allclose(trained["fvu"], fvu(kept), rtol=1e-5)
    np.testing.assert_allclose(trained["fvu_with_special"], fvu(torch.ones_like(kept)), rtol=1e-5)
    np.testing.assert_allclose(trained["l0"], (acts[:, kept] > 0).double().sum(-1).mean(1), rtol=1e-12)
    norms = x.norm(dim=-1)
    is_long = norms > 3 * norms.quantile(0.5, dim=1, keepdim=True)
    for name in ("trained", "random", "shuffled"):
        rows = table[table["dictionary"] == name]
        assert rows["n_outlying"].tolist() == is_long.sum(1).tolist()
        assert rows["n_outlying_left_out"].tolist() == is_long[:, ~kept].sum(1).tolist()
        assert set(rows["n_left_out"]) == {160 - n_counted}
        assert set(rows["n_eval_tokens"]) == {n_counted}
    assert table[table["dictionary"] == "shuffled"]["fvu_with_special"].isna().all()
    if hook == "hook_resid_post":  # the stream is long there and nowhere else, and fvu with it says that alone
        assert is_long[0].tolist() == (~kept).tolist()
        assert bool(((norms > 2 * norms.quantile(0.5, dim=1, keepdim=True)) & ~is_long).any())
    # what stands in where it counts, the model's own elsewhere
    stand_in = torch.where(kept[:, None], recon.double(), x).float()
    want = naive_splice(sink, held_out, slots, stand_in)
    np.testing.assert_allclose(trained["ce_spliced"], want, atol=1e-5)
    want = naive_splice(sink, held_out, slots, torch.where(kept[:, None], 0, x).float())
    np.testing.assert_allclose(trained["ce_zero"], want, atol=1e-5)


@pytest.mark.filterwarnings("ignore:sae_train.*nearly all:UserWarning")  # of a few steps
def test_all_positions_are_taken_where_asked(sink, tmp_path) -> None:
    tokens, held_out = tokens_for(sink, batch=40, pos=16), tokens_for(sink, batch=10, pos=16, seed=3)
    quick = QUICK | {"l1": 0.2, "held_out": held_out}
    _, without = sae_train(sink, tokens, [1], **quick)
    stack, table = sae_train(sink, tokens, [1], include_special=True, out=tmp_path / "run", **quick)
    assert set(table["n_left_out"]) == {0}
    assert set(table.loc[table["dictionary"] != "shuffled", "n_eval_tokens"]) == {160}
    told = table[table["dictionary"] != "shuffled"]
    np.testing.assert_allclose(told["fvu_with_special"], told["fvu"], rtol=1e-12)
    assert table["n_outlying"].tolist() == without["n_outlying"].tolist()
    assert stack.info.include_special is True
    slots = choose_slots(sink.cfg, [1])
    source = ShuffledActivations(sink, tokens, slots, batch_size=32, buffer_tokens=64)
    own = StackedSAE(
        SAEConfig(n_saes=4, d_in=8, d_sae=24), make_plans(sink, [1], "all", 0.2, 0, HeadSaeSettings())[0].generators(0)
    )
    (plan,) = make_plans(sink, [1], "all", 0.2, [0], HeadSaeSettings(**QUICK, include_special=True))
    trainer = Trainer(own, train_config(HeadSaeSettings(**QUICK), 20), plan.l1, plan.generators(1))
    for step in range(20):
        trainer.step(source.batch(step))
    assert torch.equal(own.W_dec, stack.W_dec), "every token of every window, as a trainer of its own takes them"


# --- training

OF_ONE_HOOK = [own for own in sae_architectures.BUILT_IN if not sae_architectures.find_architecture(own).reads_pair]


@pytest.mark.parametrize("architecture", OF_ONE_HOOK)
def test_the_scale_is_folded_exactly(architecture) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 50, 4, generator=generator, dtype=torch.float64) * torch.tensor([0.01, 1.0, 30.0])[:, None, None]
    scale = input_scale(x)
    assert (x * scale).norm(dim=-1).mean(1).tolist() == pytest.approx([2.0] * 3)
    assert input_scale(torch.zeros(1, 5, 4)).item() == 1
    k = 2 if sae_architectures.find_architecture(architecture).options >= {"k"} else None
    sae = StackedSAE(
        SAEConfig(n_saes=3, d_in=4, d_sae=9, architecture=architecture, k=k), generator, dtype=torch.float64
    )
    with torch.no_grad():
        for name in sae.tensors.keys() - {"W_enc", "W_dec"}:
            sae.tensors[name].normal_(generator=generator)
            if name.startswith("threshold"):
                sae.tensors[name].abs_().mul_(0.1)
        acts, recon = sae(x * scale)
        folded_acts, folded_recon = fold_scale(sae, scale[:, 0, 0])(x)
    # what matryoshka's features add to the reconstruction is over scale as that is
    wide = scale if architecture == "matryoshka" else 1
    assert (acts > 0).any()
    torch.testing.assert_close(folded_acts * wide, acts, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded_recon * scale, recon, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", OF_ONE_HOOK)
def test_the_scale_of_a_unit_norm_decoder_goes_into_the_activations(architecture) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 50, 4, generator=generator, dtype=torch.float64)
    scale = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    k = 2 if sae_architectures.find_architecture(architecture).options >= {"k"} else None
    config = SAEConfig(
        n_saes=3, d_in=4, d_sae=9, architecture=architecture, k=k, use_unit_norm_decoder=True, decoder_init_norm=1
    )
    sae = StackedSAE(config, generator, dtype=torch.float64).eval()
    with torch.no_grad():
        for name in sae.tensors.keys() - {"W_enc", "W_dec"}:
            sae.tensors[name].normal_(generator=generator)
            if name.startswith("threshold"):
                sae.tensors[name].abs_().mul_(0.1)
        wide = scale[:, None, None]
        acts, recon = sae(x * wide)
        folded = fold_scale(sae, scale)
        folded_acts, folded_recon = folded(x)
    assert (acts > 0).any()
    torch.testing.assert_close(folded.W_dec.norm(dim=-1), torch.ones(3, 9, dtype=torch.float64))
    torch.testing.assert_close(folded_acts * wide, acts, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded_recon * wide, recon, rtol=1e-12, atol=1e-12)


def test_decoder_rows_are_held_at_norm_one_where_asked(model, tokens, held_out) -> None:
    settings = QUICK | {"normalize": "mean_norm", "use_unit_norm_decoder": True}
    stack, table = sae_train(model, tokens, [1], [0, 2], l1=[0.5, 2.0], held_out=held_out, **settings)
    assert stack.config.use_unit_norm_decoder
    torch.testing.assert_close(stack.W_dec.norm(dim=-1), torch.ones(4, 24))
    free, _ = sae_train(model, tokens, [1], [0, 2], l1=[0.5, 2.0], held_out=held_out, **QUICK)
    assert not torch.allclose(free.W_dec.norm(dim=-1), torch.ones(4, 24), atol=1e-2)
    assert table["fvu"].notna().all()


@pytest.mark.parametrize("normalize", ["none", "mean_norm"])
def test_training_is_what_the_trainer_does_on_these_batches(model, tokens, held_out, normalize) -> None:
    settings = QUICK | {"normalize": normalize, "n_resamples": 1}
    stack, _ = sae_train(model, tokens, [1], [0, 2], l1=[0.5, 2.0], held_out=held_out, **settings)
    slots = choose_slots(model.cfg, [1], [0, 2])
    (plan,) = make_plans(model, [1], [0, 2], [0.5, 2.0], [0], HeadSaeSettings(**settings))
    source = ShuffledActivations(
        model, tokens, slots, batch_size=32, buffer_tokens=64, positions=Positions(special_ids(model))
    )
    assert source.n_tokens == 330
    scale = input_scale(source.block(0)) if normalize == "mean_norm" else torch.ones(2, 1, 1)
    own = StackedSAE(SAEConfig(n_saes=4, d_in=8, d_sae=24), plan.generators(0))
    config = train_config(HeadSaeSettings(**settings), 10)
    trainer = Trainer(own, config, [0.5, 2.0, 0.5, 2.0], plan.generators(1), input_index=[0, 0, 1, 1])
    for step in range(config.n_steps):
        trainer.step(source.batch(step) * scale)
    want = fold_scale(own, scale[[0, 0, 1, 1], 0, 0])
    for name, tensor in want.state_dict().items():
        torch.testing.assert_close(stack.state_dict()[name], tensor, atol=0, rtol=0)
    assert [(s.layer, s.head, s.l1, s.seed) for s in stack.info.sources] == [
        (1, 0, 0.5, 0), (1, 0, 2.0, 0), (1, 2, 0.5, 0), (1, 2, 2.0, 0),
    ]  # fmt: skip


def test_a_sae_comes_out_the_same_in_any_company(model, tokens, held_out) -> None:
    many, _ = sae_train(model, tokens, l1=[1.0, 3.0], seeds=[0, 4], held_out=held_out, **QUICK)
    one, _ = sae_train(model, tokens, [1], [2], l1=3.0, seeds=[4], held_out=held_out, **QUICK)
    wanted = one.info.sources[0]
    k = many.info.sources.index(wanted)
    # batched and single products may sum in another order
    torch.testing.assert_close(many.W_dec[k], one.W_dec[0], atol=1e-5, rtol=1e-4)


def test_the_schedules_are_shares_of_the_steps() -> None:
    config = train_config(HeadSaeSettings(schedule=(0.1, 0.3), n_resamples=2), 90)
    assert (config.lr_warm_up_steps, config.lr_decay_steps, config.l1_warm_up_steps) == (9, 27, 9)
    assert config.resample_steps == (20, 40)
    assert config.dead_window == 9
    assert train_config(HeadSaeSettings(n_resamples=5), 2).resample_steps == (1,)
    assert isinstance(train_config(HeadSaeSettings(), 1), TrainConfig)


@pytest.mark.parametrize(
    ("settings", "n_steps", "n_saes", "compiles"),
    [
        ({"use_bf16": True}, 1000, 24, True),
        ({"use_bf16": True}, 1000, 1, False),
        ({"use_bf16": True}, 100, 24, False),
        ({}, 100_000, 24, False),
        ({"use_compile": True}, 1, 1, True),
        ({"use_bf16": True, "use_compile": False}, 100_000, 24, False),
    ],
)
def test_long_trainings_in_bfloat16_compile_unless_told(settings, n_steps, n_saes, compiles) -> None:
    assert train_config(HeadSaeSettings(**settings), n_steps, n_saes).use_compile is compiles


def test_the_table_has_its_columns_controls_and_counts(model, tokens, held_out) -> None:
    stack, table = sae_train(model, tokens, held_out=held_out, l1=[0.5, 1.0], name="m", model_seed=7, **QUICK)
    assert tuple(table.columns[: len(COLUMNS["sae_training_results"])]) == COLUMNS["sae_training_results"]
    n_saes = 2 * 4 * 2
    assert stack.config.n_saes == n_saes
    assert table["dictionary"].value_counts().to_dict() == {"trained": n_saes, "random": n_saes, "shuffled": n_saes}
    assert set(table["model"]) == {"m"}
    assert set(table["seed"]) == {7}
    assert set(table["n_eval_tokens"]) == {6 * 15}
    assert set(table["n_left_out"]) == {6}
    assert set(table["n_ce_tokens"]) == {32}
    trained, random = (table[table["dictionary"] == kind] for kind in ("trained", "random"))
    assert set(trained["n_train_tokens"]) == {320}
    assert set(random["n_train_tokens"]) == {0}
    # matched on training tokens, measured on others
    np.testing.assert_allclose(random["l0"], trained["l0"], rtol=0.3, atol=0.3)
    shuffled = table[table["dictionary"] == "shuffled"]
    assert shuffled[["ce_spliced", "ce_recovered"]].isna().all(axis=None)
    np.testing.assert_allclose(trained["explained_variance"], 1 - trained["fvu"])
    assert check_model(stack, weights_sha256(model)) is None
    with pytest.raises(ValueError, match="belong to m with sha256"):
        check_model(stack, weights_sha256(small_model("janus-v3", seed=3, n_layers=2)))


def test_without_held_out_the_last_tenth_is_kept_from_training(model, tokens) -> None:
    whole, _ = sae_train(model, tokens, [0], l1=1.0, **QUICK)
    split, table = sae_train(model, tokens[:20], [0], l1=1.0, held_out=tokens[20:], **QUICK)
    torch.testing.assert_close(whole.W_dec, split.W_dec, atol=0, rtol=0)
    assert set(table["n_eval_tokens"]) == {2 * 15}


def test_evenly_spaced_sequences() -> None:
    tokens = torch.arange(10).view(10, 1)
    assert evenly_spaced(tokens, 4).flatten().tolist() == [0, 2, 5, 7]
    assert evenly_spaced(tokens, 99).flatten().tolist() == list(range(10))


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bach_size": 3}, "unknown key 'bach_size'; nearest: batch_size"),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1"),
        ({"batch_size": 128}, "buffer_tokens: got 64; expected at least batch_size = 128"),
        ({"n_train_tokens": 10}, "n_train_tokens: got 10; expected at least batch_size = 32"),
        ({"l1": []}, "l1: got"),
        ({"l1": [-1.0]}, "l1: got"),
        ({"l1": [math.nan]}, "l1: got"),
        ({"l1": [1.0, 1.0]}, "each once"),
        ({"architecture": "topk", "k": 4, "l1": [0.0, 2.0]}, "for topk, which k alone makes sparse; expected 0"),
        ({"architecture": "batchtopk", "k": 4}, "l1: got .1.0. for batchtopk, which k alone makes sparse; expected 0"),
        (
            {"architecture": "topk", "l1": 0.0, "k": 999},
            "sae_train: SAEConfig.k: got 999.0 for topk; expected 0 < k ≤ d_sae",
        ),
        ({"architecture": "topk", "l1": 0.0}, "SAEConfig.k: got None for topk"),
        ({"k": 4}, "SAEConfig.k: got 4.0 for relu; expected None"),
        (
            {"architecture": "matryoshka", "l1": 0.0, "k": 4, "widths": (8, 4, 24)},
            r"SAEConfig.widths: got \[8, 4, 24\]; expected numbers ≥ 1 that rise strictly to d_sae = 24",
        ),
        ({"architecture": "relu6"}, "architecture: got 'relu6'; expected one of batchtopk, gated, .* .--plugin FILE"),
        ({"seeds": [0, 0]}, "seeds: got"),
        ({"seeds": [-1]}, "seeds: got"),
        ({"l1": "25"}, "l1: got '25'; expected a number or a list of numbers"),
        ({"l1": ["2"]}, "l1: got .'2'.; expected finite numbers"),
        ({"l1": True}, "l1: got .True.; expected finite numbers"),
        ({"seeds": "01"}, "seeds: got '01'; expected a number or a list of numbers"),
        ({"seeds": 0.5}, "seeds: got .0.5.; expected integers"),
        ({"architecture": "topk", "k": "x", "l1": 0.0}, "k: got 'x'; expected numbers such as 1,2,4"),
        (
            {"architecture": "topk", "k": (4, 4), "l1": 0.0},
            r"k: got \[4.0, 4.0\]; expected finite numbers ≥ 0, each once",
        ),
        ({"architecture": "topk", "k": 0, "l1": 0.0}, r"k: got \[0.0\]; expected numbers above 0"),
        ({"expansion": (4, 0)}, r"expansion: got \[4, 0\]; expected numbers above 0"),
        ({"hook": ("z", "z")}, r"hook: got \['z', 'z'\]; expected each once"),
        ({"architecture": ("relu", "gated"), "k": 4}, "SAEConfig.k: got 4.0 for relu; expected None"),
        ({"architecture": ("relu", "topk"), "k": 4, "widths": (4, 24)}, r"SAEConfig.widths: got .*; expected None"),
        ({"lr": "3e-3"}, "lr: got '3e-3'; expected a number"),
        ({"layers": [5]}, "layers: got 5"),
        ({"heads": [5]}, "heads: got 5"),
        ({"hook": "hook_nope", "layers": [0]}, "hook 'blocks.0.hook_nope' does not exist"),
        (
            {"hook": "attn.hook_pattern"},
            r"sae_train: blocks.0.attn.hook_pattern is \[batch head query key\]; expected a hook",
        ),
        ({"tokens": torch.zeros(3, 4)}, "expected integers"),
        ({"tokens": torch.full((3, 4), 999)}, "token id 999"),
        ({"tokens": torch.zeros(1, 16, dtype=torch.long)}, "1 sequence and no held_out"),
    ],
)
def test_bad_input_is_refused_by_name(model, tokens, arguments, message) -> None:
    given = {"tokens": tokens, "l1": 1.0} | QUICK | arguments
    with pytest.raises(ValueError, match=message):
        sae_train(model, **given)


def test_a_hook_without_a_row_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sae_train: some.hook has shape \[4, 8\]; expected \[batch pos …\]"):
        check_rows("sae_train", {"some.hook": torch.zeros(4, 8)}, (1, 1), n_axes=3)


def test_normalised_queries_have_a_row_a_token() -> None:
    model = small_model("kotodama")
    settings = QUICK | {"hook": "attn.q_norm.hook_normalized"}
    stack, _ = sae_train(model, tokens_for(model, batch=8), l1=1.0, **settings)
    assert stack.config.d_in == model.cfg.n_heads * model.cfg.d_head


def digests(directory: Path) -> dict[str, str]:
    names = ["sae/sae.safetensors", "sae_training_results.csv", "sae_density.csv", "sae_curves.csv"]
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}


def test_a_run_directory_holds_everything_and_is_reused(model, tokens, held_out, tmp_path) -> None:
    arguments = {"l1": [0.5, 2.0], "held_out": held_out, "name": "m"} | QUICK
    stack, table = sae_train(model, tokens, out=tmp_path / "run", **arguments)
    in_memory, plain = sae_train(model, tokens, **arguments)
    torch.testing.assert_close(stack.W_dec, in_memory.W_dec, atol=0, rtol=0)
    pd.testing.assert_frame_equal(table, plain, check_dtype=False)
    assert not (tmp_path / "run" / head_saes.STATE).exists()
    density = read_table(tmp_path / "run", "sae_density")
    per_sae = density.groupby(["layer", "head", "l1"])["n_features"].sum()
    assert set(per_sae) == {stack.config.d_sae}
    assert len(per_sae) == stack.config.n_saes
    trained = table[table["dictionary"] == "trained"].set_index(["layer", "head", "l1"])
    dead = density[density["log10_density_bin"] == "dead"].set_index(["layer", "head", "l1"])["n_features"]
    np.testing.assert_allclose(dead / stack.config.d_sae, trained.loc[dead.index, "dead_fraction"])
    curves = read_table(tmp_path / "run", head_saes.CURVES)
    assert list(curves) == ["model", "seed", "layer", "head", "l1", "sae_seed", "step", "loss", "l0", "dead_fraction"]
    assert curves["step"].max() == 10
    before = digests(tmp_path / "run")
    with pytest.raises(ValueError, match="already exists"):
        sae_train(model, tokens, out=tmp_path / "run", **arguments)
    sae_train(model, tokens, out=tmp_path / "run", resume=True, **arguments)
    assert digests(tmp_path / "run") == before
    with pytest.raises(ValueError, match=r"resume: l1"):
        sae_train(model, tokens, out=tmp_path / "run", resume=True, **arguments | {"l1": 3.0})
    torch.testing.assert_close(find_stack(tmp_path / "run").W_enc, stack.W_enc, atol=0, rtol=0)
    torch.testing.assert_close(find_stack(tmp_path / "run" / "sae").W_enc, stack.W_enc, atol=0, rtol=0)


@pytest.mark.parametrize("number", [np.float32, np.float64, np.int64, np.array])
def test_numpy_numbers_are_numbers(model, tokens, held_out, number) -> None:
    given, _ = sae_train(model, tokens, [1], [0], l1=1.0, seeds=[0, 1], held_out=held_out, **QUICK)
    l1 = number([1]) if number is np.array else number(1)
    stack, _ = sae_train(model, tokens, [1], [0], l1=l1, seeds=np.arange(2), held_out=held_out, **QUICK)
    assert stack.info == given.info
    assert torch.equal(stack.W_dec, given.W_dec)
    config = TrainConfig(n_steps=1)
    trainer = Trainer(stack, config, np.ones(2) if number is np.array else number(1), torch.Generator())
    assert trainer.state_dict()["l1"].tolist() == [1.0, 1.0]


def test_a_number_is_a_list_of_one(model, tokens, held_out) -> None:
    given, _ = sae_train(model, tokens, [1], [0], l1=[2.0], seeds=[3], held_out=held_out, **QUICK)
    for l1, seeds in ((2, 3), (np.float32(2), np.int64(3)), (torch.tensor(2.0), torch.tensor([3]))):
        stack, _ = sae_train(model, tokens, [1], [0], l1=l1, seeds=seeds, held_out=held_out, **QUICK)
        assert stack.info == given.info
        assert torch.equal(stack.W_dec, given.W_dec)
    assert torch.equal(given.select(0).W_dec, given.W_dec)
    with pytest.raises(ValueError, match="StackedSAE.select: got '0'; expected a number or a list"):
        given.select("0")


def test_near_copies_of_few_directions_are_counted_and_warned_of(model, tokens, held_out, monkeypatch) -> None:
    """Decoders made of two directions, one of them in every feature but the last."""

    def copies(sae, scale):
        with torch.no_grad():
            sae.W_dec[1:, 1:] = sae.W_dec[1:, :1] * 2
            sae.b_enc.fill_(5.0)
        return sae

    monkeypatch.setattr(stack_training, "fold_scale", copies)
    with pytest.warns(
        UserWarning, match=r"sae_train: in 1 of 2 SAEs more than half .*median 1\.0000 in layer 1, head 2"
    ):
        stack, table = sae_train(model, tokens, [1], [0, 2], l1=1.0, held_out=held_out, **QUICK)
    trained, random, shuffled = (table[table["dictionary"] == name] for name in ("trained", "random", "shuffled"))
    assert trained["neighbour_cosine"].iloc[1] == pytest.approx(1)
    assert trained["near_copy_share"].iloc[1] == 1
    unit = torch.nn.functional.normalize(stack.W_dec[0].detach().double(), dim=-1)
    nearest = (unit @ unit.T - 2 * torch.eye(len(unit))).amax(dim=1)
    assert trained["neighbour_cosine"].iloc[0] == pytest.approx(float(nearest.quantile(0.5)))
    assert trained["near_copy_share"].iloc[0] == pytest.approx(float((nearest > 0.9).double().mean()))
    assert shuffled["neighbour_cosine"].tolist() == trained["neighbour_cosine"].tolist()
    assert (random["near_copy_share"] < 1).all(), "the control's own rows"


def test_a_state_is_not_taken_for_that_of_seeds_in_another_order(
    model, tokens, held_out, tmp_path, dying_at_step
) -> None:
    arguments = {"held_out": held_out} | QUICK
    with dying_at_step(4):
        sae_train(model, tokens, [1], l1=[0.5, 2.0], seeds=[0, 1], out=tmp_path / "run", **arguments)
    for other, key in (({"seeds": [1, 0]}, "seeds"), ({"l1": [2.0, 0.5]}, "l1")):
        chosen = {"l1": [0.5, 2.0], "seeds": [0, 1]} | other
        with pytest.raises(ValueError, match=f"resume: {key}"):
            sae_train(model, tokens, [1], out=tmp_path / "run", resume=True, **chosen, **arguments)


@pytest.mark.parametrize("architecture", OF_ONE_HOOK)
def test_the_default_coefficient_is_none_where_k_makes_sparse(model, tokens, held_out, architecture) -> None:
    l1 = 2.0 if sae_architectures.find_architecture(architecture).has_penalty else 0.0
    k = None if l1 else 4
    arguments = {"held_out": held_out, "architecture": architecture, "k": k} | QUICK
    stack, table = sae_train(model, tokens, [1], [0], **arguments)
    given, _ = sae_train(model, tokens, [1], [0], l1=l1, **arguments)
    assert torch.equal(stack.W_dec, given.W_dec)
    assert set(table["l1"]) == {l1}


@pytest.mark.parametrize("stop", [1, 3, 4, 7, 9])
def test_a_killed_run_goes_on_bit_for_bit(model, tokens, held_out, tmp_path, dying_at_step, stop) -> None:
    arguments = {"l1": [0.5, 2.0], "held_out": held_out, "n_resamples": 2} | QUICK
    sae_train(model, tokens, out=tmp_path / "whole", **arguments)
    with dying_at_step(stop):
        sae_train(model, tokens, out=tmp_path / "run", **arguments)
    sae_train(model, tokens, out=tmp_path / "run", resume=True, **arguments)
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


def test_a_kill_while_measuring_trains_no_step_again(model, tokens, held_out, tmp_path, monkeypatch) -> None:
    arguments = {"l1": 1.0, "held_out": held_out} | QUICK
    sae_train(model, tokens, out=tmp_path / "whole", **arguments)

    def dies(*_, **__):
        raise MemoryError("killed")

    monkeypatch.setattr(head_saes, "splice_sequences", dies)
    with pytest.raises(MemoryError):
        sae_train(model, tokens, out=tmp_path / "run", **arguments)
    monkeypatch.setattr(head_saes, "splice_sequences", splice_sequences)
    monkeypatch.setattr(Trainer, "step", dies)
    sae_train(model, tokens, out=tmp_path / "run", resume=True, **arguments)
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


def test_an_interrupt_saves_and_says_how_to_go_on(model, tokens, held_out, tmp_path) -> None:
    import signal

    arguments = {"l1": 1.0, "held_out": held_out} | QUICK
    sae_train(model, tokens, out=tmp_path / "whole", **arguments)
    shares: list[float] = []

    def press(share: float) -> None:
        shares.append(share)
        if len(shares) == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"stopped after step 4 of 10 \(SIGINT\); .* go on with --resume"):
        sae_train(model, tokens, out=tmp_path / "run", on_progress=press, **arguments)
    assert (tmp_path / "run.partial" / head_saes.STATE).is_file()
    sae_train(model, tokens, out=tmp_path / "run", resume=True, **arguments)
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    assert shares == sorted(shares)


def test_an_altered_state_is_named(model, tokens, held_out, tmp_path, dying_at_step) -> None:
    arguments = {"l1": 1.0, "held_out": held_out} | QUICK
    with dying_at_step(4):
        sae_train(model, tokens, out=tmp_path / "run", **arguments)
    file = tmp_path / "run.partial" / head_saes.STATE
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="train_state.safetensors is altered"):
        sae_train(model, tokens, out=tmp_path / "run", resume=True, **arguments)


def test_one_of_a_sweep_is_chosen(model, tokens, held_out) -> None:
    stack, _ = sae_train(model, tokens, [0], l1=[2.0, 0.5], seeds=[3, 1], held_out=held_out, **QUICK)
    assert {(s.l1, s.seed) for s in one_a_slot(stack).info.sources} == {(2.0, 3)}  # the sparser of two
    assert {(s.l1, s.seed) for s in one_a_slot(stack, 0.5).info.sources} == {(0.5, 3)}
    chosen = one_a_slot(stack, 2.0, 1)
    assert [(s.head, s.l1, s.seed) for s in chosen.info.sources] == [(head, 2.0, 1) for head in range(4)]
    with pytest.raises(ValueError, match=r"got l1 9, seed 3; expected one of the stack's"):
        one_a_slot(stack, 9.0)


@pytest.mark.slow
def test_known_features_of_a_head_are_found() -> None:
    """A model whose z holds sparse known directions: they are recovered with mean max cosine ≥ .9."""
    generator = torch.Generator().manual_seed(0)
    d_in, n_features, n_tokens = 16, 24, 400_000
    directions = torch.nn.functional.normalize(torch.randn(n_features, d_in, generator=generator), dim=-1)
    fires = torch.rand(n_tokens, n_features, generator=generator) < 0.05
    x = (fires * (0.5 + torch.rand(n_tokens, n_features, generator=generator))) @ directions
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=d_in, d_sae=64), generator)
    trainer = Trainer(sae, train_config(HeadSaeSettings(lr=6e-3), n_tokens // 512), 0.1, generator)
    for step in range(trainer.config.n_steps):
        trainer.step(x[None, step * 512 : (step + 1) * 512])
    rows = torch.nn.functional.normalize(sae.W_dec[0].detach(), dim=-1)
    assert float((directions @ rows.T).amax(1).mean()) >= 0.9


def test_the_control_is_made_a_block_at_a_time(model, monkeypatch) -> None:
    """The activations of all its tokens and all SAEs at once were the most that a training held."""
    stack = random_stack(model, choose_slots(model.cfg, [0]), 1)
    x = torch.randn(stack.config.n_saes, 4 * BLOCK_TOKENS + 3, stack.config.d_in)
    wanted = (stack.encode(x) > 0).sum(dim=-1).double().mean(dim=1)
    lengths = []
    encode = StackedSAE.encode

    def seen(sae, x):
        lengths.append(x.shape[1])
        return encode(sae, x)

    monkeypatch.setattr(StackedSAE, "encode", seen)
    generators = [torch.Generator().manual_seed(k) for k in range(stack.config.n_saes)]
    control = random_control(stack, x, generators)
    assert lengths == [BLOCK_TOKENS] * 4 + [3]
    own = (encode(control, x) > 0).sum(dim=-1).double().mean(dim=1)
    torch.testing.assert_close(own, wanted, atol=2 / x.shape[1], rtol=0)


def test_the_job_reads_as_many_tokens_as_it_is_given(model, tokens, held_out) -> None:
    (plan,) = make_plans(model, [0], [0], 1.0, [0], HeadSaeSettings(**QUICK))
    job = HeadSaeJob(model, tokens, held_out, [plan], HeadSaeSettings(**QUICK), "m", 0, lambda share: None)
    assert job.n_steps == 10
    assert sae_evaluation.BLOCK_TOKENS > 0


def test_rare_features_are_a_share_of_the_living() -> None:
    density = torch.tensor([[0.0, 5e-4, 1e-3, 0.2], [0.0, 0.0, 2e-4, 9e-4], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = share_rare(density)
    assert found[:2].tolist() == [pytest.approx(1 / 3), 1.0]
    assert found[2].isnan()


def test_dense_features_are_a_share_of_the_living() -> None:
    density = torch.tensor([[0.0, 5e-4, 0.1, 0.2], [0.0, 0.0, 0.3, 0.9], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = share_dense(density)
    assert found[:2].tolist() == [pytest.approx(1 / 3), 1.0]
    assert found[2].isnan()
