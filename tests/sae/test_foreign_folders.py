"""Folders that SAELens itself writes, of every inference architecture and with every key of cfg.json that changes a
number on and off: what we encode and decode is what SAELens does."""

from __future__ import annotations

import json

import pytest
import torch
from foreign_saes_for_tests import HELD, NORM_SCALE, build, save
from safetensors.torch import load_file, save_file

from sae import StackedSAE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
sae_lens = pytest.importorskip("sae_lens")

NORMS = ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale")
DTYPES = ("float32", "bfloat16", "float16", "float64")
CASES = [
    (architecture, rescale, norm, apply_b_dec, reshape, dtype)
    for architecture in HELD
    for rescale in ((False, True) if architecture == "topk" else (False,))
    for norm in NORMS
    for apply_b_dec in (True, False)
    for reshape in ("none", "hook_z")
    for dtype in DTYPES
]


@pytest.mark.parametrize(("architecture", "rescale", "norm", "apply_b_dec", "reshape", "dtype"), CASES)
def test_every_architecture_and_key(tmp_path, architecture, rescale, norm, apply_b_dec, reshape, dtype):
    """Bits, but where decoder norms are folded in: there a product is rounded in another order."""
    keys = {"rescale_acts_by_decoder_norm": rescale} if architecture == "topk" else {}
    keys |= {"normalize_activations": norm, "apply_b_dec_to_input": apply_b_dec, "reshape_activations": reshape}
    folder = save(build(architecture, hook="blocks.3.attn.hook_z", dtype=dtype, **keys), tmp_path / "theirs")
    theirs = sae_lens.SAE.load_from_disk(str(folder))
    if norm == "expected_average_only_in":
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": NORM_SCALE}))
        theirs.fold_activation_norm_scaling_factor(NORM_SCALE)  # as their from_pretrained does; load_from_disk does not
    ours = StackedSAE.from_sae_lens(folder)
    x = 3 * torch.randn(60, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1
    x = x.to(ours.dtype)
    with torch.no_grad():
        acts, recon = ours(x.flatten(1))
        their_acts = theirs.encode(x if reshape == "hook_z" else x.flatten(1))
        their_recon = theirs.decode(their_acts).reshape(60, 12)
    assert str(ours.dtype) == f"torch.{dtype}"
    assert (acts > 0).any()
    if not rescale:
        assert torch.equal(acts, their_acts)
        assert torch.equal(recon, their_recon)
        return
    # a rounding of each factor, relative to the largest term; in 16 bits near-equal features may swap places
    unit = 8 * torch.finfo(ours.dtype).eps
    same = (acts > 0) == (their_acts > 0)
    alike = same.all(dim=1)
    assert alike.double().mean() > (0.85 if dtype in ("bfloat16", "float16") else 0.999)
    for own, other in ((acts, their_acts), (recon, their_recon)):
        assert float((own - other)[alike].abs().max() / other.abs().max()) < unit


@pytest.mark.parametrize("k", [1, 5, 40])
def test_k(tmp_path, k):
    theirs = build("topk", k=k)
    theirs.cfg.k = k
    folder = save(theirs, tmp_path / "theirs", k=k)
    theirs, ours, x = sae_lens.SAE.load_from_disk(str(folder)), StackedSAE.from_sae_lens(folder), torch.randn(30, 12)
    assert torch.equal(ours.encode(x), theirs.encode(x))
    assert int((ours.encode(x) > 0).sum(dim=1).max()) <= k


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("named", ["float32", "torch.float32", "bfloat16", "float16"])
def test_tensors_are_cast_to_the_dtype_that_cfg_names(tmp_path, stored, named):
    folder = save(build("jumprelu", dtype=stored), tmp_path / "theirs", dtype=named)
    theirs, ours = sae_lens.SAE.load_from_disk(str(folder)), StackedSAE.from_sae_lens(folder)
    x = torch.randn(50, 12)
    assert ours.dtype == theirs.W_enc.dtype
    with torch.no_grad():
        assert torch.equal(ours(x)[1], theirs(x))


@pytest.mark.parametrize(
    "architecture", ["abstopk", "matching_pursuit", "temporal", "crosscoder", "batchtopk", "matryoshka_batchtopk"]
)
def test_kinds_that_cannot_be_held_are_named(tmp_path, architecture):
    folder = save(build("standard"), tmp_path / "theirs", architecture=architecture)
    with pytest.raises(ValueError, match=rf"architecture: got '{architecture}'; expected one of \['gated', 'jumprelu'"):
        StackedSAE.from_sae_lens(folder)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_what_their_training_saves_for_inference_is_read(tmp_path, architecture):
    from sae_lens.registry import get_sae_training_class

    kind, config = get_sae_training_class(architecture)
    extra = {"matryoshka_widths": [8, 40]} if architecture.startswith("matryoshka") else {}
    training = kind(config(d_in=12, d_sae=40, k=5, **extra))
    with torch.no_grad():
        training.b_enc.normal_()
        training.topk_threshold.fill_(0.3)
    training.save_inference_model(tmp_path / "theirs")
    theirs, x = sae_lens.SAE.load_from_disk(str(tmp_path / "theirs")), torch.randn(50, 12)
    ours = StackedSAE.from_sae_lens(tmp_path / "theirs")
    with torch.no_grad():
        assert torch.equal(ours.encode(x), theirs.encode(x))
        assert torch.equal(ours(x)[1], theirs(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d_out", [12, 7])
@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"])
def test_transcoders(tmp_path, kind, d_out, dtype):
    folder = save(build(kind, d_out=d_out, apply_b_dec_to_input=False, dtype=dtype), tmp_path / "theirs")
    theirs, ours = sae_lens.SAE.load_from_disk(str(folder)), StackedSAE.from_sae_lens(folder)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(2)).to(ours.dtype)
    with torch.no_grad():
        assert torch.equal(ours.encode(x), theirs.encode(x))
        if "skip" in kind:  # some widths' products with W_skipᵀ are summed in another order
            torch.testing.assert_close(ours(x)[1], theirs(x))
        else:
            assert torch.equal(ours(x)[1], theirs(x))
    with pytest.raises(ValueError, match=f"normalize_activations: got 'layer_norm' with {kind}; expected 'none'"):
        StackedSAE.from_sae_lens(save(theirs, folder, normalize_activations="layer_norm"))


# --- factors


def test_the_factor_of_the_average_is_found_or_asked_for(tmp_path):
    folder = save(build("standard"), tmp_path / "theirs", normalize_activations="expected_average_only_in")
    with pytest.raises(ValueError, match="'expected_average_only_in' without its factor.*expected norm_scale"):
        StackedSAE.from_sae_lens(folder)
    expected = StackedSAE.from_sae_lens(folder, norm_scale=NORM_SCALE).W_enc
    for where, content in (("cfg.json", "norm_scaling_factor"), ("activation_scaler.json", "scaling_factor")):
        own = save(build("standard"), tmp_path / where, normalize_activations="expected_average_only_in")
        file = own / where
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(before | {content: NORM_SCALE}))
        assert torch.equal(StackedSAE.from_sae_lens(own).W_enc, expected)
        for bad in (0, -1.0, float("nan"), float("inf"), "2", True):
            file.write_text(json.dumps(before | {content: bad}))
            with pytest.raises(ValueError, match=f"{content}: got .*; expected a finite number above 0"):
                StackedSAE.from_sae_lens(own)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(ValueError, match="without its factor"):
        StackedSAE.from_sae_lens(folder)
    with pytest.raises(ValueError, match="got norm_scale 2.0 with normalize_activations 'none'; expected None"):
        StackedSAE.from_sae_lens(save(build("standard"), tmp_path / "plain"), norm_scale=2.0)


@pytest.mark.parametrize("given", [True, False, None])
def test_normalize_activations_was_a_truth_value(tmp_path, given):
    folder = save(build("standard"), tmp_path / "theirs", normalize_activations=given)
    ours = StackedSAE.from_sae_lens(folder, norm_scale=NORM_SCALE if given else None)
    plain = StackedSAE.from_sae_lens(save(build("standard"), tmp_path / "plain"))
    assert torch.equal(ours.W_enc, plain.W_enc * NORM_SCALE if given else plain.W_enc)


def test_a_finetuning_factor_multiplies_what_is_decoded_alone(tmp_path):
    """recon = (acts · factor) W_dec + b_dec, as SAELens before 6 had it; SAELens 6 refuses such folders."""
    folder = save(build("standard"), tmp_path / "theirs", finetuning_scaling_factor=True)
    plain, file = StackedSAE.from_sae_lens(folder), folder / "sae_weights.safetensors"
    factor, x = torch.rand(40) + 0.5, torch.randn(50, 12)
    save_file(load_file(file) | {"scaling_factor": factor}, file)
    ours = StackedSAE.from_sae_lens(folder)
    acts = plain.encode(x)
    assert torch.equal(ours.encode(x), acts)
    torch.testing.assert_close(ours.decode(acts), (acts * factor) @ plain.W_dec[0] + plain.b_dec[0])
    save_file(load_file(file) | {"scaling_factor": factor[:3].clone()}, file)
    with pytest.raises(ValueError, match=r"scaling_factor has shape \(3,\); expected \(40,\)"):
        StackedSAE.from_sae_lens(folder)


# --- what stands beside


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"exclude_special_tokens": False}, True),
        ({"exclude_special_tokens": True}, False),
        ({"exclude_special_tokens": [0, 2]}, False),
        ({"seqpos_slice": [5, None]}, False),
        ({"seqpos_slice": [None]}, None),
        ({"seqpos_slice": [1, None], "exclude_special_tokens": False}, False),
        ({"include_special": True, "exclude_special_tokens": True}, True),
    ],
)
def test_positions(tmp_path, fields, expected):
    folder = save(build("standard"), tmp_path / "theirs", metadata={"context_size": 64, "prepend_bos": False, **fields})
    info = StackedSAE.from_sae_lens(folder).info
    assert (info.include_special, info.context_size, info.prepend_bos) == (expected, 64, False)


