"""Training: one SAE alone, the optimizer's arithmetic, resampling, exact resume, a known dictionary."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from stacks_for_tests import KINDS, seeded
from torch import Tensor

from sae import (
    LossAndGradients,
    SAEConfig,
    StackedSAE,
    TrainConfig,
    Trainer,
    l1_share_at,
    lr_at,
    max_cosine,
    random_dictionary,
    shuffle_coordinates,
    spawn_generators,
    train_stack,
)
from sae.metrics import MetricSums
from sae.resample import resample_dead


def sparse_data(n_inputs: int, n_tokens: int, d_in: int, n_features: int, seed: int, share: float = 0.05):
    """(features, x): x = acts · features; unit features, each active on `share` of tokens, its height in (.5, 1.5)."""
    generator = seeded(seed)
    features = torch.nn.functional.normalize(torch.randn(n_inputs, n_features, d_in, generator=generator), dim=-1)
    height = torch.rand(n_inputs, n_tokens, n_features, generator=generator) + 0.5
    acts = height * (torch.rand(n_inputs, n_tokens, n_features, generator=generator) < share)
    return features, acts @ features


def batches_of(x: Tensor, n: int, size: int, seed: int = 0) -> list[Tensor]:
    index = torch.randint(x.shape[1], (n, size), generator=seeded(seed))
    return [x[:, rows] for rows in index]


@pytest.mark.parametrize(("architecture", "k"), KINDS)
@pytest.mark.parametrize("use_unit_norm_decoder", [False, True])
def test_a_sae_trained_with_others_equals_it_trained_alone(architecture, k, use_unit_norm_decoder):
    """Five SAEs on two inputs, resampling twice, float64: each equals the one trained by itself to 1e-10."""
    x = sparse_data(2, 600, 12, 30, seed=1)[1].double() + 0.3
    slots, l1 = [0, 1, 1, 0, 1], [0.01, 0.1, 0.4, 0.02, 1.5]
    sizes = {"d_in": 12, "d_sae": 40, "architecture": architecture, "k": k, "b_dec_init": "mean"}
    sizes |= {
        "use_unit_norm_decoder": use_unit_norm_decoder,
        "decoder_init_norm": 1.0 if use_unit_norm_decoder else 0.1,
    }
    config = TrainConfig(
        n_steps=60, lr=3e-3, lr_warm_up_steps=5, lr_decay_steps=20, l1_warm_up_steps=10, dead_window=1,
        resample_steps=(20, 40), grad_clip=0.5,
    )  # fmt: skip
    # with a k more tokens than features, so that none is drawn for two dead ones: equal features would tie among k
    batches = batches_of(x, 60, 16 if k is None else 48)

    def trained(which: list[int]) -> tuple[StackedSAE, list]:
        keys = [(k,) for k in which]
        own_slots = [slots[k] for k in which]
        sae = StackedSAE(
            SAEConfig(n_saes=len(which), **sizes), spawn_generators(seeded(1), len(which), keys), data=x,
            input_index=own_slots, dtype=torch.float64,
        )  # fmt: skip
        streams = spawn_generators(seeded(2), len(which), keys)
        trainer = Trainer(sae, config, [l1[k] for k in which], streams, input_index=own_slots)
        return sae, train_stack(trainer, batches)

    together, stats = trained([0, 1, 2, 3, 4])
    if architecture == "relu":
        assert sum(int(s.n_resampled.sum()) for s in stats) > 0
    for k in (1, 4):
        alone, own_stats = trained([k])
        for name, tensor in together.state_dict().items():
            torch.testing.assert_close(tensor[k], alone.state_dict()[name][0], rtol=0, atol=1e-10)
        losses = torch.stack([s.loss[k] for s in stats])
        torch.testing.assert_close(losses, torch.stack([s.loss[0] for s in own_stats]), rtol=0, atol=1e-10)


def naive_adam_run(sae: StackedSAE, config: TrainConfig, l1: float, batches: list[Tensor]) -> dict[str, Tensor]:
    """One relu SAE by autograd and Adam written out (Kingma & Ba 2015), clip and schedules included."""
    params = {name: p.detach()[0].clone().requires_grad_() for name, p in sae.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in params.items()}
    second = {name: torch.zeros_like(p) for name, p in params.items()}
    for t, batch in enumerate(batches):
        x = batch[0]
        acts = torch.relu((x - params["b_dec"]) @ params["W_enc"] + params["b_enc"])
        recon = acts @ params["W_dec"] + params["b_dec"]
        warm = min(1.0, t / config.l1_warm_up_steps)
        loss = (recon - x).square().sum(-1).mean()
        loss = loss + l1 * warm * (acts * params["W_dec"].norm(dim=-1)).sum(-1).mean()
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
        factor = min(1.0, config.grad_clip / (norm + 1e-6))
        lr = config.lr * min(1.0, (t + 1) / config.lr_warm_up_steps)
        lr *= min(1.0, (config.n_steps - t) / config.lr_decay_steps)
        with torch.no_grad():
            for name, p in params.items():
                g = grads[name] * factor
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g * g
                mean, square = first[name] / (1 - 0.9 ** (t + 1)), second[name] / (1 - 0.999 ** (t + 1))
                p -= lr * mean / (square.sqrt() + 1e-8)
    return params


def test_training_equals_adam_written_out():
    x = sparse_data(1, 400, 6, 12, seed=2)[1].double()
    config = TrainConfig(n_steps=40, lr=1e-2, lr_warm_up_steps=6, lr_decay_steps=9, l1_warm_up_steps=8, grad_clip=0.2)
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=6, d_sae=10), seeded(), dtype=torch.float64)
    batches = batches_of(x, 40, 32)
    expected = naive_adam_run(sae, config, 0.2, batches)
    stats = train_stack(Trainer(sae, config, 0.2, seeded()), batches)
    assert max(float(s.grad_norm) for s in stats) > 0.2
    for name, parameter in sae.named_parameters():
        # 40 steps of float64 rounding
        torch.testing.assert_close(parameter[0], expected[name], rtol=1e-9, atol=1e-11)


def test_clip_is_per_sae():
    """A SAE on inputs a thousand times larger does not change how its neighbour is clipped."""
    x = sparse_data(2, 100, 6, 12, seed=2)[1].double()
    x[1] *= 1000
    config = TrainConfig(n_steps=1, lr=1e-2, grad_clip=0.1)
    sae = StackedSAE(SAEConfig(n_saes=2, d_in=6, d_sae=10), seeded(), dtype=torch.float64)
    one = sae.select([0])
    Trainer(sae, config, 0.1, seeded()).step(x)
    Trainer(one, config, 0.1, seeded()).step(x[:1])
    torch.testing.assert_close(sae.W_enc[0], one.W_enc[0], rtol=0, atol=1e-12)


def test_unit_norm_decoder_stays_unit_and_moves_along_the_sphere():
    x = sparse_data(1, 400, 8, 20, seed=2)[1].double()
    config = SAEConfig(n_saes=1, d_in=8, d_sae=16, use_unit_norm_decoder=True, decoder_init_norm=1.0)
    sae = StackedSAE(config, seeded(), dtype=torch.float64)
    before = sae.W_dec.detach().clone()
    trainer = Trainer(sae, TrainConfig(n_steps=30, lr=1e-2), 0.1, seeded())
    batches = batches_of(x, 30, 64)
    trainer.step(batches[0])
    # Adam saw no part of the gradient along a row
    momentum = trainer.state_dict()["adam.exp_avg.W_dec"]
    assert momentum.abs().max() > 1e-4
    torch.testing.assert_close((momentum * before).sum(dim=-1), torch.zeros(1, 16).double(), rtol=0, atol=1e-15)
    train_stack(trainer, batches[1:])
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(1, 16, dtype=torch.float64), rtol=0, atol=1e-14)
    assert (sae.W_dec - before).norm() > 0.1


def test_schedules_at_their_corners():
    config = TrainConfig(n_steps=100, lr=2.0, lr_warm_up_steps=10, lr_decay_steps=20, l1_warm_up_steps=4)
    assert [lr_at(config, t) for t in (0, 9, 10, 79, 80, 81, 99)] == pytest.approx([0.2, 2, 2, 2, 2, 1.9, 0.1])
    assert [l1_share_at(config, t) for t in (0, 1, 4, 50)] == [0, 0.25, 1, 1]
    flat = TrainConfig(n_steps=3, lr=2.0)
    assert [lr_at(flat, t) for t in range(3)] == [2, 2, 2]
    assert l1_share_at(flat, 0) == 1


@pytest.mark.parametrize("architecture", ["relu", "jumprelu"])
def test_resampling_follows_its_definition(architecture):
    x = sparse_data(2, 300, 8, 20, seed=3)[1].double()
    sae = StackedSAE(SAEConfig(n_saes=2, d_in=8, d_sae=12, architecture=architecture), seeded(), dtype=torch.float64)
    with torch.no_grad():
        for p in sae.parameters():
            p += 0.05
        sae.W_dec *= 3
    before = {name: t.clone() for name, t in sae.state_dict().items()}
    dead = torch.zeros(2, 12, dtype=torch.bool)
    dead[0, [1, 5, 7]] = True
    resampled = resample_dead(sae, dead, x, [1, 0], [seeded(4), seeded(5)], 0.2)
    assert torch.equal(resampled, dead)
    # neither the other SAE nor the living features change
    for name, tensor in sae.state_dict().items():
        assert torch.equal(tensor[1], before[name][1])
        if name == "W_enc":
            assert torch.equal(tensor[0][:, ~dead[0]], before[name][0][:, ~dead[0]])
        elif name != "b_dec":
            assert torch.equal(tensor[0][~dead[0]], before[name][0][~dead[0]])
    # the tokens are drawn as documented: probability ∝ squared loss, from this SAE's stream and input
    old = StackedSAE.from_tensors(sae.config, before).select([0])
    loss = (old(x[1])[1] - x[1]).square().sum(-1)
    drawn = torch.multinomial((loss / loss.max()).square().detach(), 3, generator=seeded(4))
    direction = torch.nn.functional.normalize(x[1][drawn] - before["b_dec"][0], dim=-1)
    living_row = before["W_dec"][0][~dead[0]].norm(dim=-1).mean()
    living_column = before["W_enc"][0][:, ~dead[0]].norm(dim=0).mean()
    torch.testing.assert_close(sae.W_dec[0][dead[0]], direction * living_row)
    torch.testing.assert_close(sae.W_enc[0][:, dead[0]], direction.T * living_column * 0.2)
    assert not sae.b_enc[0][dead[0]].any()
    if architecture == "jumprelu":
        torch.testing.assert_close(sae.threshold[0][dead[0]], torch.full((3,), 0.01, dtype=torch.float64))


def test_resampling_when_all_are_dead_or_nothing_is_left_to_learn():
    x = sparse_data(1, 50, 8, 20, seed=3)[1]
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=8, d_sae=80), seeded())
    dead = torch.ones(1, 80, dtype=torch.bool)
    # 80 dead features, 50 tokens: drawn with replacement, decoder_init_norm for the living rows' mean
    assert resample_dead(sae, dead, x, [0], [seeded()], 0.2).all()
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.full((1, 80), 0.1))
    assert not resample_dead(sae, dead, torch.zeros(1, 50, 8), [0], [seeded()], 0.2).any()


def test_dead_features_are_counted_resampled_and_given_fresh_moments():
    x = sparse_data(1, 400, 8, 20, seed=3)[1]
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=8, d_sae=32), seeded())
    trainer = Trainer(sae, TrainConfig(n_steps=20, dead_window=6, resample_steps=(11,)), 0.01, seeded())
    batches = batches_of(x, 12, 64)
    for batch in batches[:3]:
        trainer.step(batch)
    with torch.no_grad():
        sae.b_enc[0, :5] = -100
    stats = [trainer.step(batch) for batch in batches[3:10]]
    assert [int(s.n_dead) for s in stats] == [0, 0, 0, 0, 0, 5, 5]
    assert trainer.state_dict()["adam.exp_avg.W_dec"][0, :5].any()
    stats.append(trainer.step(batches[10]))
    assert (int(stats[-1].n_dead), int(stats[-1].n_resampled)) == (5, 5)
    state = trainer.state_dict()
    assert not state["adam.exp_avg.W_dec"][0, :5].any()
    assert not state["adam.exp_avg_sq.W_enc"][0, :, :5].any()
    assert state["adam.exp_avg_sq.W_enc"][0, :, 5:].any()
    assert not state["steps_since_fired"][0, :5].any()
    assert int(trainer.step(batches[11]).n_dead) == 0


@pytest.mark.parametrize(("architecture", "k"), KINDS)
def test_resume_is_exact_bit_for_bit(architecture, k):
    """Stopped before, at and after a resampling step, through safetensors bytes: the same weights and losses."""
    x = sparse_data(2, 500, 12, 30, seed=1)[1]
    config = TrainConfig(
        n_steps=30, lr=5e-3, lr_warm_up_steps=5, l1_warm_up_steps=10, dead_window=2, resample_steps=(12, 24)
    )
    batches = batches_of(x, 30, 64)

    def fresh(seed: int) -> Trainer:
        sizes = SAEConfig(n_saes=2, d_in=12, d_sae=60, architecture=architecture, k=k)
        return Trainer(StackedSAE(sizes, seeded(seed)), config, [0.3, 2.0], seeded(seed + 1))

    whole = fresh(0)
    stats = train_stack(whole, batches)
    if architecture == "relu":
        assert sum(int(s.n_resampled.sum()) for s in stats) > 0
    for stop in (1, 11, 12, 23, 24, 29):
        first = fresh(0)
        for batch in batches[:stop]:
            first.step(batch)
        stored = save(first.state_dict())
        second = fresh(77)
        second.load_state_dict(load(stored))
        rest = train_stack(second, batches[stop:])
        assert torch.equal(rest[-1].loss, stats[-1].loss)
        assert second.state_dict().keys() == whole.state_dict().keys()
        for name, tensor in whole.state_dict().items():
            assert torch.equal(second.state_dict()[name], tensor), (stop, name)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_known_sparse_features_are_recovered_and_controls_are_worse(seed):
    """40 unit directions in 16 dims, 2 active a token: mean over features of the best decoder cosine ≥ .9."""
    features, x = sparse_data(1, 20_000, 16, 40, seed=seed)
    sae = StackedSAE(SAEConfig(n_saes=2, d_in=16, d_sae=64), seeded(seed))
    config = TrainConfig(
        n_steps=500, lr=1e-2, lr_decay_steps=200, l1_warm_up_steps=100, dead_window=100, resample_steps=(200,)
    )
    mixed = torch.cat([x, shuffle_coordinates(x, seeded(seed))])
    train_stack(Trainer(sae, config, 0.3, seeded(seed)), batches_of(mixed, 500, 256, seed))
    found = max_cosine(features[0], sae.W_dec[0])
    assert found.mean() >= 0.9
    held_out = sparse_data(1, 4000, 16, 40, seed=seed)[1]

    def measure(stack: StackedSAE):
        sums = MetricSums(stack.config)
        with torch.no_grad():
            sums.update(held_out, *stack(held_out))
        return sums.result()

    trained = measure(sae.select([0]))
    control = random_dictionary(sae.select([0]).config, held_out, trained.l0, seeded(seed))
    random = measure(control)
    assert float(random.l0) == pytest.approx(float(trained.l0), abs=1e-2)
    assert float(trained.fvu) < 0.15 < 0.3 < float(random.fvu)
    # features of shuffled activations are not the true ones
    assert max_cosine(features[0], sae.W_dec[1]).mean() < found.mean() - 0.1


RECOVERY = {  # l1, options
    "relu": (0.3, {}),
    "topk": (0.0, {"k": 2}),
    "batchtopk": (0.0, {"k": 2}),
    "jumprelu": (0.1, {"threshold_init": 0.1, "bandwidth": 0.1}),
    "gated": (1.0, {}),
    "matryoshka": (0.0, {"k": 2, "widths": (48, 64)}),
}


@pytest.mark.parametrize("architecture", [name for name, _ in KINDS])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_architecture_recovers_known_features(architecture, seed):
    features, x = sparse_data(1, 20_000, 16, 40, seed=seed)
    l1, options = RECOVERY[architecture]
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=16, d_sae=64, architecture=architecture, **options), seeded(seed))
    config = TrainConfig(
        n_steps=800, lr=5e-3, lr_decay_steps=200, l1_warm_up_steps=100, dead_window=100, resample_steps=(200,)
    )
    train_stack(Trainer(sae, config, l1, seeded(seed)), batches_of(x, 800, 256, seed))
    assert max_cosine(features[0], sae.W_dec[0]).mean() >= 0.9


@pytest.mark.parametrize(
    ("architecture", "n_steps"),
    [("batchtopk", n) for n in (60, 150, 300, 1200)] + [("matryoshka", 60), ("matryoshka", 300)],
)
@pytest.mark.parametrize("seed", range(3))
def test_threshold_keeps_about_k_features_at_inference(architecture, n_steps, seed):
    x = sparse_data(1, 8000, 16, 40, seed=seed)[1]
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=16, d_sae=64, architecture=architecture, k=3), seeded(seed))
    config = TrainConfig(n_steps=n_steps, lr=3e-3, lr_decay_steps=n_steps // 3)
    stats = train_stack(Trainer(sae, config, 0.0, seeded()), batches_of(x, n_steps, 512))
    assert float(stats[-1].l0) == 3
    with torch.no_grad():
        l0 = (sae.encode(x) > 0).sum(-1).double().mean()
    assert float(l0) == pytest.approx(3, rel=0.15)  # the running mean of minima lags and is noisy


def test_batchtopk_threshold_begins_with_the_first_batch_that_has_one():
    x = sparse_data(1, 800, 16, 40, seed=0)[1]
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=16, d_sae=64, architecture="batchtopk", k=3), seeded())
    trainer = Trainer(sae, TrainConfig(n_steps=9, lr=1e-12), 0.0, seeded())
    with torch.no_grad():
        sae.b_enc.fill_(-100.0)
        assert not trainer.step(x).l0.any()
        assert not sae.threshold.any()
        sae.b_enc.fill_(0.0)
    trainer.step(x)
    with torch.no_grad():
        assert (sae.encode(x) > 0).sum(-1).double().mean() == pytest.approx(3, rel=0.01)


def test_matryoshka_threshold_is_the_weighted_mean_of_the_batches_minima():
    """Σ d(1−d)^(n−i) m_i / Σ d(1−d)^(n−i) over the batches that have a minimum; a batch without one changes nothing."""
    sae = StackedSAE(SAEConfig(n_saes=2, d_in=4, d_sae=8, architecture="matryoshka", k=2), seeded())
    minima = torch.tensor([[0.7, torch.inf, 0.2, 0.9], [torch.inf, 0.4, 0.3, torch.inf]])
    train = TrainConfig(n_steps=4, batchtopk_decay=0.3)
    with torch.no_grad():
        for least in minima.T:
            result = LossAndGradients(least, least, torch.ones(2, 8), least, {}, least)
            sae.architecture.after_step(sae.config, sae.tensors, result, train)
    for s, own in enumerate(minima):
        own = own[own.isfinite()]
        weights = 0.3 * 0.7 ** torch.arange(len(own) - 1, -1, -1)
        assert float(sae.threshold[s]) == pytest.approx(float((weights * own).sum() / weights.sum()), rel=1e-6)


def test_matryoshka_gives_its_dead_features_a_gradient():
    x = sparse_data(1, 400, 8, 20, seed=3)[1]
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=8, d_sae=32, architecture="matryoshka", k=2), seeded())
    trainer = Trainer(sae, TrainConfig(n_steps=8, dead_window=2), 0.0, seeded())
    with torch.no_grad():
        sae.b_enc[0, :5] = -100
    stats = [trainer.step(batch) for batch in batches_of(x, 8, 64)]
    assert [int(s.n_dead) >= 5 for s in stats] == [False] + [True] * 7
    assert bool((sae.b_enc[0, :5] != -100).all())


def test_all_features_dead_warns_once_with_the_step_and_goes_on():
    x = sparse_data(2, 400, 8, 20, seed=3)[1]
    sae = StackedSAE(SAEConfig(n_saes=2, d_in=8, d_sae=16), seeded())
    trainer = Trainer(sae, TrainConfig(n_steps=200, lr=0.02, dead_window=5), [0.01, 1000.0], seeded())
    batches = batches_of(x, 200, 64)
    with pytest.warns(UserWarning, match=r"all features of SAE \[1\] are dead at step \d+") as record:
        stats = train_stack(trainer, batches)
    assert len(record) == 1
    assert int(stats[-1].n_dead[1]) == 16
    assert int(stats[-1].n_dead[0]) < 16
    assert bool(stats[-1].loss.isfinite().all())


def test_a_bad_batch_is_named_and_changes_nothing():
    x = sparse_data(2, 64, 8, 20, seed=3)[1]
    sae = StackedSAE(SAEConfig(n_saes=3, d_in=8, d_sae=16), seeded())
    trainer = Trainer(sae, TrainConfig(n_steps=5), 0.1, seeded(), input_index=[0, 1, 0])
    trainer.step(x)
    before = trainer.state_dict()
    bad = x.clone()
    bad[1, 3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"loss of SAE 1 is nan at step 1; its input, slot 1, has 1 nan or inf"):
        trainer.step(bad)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.state_dict().items())
    with torch.no_grad():
        sae.W_enc[2] = 1e30
    with pytest.raises(ValueError, match="SAE 2 is inf .* expected a smaller lr"):
        trainer.step(x)


def test_a_failing_compiler_falls_back_and_says_so(monkeypatch):
    def compile_nothing(function, **options):
        def fail(*args):
            raise RuntimeError("no C++ compiler found\nlong trace")

        return fail

    x = sparse_data(1, 64, 8, 20, seed=3)[1]
    plain, fallen = (StackedSAE(SAEConfig(n_saes=1, d_in=8, d_sae=16), seeded()) for _ in range(2))
    Trainer(plain, TrainConfig(n_steps=2), 0.1, seeded()).step(x)
    monkeypatch.setattr(torch, "compile", compile_nothing)
    trainer = Trainer(fallen, TrainConfig(n_steps=2, use_compile=True), 0.1, seeded())
    with pytest.warns(UserWarning, match=r"torch.compile failed \(RuntimeError: no C\+\+ compiler found\)") as record:
        stats = [trainer.step(x)]
    assert len(record) == 1
    assert not stats[0].is_compiled
    assert torch.equal(plain.W_enc, fallen.W_enc)
    assert not trainer.step(x).is_compiled


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")  # torch.compile cannot trace what checks them
@pytest.mark.parametrize(("architecture", "k"), [("relu", None), ("gated", None), ("matryoshka", 2.5)])
@pytest.mark.parametrize("use_bf16", [False, True])
def test_compiled_training_equals_plain(architecture, k, use_bf16):
    x = sparse_data(3, 2000, 32, 80, seed=1)[1]
    config = {"n_steps": 50, "lr": 2e-3, "dead_window": 5, "resample_steps": (30,), "use_bf16": use_bf16}
    losses = []
    for use_compile in (False, True):
        sae = StackedSAE(SAEConfig(n_saes=3, d_in=32, d_sae=128, architecture=architecture, k=k), seeded())
        l1 = 0.1 if sae.architecture.has_penalty else 0.0
        trainer = Trainer(sae, TrainConfig(**config, use_compile=use_compile), l1, seeded())
        stats = train_stack(trainer, batches_of(x, 50, 300))
        assert stats[-1].is_compiled == use_compile
        losses.append(torch.stack([s.loss for s in stats]))
    # another order of summation, carried through 50 steps of Adam; bfloat16 rounds at other places too
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02 if use_bf16 else 1e-3, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bf16_training_ends_near_float32(seed):
    x = sparse_data(1, 4000, 16, 40, seed=seed)[1]
    ends = []
    for use_bf16 in (False, True):
        sae = StackedSAE(SAEConfig(n_saes=1, d_in=16, d_sae=64), seeded(seed))
        trainer = Trainer(sae, TrainConfig(n_steps=150, lr=3e-3, use_bf16=use_bf16), 0.1, seeded(seed))
        stats = train_stack(trainer, batches_of(x, 150, 256, seed))
        assert sae.W_enc.dtype == torch.float32
        ends.append(torch.stack([s.loss for s in stats[-20:]]).mean())
    assert float(ends[1]) == pytest.approx(float(ends[0]), rel=0.02)


@pytest.mark.parametrize(
    "fields",
    [
        {"n_steps": 0},
        {"lr": 0.0},
        {"lr": float("inf")},
        {"lr_warm_up_steps": 60, "lr_decay_steps": 50},
        {"lr_warm_up_steps": -1},
        {"betas": (0.9, 1.0)},
        {"grad_clip": 0.0},
        {"dead_window": 0},
        {"resample_steps": (5, 5)},
        {"resample_steps": (0,)},
        {"resample_steps": (100,)},
        {"resample_steps": (9, 3)},
        {"resample_scale": 0.0},
        {"batchtopk_decay": 0.0},
        {"momentum": 0.9},
    ],
)
def test_train_config_refuses(fields):
    with pytest.raises(ValidationError):
        TrainConfig(**({"n_steps": 100} | fields))


def _trainer(l1=0.1, generator=None, dtype=torch.float32) -> Trainer:
    sae = StackedSAE(SAEConfig(n_saes=2, d_in=8, d_sae=16), seeded(), dtype=dtype)
    return Trainer(sae, TrainConfig(n_steps=1), l1, generator or seeded())


def _changed(name: str, value) -> dict[str, Tensor]:
    state = _trainer().state_dict()
    if value is None:
        del state[name]
    else:
        state[name] = value
    return state


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _trainer(l1=[0.1]), "l1 is"),
        (lambda: _trainer(l1=[0.1, -1.0]), "expected 2 finite numbers ≥ 0"),
        (lambda: _trainer(l1=float("nan")), "finite"),
        (lambda: _trainer(generator=[seeded()]), "got 1 generators"),
        (lambda: _trainer(dtype=torch.float16), "the parameters are float16; expected float32"),
        (lambda: _trainer().step(torch.zeros(2, 4, 7)), "x has shape"),
        (lambda: train_stack(_trainer(), []), "batches ended after step 0; expected 1"),
        (lambda: _trainer().load_state_dict(_changed("adam.exp_avg.W_enc", None)), "adam.exp_avg.W_enc"),
        (lambda: _trainer().load_state_dict(_changed("extra", torch.zeros(1))), "extra"),
        (lambda: _trainer().load_state_dict(_changed("sae.b_dec", torch.zeros(2, 9))), "sae.b_dec is torch.float32"),
        (lambda: _trainer(l1=0.2).load_state_dict(_trainer().state_dict()), "l1 is"),
    ],
)
def test_bad_inputs_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_step_after_the_last():
    trainer = _trainer()
    x = torch.randn(2, 4, 8, generator=seeded())
    trainer.step(x)
    assert train_stack(trainer, [x]) == []
    with pytest.raises(ValueError, match="1 steps are done; expected < n_steps = 1"):
        trainer.step(x)
