"""Transcoders that `sae-train` makes of pairs of hooks, beside SAEs of single ones: against the model's own MLP, the
trainer itself, plain forwards with hooks, and the run of each alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_for_tests import small_model, tokens_for

from reports.tables import read_table
from sae import SAEConfig, StackedSAE, Trainer
from sae.config import SAESource
from workbench import runs
from workbench.analyses.harvest.storing import harvest
from workbench.analyses.sae_train.cost import cost
from workbench.analyses.sae_train.evaluation import measure, random_control, splice
from workbench.analyses.sae_train.head_saes import find_stack, sae_train
from workbench.analyses.sae_train.plan import make_plans, train_config
from workbench.analyses.sae_train.settings import HeadSaeSettings, Kind
from workbench.analyses.sae_train.stack_training import StackTraining, fold_scale, input_scale
from workbench.extend import TextSize
from workbench.models.activations import ShuffledActivations, choose_slots, special_ids
from workbench.models.attached import attached
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = [
    pytest.mark.filterwarnings("ignore:sae_train.*near-copies:UserWarning"),  # of a few steps
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
QUICK = {"batch_size": 32, "buffer_tokens": 64, "lr": 1e-2, "expansion": 3, "n_ce_tokens": 64, "n_train_tokens": 640}
PAIR = "ln2.hook_normalized:hook_mlp_out"
KINDS = {"hook": ("hook_mlp_out", PAIR), "architecture": ("relu", "transcoder", "skip_transcoder")}
KINDS |= {"activation": ("relu", "topk"), "k": (2, 4)}
TABLES = ("sae_training_results", "sae_density", "sae_curves", "sae_stability", "sae_pareto", "sae_alarms")


@pytest.fixture(scope="module")
def model():
    return small_model("janus-v3", n_layers=2)


@pytest.fixture(scope="module")
def tokens(model):
    return tokens_for(model, batch=22, pos=16)


@pytest.fixture(scope="module")
def held_out(model):
    return tokens_for(model, batch=6, pos=16, seed=9)


@pytest.fixture(scope="module")
def together(model, tokens, held_out, tmp_path_factory):
    """A run of SAEs and of transcoders."""
    out = tmp_path_factory.mktemp("pairs") / "run"
    own = {"l1": [0.5, 2.0], "seeds": [0, 3], "held_out": held_out, "out": out, "name": "m"}
    stacks, table = sae_train(model, tokens, **own, **QUICK | KINDS)
    return out, stacks, table


# --- what is trained


@pytest.mark.parametrize("seed", [0, 5])
def test_batches_hold_what_the_mlp_makes_of_the_same_tokens(model, tokens, seed):
    groups = [choose_slots(model.cfg, hook=hook) for hook in PAIR.split(":")]
    source = ShuffledActivations(model, tokens, *groups, batch_size=24, buffer_tokens=64, seed=seed)
    for index in (0, 3, 1):
        x, y = (source.batch(index, group) for group in (0, 1))
        with torch.no_grad():
            wanted = torch.stack([block.mlp(own[None] * block.ln2.w)[0] for block, own in zip(model.blocks, x)])  # noqa: B905
        torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("normalize", ["none", "mean_norm"])
@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_training_is_what_the_trainer_does_on_these_pairs(model, tokens, held_out, architecture, normalize, seed):
    kinds = {"hook": PAIR, "architecture": architecture, "normalize": normalize}
    stack, _ = sae_train(model, tokens, l1=0.5, seeds=seed, held_out=held_out, **QUICK | kinds)
    settings = HeadSaeSettings(**QUICK | kinds)
    (plan,) = make_plans(model, None, None, 0.5, seed, settings)
    source = ShuffledActivations(
        model, tokens, plan.slots, plan.outs, batch_size=32, buffer_tokens=64, positions=plan.positions
    )
    first = [source.block(0, group).clone() for group in (0, 1)]
    s, t = (input_scale(own) if normalize == "mean_norm" else torch.ones(2, 1, 1) for own in first)
    config = SAEConfig(n_saes=2, d_in=32, d_out=32, d_sae=96, architecture=architecture)
    own = StackedSAE(config, plan.generators(0), data=first[1].mean(dim=1, keepdim=True) * t)
    np.testing.assert_allclose(own.b_dec.detach(), (first[1] * t).double().mean(1), atol=1e-6)
    trainer = Trainer(own, train_config(settings, 20, 2), 0.5, plan.generators(1))
    for step in range(20):
        x, y = (source.batch(step, group) for group in (0, 1))
        trainer.step(x * s, y * t)
    scales = (s[:, 0, 0], t[:, 0, 0])
    for name, tensor in fold_scale(own, *scales).state_dict().items():
        assert torch.equal(stack.state_dict()[name], tensor), name
    assert stack.info.sources[1] == SAESource(
        hook_name="blocks.1.ln2.hook_normalized", hook_name_out="blocks.1.hook_mlp_out", layer=1, l1=0.5, seed=seed
    )


@pytest.mark.parametrize(
    "own",
    [
        Kind(PAIR, "transcoder", 3, None, "relu"),
        Kind(PAIR, "transcoder", 3, 2.0, "topk"),
        Kind(PAIR, "skip_transcoder", 3, 4.0, "topk"),
    ],
)
def test_every_stack_is_the_one_trained_alone(model, tokens, held_out, together, tmp_path, own):
    out, stacks, _ = together
    alone = {"hook": own.hook, "architecture": own.architecture, "k": own.k, "activation": own.activation}
    l1 = [0.5, 2.0] if own.k is None else 0.0
    stack, _ = sae_train(
        model, tokens, l1=l1, seeds=[0, 3], held_out=held_out, out=tmp_path / "r", name="m", **QUICK | alone
    )
    name = own.called(stack.config.d_in)
    files = {p.name: p.read_bytes() for p in (out / "sae" / name).iterdir()}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "r" / "sae").iterdir()}
    assert all(torch.equal(tensor, stack.state_dict()[key]) for key, tensor in stacks[name].state_dict().items())
    for called in TABLES[:4]:
        every, wanted = read_table(out, called), read_table(tmp_path / "r", called)
        is_own = (every["hook"] == own.hook) & (every["architecture"] == own.architecture)
        is_own &= every["activation"] == (own.activation or own.architecture)
        found = every[is_own & (every["k"].isna() if own.k is None else every["k"] == own.k)]
        assert found[list(wanted)].reset_index(drop=True).equals(wanted), called


@pytest.mark.parametrize(("read", "atol"), [("hook_mlp_in", 0), ("ln2.hook_normalized", 1e-3)])
def test_an_sae_beside_a_pair_is_the_one_trained_alone(model, tokens, held_out, read, atol):
    """To the bit, where the model computes the same; a norm that is watched is computed step by step, which rounds
    otherwise."""
    own = {"l1": 0.5, "held_out": held_out}
    alone, _ = sae_train(model, tokens, hook="hook_mlp_out", **own, **QUICK)
    kinds = {"hook": ("hook_mlp_out", f"{read}:hook_mlp_out"), "architecture": ("relu", "transcoder")}
    beside, _ = sae_train(model, tokens, **own, **QUICK | kinds)
    for name, tensor in beside["hook_mlp_out-relu-96"].state_dict().items():
        torch.testing.assert_close(tensor, alone.state_dict()[name], atol=atol, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_hook_paired_with_itself_is_the_sae_of_that_hook(model, tokens, seed):
    """An SAE that reads x and not x − b_dec, from the same start: the same bits in training and of all measures but the
    shuffled control's, in which x and y are permuted apart."""
    settings = HeadSaeSettings(hook="hook_mlp_out:hook_mlp_out", architecture="transcoder", **QUICK)
    (plan,) = make_plans(model, None, None, 0.5, seed, settings)
    source = ShuffledActivations(model, tokens, plan.slots, batch_size=32, buffer_tokens=64)
    first = source.block(0).clone()
    training = StackTraining(plan, settings, 10, first, first)
    start = {name.removeprefix("sae."): own for name, own in training.state().items() if name.startswith("sae.")}
    own = StackedSAE.from_tensors(SAEConfig(n_saes=2, d_in=32, d_sae=96, apply_b_dec_to_input=False), start)
    trainer = Trainer(own, training.config, plan.l1, plan.generators(1))
    for step in range(10):
        x = source.batch(step)
        training.step(x, x, is_logged=False)
        trainer.step(x * input_scale(first))
    trained = training.state()
    assert all(torch.equal(trained[f"sae.{name}"], tensor) for name, tensor in own.state_dict().items())
    paired = training.finish()
    same = StackedSAE.from_tensors(own.config, dict(paired.state_dict()))
    found = [
        (measure(model, tokens, plan.slots, [0, 1], {"trained": sae}, None, **more)["trained"],
         splice(model, tokens, plan.slots, [0, 1], {"trained": sae}, **more))
        for sae, more in ((paired, {"outs": plan.outs}), (same, {}))
    ]  # fmt: skip
    for one, other in zip(*found, strict=True):
        assert str(one) == str(other)
    assert torch.equal(found[0][0].fvu, found[1][0].fvu)