@pytest.mark.parametrize(
    ("old", "architecture", "norm"),
    [
        ({"activation_fn_str": "relu"}, "relu", None),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}, "topk", None),
        ({"activation_fn": "relu", "normalize_activations": "layer_norm"}, "relu", "layer_norm"),
        ({"architecture": "standard", "normalize_activations": None}, "relu", None),
    ],
)
def test_folders_from_before_sae_lens_6_beside_their_own_reading(tmp_path, old, architecture, norm):
    folder = save(build("standard"), tmp_path / "theirs")
    common = {"d_in": 12, "d_sae": 40, "dtype": "torch.float32", "hook_point": "blocks.2.hook_resid_pre"}
    (folder / "cfg.json").write_text(json.dumps(common | {"hook_point_layer": 2, "model_name": "gpt2-small", **old}))
    theirs, ours, x = sae_lens.SAE.load_from_disk(str(folder)), StackedSAE.from_sae_lens(folder), torch.randn(50, 12)
    assert (ours.config.architecture, ours.config.normalize_inputs, ours.info.prepend_bos) == (architecture, norm, True)
    assert (ours.info.sources[0].hook_name, ours.info.sources[0].layer) == ("blocks.2.hook_resid_pre", 2)
    with torch.no_grad():
        assert torch.equal(ours.encode(x), theirs.encode(x))
        assert torch.equal(ours(x)[1], theirs(x))


