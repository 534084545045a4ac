"""Gemma Scope's files beside SAELens's own conversion of them."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_saes_for_tests import gemma_arrays, write_gemma
from safetensors.torch import save_file

from sae import StackedSAE

PATHS = [
    # path below the repository's name, hook, layer, model
    ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "blocks.20.hook_resid_post", "gemma-2-2b"),
    ("gemma-scope-2b-pt-mlp/layer_0/width_65k/average_l0_9", "blocks.0.hook_mlp_out", "gemma-2-2b"),
    ("gemma-scope-9b-pt-att/layer_31/width_16k/average_l0_64", "blocks.31.attn.hook_z", "gemma-2-9b"),
    ("gemma-scope-9b-it-res/layer_9/width_131k/average_l0_13", "blocks.9.hook_resid_post", "gemma-2-9b-it"),
]


def theirs_of(path: str, d_in: int, d_sae: int, monkeypatch, file: Path):
    """SAELens's SAE of a file, which stands in for what the hub would give it."""
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens import SAE

    monkeypatch.setattr(loaders, "hf_hub_download", lambda *args, **kwargs: str(file))
    repository, _, folder = path.partition("/")
    overrides = {"d_in": d_in, "d_sae": d_sae}
    cfg, state, _ = loaders.gemma_2_sae_huggingface_loader(f"google/{repository}", folder, "cpu", False, overrides)
    sae = SAE.from_dict(loaders.handle_config_defaulting(cfg))
    sae.load_state_dict(state)
    sae.turn_off_forward_pass_hook_z_reshaping()  # x has the heads side by side
    return sae


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(("path", "hook", "model"), PATHS)
def test_the_bits_and_the_place_are_sae_lens_own(tmp_path, monkeypatch, path, hook, model, lower, seed):
    file = write_gemma(tmp_path / path, gemma_arrays(12, 40, lower=lower, seed=seed))
    theirs = theirs_of(path, 12, 40, monkeypatch, file)
    x = torch.randn(60, 12, generator=torch.Generator().manual_seed(seed))
    for given in (file, file.parent):
        ours = StackedSAE.from_gemma_scope(given)
        with torch.no_grad():
            acts, recon = ours(x)
            assert (acts > 0).any()
            assert torch.equal(acts, theirs.encode(x))
            assert torch.equal(recon, theirs(x))
        source, metadata = ours.info.sources[0], theirs.cfg.metadata
        assert (source.hook_name, metadata.hook_name, ours.info.model_name, metadata.model_name) == (
            hook, hook, model, model,
        )  # fmt: skip
        assert (source.layer, source.head) == (int(hook.split(".")[1]), None)
        assert (ours.info.prepend_bos, ours.info.context_size) == (metadata.prepend_bos, metadata.context_size)
        assert ours.info.include_special is False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_saes_of_the_embedding_reconstruct_it_with_its_factor(tmp_path, monkeypatch):
    """On √d x as on x, times √d. SAELens leaves b_dec without the factor: with a b_dec of 0 the two agree."""
    path = "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
    arrays = gemma_arrays(16, 40)
    plain = StackedSAE.from_gemma_scope(write_gemma(tmp_path / "layer_0", arrays), hook_name="hook_resid_pre")
    ours = StackedSAE.from_gemma_scope(write_gemma(tmp_path / path, arrays))
    x = torch.randn(60, 16)
    assert (ours.info.sources[0].hook_name, ours.info.sources[0].layer) == ("hook_embed", 0)
    torch.testing.assert_close(ours.encode(4 * x), plain.encode(x))
    torch.testing.assert_close(ours(4 * x)[1], 4 * plain(x)[1])
    file = write_gemma(tmp_path / path, arrays | {"b_dec": np.zeros(16, np.float32)})
    torch.testing.assert_close(
        StackedSAE.from_gemma_scope(file)(x)[1], theirs_of(path, 16, 40, monkeypatch, file)(x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("folder", "hook"),
    [
        ("resid_post/layer_9_width_16k_l0_small", "blocks.9.hook_resid_post"),
        ("resid_post_all/layer_17_width_16k_l0_big", "blocks.17.hook_resid_post"),
        ("mlp_out/layer_9_width_262k_l0_medium", "blocks.9.hook_mlp_out"),
        ("attn_out_all/layer_22_width_16k_l0_big", "blocks.22.attn.hook_z"),
    ],
)
def test_gemma_3s_safetensors(tmp_path, folder, hook):
    place = tmp_path / "gemma-scope-2-4b-it" / folder
    place.mkdir(parents=True)
    arrays = gemma_arrays(lower=True)
    save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, place / "params.safetensors")
    ours = StackedSAE.from_gemma_scope(place)
    as_npz = StackedSAE.from_gemma_scope(write_gemma(tmp_path / "x" / "layer_0", arrays), hook_name="hook_resid_post")
    assert (ours.info.sources[0].hook_name, ours.info.model_name) == (hook, "gemma-3-4b-it")
    x = torch.randn(20, 6)
    assert torch.equal(ours(x)[1], as_npz(x)[1])