# --- what it is worth


def forward_with(model, tokens, hooks):
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        return model(tokens, return_type="loss", loss_per_token=True).double().mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rows_are_what_a_loop_with_plain_hooks_gives(model, held_out, seed):
    tokens = tokens_for(model, batch=60, pos=16, seed=seed)
    own = {"architecture": "skip_transcoder", "activation": "topk", "k": 6, "hook": PAIR, "expansion": 6}
    stack, table = sae_train(
        model, tokens, seeds=seed, held_out=held_out, **QUICK | own | {"n_train_tokens": 9600, "n_ce_tokens": 96}
    )
    trained = table[table["dictionary"] == "trained"]
    assert list(trained["hook"].unique()) == [PAIR]
    special = torch.tensor(sorted(special_ids(model)), dtype=torch.long)
    counts = ~torch.isin(held_out, special)
    counts[:, 0] = False
    for layer in (0, 1):
        row, one, kept = trained.iloc[layer], stack.select(layer), {}
        into, out = (f"blocks.{layer}.{hook}" for hook in PAIR.split(":"))

        def keep(x, hook, kept=kept):
            kept["x"] = x

        def put(y, hook, kept=kept, one=one):
            kept["y"] = y
            recon = one(kept["x"].flatten(0, 1))[1].view(y.shape)
            return torch.where(counts[..., None], recon, y)

        spliced = forward_with(model, held_out, [(into, keep), (out, put)])
        zeroed = forward_with(model, held_out, [(out, lambda y, hook: y.masked_fill(counts[..., None], 0.0))])
        base = forward_with(model, held_out, [])
        found = [row["ce_base"], row["ce_zero"], row["ce_spliced"]]
        np.testing.assert_allclose(found, [base, zeroed, spliced], atol=2e-5)
        assert row["ce_recovered"] == pytest.approx(float((zeroed - spliced) / (zeroed - base)), abs=1e-3)
        x, y = (kept[name][counts].double() for name in ("x", "y"))
        error = (one(x.float())[1].detach().double() - y).square().sum()
        assert row["fvu"] == pytest.approx(float(error / (y - y.mean(0)).square().sum()), rel=1e-4)
        assert row["fvu"] < 1
        norms = kept["y"].flatten(0, 1).norm(dim=-1)
        assert row["n_outlying"] == int((norms > 3 * np.median(norms.numpy())).sum())
        assert row["n_left_out"] == int((~counts).sum())
    with attached(model, stack, error=False), torch.no_grad():
        assert model(held_out, return_type="loss").isfinite()


