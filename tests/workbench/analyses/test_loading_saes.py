"""What names SAEs, and the trial on a model that decides whether they are of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_saes_for_tests import HELD, build, gemma_arrays, save, write_gemma
from models_for_tests import small_model, tokens_for, worded_model
from saes_for_tests import stack_for
from typer.testing import CliRunner

import workbench
from sae import StackedSAE
from workbench.analyses.sae_train.loading import check_saes, load_sae, measure_fvu
from workbench.cli.app import app
from workbench.models.activations import choose_slots, special_ids
from workbench.models.checkpoint import save as save_checkpoint
from workbench.models.sae_sources import find_sae, names_saes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def model() -> Any:
    return worded_model("janus-v3")


def perfect(folder: Path, d_in: int, kind: str = "standard", *, hook: str | None = HOOK, **metadata: Any) -> Path:
    """A folder of SAELens's whose dictionary is ±every coordinate: it reconstructs whatever it reads."""
    pytest.importorskip("sae_lens")
    theirs = build(kind, d_in, 2 * d_in, **({"k": d_in} if kind == "topk" else {}))
    eye = torch.eye(d_in)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.zero_()
            if name in ("W_enc", "W_dec"):
                parameter.copy_(torch.cat([eye, -eye], dim=1) if name == "W_enc" else torch.cat([eye, -eye]))
    changes = {"k": d_in} if kind == "topk" else {}
    return save(theirs, folder, metadata={"hook_name": hook, "sae_lens_version": "6.54.12", **metadata}, **changes)


# --- the trial


@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("kind", HELD)
def test_saes_that_reconstruct_pass(model, tmp_path, kind, prepend_bos):
    folder = perfect(tmp_path / "s", model.cfg.d_model, kind, prepend_bos=prepend_bos, context_size=16)
    sae = load_sae(folder, model)
    assert float(measure_fvu(model, sae, tokens_for(model))) < 1e-9
    assert sae.info.sources[0].hook_name == HOOK


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fvu_is_the_naive_ones(model, tmp_path, seed):
    """Of two SAEs in one place and one in another, at the positions that count."""
    folders = [(HOOK, 0.1), (HOOK, 0.3), ("blocks.0.hook_mlp_out", 0.2)]
    for i, (hook, damage) in enumerate(folders):
        place = perfect(tmp_path / "s" / str(i), model.cfg.d_model, hook=hook)
        from safetensors.torch import load_file, save_file

        tensors = load_file(place / "sae_weights.safetensors")
        tensors["W_dec"] += damage * torch.randn(tensors["W_dec"].shape, generator=torch.Generator().manual_seed(seed))
        save_file(tensors, place / "sae_weights.safetensors")
    sae, tokens = load_sae(tmp_path / "s"), tokens_for(model, seed=seed)
    fvu = measure_fvu(model, sae, tokens)
    _, cache = model.run_with_cache(tokens)
    special = torch.tensor(sorted(special_ids(model)))
    counts = ~torch.isin(tokens, special)
    counts[:, 0] = False
    for i, (hook, _) in enumerate(folders):
        x = cache[hook][counts]
        with torch.no_grad():
            recon = sae.select(i)(x)[1]
        naive = (x - recon).double().square().sum() / (x - x.mean(0)).double().square().sum()
        assert float(fvu[i]) == pytest.approx(float(naive), rel=1e-5)


def test_saes_of_something_else_are_refused(model, tmp_path):
    width = model.cfg.d_model
    folder = perfect(tmp_path / "s", width)
    sae = StackedSAE.from_sae_lens(folder)
    with torch.no_grad():
        sae.W_dec.mul_(-1)
    wrong = sae.save(tmp_path / "wrong")
    with pytest.raises(
        ValueError, match=rf"the one of {HOOK} reconstructs worse than the mean: fvu 4.*; expected an SA"
    ):
        load_sae(wrong, model)
    assert torch.equal(load_sae(wrong, model, check=False).W_dec, sae.W_dec)
    with pytest.raises(ValueError, match="reads 8 numbers of"):
        load_sae(perfect(tmp_path / "narrow", 8), model)
    with pytest.raises(ValueError, match=r"nope"):
        load_sae(perfect(tmp_path / "hook", width, hook="blocks.1.hook_nope"), model)
    with pytest.raises(ValueError, match="blocks.9"):
        load_sae(perfect(tmp_path / "layer", width, hook="blocks.9.hook_resid_post"), model)
    with pytest.raises(ValueError, match="does not say which hooks it reads"):
        load_sae(perfect(tmp_path / "mute", width, hook=None), model)
    with pytest.raises(ValueError, match="got no token but special ones"):
        load_sae(folder, model, tokens=tokens_for(model)[:, :1])


