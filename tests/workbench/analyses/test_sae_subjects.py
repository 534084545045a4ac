"""SAEs of every kind of model: HookedTransformers and bridges, every hook, against plain forwards and, where a family
is ours too, against our own model of the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae import SAEConfig, StackedSAE
from workbench.analyses.atlas.features import atlas_features, final_gain
from workbench.analyses.harvest.storing import harvest
from workbench.analyses.match.features import match_features
from workbench.analyses.sae_train.evaluation import check_stand_ins, splice
from workbench.analyses.sae_train.head_saes import sae_train
from workbench.models.activations import Positions, choose_slots, collect
from workbench.models.load import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Trainer.step. all features of SAE:UserWarning"),
]
HOOKS = (
    "z", "z_concat", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out",
    "mlp.hook_post", "mlp.hook_pre", "attn.hook_q", "attn.hook_v",
)  # fmt: skip
QUICK = {"l1": 0.5, "batch_size": 32, "buffer_tokens": 64, "lr": 1e-2, "expansion": 2, "n_ce_tokens": 60}
QUICK |= {"normalize": "none", "n_train_tokens": None}
D_VOCAB = 61
# hooks that a subject lacks, by layer where layers differ
NO_MID, NO_MLP = {"hook_resid_mid"}, {"hook_resid_mid", "hook_mlp_out", "mlp.hook_post", "mlp.hook_pre"}
HOOKED = {
    "plain": ({}, set()),
    "attention-only": ({"attn_only": True, "d_mlp": None}, NO_MLP),
    "gqa": ({"n_heads": 4, "d_head": 4, "n_key_value_heads": 2}, set()),
    "parallel": ({"parallel_attn_mlp": True}, NO_MID),
    "shortformer": ({"positional_embedding_type": "shortformer"}, set()),
}
WIDE = {
    "vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "intermediate_size": 48,
}  # fmt: skip
LONG = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": D_VOCAB, "initializer_range": 0.3}
LONG |= {"bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
OPT = {"ffn_dim": 48, "init_std": 0.3, "word_embed_proj_dim": 32}
NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8}
LFM2 = GROUPED | {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False}
# family -> (configuration's class, its settings)
BRIDGES = {
    "gpt2": ("GPT2Config", LONG),
    "gpt-neox": ("GPTNeoXConfig", WIDE),
    "gemma2": ("Gemma2Config", WIDE | GEMMA),
    "gemma3": ("Gemma3TextConfig", WIDE | GEMMA),
    "olmo2": ("Olmo2Config", WIDE | GROUPED),
    "phi3": ("Phi3Config", WIDE | GROUPED),
    "opt": ("OPTConfig", {k: v for k, v in WIDE.items() if k not in ("intermediate_size", "initializer_range")} | OPT),
    "gpt-j": ("GPTJConfig", LONG | {"rotary_dim": 4}),
    "gpt-neo": ("GPTNeoConfig", WIDE | NEO),
    "qwen3": ("Qwen3Config", WIDE | GROUPED | {"head_dim": 8}),
    "lfm2": ("Lfm2Config", WIDE | LFM2),
}
PARALLEL = ("gpt-neox", "gpt-j")
KINDS = (*HOOKED, *BRIDGES)


def hooked_transformer(kind):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    settings = {
        "n_layers": 2, "d_model": 16, "n_ctx": 32, "d_head": 8, "n_heads": 2, "d_vocab": D_VOCAB, "act_fn": "relu",
        "d_mlp": 32, "seed": 0, "init_weights": False,
    }  # fmt: skip
    model = HookedTransformer(HookedTransformerConfig(**settings | HOOKED[kind][0]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def bridge_of(kind, folder):
    """A tiny model of the family with a tokenizer, as a bridge; the folder it was saved in is left behind."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformer_lens.model_bridge import TransformerBridge

    name, settings = BRIDGES[kind]
    config = getattr(transformers, name)(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # gains and biases that matter
                    parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    words = {("<pad>", "<s>", "</s>")[i] if i < 3 else f"w{i}": i for i in range(D_VOCAB)}
    own = Tokenizer(models.WordLevel(words, unk_token="w3"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    return TransformerBridge.boot_transformers(str(folder), hf_model=model)


@pytest.fixture(scope="module")
def subject(request, tmp_path_factory):
    kind = request.param
    return kind, hooked_transformer(kind) if kind in HOOKED else bridge_of(kind, tmp_path_factory.mktemp(kind))


def lacks(kind, hook):
    """Whether no layer of the subject has the hook."""
    return hook in HOOKED[kind][1] if kind in HOOKED else kind in PARALLEL and hook == "hook_resid_mid"


def layers_of(kind, hook):
    """Layers of the subject with the hook: the first of Lfm2 is a convolution, which has no heads."""
    is_of_heads = hook in ("z", "z_concat", "hook_attn_out", "attn.hook_q", "attn.hook_v")
    return [1] if kind == "lfm2" and is_of_heads else [0, 1]


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(3, D_VOCAB, (8, 12), generator=torch.Generator().manual_seed(0))


every_subject = pytest.mark.parametrize("subject", KINDS, indirect=True)


def whole_forwards(model, tokens, slots, values):
    """Loss of one plain hooked forward for each slot, its activation replaced."""
    losses = []
    for slot, value in zip(slots, values, strict=True):

        def replace(activation, hook, slot=slot, value=value):
            new = value.view(*activation.shape[:2], -1)
            if slot.head is None:
                return new.reshape(activation.shape)
            activation = activation.clone()
            activation[:, :, slot.head] = new
            return activation

        logits = model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(slot.hook_name, replace)])
        log_p = torch.log_softmax(logits[:, :-1].double(), -1)
        losses.append(-log_p.gather(-1, tokens[:, 1:, None]).mean())
    return torch.stack(losses)


def random_stack(model, slots):
    d_in = model.cfg.d_head if slots[0].head is not None else collect(model, torch.arange(8)[None], slots).shape[2]
    config = SAEConfig(n_saes=len(slots), d_in=d_in, d_sae=20, decoder_init_norm=0.5)
    return StackedSAE(config, torch.Generator().manual_seed(0))


def perfect(n_saes, d_in):
    """Features ±e_i: relu of both halves, recon = x to the bit."""
    eye = torch.eye(d_in)
    tensors = {
        "W_enc": torch.cat([eye, -eye], dim=1),
        "W_dec": torch.cat([eye, -eye]),
        "b_enc": torch.zeros(2 * d_in),
        "b_dec": torch.zeros(d_in),
    }
    config = SAEConfig(n_saes=n_saes, d_in=d_in, d_sae=2 * d_in)
    return StackedSAE.from_tensors(config, {name: t.expand(n_saes, *t.shape).clone() for name, t in tensors.items()})


@every_subject
def test_what_is_spliced_is_what_a_plain_forward_gives(subject, tokens) -> None:
    kind, model = subject
    positions = Positions(frozenset({9, 30}))
    is_counted = positions.of(tokens).flatten()
    assert 0 < int(is_counted.sum()) < tokens.numel() - len(tokens)
    with torch.no_grad():
        logits = model(tokens, return_type="logits")
        base = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), tokens[:, 1:].flatten())
    for hook in HOOKS:
        if lacks(kind, hook):
            continue
        slots = choose_slots(model.cfg, layers_of(kind, hook), hook=hook)
        check_stand_ins(model, slots)
        x = collect(model, tokens, slots)
        stacks = {"perfect": perfect(len(slots), x.shape[2]), "some": random_stack(model, slots)}
        losses = splice(model, tokens, slots, range(len(slots)), stacks, positions=positions)
        assert losses.base == pytest.approx(float(base), abs=1e-5)
        torch.testing.assert_close(losses.spliced["perfect"], base.expand(len(slots)), atol=1e-5, rtol=0, msg=hook)
        if hook == "hook_resid_mid" and kind not in HOOKED:
            continue  # a bridge's is only what the second norm reads, see below
        with torch.no_grad():
            for name, value in (("zero", torch.zeros_like(x)), ("some", stacks["some"](x)[1])):
                # what is not counted stays as it was
                want = whole_forwards(model, tokens, slots, torch.where(is_counted[:, None], value, x))
                found = losses.zero if name == "zero" else losses.spliced[name]
                torch.testing.assert_close(found, want, atol=2e-5, rtol=0, msg=lambda m, h=hook: f"{h}: {m}")
                assert float((found - base).abs().min()) > 1e-6, f"{hook}: what stands in changes nothing"