def test_the_control_of_transcoders_is_a_transcoder_as_sparse(model, tokens, together):
    _, stacks, table = together
    random, trained = (table[table["dictionary"] == name] for name in ("random", "trained"))
    of_pair = random["hook"] == PAIR
    assert of_pair.sum() == 2 * (2 * 2 + 2 * 2) * 2  # architectures × (l1 and k) × seeds × layers
    assert (random["n_train_tokens"] == 0).all()
    stack = next(own for name, own in stacks.items() if "-to-" in name)
    groups = [choose_slots(model.cfg, hook=hook) for hook in PAIR.split(":")]
    source = ShuffledActivations(model, tokens, *groups, batch_size=32, buffer_tokens=400)
    x, y = (source.block(0, group)[[source_.layer for source_ in stack.info.sources]] for group in (0, 1))
    generators = [torch.Generator().manual_seed(k) for k in range(len(x))]
    control = random_control(stack, x, generators, y)
    l0 = [(own.encode(x) > 0).sum(dim=-1).double().mean(1) for own in (stack, control)]
    torch.testing.assert_close(*l0, atol=1e-2, rtol=0)
    assert np.isfinite(trained["fvu"]).all()


# --- a run


def test_a_run_of_both_is_whole_and_its_rows_are_told_apart(together):
    out, stacks, _ = together
    runs.verify_manifest(out)
    pair = PAIR.replace(":", "-to-")
    wanted = {"hook_mlp_out-relu-96"}
    for architecture in ("transcoder", "skip_transcoder"):
        wanted |= {f"{pair}-{architecture}-{own}" for own in ("relu-96", "topk-96-k2", "topk-96-k4")}
    assert {p.name for p in (out / "sae").iterdir()} == set(stacks) == wanted
    keys = ["model", "seed", "layer", "head", "l1", "sae_seed", "hook", "architecture", "d_sae", "k", "activation"]
    more = {
        "sae_training_results": ["dictionary"], "sae_density": ["log10_density_bin"], "sae_curves": ["step"],
        "sae_stability": ["other_seed"], "sae_pareto": [], "sae_alarms": ["step", "kind"],
    }  # fmt: skip
    for name in TABLES:
        own = read_table(out, name)
        by = [key for key in [*keys, *more[name]] if name != "sae_pareto" or key != "sae_seed"]
        assert not own.duplicated(by).any(), name
        assert name == "sae_alarms" or set(own["hook"]) == {"hook_mlp_out", PAIR}
    fronts = read_table(out, "sae_pareto").groupby(["layer", "hook", "architecture", "activation"])
    assert len(fronts) == 2 * (1 + 2 * 2)
    assert all(len(own) == 2 and own["on_front"].any() for _, own in fronts)