def test_a_model_without_tokenizer_needs_tokens(tmp_path):
    model = small_model("janus-v3")
    folder = perfect(tmp_path / "s", model.cfg.d_model)
    with pytest.raises(ValueError, match="no tokenizer"):
        load_sae(folder, model)
    assert load_sae(folder, model, tokens=tokens_for(model)).config.n_saes == 1


def test_another_models_name_is_a_warning_or_part_of_the_refusal(model, tmp_path):
    folder = perfect(tmp_path / "s", model.cfg.d_model, model_name="gpt2-small")
    model.cfg = model.cfg.model_copy(update={"model_name": "openai-community/gpt2"})
    load_sae(folder, model)
    model.cfg = model.cfg.model_copy(update={"model_name": "mine"})
    with pytest.warns(UserWarning, match="made for gpt2-small, and the model is mine"):
        load_sae(folder, model)
    sae = StackedSAE.from_sae_lens(folder)
    with torch.no_grad():
        sae.W_dec.mul_(-1)
    with pytest.raises(ValueError, match=r"made for gpt2-small, reconstructs worse than the mean"):
        check_saes(model, sae)


def test_a_hash_decides_alone(model, tmp_path):
    """A random stack that says it is the model's is not tried; another's is refused however well it reconstructs."""
    own = stack_for(model, choose_slots(model.cfg, [1], hook="hook_resid_post"), dtype=torch.float32)
    load_sae(own.save(tmp_path / "own"), model)
    folder = perfect(tmp_path / "s", model.cfg.d_model, model_sha256="ab" * 32)
    with pytest.raises(ValueError, match="check_model: the SAEs belong to"):
        load_sae(folder, model)


@pytest.mark.parametrize("skip", [False, True])
def test_transcoders_are_tried_on_what_they_reconstruct(model, tmp_path, skip):
    """One that gives the MLP's output exactly, by a linear MLP, and the same with its sign turned."""
    width, hooks = model.cfg.d_model, ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    tokens = tokens_for(model, batch=20)
    _, cache = model.run_with_cache(tokens)
    x, y = (cache[hook].flatten(0, 1).double() for hook in hooks)
    linear = torch.linalg.lstsq(x, y).solution.float()
    kind = "skip_transcoder" if skip else "transcoder"
    theirs = build(kind, width, 2 * width, d_out=width, apply_b_dec_to_input=False)
    eye = torch.eye(width)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
        if skip:
            theirs.W_skip.copy_(linear.T)
        else:
            theirs.W_enc.copy_(torch.cat([eye, -eye], dim=1))
            theirs.W_dec.copy_(torch.cat([linear, -linear]))
    metadata = {"hook_name": hooks[0], "hook_name_out": hooks[1], "sae_lens_version": "6.54.12"}
    sae = load_sae(save(theirs, tmp_path / "s", metadata=metadata))
    counts = ~torch.isin(tokens, torch.tensor(sorted(special_ids(model))))
    counts[:, 0] = False
    rest, kept = (y - x @ linear.double())[counts.flatten()], y[counts.flatten()]
    expected = float(rest.square().sum() / (kept - kept.mean(0)).square().sum())
    assert 1e-3 < expected < 1
    assert float(measure_fvu(model, sae, tokens)) == pytest.approx(expected, rel=1e-4)
    check_saes(model, sae, tokens)
    sae.info = sae.info.model_copy(
        update={"sources": (sae.info.sources[0].model_copy(update={"hook_name_out": None}),)}
    )
    with pytest.raises(ValueError, match="got no hook_name_out for a .*transcoder"):
        check_saes(model, sae, tokens)


# --- sources


def test_hook_and_layer_are_given_where_nothing_says_them(tmp_path):
    folder = perfect(tmp_path / "s", 6, hook=None)
    for given in ({"hook": "hook_mlp_out", "layer": 3}, {"hook": "blocks.3.hook_mlp_out"}):
        (source,) = load_sae(folder, **given).info.sources
        assert (source.hook_name, source.layer) == ("blocks.3.hook_mlp_out", 3)
    said = perfect(tmp_path / "said", 6)
    assert load_sae(said, hook="hook_resid_post", layer=1).info.sources[0].hook_name == HOOK
    for given in ({"hook": "hook_mlp_out"}, {"layer": 0}, {"hook": "blocks.2.hook_resid_post"}):
        with pytest.raises(ValueError, match=rf"got hook .* where it says {HOOK}, layer 1; expected what is missing"):
            load_sae(said, **given)
    first = perfect(tmp_path / "first", 6, hook="blocks.0.hook_resid_post")
    for place, given in ((folder, {"hook": "hook_mlp_out"}), (first, {"layer": 1}), (first, {"layer": 1, "hook": "x"})):
        with pytest.raises(ValueError, match="expected what is missing"):
            load_sae(place, **given)


