"""Folders exchanged with SAELens itself, bit for bit, both ways."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from stacks_for_tests import KINDS, seeded

from sae import SAEConfig, SAESource, StackedSAE, StackInfo


def stack(
    architecture: str = "relu", k: float | None = None, dtype: torch.dtype = torch.float32, **fields
) -> StackedSAE:
    config = SAEConfig(n_saes=3, d_in=32, d_sae=256, architecture=architecture, k=k, **fields)
    sources = tuple(SAESource(hook_name="blocks.9.attn.hook_z", layer=9, head=h, l1=0.1, seed=3) for h in (0, 5, 7))
    info = StackInfo(
        sources=sources, model_name="control", model_sha256="ab" * 32, context_size=128, prepend_bos=True,
        include_special=True,
    )  # fmt: skip
    sae = StackedSAE(config, seeded(), info=info, dtype=dtype)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=seeded(len(name))).to(dtype))
            if name.startswith("threshold"):
                tensor.abs_()
    return sae


@pytest.mark.parametrize(("architecture", "k"), KINDS)
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sae_lens_opens_our_folders_and_computes_the_same_bits(tmp_path, architecture, k, apply_b_dec_to_input, dtype):
    sae_lens = pytest.importorskip("sae_lens")
    sae = stack(architecture, k, dtype, apply_b_dec_to_input=apply_b_dec_to_input)
    folders = sae.to_sae_lens(tmp_path / "out")
    assert [path.name for path in folders] == ["sae_000", "sae_001", "sae_002"]
    x = torch.randn(3, 200, 32, generator=seeded(5)).to(dtype)
    with torch.no_grad():
        acts, recon = sae(x)
        for s, folder in enumerate(folders):
            theirs = sae_lens.SAE.load_from_disk(str(folder))
            assert torch.equal(theirs.encode(x[s]), acts[s])
            assert torch.equal(theirs.decode(acts[s]), recon[s])
            assert torch.equal(theirs(x[s].view(4, 50, 32)), recon[s].view(4, 50, 32))
            assert theirs.cfg.metadata.hook_name == "blocks.9.attn.hook_z"
            assert theirs.cfg.metadata.hook_head_index == (0, 5, 7)[s]
            assert theirs.cfg.metadata.model_name == "control"
            assert theirs.cfg.dtype == str(dtype).removeprefix("torch.")
    assert (acts > 0).any()


@pytest.mark.parametrize(("architecture", "k"), KINDS)
def test_a_sae_of_all_heads_stands_in_hook_z_of_their_model(tmp_path, architecture, k):
    sae_lens = pytest.importorskip("sae_lens")
    transformer_lens = pytest.importorskip("transformer_lens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # said at every HookedTransformer
        model = sae_lens.HookedSAETransformer(
            transformer_lens.HookedTransformerConfig(
                n_layers=2, d_model=16, n_ctx=12, d_head=8, n_heads=4, d_vocab=30, act_fn="relu", d_mlp=16, seed=0
            )
        )
    name = "blocks.1.attn.hook_z"
    whole = SAEConfig(n_saes=1, d_in=32, d_sae=64, architecture=architecture, k=k)
    sae = StackedSAE(whole, seeded(), info=StackInfo(sources=(SAESource(hook_name=name, layer=1, l1=0.1, seed=3),)))
    (folder,) = sae.to_sae_lens(tmp_path / "out")
    theirs = sae_lens.SAE.load_from_disk(str(folder))
    tokens = torch.randint(30, (3, 12), generator=seeded(5))
    with torch.no_grad():
        z = model.run_with_cache(tokens)[1][name]
        acts, recon = sae(z.flatten(2).flatten(0, 1))
        _, cache = model.run_with_cache_with_saes(tokens, saes=[theirs])
    assert (acts > 0).any()
    torch.testing.assert_close(cache[f"{name}.hook_sae_acts_post"].flatten(0, 1), acts)
    torch.testing.assert_close(cache[f"{name}.hook_sae_output"], recon.view(z.shape))
    assert StackedSAE.from_sae_lens(folder).info == sae.info


@pytest.mark.parametrize(("architecture", "k"), KINDS)
def test_our_folders_come_back(tmp_path, architecture, k):
    sae = stack(architecture, k)
    sae.to_sae_lens(tmp_path / "out")
    again = StackedSAE.from_sae_lens(tmp_path / "out")
    assert again.info == sae.info
    as_jumprelu = ("batchtopk", "matryoshka")
    assert again.config.architecture == ("jumprelu" if architecture in as_jumprelu else architecture)
    x = torch.randn(3, 50, 32, generator=seeded(5))
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again.decode(sae.encode(x)), sae.decode(sae.encode(x)))
    one = StackedSAE.from_sae_lens(tmp_path / "out" / "sae_001")
    assert one.config.n_saes == 1
    assert one.info.sources[0].head == 5
    assert torch.equal(one.encode(x[1]), sae.encode(x)[1])


@pytest.mark.parametrize("architecture", ["standard", "topk", "topk_rescaled", "jumprelu", "gated"])
def test_we_open_sae_lens_folders_and_compute_the_same(tmp_path, architecture):
    saes = pytest.importorskip("sae_lens.saes")
    torch.manual_seed(0)
    common = {"d_in": 32, "d_sae": 256}
    if architecture == "standard":
        theirs = saes.StandardSAE(saes.StandardSAEConfig(**common))
    elif architecture == "jumprelu":
        theirs = saes.JumpReLUSAE(saes.JumpReLUSAEConfig(**common))
        theirs.threshold.data.uniform_(0, 0.5)
    elif architecture == "gated":
        theirs = saes.GatedSAE(saes.GatedSAEConfig(**common))
        for name in ("b_gate", "b_mag", "r_mag"):
            getattr(theirs, name).data.normal_(std=0.1)
    else:
        is_rescaled = architecture == "topk_rescaled"
        theirs = saes.TopKSAE(saes.TopKSAEConfig(**common, k=7, rescale_acts_by_decoder_norm=is_rescaled))
    if theirs.b_enc is not None:
        theirs.b_enc.data.normal_(std=0.1)
    theirs.b_dec.data.normal_(std=0.1)
    theirs.save_model(tmp_path / "theirs")
    ours = StackedSAE.from_sae_lens(tmp_path / "theirs")
    x = torch.randn(100, 32)
    with torch.no_grad():
        if architecture == "topk_rescaled":
            # the norms are folded into the weights: the same up to rounding
            torch.testing.assert_close(ours.encode(x), theirs.encode(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ours(x)[1], theirs(x), rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(ours.encode(x), theirs.encode(x))
            assert torch.equal(ours(x)[1], theirs(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["save_model", "save_inference_model"])
def test_a_jumprelu_sae_from_their_training_encodes_as_theirs_does(tmp_path, dtype, how):
    """Whose threshold is float32 whatever the weights are, and may be below 0 after the last step."""
    sae_lens = pytest.importorskip("sae_lens")
    saes = pytest.importorskip("sae_lens.saes")
    torch.manual_seed(0)
    training = saes.JumpReLUTrainingSAE(saes.JumpReLUTrainingSAEConfig(d_in=16, d_sae=64, dtype=dtype))
    with torch.no_grad():
        training.threshold.uniform_(-0.3, 0.6)
        training.b_enc.normal_()
    getattr(training, how)(tmp_path / "theirs")
    ours = StackedSAE.from_sae_lens(tmp_path / "theirs")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "theirs"))
    x = torch.randn(300, 16).to(ours.dtype)
    with torch.no_grad():
        assert torch.equal(ours.encode(x), theirs.encode(x))
        assert torch.equal(ours(x)[1], theirs(x))


@pytest.mark.parametrize(
    ("hook_name", "layer"),
    [("blocks.11.attn.hook_z", 11), ("blocks.3.hook_resid_post", 3), ("hook_embed", None), (None, None)],
)
def test_the_layer_stands_in_the_hooks_name(tmp_path, hook_name, layer):
    saes = pytest.importorskip("sae_lens.saes")
    metadata = saes.sae.SAEMetadata(hook_name=hook_name)
    saes.StandardSAE(saes.StandardSAEConfig(d_in=4, d_sae=8, metadata=metadata)).save_model(tmp_path / "theirs")
    source = StackedSAE.from_sae_lens(tmp_path / "theirs").info.sources[0]
    assert (source.hook_name, source.layer) == (hook_name, layer)


def test_a_folder_from_before_sae_lens_6(tmp_path):
    sae = stack().select([0])
    folder = sae.to_sae_lens(tmp_path / "out")[0]
    old = {
        "d_in": 32,
        "d_sae": 256,
        "dtype": "torch.float32",
        "activation_fn_str": "relu",
        "hook_point": "blocks.2.hook_resid_pre",
        "hook_point_layer": 2,
        "hook_point_head_index": None,
        "model_name": "gpt2-small",
        "context_size": 128,
        "prepend_bos": True,
    }
    (folder / "cfg.json").write_text(json.dumps(old))
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(weights | {"scaling_factor": torch.ones(256)}, folder / "sae_weights.safetensors")
    again = StackedSAE.from_sae_lens(folder)
    source = again.info.sources[0]
    assert (source.hook_name, source.layer, source.head) == ("blocks.2.hook_resid_pre", 2, None)
    assert again.info.model_name == "gpt2-small"
    assert torch.equal(again.W_enc, sae.W_enc)
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    (folder / "cfg.json").write_text(json.dumps(old))
    assert StackedSAE.from_sae_lens(folder).config.k == 5


def _change(key, value):
    def apply(folder):
        path = folder / "cfg.json"
        content = json.loads(path.read_text())
        content[key] = value
        path.write_text(json.dumps(content))

    return apply


def _weights(change):
    def apply(folder):
        path = folder / "sae_weights.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "cfg.json").write_text("{"), "sae_001/cfg.json: cannot be read"),
        (lambda f: (f / "cfg.json").write_text("3"), "sae_001/cfg.json: holds int"),
        (lambda f: (f / "sae_weights.safetensors").unlink(), "sae_001/sae_weights.safetensors: cannot be read"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes(b"\x80\x02abc"), "weights.safetensors: cannot be read"),
        (_change("architecture", "temporal"), "architecture: got 'temporal'; expected one of"),
        (_change("architecture", ["standard"]), r"architecture: got \['standard'\]"),
        (_change("activation_fn", "tanh-relu"), "activation_fn: got 'tanh-relu'"),
        (_change("normalize_activations", "covariance_whitening"), "normalize_activations: got .covariance_w"),
        (_change("d_sae", 255), r"tensor W_dec has shape \(256, 32\); expected \(255, 32\)"),
        (_change("d_in", None), "cfg.json: d_in: got 'None'"),
        (_change("d_in", -3), "cfg.json: d_in"),
        (_change("metadata", {"hook_head_index": -1}), "cfg.json: metadata head"),
        (_change("metadata", {"context_size": "many"}), "cfg.json: metadata context_size"),
        (_weights(lambda t: t.pop("b_dec")), "holds tensors"),
        (_weights(lambda t: t.update(threshold=torch.zeros(256))), "holds tensors"),
        (_weights(lambda t: t.update(W_dec=t["W_dec"].T.contiguous())), "tensor W_dec has shape"),
        (_weights(lambda t: t["W_dec"].fill_(torch.inf)), "001/sae_weights.safetensors: tensor W_dec has 8192 nan"),
        (_weights(lambda t: t.update(b_dec=t["b_dec"].long())), "tensor b_dec is torch.int64"),
        (_weights(lambda t: t.update(scaling_factor=torch.full((256,), 2.0))), "scaling_factor is not all 1"),
        (_change("apply_b_dec_to_input", False), "sae_001: is .*; expected the like of"),
        (_change("metadata", {"model_sha256": "cd"}), "sae_001: belongs to"),
    ],
)  # fmt: skip
def test_damaged_folders_are_named(tmp_path, damage, message):
    folder = stack().to_sae_lens(tmp_path / "out")[1]
    damage(folder)
    with pytest.raises(ValueError, match=message):
        StackedSAE.from_sae_lens(tmp_path / "out")


def test_an_empty_or_missing_directory_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="holds no cfg.json"):
            StackedSAE.from_sae_lens(path)
    with pytest.raises(ValueError, match="exists"):
        stack().to_sae_lens(tmp_path)
    with pytest.raises(ValueError, match="nan or inf"):
        StackedSAE(SAEConfig(n_saes=1, d_in=4, d_sae=9)).to_sae_lens(tmp_path / "x")
