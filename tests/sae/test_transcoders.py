"""Transcoders: loss and gradients by the definition, known neurons found, stacks, resume, controls, SAELens's form."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from stacks_for_tests import PAIRS, random_stack, seeded
from torch import Tensor

from sae import (
    MetricSums,
    SAEConfig,
    SAESource,
    StackedSAE,
    StackInfo,
    TrainConfig,
    Trainer,
    loss_and_gradients,
    max_cosine,
    random_dictionary,
    spawn_generators,
    train_stack,
)
from sae.architecture import Architecture, Batch
from sae.resample import resample_dead

L1 = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
FORMS = pytest.mark.parametrize(("architecture", "activation", "k"), PAIRS)


def stack(architecture, activation, k, *, d_out: int | None = 4, **options) -> StackedSAE:
    return random_stack(architecture, k, activation=activation, d_out=d_out, **options)


def pair(n_inputs=3, n_tokens=20, d_in=5, d_out=4, seed=0, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    generator = seeded(seed + 50)
    x, y = (torch.randn(n_inputs, n_tokens, d, generator=generator, dtype=dtype) for d in (d_in, d_out))
    return x, y


def naive_loss(sae: StackedSAE, x: Tensor, y: Tensor, l1: Tensor) -> Tensor:
    """The definition, a token and a feature at a time."""
    config, losses = sae.config, []
    for s, own in enumerate(x):
        pres = [[token @ sae.W_enc[s, :, f] + sae.b_enc[s, f] for f in range(config.d_sae)] for token in own]
        ranked = sorted((float(z.detach()) for pre in pres for z in pre), reverse=True)
        total = own.new_zeros(())
        for token, target, pre in zip(own, y[s], pres, strict=True):
            recon, penalty = sae.b_dec[s].clone(), own.new_zeros(())
            if config.architecture == "skip_transcoder":
                recon = recon + sae.W_skip[s] @ token
            least = {
                "topk": sorted(float(z.detach()) for z in pre)[-int(config.k or 1)],
                "batchtopk": ranked[int((config.k or 1) * len(own)) - 1],
            }.get(config.activation or "relu", -torch.inf)
            for f, z in enumerate(pre):
                bar = float(sae.threshold[s, f].detach()) if config.activation == "jumprelu" else 0
                if float(z.detach()) > bar and float(z.detach()) >= least:
                    recon = recon + z * sae.W_dec[s, f]
                    penalty = penalty + (1 if config.activation == "jumprelu" else z * sae.W_dec[s, f].norm())
            total = total + (recon - target).square().sum() + l1[s] * penalty
        losses.append(total / len(own))
    return torch.stack(losses)


# --- loss and gradients


@FORMS
@pytest.mark.parametrize("seed", [0, 3])
def test_loss_is_the_definition_and_gradients_are_its_derivatives(architecture, activation, k, seed):
    sae, (x, y) = stack(architecture, activation, k, seed=seed), pair(n_tokens=8, seed=seed)
    result, loss = loss_and_gradients(sae, x, L1, y=y), naive_loss(sae, x, y, L1)
    torch.testing.assert_close(result.squared_error + L1 * result.sparsity, loss, rtol=1e-12, atol=1e-12)
    loss.sum().backward()
    assert set(result.gradients) == {name for name, _ in sae.named_parameters()}
    for name, parameter in sae.named_parameters():
        if name != "threshold":
            torch.testing.assert_close(result.gradients[name], parameter.grad, rtol=1e-10, atol=1e-12)


@FORMS
@pytest.mark.parametrize("seed", [1, 2])
def test_gradients_equal_central_differences_of_the_loss(architecture, activation, k, seed):
    sae, (x, y) = stack(architecture, activation, k, seed=seed), pair(n_tokens=16, seed=seed)
    gradients, step = loss_and_gradients(sae, x, L1, y=y).gradients, 1e-6

    def loss() -> Tensor:
        now = loss_and_gradients(sae, x, L1, y=y)
        return now.squared_error + L1 * now.sparsity

    for name, parameter in sae.named_parameters():
        if name == "threshold":
            continue  # the straight-through gradient is no derivative: test_the_threshold_learns_as_a_saes
        direction = torch.randn(parameter.shape, generator=seeded(seed), dtype=torch.float64)
        sides = []
        with torch.no_grad():
            for move in (step, -2 * step):
                parameter += move * direction
                sides.append(loss())
            parameter += step * direction
        got = (gradients[name] * direction).flatten(1).sum(1)
        # truncation ~step² and rounding ~1e-16/step; 1e-6 leaves room for both
        torch.testing.assert_close(got, (sides[0] - sides[1]) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("seed", [0, 1])
def test_with_y_equal_to_x_it_is_the_sae_of_that_activation_to_the_bit(activation, seed):
    """Also the threshold's straight-through gradient, which the SAE's tests hold against the paper's."""
    k = 3 if "topk" in activation else None
    own = stack("transcoder", activation, k, d_out=None, seed=seed)
    plain = random_stack(activation, k, seed=seed, apply_b_dec_to_input=False)
    plain.load_state_dict(own.state_dict())
    x, _ = pair(seed=seed)
    found, expected = loss_and_gradients(own, x, L1, y=x), loss_and_gradients(plain, x, L1)
    for name, gradient in expected.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name
    for field in ("squared_error", "sparsity", "n_active", "least_active"):
        assert torch.equal(getattr(found, field), getattr(expected, field))
    for a, b in zip(own(x), plain(x), strict=True):
        assert torch.equal(a, b)