def test_hook_and_layer_are_given_where_the_path_does_not_say(tmp_path):
    file = write_gemma(tmp_path / "mine")
    with pytest.raises(ValueError, match="does not say which hook it reads"):
        StackedSAE.from_gemma_scope(file)
    with pytest.raises(ValueError, match="does not say which layer it reads"):
        StackedSAE.from_gemma_scope(file, hook_name="hook_mlp_out")
    for hook, layer in (("hook_mlp_out", 3), ("blocks.3.hook_mlp_out", None), ("blocks.3.hook_mlp_out", 3)):
        (source,) = StackedSAE.from_gemma_scope(file, hook_name=hook, layer=layer).info.sources
        assert (source.hook_name, source.layer) == ("blocks.3.hook_mlp_out", 3)
    with pytest.raises(ValueError, match="got layer 4; expected 3"):
        StackedSAE.from_gemma_scope(file, hook_name="blocks.4.hook_mlp_out", layer=3)
    said = write_gemma(tmp_path / "gemma-scope-2b-pt-res" / "layer_20")
    for wrong in ({"layer": 3}, {"hook_name": "hook_mlp_out"}):
        with pytest.raises(ValueError, match="as the path says"):
            StackedSAE.from_gemma_scope(said, **wrong)


def _arrays(**changes):
    return gemma_arrays() | changes