def test_a_stack_is_found_by_its_pair(together):
    out, stacks, _ = together
    found = find_stack(out, hook=PAIR, architecture="transcoder", activation="topk", k=4)
    assert torch.equal(found.W_enc, stacks[PAIR.replace(":", "-to-") + "-transcoder-topk-96-k4"].W_enc)
    assert torch.equal(find_stack(out, hook="hook_mlp_out").W_enc, stacks["hook_mlp_out-relu-96"].W_enc)
    with pytest.raises(ValueError, match=r"SAEs: 3 of .* fit hook ln2.*_out, architecture transcoder; expected one of"):
        find_stack(out, hook=PAIR, architecture="transcoder")


def test_all_heads_of_z_are_paired_under_both_of_their_names(model, tokens, held_out, tmp_path):
    kinds = {"hook": "z_concat:hook_attn_out", "architecture": "transcoder", "lr": 3e-3, "out": tmp_path / "r"}
    stack, table = sae_train(model, tokens, l1=0.5, held_out=held_out, **QUICK | kinds)
    assert (table[table["dictionary"] == "trained"]["fvu"] < 1).all()
    for hook in ("z_concat:hook_attn_out", "attn.hook_z:hook_attn_out"):
        assert torch.equal(find_stack(tmp_path / "r", hook=hook).W_dec, stack.W_dec)