@pytest.mark.parametrize("subject", ["gpt2", "qwen3"], indirect=True)
@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook not in ("mlp.hook_pre", "attn.hook_q")])
def test_a_bridge_is_spliced_as_our_own_model_of_its_weights(subject, tokens, hook, tmp_path) -> None:
    """hook_resid_mid too: there the stream itself must be replaced, not what the norm reads of it alone. Two hooks of
    Qwen 3 are left out, which the libraries have on the two sides of its gate and of its norm."""
    kind, _ = subject
    bridge = bridge_of(kind, tmp_path)
    ours = load(tmp_path)
    slots = choose_slots(ours.cfg, hook=hook)
    stack = random_stack(ours, slots)
    mine, theirs = (splice(m, tokens, slots, range(len(slots)), {"some": stack}) for m in (ours, bridge))
    # two implementations in float32, logits of size ten
    torch.testing.assert_close(theirs.zero, mine.zero, atol=2e-4, rtol=0)
    torch.testing.assert_close(theirs.spliced["some"], mine.spliced["some"], atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "subject", ["gpt2", "gemma2", "gemma3", "olmo2", "phi3", "opt", "gpt-neo", "lfm2"], indirect=True
)
def test_what_stands_in_for_the_middle_of_a_block_replaces_the_stream(subject, tokens) -> None:
    """The block's end must be what stands in plus what the MLP makes of it."""
    kind, model = subject
    from workbench.analyses.sae_train.evaluation import stand_in

    (slot,) = choose_slots(model.cfg, [1], hook="hook_resid_mid")
    (x,) = collect(model, tokens, [slot])
    value = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    seen = {}

    def keep(tensor, hook):
        seen[hook.name] = tensor.detach()

    kept = [(model.hook_dict[f"blocks.1.{name}"].name, keep) for name in ("hook_resid_post", "hook_mlp_out")]
    with torch.no_grad():
        model.run_with_hooks(tokens, return_type=None, fwd_hooks=[*stand_in(model, slot, x, value), *kept])
    end, added = (seen[name] for name, _ in kept)
    torch.testing.assert_close(end, value.view(end.shape) + added.view(end.shape), atol=1e-4, rtol=1e-4)