def _forged(file: Path) -> None:
    """An array that says it is larger than its entry."""
    write_gemma(file.parent)
    with zipfile.ZipFile(file) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    parts["W_enc.npy"] = re.sub(rb"\(6, 10\), }", b"(6000000, 10000000), }", parts["W_enc.npy"])[
        : len(parts["W_enc.npy"])
    ]
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def _bomb(file: Path) -> None:
    np.savez_compressed(file, **_arrays(W_enc=np.zeros((3000, 10000), np.float32)))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: f.write_bytes(b"PK\x03\x04abc"), "cannot be read"),
        (lambda f: f.write_bytes(b""), "cannot be read"),
        (lambda f: f.write_bytes(b"\x80\x04N."), "cannot be read"),
        (lambda f: np.savez(f, **_arrays(W_enc=np.array([{}], dtype=object))), "W_enc.npy holds object; expected"),
        (lambda f: np.savez(f, **_arrays(W_enc=np.ones((6, 10), dtype=int))), "W_enc.npy holds int64; expected"),
        (lambda f: np.savez(f, **_arrays(b_enc=np.full(10, "a"))), "b_enc.npy holds <U1; expected"),
        (lambda f: np.savez(f, **_arrays(W_enc=np.ones(60, np.float32))), r"W_enc has shape \(60,\); expected"),
        (lambda f: np.savez(f, **_arrays(W_dec=np.ones((6, 10), np.float32))), r"W_dec has shape \(1, 6, 10\)"),
        (lambda f: np.savez(f, **_arrays(b_dec=np.full(6, np.nan, np.float32))), "b_dec has 6 nan or inf"),
        (lambda f: np.savez(f, **_arrays(threshold=np.full(10, -1, np.float32))), "threshold has a minimum of -1.0"),
        (lambda f: np.savez(f, **_arrays(W_skip=np.ones(3, np.float32))), "holds tensors .*'W_skip'.*; expected"),
        (lambda f: np.savez(f, **_arrays(w_enc=np.ones((6, 10), np.float32))), "holds tensors .*'w_enc'.*; expected"),
        (lambda f: np.savez(f, W_enc=np.ones((6, 10), np.float32)), "tensor W_dec is missing; expected"),
        (lambda f: np.savez(f, **_arrays(W_enc=np.ones((0, 10), np.float32))), "d_in: got '0'"),
        (_forged, "is no array|W_enc.npy has shape .* bytes, and holds"),
        (_bomb, r"W_enc.npy has shape \(3000, 10000\) of float32, 120000000 bytes.*at most"),
    ],
)
def test_bad_files_are_named(tmp_path, write, message):
    file = tmp_path / "gemma-scope-2b-pt-res" / "layer_3" / "params.npz"
    file.parent.mkdir(parents=True)
    write(file)
    with pytest.raises(ValueError, match=message) as caught:
        StackedSAE.from_gemma_scope(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_every_cut_of_a_file_is_refused_or_the_same(tmp_path):
    file = write_gemma(tmp_path / "gemma-scope-2b-pt-res" / "layer_3")
    data, whole = file.read_bytes(), StackedSAE.from_gemma_scope(file).W_enc
    rng, said = np.random.default_rng(0), list[str]()
    for at in rng.integers(0, len(data), 200).tolist():
        for altered in (data[:at], data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]):
            file.write_bytes(altered)
            try:
                assert torch.equal(StackedSAE.from_gemma_scope(file).W_enc, whole)
            except ValueError as error:
                said.append(str(error))
    assert not [line for line in said if "\n" in line]
    assert len(said) > 300  # of 400: the rest stand in what a zip file says twice


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("d_out", [12, 7])
def test_transcoders_are_sae_lens_own(tmp_path, monkeypatch, d_out, seed):
    loaders = pytest.importorskip("sae_lens.loading.pretrained_sae_loaders")
    from sae_lens import SAE

    path = "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_54"
    arrays, rng = gemma_arrays(12, 40, seed=seed), np.random.default_rng(seed)
    arrays["W_dec"], arrays["b_dec"] = (rng.standard_normal(s).astype(np.float32) for s in ((40, d_out), (d_out,)))
    file = write_gemma(tmp_path / path, arrays)
    monkeypatch.setattr(loaders, "hf_hub_download", lambda *args, **kwargs: str(file))
    own, _, folder = path.partition("/")
    given = ("cpu", False, {"d_in": 12, "d_sae": 40, "d_out": d_out})
    cfg, state, _ = loaders.gemma_2_transcoder_huggingface_loader(f"google/{own}", folder, *given)
    theirs = SAE.from_dict(loaders.handle_config_defaulting(cfg))
    theirs.load_state_dict(state)
    ours, x = StackedSAE.from_gemma_scope(file), torch.randn(60, 12, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        acts, recon = ours(x)
        assert (acts > 0).any()
        assert torch.equal(acts, theirs.encode(x))
        assert torch.equal(recon, theirs(x))
    (source,) = ours.info.sources
    assert (source.hook_name, source.layer) == (theirs.cfg.metadata.hook_name, 3)
    assert source.hook_name_out == theirs.cfg.metadata.hook_name_out == "blocks.3.hook_mlp_out"


def test_what_cannot_be_read_is_named(tmp_path):
    place = tmp_path / "gemma-scope-2-4b-pt" / "transcoder_all" / "layer_0_width_16k_l0_big"
    with pytest.raises(ValueError, match="is a transcoder of Gemma 3, by its path"):
        StackedSAE.from_gemma_scope(write_gemma(place))
    with pytest.raises(ValueError, match="holds neither params.npz nor params.safetensors"):
        StackedSAE.from_gemma_scope(tmp_path)