@FORMS
def test_autograd_of_the_plain_definition_gives_the_same_also_of_a_decoder_of_zeros(architecture, activation, k):
    """What a plug-in's file gets that reads a pair and brings no gradients of its own."""
    if activation == "jumprelu":
        pytest.skip("autograd gives a threshold none")
    for scale in (1.0, 0.0):
        sae, (x, y) = stack(architecture, activation, k), pair()
        with torch.no_grad():
            sae.W_dec.mul_(scale)
        sums = Architecture.sum_block(sae.architecture, sae.config, sae.tensors, x, Batch(L1, L1[0], None, y))
        plain = Architecture.finish(sae.architecture, sae.config, sae.tensors, L1, x.shape[1], sums)
        for name, value in loss_and_gradients(sae, x, L1, y=y).gradients.items():
            torch.testing.assert_close(plain.gradients[name], value, rtol=1e-12, atol=1e-12)


@FORMS
def test_blocks_and_slots_do_not_change_the_sums(architecture, activation, k, monkeypatch):
    from sae import gradients

    sae, (x, y), slots = stack(architecture, activation, k, n_saes=3), pair(2, 37), [1, 0, 1]
    whole = loss_and_gradients(sae, x[slots], L1, y=y[slots])
    monkeypatch.setattr(gradients, "_BLOCK_ACTS", {"cpu": 2 * 8 * 11})
    monkeypatch.setattr(gradients, "_BLOCK_TOKENS", 8)
    parts = loss_and_gradients(sae, x, L1, slots, y=y)
    torch.testing.assert_close(parts.squared_error, whole.squared_error, rtol=1e-12, atol=0)
    for name, value in whole.gradients.items():
        torch.testing.assert_close(parts.gradients[name], value, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_bf16_products_are_close_to_float32(architecture):
    sae = stack(architecture, "relu", None, dtype=torch.float32, d_in=64, d_out=48, d_sae=256)
    x, y = pair(3, 512, 64, 48, dtype=torch.float32)
    with torch.no_grad():
        sae.W_enc.mul_(0.1)
    wide, narrow = (loss_and_gradients(sae, x, L1.float(), y=y, use_bf16=use) for use in (False, True))
    # bfloat16 has 8 bits: 2^-8 relative in single products, less in sums
    torch.testing.assert_close(narrow.squared_error, wide.squared_error, rtol=0.01, atol=0)
    for name, value in wide.gradients.items():
        assert (narrow.gradients[name] - value).norm() / value.norm() < 0.02, name


# --- training


def mlp(seed: int, linear: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(E, D, x, y) of 40 neurons that are each active on 7 % of tokens: y = relu(E x − 1.5) D, and a linear map."""
    generator = seeded(seed)
    E, D = (torch.nn.functional.normalize(torch.randn(40, d, generator=generator), dim=1) for d in (16, 12))
    by = torch.randn(16, 12, generator=generator) * linear
    x = torch.randn(1, 20_000, 16, generator=generator)
    return E, D, x, (x @ E.T - 1.5).relu() @ D + x @ by


def fresh(architecture, activation, k, seed, y, n_saes=1, d_sae=64) -> StackedSAE:
    sizes: dict[str, Any] = {"n_saes": n_saes, "d_in": 16, "d_out": y.shape[2], "d_sae": d_sae}
    config = SAEConfig(**sizes, architecture=architecture, activation=activation, k=k)
    return StackedSAE(config, seeded(seed), data=y, input_index=[0] * n_saes)


def measured(sae: StackedSAE, x: Tensor, y: Tensor) -> MetricSums:
    sums = MetricSums(sae.config)
    with torch.no_grad():
        sums.update(y, *sae(x))
    return sums


def test_it_starts_at_the_mean_and_its_decoder_moves_first():
    _, _, x, y = mlp(0)
    for architecture in ("transcoder", "skip_transcoder"):
        sae = fresh(architecture, None, None, 0, y)
        assert sae.config.b_dec_init == "mean"
        assert not sae.config.apply_b_dec_to_input
        assert not bool(sae.W_dec.any())
        torch.testing.assert_close(sae.W_enc.detach().norm(dim=1), torch.full((1, 64), 0.1))
        assert float(measured(sae, x, y).result().fvu) == pytest.approx(1, abs=1e-6)
        torch.testing.assert_close(sae.b_dec[0].detach(), y[0].mean(0))
        gradients = loss_and_gradients(sae, x, torch.tensor([0.1]), y=y).gradients
        moving = {name for name, gradient in gradients.items() if gradient.abs().max() > 1e-4}
        assert moving == {"W_dec"} | ({"W_skip"} if architecture == "skip_transcoder" else set())


@pytest.mark.parametrize("seed", [0, 1, 2])
@FORMS
def test_known_neurons_are_found_from_a_decoder_of_zeros(architecture, activation, k, seed):
    is_skip = architecture == "skip_transcoder"
    E, D, x, y = mlp(seed, linear=0.3 if is_skip else 0.0)
    l1 = {"relu": (0.02, 0.1), "jumprelu": (0.005, 0.02)}.get(activation, (0.0, 0.0))[is_skip]
    sae = fresh(architecture, activation, k and 3, seed, y)
    config = TrainConfig(
        n_steps=600, lr=5e-3, lr_decay_steps=200, l1_warm_up_steps=100, dead_window=100, resample_steps=(200,)
    )
    rows = torch.randint(20_000, (600, 256), generator=seeded(seed))
    train_stack(Trainer(sae, config, l1, seeded(seed)), ((x[:, own], y[:, own]) for own in rows))
    assert max_cosine(D, sae.W_dec[0]).mean() >= 0.9
    assert max_cosine(E, sae.W_enc[0].T).mean() >= 0.9
    result = measured(sae, x, y).result()
    control = random_dictionary(sae.config, x, [float(result.l0)], seeded(seed + 9), y=y)
    assert float(measured(control, x, y).result().l0) == pytest.approx(float(result.l0), abs=1e-3)
    assert float(result.fvu) < 0.4 * float(measured(control, x, y).result().fvu)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_linear_takes_no_features_where_it_may_be_skipped(seed):
    _, _, x, y = mlp(seed, linear=0.3)
    rows, errors = torch.randint(20_000, (600, 256), generator=seeded(seed)), []
    for architecture in ("transcoder", "skip_transcoder"):
        sae = fresh(architecture, "topk", 3, seed, y)
        trainer = Trainer(sae, TrainConfig(n_steps=600, lr=5e-3, lr_decay_steps=200), 0.0, seeded(seed))
        train_stack(trainer, ((x[:, own], y[:, own]) for own in rows))
        errors.append(float(measured(sae, x, y).result().fvu))
    assert errors[1] < 0.1 * errors[0]


@FORMS
def test_one_of_a_stack_trains_as_alone(architecture, activation, k):
    x, y = (own[:1] + 0.3 for own in pair(1, 600, 12, 9, seed=1))
    config = TrainConfig(n_steps=60, lr=3e-3, l1_warm_up_steps=10, dead_window=1, resample_steps=(20, 40))
    rows, l1, ends = torch.randint(600, (60, 48), generator=seeded(3)), [0.1, 0.4, 0.01], []
    for which in ([0, 1, 2], [1]):
        sizes: dict[str, Any] = {"n_saes": len(which), "d_in": 12, "d_out": 9, "d_sae": 40}
        own = SAEConfig(**sizes, architecture=architecture, activation=activation, k=k)
        streams = [spawn_generators(seeded(n), len(which), [(s,) for s in which]) for n in (1, 2)]
        slots = [0] * len(which)
        sae = StackedSAE(own, streams[0], data=y, input_index=slots, dtype=torch.float64)
        trainer = Trainer(sae, config, [0.0 if k else l1[s] for s in which], streams[1], input_index=slots)
        stats = train_stack(trainer, ((x[:, own], y[:, own]) for own in rows))
        ends.append({name: tensor[which.index(1)] for name, tensor in sae.state_dict().items()})
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=0, atol=1e-10)
    assert len(stats) == 60


@FORMS
def test_one_of_a_stack_gives_the_bits_that_it_gives_alone(architecture, activation, k):
    sae = stack(architecture, activation, k, dtype=torch.float32, d_in=64, d_out=48, d_sae=512)
    x, _ = pair(3, 256, 64, 48, dtype=torch.float32)
    with torch.no_grad():
        acts, recon = sae(x)
        for s in range(3):
            own_acts, own_recon = sae.select(s)(x[s])
            assert torch.equal(own_acts, acts[s])
            assert torch.equal(own_recon, recon[s])


@FORMS
def test_a_killed_training_goes_on_bit_for_bit(architecture, activation, k):
    _, _, x, y = mlp(4)
    rows = torch.randint(20_000, (40, 64), generator=seeded(5))
    batches = [(x[:, own], y[:, own]) for own in rows]
    config = TrainConfig(n_steps=40, lr=3e-3, dead_window=2, resample_steps=(10, 30))

    def trainer(seed: int) -> Trainer:
        sae = fresh(architecture, activation, k, seed, y, n_saes=2, d_sae=48)
        return Trainer(sae, config, 0.0 if k else 0.3, seeded(seed), input_index=[0, 0])

    whole, stopped = trainer(0), trainer(0)
    train_stack(whole, batches)
    for batch in batches[:20]:
        stopped.step(*batch)
    again = trainer(7)
    again.load_state_dict(load(save(stopped.state_dict())))
    train_stack(again, batches[20:])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_dead_features_start_again_from_what_is_reconstructed_worst(architecture):
    sae, (x, y) = stack(architecture, "relu", None), pair(n_tokens=30)
    y[0, 7] += 1e4  # one token that the errors single out
    dead = torch.zeros(3, 11, dtype=torch.bool)
    dead[0, 4] = True
    before, recon = sae.select([0, 1, 2]), sae(x)[1].detach()
    streams = spawn_generators(seeded(), 3)
    assert torch.equal(resample_dead(sae, dead, x, [0, 1, 2], streams, 0.2, y), dead)
    row, column = (y - recon)[0, 7], (x - x.mean(1, keepdim=True))[0, 7]
    is_living, expected = ~dead[0], before.state_dict()
    expected["b_enc"][0, 4] = 0
    expected["W_dec"][0, 4] = row / row.norm() * expected["W_dec"][0][is_living].norm(dim=1).mean()
    expected["W_enc"][0, :, 4] = column / column.norm() * 0.2 * expected["W_enc"][0][:, is_living].norm(dim=0).mean()
    for name, tensor in sae.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")  # torch.compile cannot trace what checks them
@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_compiled_training_equals_plain(architecture):
    _, _, x, y = mlp(0)
    losses = []
    for use_compile in (False, True):
        sae = fresh(architecture, "jumprelu", None, 0, y)
        trainer = Trainer(sae, TrainConfig(n_steps=50, lr=2e-3, use_compile=use_compile), 0.01, seeded())
        stats = train_stack(trainer, ((x[:, own], y[:, own]) for own in torch.arange(20_000).view(-1, 200)))
        assert stats[-1].is_compiled == use_compile
        losses.append(torch.stack([own.loss for own in stats]))
    # another order of summation, carried through 50 steps of Adam
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)


# --- measures, controls, scales


@FORMS
def test_measures_are_of_y(architecture, activation, k):
    sae, (x, y) = stack(architecture, activation, k), pair(n_tokens=50)
    found = measured(sae, x, y).result()
    recon = sae(x)[1].detach()
    error, spread = (y - recon).square(), (y - y.mean(1, keepdim=True)).square()
    torch.testing.assert_close(found.mse, error.mean(dim=(1, 2)))
    torch.testing.assert_close(found.fvu, error.sum(dim=(1, 2)) / spread.sum(dim=(1, 2)))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_random_control_is_a_fit_of_y_on_random_features(seed):
    x, y = pair(2, 400, seed=seed)
    y = y + 3 + x @ torch.randn(5, 4, generator=seeded(seed), dtype=torch.float64)
    for architecture in ("transcoder", "skip_transcoder"):
        config = SAEConfig(n_saes=2, d_in=5, d_out=4, d_sae=11, architecture=architecture, activation="topk", k=3)
        control = random_dictionary(config, x, [2.0, 3.0], seeded(seed), y=y)
        with torch.no_grad():
            acts, recon = control(x)
        assert (acts > 0).double().sum(-1).mean(-1).tolist() == pytest.approx([2, 3], abs=1 / 400)
        assert control.config.architecture == architecture
        torch.testing.assert_close(control.W_enc.detach().norm(dim=1), torch.ones(2, 11))
        for s in range(2):
            left = y[s] - y[s].mean(0)
            if architecture == "skip_transcoder":
                centred = x[s] - x[s].mean(0)
                solution = torch.linalg.lstsq(centred, left).solution
                torch.testing.assert_close(control.W_skip[s].double(), solution.T, rtol=1e-4, atol=1e-5)
                left = left - centred @ solution
            own = acts[s].double()
            rows = own.T @ left / own.square().sum(0).unsqueeze(1)
            fit = own @ rows
            rows = rows * (left * fit).sum() / fit.square().sum()
            torch.testing.assert_close(control.W_dec[s].double(), rows, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(recon[s].double(), y[s] - left + own @ rows, rtol=1e-3, atol=1e-3)


@FORMS
def test_scales_of_x_and_of_y_are_folded_exactly(architecture, activation, k):
    sae, (x, _) = stack(architecture, activation, k), pair()
    scale, out = (torch.tensor(own, dtype=torch.float64) for own in ([0.01, 1.0, 30.0], [5.0, 0.2, 1.0]))
    folded = sae.architecture.fold_scale(sae.config, sae.tensors, scale, out)
    with torch.no_grad():
        acts, recon = sae(x * scale.view(-1, 1, 1))
        own_acts, own_recon = StackedSAE.from_tensors(sae.config, folded)(x)
    assert bool((acts > 0).any())
    torch.testing.assert_close(own_acts, acts, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own_recon * out.view(-1, 1, 1), recon, rtol=1e-12, atol=1e-12)


# --- files


def sources(n: int) -> StackInfo:
    own = (SAESource(hook_name=f"blocks.{i}.ln2.hook_normalized", hook_name_out=f"blocks.{i}.hook_mlp_out", layer=i,
                     l1=0.1) for i in range(n))  # fmt: skip
    return StackInfo(sources=tuple(own), model_name="control", include_special=True)


@FORMS
def test_saved_stacks_come_back(tmp_path, architecture, activation, k):
    sae = stack(architecture, activation, k)
    sae.info = sources(3)
    again = StackedSAE.load(sae.save(tmp_path / "sae"))
    assert again.config == sae.config
    assert again.info == sae.info
    for name, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_what_only_transcoders_have_is_not_written_for_others():
    written = json.loads(SAEConfig(n_saes=1, d_in=4, d_sae=8).model_dump_json())
    assert not {"d_out", "activation"} & set(written)
    assert "hook_name_out" not in StackInfo(sources=(SAESource(hook_name="a"),)).model_dump_json()
    assert "hook_name_out" in sources(1).model_dump_json()


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sae_lens_opens_our_folders_and_they_come_back_to_the_bit(tmp_path, architecture, activation, k, dtype):
    sae_lens = pytest.importorskip("sae_lens")
    sae = stack(architecture, activation, k, dtype=dtype, d_in=32, d_out=24, d_sae=256)
    sae.info = sources(3)
    if activation == "topk":
        with pytest.raises(ValueError, match=f"got a {architecture} with activation topk, which SAELens does not have"):
            sae.to_sae_lens(tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    x, _ = pair(3, 200, 32, 24, dtype=torch.float32)
    x = x.to(dtype)
    kind = ("" if activation == "relu" else "jumprelu_") + architecture
    with torch.no_grad():
        acts, recon = sae(x)
        for s, folder in enumerate(sae.to_sae_lens(tmp_path / "out")):
            theirs = sae_lens.SAE.load_from_disk(str(folder))
            assert theirs.cfg.architecture() == kind
            assert theirs.cfg.metadata.hook_name_out == f"blocks.{s}.hook_mlp_out"
            assert torch.equal(theirs.encode(x[s]), acts[s])
            assert torch.equal(theirs(x[s]), recon[s])
            features_alone = theirs.decode(acts[s])
            assert torch.equal(features_alone, recon[s]) == (architecture == "transcoder")
    again = StackedSAE.from_sae_lens(tmp_path / "out")
    assert again.info == sae.info
    assert again.config.activation in (None, "jumprelu")
    for a, b in zip(again(x), (acts, recon), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"])
def test_we_open_sae_lens_folders_and_compute_the_same_bits(tmp_path, name):
    saes = pytest.importorskip("sae_lens.saes.transcoder")
    torch.manual_seed(0)
    config = getattr(saes, f"{name}Config")(d_in=32, d_out=24, d_sae=256, apply_b_dec_to_input=False)
    config.metadata.hook_name, config.metadata.hook_name_out = "blocks.3.hook_mlp_in", "blocks.3.hook_mlp_out"
    theirs = getattr(saes, name)(config)
    with torch.no_grad():
        for own, parameter in theirs.named_parameters():
            if own not in ("W_enc", "W_dec"):
                parameter.uniform_(0, 0.5)
    theirs.save_model(tmp_path / "theirs")
    ours, x = StackedSAE.from_sae_lens(tmp_path / "theirs"), torch.randn(100, 32)
    (source,) = ours.info.sources
    assert (source.hook_name, source.hook_name_out, source.layer) == (
        "blocks.3.hook_mlp_in", "blocks.3.hook_mlp_out", 3)  # fmt: skip
    with torch.no_grad():
        acts, recon = ours(x)
        assert torch.equal(acts, theirs.encode(x))
        assert torch.equal(recon, theirs(x))
    assert bool((acts > 0).any())


# --- what is refused


def trainer(architecture="transcoder", **options) -> Trainer:
    sae = random_stack(architecture, dtype=torch.float32, **options)
    return Trainer(sae, TrainConfig(n_steps=3), 0.1, seeded())


X, Y = torch.zeros(3, 6, 5), torch.zeros(3, 6, 4)
REFUSED = {
    "no y": (lambda: trainer(d_out=4).step(X), r"loss_and_gradients: got no y with transcoder; expected what it rec"),
    "width": (lambda: trainer(d_out=4).step(X, X), r"got a y of shape \(3, 6, 5\), torch.float32, with .*4"),
    "tokens": (lambda: trainer(d_out=4).step(X, Y[:, 1:]), r"got a y of shape \(3, 5, 4\)"),
    "integers": (lambda: trainer(d_out=4).step(X, Y.int()), r"got a y of shape .*, torch.int32"),
    "an SAE": (lambda: trainer("relu").step(X, X), "got a y with relu, which reconstructs x; expected none"),
    "bad y": (
        lambda: trainer(d_out=4).step(X, Y.index_fill(1, torch.tensor([2]), torch.nan)),
        "loss of SAE 0 is nan at step 0; its input, slot 0, has 4 nan or inf",
    ),
    "control without y": (
        lambda: random_dictionary(SAEConfig(n_saes=3, d_in=5, d_sae=9, architecture="transcoder"), X + 1, [1.0] * 3,
                                  seeded()),
        "random_dictionary: got no y with transcoder"),
    "decode without x": (
        lambda: random_stack("skip_transcoder").decode(torch.zeros(3, 6, 11)),
        "decode: x is none; expected what a skip_transcoder encoded"),
    "decode of others": (
        lambda: random_stack("skip_transcoder").decode(torch.zeros(3, 6, 11), torch.zeros(3, 5, 5)),
        r"decode: x is shape \(3, 5, 5\); expected what"),
    "start without data": (
        lambda: StackedSAE(SAEConfig(n_saes=1, d_in=5, d_sae=9, architecture="transcoder"), seeded()),
        "StackedSAE: data has shape None"),
    "start with x": (
        lambda: StackedSAE(SAEConfig(n_saes=3, d_in=5, d_out=4, d_sae=9, architecture="transcoder"), seeded(), data=X),
        r"data has shape \(3, 6, 5\); expected \(n_inputs, tokens ≥ 1, 4\)"),
    "measures of x": (
        lambda: MetricSums(SAEConfig(n_saes=3, d_in=5, d_out=4, d_sae=9, architecture="transcoder")).update(
            X, torch.zeros(3, 6, 9), Y), "MetricSums.update: x has shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_pairs_are_named(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "relu", "d_out": 4}, "SAEConfig.d_out: got 4 for relu; expected None"),
        ({"architecture": "relu", "activation": "topk"}, "SAEConfig.activation: got topk for relu; expected None"),
        ({"activation": "gated"}, "activation: got 'gated' for transcoder; expected one of relu, topk, ba"),
        ({"activation": "topk"}, "SAEConfig.k: got None for transcoder; expected 0 < k"),
        ({"k": 3}, "SAEConfig.k: got 3.0 for transcoder; expected None"),
        ({"d_out": 0}, "greater than or equal to 1"),
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input: got True for transcoder; expected False"),
        (
            {"use_unit_norm_decoder": True, "decoder_init_norm": 1},
            "use_unit_norm_decoder: got True for transcoder; expected False",
        ),
    ],
)
def test_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SAEConfig(**({"n_saes": 1, "d_in": 5, "d_sae": 9, "architecture": "transcoder"} | fields))