def test_every_form_is_found(tmp_path):
    folder = perfect(tmp_path / "s", 6)
    assert load_sae(folder).config.n_saes == 1
    assert load_sae(perfect(tmp_path / "many" / "a", 6).parent).config.n_saes == 1
    assert load_sae(load_sae(folder).save(tmp_path / "ours")).config.n_saes == 1
    file = write_gemma(tmp_path / "gemma-scope-2b-pt-res" / "layer_2")
    assert load_sae(file).config == load_sae(str(file.parent)).config
    assert load_sae(file, dtype="bfloat16").dtype == torch.bfloat16
    for source in (folder, tmp_path / "many", file, file.parent, "owner/repo/path"):
        assert names_saes(source)
    assert not names_saes("owner/repo")
    assert not names_saes("./a/b/c")
    with pytest.raises(ValueError, match="norm_scale: got 2.0"):
        load_sae(file, norm_scale=2.0)


def cached(hub: Path, repo: str, folder: Path | None, path: str) -> None:
    """A repository in a hub's cache, as huggingface_hub lays it out."""
    place = hub / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text("0" * 40)
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    if folder is not None:
        shutil.copytree(folder, snapshot / path, dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no way to the hub."""
    place = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return place


def test_the_hubs_cache_is_used(hub, tmp_path):
    folder = perfect(tmp_path / "s", 6)
    cached(hub, "someone/saes", folder, "a/b")
    cached(hub, "someone/one", folder, "")
    scope = write_gemma(tmp_path / "g").parent
    cached(hub, "google/gemma-scope-2b-pt-mlp", scope, "layer_3/width_16k/average_l0_5")
    expected = load_sae(folder).W_enc
    for source in ("someone/saes/a/b", "someone/saes/a/b@main", "someone/one"):
        assert torch.equal(load_sae(source).W_enc, expected)
    for tail in ("", "/params.npz"):
        ours = load_sae(f"google/gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_5{tail}")
        assert ours.info.sources[0].hook_name == "blocks.3.hook_mlp_out"
    for source, message in (
        ("someone/saes/a/c", "holds neither cfg.json nor params.npz"),
        ("someone/saes", "holds neither cfg.json nor params.npz"),
        ("someone/none/x", "the hub did not give it"),
        ("someone/saes/a/b@nope", "the hub did not give it"),
        ("someone/saes/../x", "which is not there; expected a directory of sae-train"),
        ("someone/saes//x", "which is not there"),
        ("nowhere", "which is not there"),
        ("", "which is not there"),
        ("a b/c d/e", "the hub did not give it"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_sae(source)
        assert "\n" not in str(caught.value)


def test_the_registry_is_read_as_sae_lens_reads_it(hub, tmp_path):
    """Every release in a form that is read: repository, path, factor and overrides of its first and last id."""
    directory = pytest.importorskip("sae_lens.loading.pretrained_saes_directory")
    folder = perfect(tmp_path / "s", 6)
    n_read = n_other = 0
    for name, release in directory.get_pretrained_saes_directory().items():
        ids = list(release.saes_map)
        is_read = release.conversion_func in (None, "sae_lens", "gemma_2", "gemma_2_transcoder", "gemma_3")
        for sae_id in {ids[0], ids[-1]}:
            if not is_read:
                with pytest.raises(ValueError, match="is in the form '.*' of SAELens's registry; expected"):
                    find_sae(f"{name}/{sae_id}")
                n_other += 1
                continue
            path = release.saes_map[sae_id]
            cached(hub, release.repo_id, folder, path)
            found = find_sae(f"{name}/{sae_id}")
            assert found.path.as_posix().endswith(
                f"models--{release.repo_id.replace('/', '--')}/snapshots/{'0' * 40}/{path}"
            )
            expected = dict(release.config_overrides or {})
            if sae_id in release.norm_scaling_factor:
                expected["norm_scaling_factor"] = release.norm_scaling_factor[sae_id]
            assert found.overrides == expected
            n_read += 1
            shutil.rmtree(hub)
    assert n_read > 150
    assert n_other > 50
    with pytest.raises(ValueError, match="gpt2-small-res-jb has no 'blocks.99.hook_resid_pre'; nearest: blocks."):
        find_sae("gpt2-small-res-jb/blocks.99.hook_resid_pre")


def test_what_the_registry_knows_is_used(hub, tmp_path):
    """Its norm_scaling_factor and its normalize_activations, which the folders themselves do not have."""
    folder = save(build("standard"), tmp_path / "s", normalize_activations="expected_average_only_in")
    cached(hub, "tommmcgrath/gpt2-small-mlp-out-saes", folder, "sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1")
    with pytest.warns(UserWarning, match="center_writing_weights"):
        scaled = load_sae("gpt2-small-mlp-tm/blocks.0.hook_mlp_out")
    assert torch.equal(scaled.W_enc, load_sae(folder, norm_scale=1.049317316132615).W_enc)
    plain = save(build("standard"), tmp_path / "p")
    cached(hub, "JoshEngels/Mistral-7B-Residual-Stream-SAEs", plain, "mistral_7b_layer_8")
    assert load_sae("mistral-7b-res-wg/blocks.8.hook_resid_pre").config.normalize_inputs == "constant_norm_rescale"


# --- the verbs


@pytest.fixture
def ckpt(model, tmp_path) -> Path:
    (tmp_path / "m").mkdir()
    save_checkpoint(model, tmp_path / "m")
    return tmp_path / "m"


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(own) for own in arguments])


def test_verbs_take_saes_from_elsewhere(model, ckpt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = perfect(tmp_path / "s", model.cfg.d_model)
    few = ["--n-tokens", 96, "--n-ctx", 16, "--device", "cpu"]
    for verb, table, more in (
        ("feature-effects", "feature_effects", ["--n-exact", 2]),
        ("atlas", "feature_atlas", ["--n-logits", 2]),
    ):
        result = call(verb, "--ckpt", ckpt, "--sae", folder, *few, *more, "--out", verb)
        assert result.exit_code == 0, result.output
        rows = workbench_table(verb, table)
        assert len(rows) == 2 * model.cfg.d_model
        assert set(rows["head"]) == {-1}
    said = call("generate", "The king", "--ckpt", ckpt, "--sae", folder, "--steer", "1.all.3:2", "--max-new-tokens", 3)
    assert said.exit_code == 0, said.output
    assert "The king" in said.stdout
    wrong = StackedSAE.from_sae_lens(folder)
    with torch.no_grad():
        wrong.W_dec.mul_(-1)
    wrong.save(tmp_path / "wrong")
    for verb in (
        ["feature-effects", *few, "--out", "x"],
        ["atlas", *few, "--out", "x"],
        ["generate", "The king", "--steer", "1.all.3:2"],
    ):
        refused = call(*verb, "--ckpt", ckpt, "--sae", tmp_path / "wrong")
        assert refused.exit_code == 1
        assert "reconstructs worse than the mean: fvu 4" in refused.stderr
    assert not (tmp_path / "x").exists()


def workbench_table(directory: str, name: str) -> Any:
    from reports.tables import read_table

    return read_table(directory, name)


def test_import_writes_what_does_not_say_where_it_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_gemma(tmp_path / "mine", gemma_arrays(seed=4))
    refused = call("import", file, "--out", "i")
    assert refused.exit_code == 1
    assert "does not say which hook it reads" in refused.stderr
    done = call("import", file, "--hook", "hook_mlp_out", "--layer", 3, "--out", "i")
    assert done.exit_code == 0, done.output
    sae = load_sae("i")
    assert sae.info.sources[0].hook_name == "blocks.3.hook_mlp_out"
    np.testing.assert_array_equal(sae.W_enc[0].detach(), gemma_arrays(seed=4)["W_enc"])
    scaled = save(build("standard"), tmp_path / "scaled", normalize_activations="expected_average_only_in")
    assert call("import", scaled, "--norm-scale", 0.5, "--out", "n").exit_code == 0
    assert torch.equal(load_sae("n").W_enc, load_sae(scaled, norm_scale=0.5).W_enc)
    unread = call("import", tmp_path / "nowhere", "--hook", "hook_mlp_out")
    assert unread.exit_code == 2
    assert "--hook: got with a model, where nothing reads it; expected a source of SAEs" in unread.stderr


def test_every_name_is_public():
    assert workbench.load_sae is load_sae
    assert json.dumps(sorted(workbench.__all__)).count("load_sae") == 1