@every_subject
@pytest.mark.parametrize("hook", HOOKS[:8])
def test_every_hook_is_trained_on_or_refused_before_training(subject, tokens, hook, tmp_path) -> None:
    kind, model = subject
    shares: list[float] = []
    run = {"hook": hook, "out": tmp_path / "run", "held_out": tokens, "on_progress": shares.append} | QUICK
    more = tokens.repeat(2, 1)
    if lacks(kind, hook) or layers_of(kind, hook) != [0, 1]:
        with pytest.raises(ValueError, match=r"^hook .*(not exist; (nearest|expected layers)|did not fire)") as refused:
            sae_train(model, more, **run)
        assert "\n" not in str(refused.value)
        assert not shares
        assert not list(tmp_path.rglob("*"))
        if lacks(kind, hook):
            return
    stack, table = sae_train(model, more, layers_of(kind, hook), **run)
    assert shares[-1] == pytest.approx(1)
    assert set(table["n_eval_tokens"]) == {8 * 11}
    trained = table[table["dictionary"] == "trained"]
    assert np.isfinite(trained[["fvu", "ce_spliced", "ce_zero", "ce_recovered", "fvu_with_special"]]).all(axis=None)
    assert (trained["ce_zero"] != trained["ce_base"]).all()
    assert stack.info.include_special is False