def test_how_their_model_was_loaded_is_said(tmp_path):
    metadata = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    folder = save(build("standard"), tmp_path / "theirs", metadata=metadata)
    with pytest.warns(UserWarning, match="center_writing_weights"):
        StackedSAE.from_sae_lens(folder)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_token_norms_go_back_to_sae_lens(tmp_path, norm):
    ours = StackedSAE.from_sae_lens(save(build("jumprelu", normalize_activations=norm), tmp_path / "theirs"))
    (folder,) = ours.to_sae_lens(tmp_path / "out")
    theirs, x = sae_lens.SAE.load_from_disk(str(folder)), torch.randn(50, 12)
    with torch.no_grad():
        assert torch.equal(theirs(x), ours(x)[1])
    again = StackedSAE.load(ours.save(tmp_path / "ours"))
    assert again.config == ours.config
    assert torch.equal(again(x)[1], ours(x)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": "12"}, "d_in: got '12'; expected a whole number"),
        ({"d_sae": True}, "d_sae: got True; expected a whole number"),
        ({"d_in": float("nan")}, "d_in"),
        ({"d_sae": 10**12}, r"tensor W_dec has shape \(40, 12\); expected \(1000000000000, 12\)"),
        ({"dtype": "int8"}, "dtype: got 'int8'; expected one of bfloat16, float16, float32, float64"),
        ({"dtype": ["float32"]}, r"dtype: got \['float32'\]"),
        ({"normalize_activations": ["none"]}, r"normalize_activations: got \['none'\]"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations: got 'covariance_whitening'"),
        ({"reshape_activations": "hook_q"}, "reshape_activations: got 'hook_q'; expected 'none' or 'hook_z'"),
        ({"apply_b_dec_to_input": "maybe"}, "apply_b_dec_to_input"),
        ({"metadata": {"hook_name": 3}}, "metadata .*hook_name|hook_name"),
        ({"metadata": {"hook_name": f"blocks.{'9' * 5000}.x", "layer": float("nan")}}, "layer"),
    ],
)
def test_hostile_fields_are_named(tmp_path, changes, message):
    folder = save(build("standard"), tmp_path / "theirs", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        StackedSAE.from_sae_lens(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