def test_a_harvest_of_both_hooks_is_trained_on(model, tokens, held_out, tmp_path):
    names = [f"blocks.{layer}.{hook}" for layer in range(2) for hook in PAIR.split(":")]
    kinds = {"architecture": "transcoder", "held_out": held_out, "l1": 0.5}
    harvest(model, tokens, names, tmp_path / "h", shard_bytes=20_000)
    stack, _ = sae_train(model, tmp_path / "h", hook=PAIR, **QUICK | kinds)
    both, _ = sae_train(
        model, tmp_path / "h", hook=("hook_mlp_out", PAIR), **QUICK | kinds | {"architecture": ("relu", "transcoder")}
    )
    own = both[PAIR.replace(":", "-to-") + "-transcoder-96"].state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in stack.state_dict().items())
    harvest(model, tokens, names[:1], tmp_path / "half")
    with pytest.raises(ValueError, match=r"shards: .* has no 'blocks.0.hook_mlp_out'; expected some of blocks.0.ln2"):
        sae_train(model, tmp_path / "half", layers=[0], hook=PAIR, **QUICK | kinds)


@pytest.mark.parametrize("hook", ["hook_mlp_in", "ln2.hook_normalized"])
def test_a_transformer_lens_model_gives_the_same_transcoders(model, tokens, held_out, hook):
    theirs = to_hooked_transformer(model)
    kinds = {"hook": f"{hook}:hook_mlp_out", "architecture": "skip_transcoder", "l1": 0.5, "held_out": held_out}
    found = [sae_train(own, tokens, name="m", **QUICK | kinds) for own in (model, theirs)]
    assert not theirs.cfg.use_hook_mlp_in
    for name, tensor in found[0][0].state_dict().items():
        torch.testing.assert_close(found[1][0].state_dict()[name], tensor, atol=1e-3, rtol=1e-2)
    ours, others = (table[table["dictionary"] == "trained"] for _, table in found)
    for column in ("fvu", "ce_zero", "ce_spliced"):
        np.testing.assert_allclose(ours[column], others[column], atol=1e-3)


def test_a_plan_counts_a_buffer_for_each_hook(model):
    def planned(n, *hooks, **kinds):
        own = HeadSaeSettings(hook=hooks, layers=[0], buffer_tokens=n, **kinds)
        return cost(model.cfg, own, TextSize(4, 16)).bytes_on_device

    kinds = {"architecture": "transcoder", "activation": "topk", "k": 2}
    single, pair, both = (
        planned(1 << 22, *hooks, **own) - planned(1 << 21, *hooks, **own)
        for hooks, own in (
            (["hook_mlp_out"], {}),
            ([PAIR], kinds),
            (["hook_mlp_out", PAIR], kinds | {"architecture": "relu,transcoder"}),
        )
    )
    assert pair == both == 2 * single  # the output's is shared
    assert single == pytest.approx(4 * 32 * (1 << 21) * 16 / 15, rel=1e-3)