@every_subject
def test_features_and_matches_of_every_subject(subject, tokens) -> None:
    kind, model = subject
    for hook in ("z", "hook_resid_post"):
        stack, _ = sae_train(model, tokens.repeat(2, 1), [1], hook=hook, held_out=tokens, **QUICK)
        table = atlas_features(model, stack, tokens, n_contexts=2, radius=3)
        assert (table["density"] > 0).any()
        assert table["max_act"].max() > 0
        effects = set(table["logit_promoted"])
        # there a norm stands between what the heads write and the stream
        assert (effects == {"[]"}) == (hook == "z" and kind in ("gemma2", "gemma3", "olmo2"))
        for own in match_features(model, stack, model, stack, tokens)[0]:
            alive = own.correlations[~own.correlations.isnan()]
            torch.testing.assert_close(alive, torch.ones_like(alive), atol=1e-5, rtol=0)
            assert own.features.shape == own.saes.shape == own.correlations.shape


@every_subject
def test_the_gain_of_the_final_norm_is_what_it_multiplies_by(subject) -> None:
    _, model = subject
    d_model = model.cfg.d_model
    x = torch.randn(1, 3, d_model, generator=torch.Generator().manual_seed(0)) * 50
    with torch.no_grad():
        out, nothing = model.ln_final(x), model.ln_final(torch.zeros(1, 1, d_model))  # the bias alone
        centred = x - x.mean(-1, keepdim=True) if model.cfg.normalization_type.startswith("LN") else x
        want = centred / centred.square().mean(-1, keepdim=True).sqrt() * final_gain(model) + nothing
    torch.testing.assert_close(out, want, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("subject", ["gqa", "gpt2", "gemma3"], indirect=True)
def test_shards_of_any_model_are_trained_on(subject, tokens, tmp_path) -> None:
    _, model = subject
    hooks = ["blocks.1.attn.hook_z", "blocks.1.hook_resid_post"]
    harvest(model, tokens.repeat(2, 1) - 1, hooks, tmp_path / "h")
    for hook in ("z", "hook_resid_post"):
        stack, table = sae_train(model, tmp_path / "h", [1], hook=hook, held_out=tokens, **QUICK)
        assert stack.info.n_train_tokens == 16 * 11 // 32 * 32
        assert table["fvu"].notna().all()


def test_a_hook_that_is_only_read_is_refused(monkeypatch) -> None:
    """Of the stream, where the change is not carried on; and of anything that nothing reads."""
    from workbench.analyses.sae_train import evaluation

    model = hooked_transformer("plain")
    check_stand_ins(model, choose_slots(model.cfg, hook="hook_resid_mid"))

    def past(model, slot, x, value):
        """The stream's reader is given the value, the stream is not."""
        return [("blocks.1.ln2.hook_normalized", lambda activation, hook: value.view(activation.shape))]

    monkeypatch.setattr(evaluation, "stand_in", past)
    with pytest.raises(
        ValueError, match=r"hook: got blocks\.1\.hook_resid_mid, which the residual stream .* goes past"
    ):
        check_stand_ins(model, choose_slots(model.cfg, [1], hook="hook_resid_mid"))
    monkeypatch.setattr(evaluation, "stand_in", lambda *_: [])
    with pytest.raises(
        ValueError, match=r"hook: got blocks\.0\.hook_mlp_out; what stands in its place changes no logit"
    ):
        check_stand_ins(model, choose_slots(model.cfg, [0], hook="hook_mlp_out"))