# --- what is refused


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"architecture": "transcoder"}, r"architecture: got transcoder for hook z; expected a hook IN:OUT, such as"),
        ({"hook": PAIR}, r"hook: got ln2.*_out for relu; expected a transcoder's architecture for it"),
        ({"hook": PAIR, "architecture": ("relu", "transcoder")},
         r"architecture: got relu for hook ln2.*_out; expected a single hook, such as hook_mlp_out, for it"),
        ({"hook": ("z", PAIR), "architecture": "transcoder"}, r"hook: got z for transcoder; expected an architecture"),
        ({"hook": "a:b:c", "architecture": "transcoder"}, r"hook: got 'a:b:c'; expected a hook, or two as IN:OUT"),
        ({"hook": ":b", "architecture": "transcoder"}, r"hook: got ':b'; expected a hook, or two as IN:OUT"),
        ({"hook": "z:hook_attn_out", "architecture": "transcoder"}, r"expected two that are read whole: z_concat, not"),
        ({"hook": PAIR, "architecture": "transcoder", "activation": "gated"},
         r"activation: got 'gated' for transcoder; expected one of relu, topk, batchtopk, jumprelu"),
        ({"activation": "topk"}, r"SAEConfig.activation: got topk for relu; expected None"),
        ({"hook": PAIR, "architecture": "transcoder", "activation": ("relu", "relu")}, r"activation: .* each once"),
        ({"hook": PAIR, "architecture": "transcoder", "activation": "topk"}, r"SAEConfig.k: got None for transcoder"),
        ({"hook": PAIR, "architecture": "transcoder", "k": 2}, r"SAEConfig.k: got 2.0 for transcoder; expected None"),
        ({"hook": PAIR, "architecture": "transcoder", "activation": "topk", "k": 2, "l1": 1.0},
         r"l1: got \[1.0\] for topk transcoder, which k alone makes sparse; expected 0"),
        ({"hook": PAIR, "architecture": "transcoder", "heads": [0]}, r"heads: got \[0\] for hook 'ln2.hook_normal"),
        ({"hook": "hook_nope:hook_mlp_out", "architecture": "transcoder"}, r"hook 'blocks.0.hook_nope' does not exist"),
        ({"hook": "hook_mlp_in:hook_nope", "architecture": "transcoder"}, r"hook 'blocks.0.hook_nope' does not exist"),
        ({"hook": "hook_mlp_out:hook_mlp_in", "architecture": "transcoder"},
         r"hook: got blocks.0.hook_mlp_out:blocks.0.hook_mlp_in, of which the second is passed first"),
        ({"hook": "hook_mlp_in:attn.hook_pattern", "architecture": "transcoder"}, r"attn.hook_pattern"),
    ],
)  # fmt: skip
def test_what_has_no_partner_or_no_place_is_one_line(model, tokens, held_out, tmp_path, own, message):
    with pytest.raises(ValueError, match=message) as error:
        sae_train(model, tokens, held_out=held_out, out=tmp_path / "r", **QUICK | own)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("r*"))


def test_pairs_go_with_transcoders_and_single_hooks_with_saes():
    own = HeadSaeSettings(hook=["z", PAIR], architecture="topk,transcoder", activation="relu,jumprelu,topk", k="2,8")
    assert own.kinds == (
        Kind("z", "topk", 8, 2), Kind("z", "topk", 8, 8),
        Kind(PAIR, "transcoder", 8, None, "relu"), Kind(PAIR, "transcoder", 8, None, "jumprelu"),
        Kind(PAIR, "transcoder", 8, 2, "topk"), Kind(PAIR, "transcoder", 8, 8, "topk"),
    )  # fmt: skip
    assert [own.coefficients_of(kind) for kind in own.kinds] == [(0.0,)] * 2 + [(2.0,)] * 2 + [(0.0,)] * 2
    assert HeadSaeSettings.model_validate(own.model_dump(mode="json")) == own
    assert HeadSaeSettings(hook=PAIR, architecture="transcoder", activation="topk", k=3).l1 == (0.0,)


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_scales_of_both_are_folded_into_the_weights(scale):
    generator = torch.Generator().manual_seed(0)
    config = SAEConfig(n_saes=2, d_in=5, d_out=3, d_sae=8, architecture="skip_transcoder", b_dec_init="zero")
    stack = StackedSAE(config, generator, dtype=torch.float64)
    with torch.no_grad():
        for tensor in stack.parameters():
            tensor.normal_(generator=generator)
        x = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
        s, t = torch.tensor([scale, 2.0], dtype=torch.float64), torch.tensor([0.5, scale], dtype=torch.float64)
        acts, recon = fold_scale(stack, s, t)(x)
        wanted, scaled = stack(x * s[:, None, None])
    torch.testing.assert_close(acts, wanted)
    torch.testing.assert_close(recon, scaled / t[:, None, None])
