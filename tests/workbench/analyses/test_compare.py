"""Two models side by side: against plain linear algebra, against itself, and against a rotated copy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_model, tokens_for, worded_model
from typer.testing import CliRunner

import probes
from reports.tables import COLUMNS, read_table
from workbench import runs
from workbench.analyses.compare.comparison import _layer_rows, compare, matching_layers, mean_pooled
from workbench.analyses.probe.states import state_hooks
from workbench.analyses.spectra.weights import weight_spectra
from workbench.cli.app import app
from workbench.data.text_windows import analysis_tokens
from workbench.data.tokenizer import load_tokenizer, train_bpe
from workbench.models.checkpoint import save
from workbench.models.load import load
from workbench.models.tokenizer_files import wrap_tokenizer
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
NAMES = ("a", "b")


def rotated(model, seed=0):
    """The same function in another basis of the residual stream, and the rotation; norms without weights only."""
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    turn = turn.to(model.cfg.dtype)
    other = small_model("untied-softcap", seed=0, dtype=model.cfg.dtype)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.embed.W_E.copy_(other.embed.W_E @ turn)
        for block in other.blocks:
            for name in ("W_Q", "W_K", "W_V"):
                getattr(block.attn, name).copy_(turn.T @ getattr(block.attn, name))
            block.attn.W_O.copy_(block.attn.W_O @ turn)
            for name in ("W_gate", "W_in"):
                getattr(block.mlp, name).copy_(turn.T @ getattr(block.mlp, name))
            block.mlp.W_out.copy_(block.mlp.W_out @ turn)
        other.unembed.W_U.copy_(turn.T @ other.unembed.W_U)
    return other


def unweighted(seed=0):
    """A float64 model whose norms have weight one."""
    model = small_model("untied-softcap", seed, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".w"):
                parameter.fill_(1.0)
    return model


@pytest.mark.parametrize("kind", ["janus-small", "attn-res", "recurrent"])
def test_pooled_states_are_means_over_positions_from_1(kind):
    model = small_model(kind)
    tokens = tokens_for(model, 5)
    cache = model.run_with_cache(tokens)[1]
    wanted = np.stack([cache[hook][:, 1:].double().mean(1).numpy() for hook in state_hooks(model)])
    np.testing.assert_allclose(mean_pooled(model, tokens), wanted, rtol=1e-4, atol=1e-5)  # float32, other batches


@pytest.mark.parametrize("seed", [0, 1])
def test_columns_equal_plain_linear_algebra(seed):
    a, b = small_model("janus-v3", seed), small_model("attn-res", seed + 5)
    tokens = tokens_for(a, 9, seed=seed)
    table = compare(a, b, tokens, names=NAMES, n_components=3).pc_cosine
    assert set(COLUMNS["pc_cosine"]) <= set(table.columns)
    assert table["layer"].tolist() == [layer for layer in (-1, 0, 1, 2) for _ in range(3)]
    assert (table["layer_b"] == table["layer"]).all()
    np.testing.assert_allclose(table["baseline"], probes.random_pc_cosine(32))
    pooled = [mean_pooled(model, tokens) for model in (a, b)]
    for layer in (-1, 1):
        x, y = (p[layer + 1] - p[layer + 1].mean(0) for p in pooled)
        u, s, v = np.linalg.svd(x, full_matrices=False)
        u2, s2, v2 = np.linalg.svd(y, full_matrices=False)
        rows = table[table["layer"] == layer]
        np.testing.assert_allclose(rows["cosine"], [abs(v[k] @ v2[k]) for k in range(3)], rtol=1e-9)
        np.testing.assert_allclose(rows["explained_a"], (s**2 / (s**2).sum())[:3], rtol=1e-9)
        np.testing.assert_allclose(rows["explained_b"], (s2**2 / (s2**2).sum())[:3], rtol=1e-9)
        cosines = np.linalg.svd(u[:, :3].T @ u2[:, :3], compute_uv=False)
        np.testing.assert_allclose(np.cos(rows["principal_angle"]), cosines, atol=1e-9)
        unit = x / np.linalg.norm(x), y / np.linalg.norm(y)
        nuclear = np.linalg.svd(unit[0].T @ unit[1], compute_uv=False).sum()
        np.testing.assert_allclose(rows["procrustes"], 1 - nuclear**2, atol=1e-9)
        np.testing.assert_allclose(rows["cka"], naive_cka(x, y), atol=1e-9)


def naive_cka(x, y):
    """Song et al.'s unbiased HSIC, from the Gram matrices with their diagonals set to 0."""

    def hsic(k, m):
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        total = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
        return total / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_a_model_beside_itself():
    model = small_model("kotodama")
    result = compare(model, model, tokens_for(model, 8), names=NAMES, seeds=(0, 1))
    table = result.pc_cosine
    np.testing.assert_allclose(table["cosine"], 1, atol=1e-9)
    np.testing.assert_allclose(table["cka"], 1, atol=1e-9)
    np.testing.assert_allclose(table[["principal_angle", "procrustes"]], 0, atol=1e-7)
    assert (table["procrustes_null"] > 0.01).all()
    assert table["cka_null"].abs().max() < 0.5
    assert (result.eigenspectra_divergence["divergence"] == 0).all()
    both = result.weight_spectra.groupby("model", sort=False)
    pd.testing.assert_frame_equal(*(own.drop(columns=["model", "seed"]).reset_index(drop=True) for _, own in both))


def test_sequences_that_are_all_one_have_no_components():
    one, two = small_model("kotodama"), small_model("janus-v3", seed=1)
    tokens = tokens_for(one, 1).repeat(6, 1)
    with pytest.warns(probes.ConstantInputWarning, match="no spread"):
        table = compare(one, two, tokens, names=NAMES).pc_cosine
    assert table[["cosine", "explained_a", "explained_b", "principal_angle", "cka", "procrustes"]].isna().all(axis=None)
    assert len(table) == 4 * 4


@pytest.mark.parametrize("seed", range(40))
def test_fewer_components_than_asked_for_end_in_nan(seed):
    """States of two components upon a mean that leaves rounding noise about the size that a rank is cut at."""
    rng = np.random.default_rng(seed)
    n, d = rng.integers(7, 20), rng.integers(4, 40)
    mean = 10.0 ** rng.uniform(0, 5)
    x, y = (rng.normal(size=(n, 2)) @ rng.normal(size=(2, d)) + mean * rng.normal(size=d) for _ in range(2))
    angles = [row["principal_angle"] for row in _layer_rows(x, y, 4, rng)]
    assert np.isnan(angles).tolist() == [False, False, True, True]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_turned_basis_changes_the_cosine_of_components_and_nothing_else(seed):
    model = unweighted(seed)
    other = rotated(model, seed)
    tokens = tokens_for(model, 8)
    torch.testing.assert_close(other(tokens), model(tokens), atol=1e-8, rtol=1e-8)  # the same function
    result = compare(model, other, tokens, names=NAMES)
    table = result.pc_cosine
    np.testing.assert_allclose(table["cka"], 1, atol=1e-9)
    np.testing.assert_allclose(table[["principal_angle", "procrustes"]], 0, atol=1e-6)
    np.testing.assert_allclose(table["explained_a"], table["explained_b"], rtol=1e-6)
    assert table["cosine"].max() < 0.7
    assert table["cosine"].mean() < 3 * probes.random_pc_cosine(32)
    np.testing.assert_allclose(result.eigenspectra_divergence["divergence"], 0, atol=1e-9)


def test_a_transformer_lens_model_is_a_subject():
    model = small_model("kotodama")
    theirs = to_hooked_transformer(model)
    result = compare(model, theirs, tokens_for(model, 8), names=NAMES)
    np.testing.assert_allclose(result.pc_cosine["cosine"], 1, atol=1e-3)  # two implementations in float32
    np.testing.assert_allclose(result.eigenspectra_divergence["divergence"], 0, atol=1e-6)


def test_models_of_unequal_depth_and_width_meet_at_equal_depth():
    a, b = small_model("janus-v3", n_layers=2), small_model("janus-v3", n_layers=4, d_model=16)
    table = compare(a, b, tokens_for(a, 6), names=NAMES, n_components=2).pc_cosine
    assert table[["layer", "layer_b"]].drop_duplicates().to_numpy().tolist() == [[-1, -1], [0, 1], [1, 3]]
    assert table["cosine"].isna().all()
    assert table["baseline"].isna().all()
    assert table[["principal_angle", "cka", "procrustes"]].notna().all().all()
    assert matching_layers(3, 3) == [(0, 0), (1, 1), (2, 2)]
    assert matching_layers(4, 2) == [(0, 0), (1, 0), (2, 0), (3, 1)]


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "untied-softcap"])
def test_ranks_of_weights_equal_an_svd_with_heads_side_by_side(kind):
    model = small_model(kind)
    table = weight_spectra(model, name="m", seed=3)
    assert tuple(table.columns[: len(COLUMNS["weight_spectra"])]) == COLUMNS["weight_spectra"]
    gated = ["W_gate"] if kind != "janus-small" else []
    assert table["matrix"].tolist() == ["W_Q", "W_K", "W_V", "W_O", *gated, "W_in", "W_out"] * 3
    block, rows = model.blocks[1], table[table["layer"] == 1].set_index("matrix")
    keys = block.attn._W_K if kind == "kotodama" else block.attn.W_K
    matrices = {
        "W_Q": np.concatenate(list(block.attn.W_Q.detach().numpy()), axis=1),
        "W_K": np.concatenate(list(keys.detach().numpy()), axis=1),
        "W_O": np.concatenate(list(block.attn.W_O.detach().numpy()), axis=0),
        "W_out": block.mlp.W_out.detach().numpy(),
    }
    for name, matrix in matrices.items():
        sigma = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        p = sigma / sigma.sum()
        wanted = {
            "nuclear_rank": sigma.sum() ** 2 / (sigma**2).sum(),
            "effective_rank": np.exp(-(p * np.log(p)).sum()),
            "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
            "participation_ratio": (sigma**2).sum() ** 2 / (sigma**4).sum(),
            "n_singular_values": len(sigma),
        }
        np.testing.assert_allclose([rows.loc[name, key] for key in wanted], list(wanted.values()), rtol=1e-6)


def test_divergence_is_the_mean_over_layers_and_matrices():
    a, b = small_model("kotodama"), small_model("kotodama", seed=9)
    with torch.no_grad():
        b.blocks[1].attn.W_Q[:, 1:] = 0  # one direction left: nuclear rank at most 1
    result = compare(a, b, tokens_for(a, 6), names=NAMES)
    spectra = result.weight_spectra.set_index(["model", "layer", "matrix"])["nuclear_rank"]
    for part, names in (("attention", ["W_Q", "W_K", "W_V", "W_O"]), ("mlp", ["W_gate", "W_in", "W_out"])):
        values = [
            abs(spectra["a", layer, name] - spectra["b", layer, name])
            / ((spectra["a", layer, name] + spectra["b", layer, name]) / 2)
            for layer in range(3)
            for name in names
        ]
        row = result.eigenspectra_divergence.set_index("part").loc[part]
        assert (row["divergence"], row["n"]) == (pytest.approx(np.mean(values), rel=1e-12), len(values))
    parts = result.eigenspectra_divergence.set_index("part")["divergence"]
    assert parts["attention"] > parts["mlp"]
    assert parts["all"] == pytest.approx((12 * parts["attention"] + 9 * parts["mlp"]) / 21)


def test_bad_input():
    model = small_model("janus-v3")
    with pytest.raises(ValueError, match="vocabularies of 61 and 60; expected one for both"):
        compare(model, small_model("janus-v3", d_vocab=60), tokens_for(model, 6))
    with pytest.raises(ValueError, match="compare: 3 sequences; expected at least 4"):
        compare(model, model, tokens_for(model, 3))
    with pytest.raises(ValueError, match=r"n_components: got 6; expected 1 … 5 for 6 sequences"):
        compare(model, model, tokens_for(model, 6), n_components=6)
    with pytest.raises(ValueError, match="windows of 1 tokens; expected 2 to"):
        compare(model, model, tokens_for(model, 6, 1))
    one, two = worded_model("janus-v3"), small_model("janus-v3", d_vocab=4096)
    two.tokenizer = wrap_tokenizer(train_bpe(["some words"], 300))
    with pytest.raises(ValueError, match="tokenizers differ; expected one for both"):
        compare(one, two, tokens_for(one, 6))


# --- the verb


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    for name, kind in (("one", "janus-v3"), ("two", "attn-res")):
        model = small_model(kind, d_vocab=4096)
        model.tokenizer = wrap_tokenizer(load_tokenizer("embedded"))
        Path(name).mkdir()
        save(model, name)
    Path("text.txt").write_text("".join(f"Line {i} tells of cat {i * i} and its river.\n" for i in range(2000)))
    return ["compare", "one", "two", "--data", "text.txt", "--n-sequences", 5]


def test_the_verb_writes_what_the_function_returns(place):
    result = call(*place, "--out", "c", "--seed", 1, "--n-components", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(Path.cwd() / "c")
    assert "two models share no basis" in result.stdout
    models = load("one"), load("two")
    tokens = analysis_tokens(models[0], "text.txt", n_sequences=5)
    wanted = compare(*models, tokens, n_components=2, names=("one", "two"), seeds=(1, 1), seed=1)
    for name in ("pc_cosine", "eigenspectra_divergence"):
        found, own = read_table("c", name), wanted.tables()[name].assign(seed=1)
        pd.testing.assert_frame_equal(found, own, check_dtype=False, check_like=True, check_exact=True)
    assert not Path("c/weight_spectra.csv").exists()
    runs.verify_manifest("c")
    assert call(*place, "--out", "c", "--seed", 1, "--n-components", 2, "--resume").exit_code == 0
    assert "n_components is 2" in call(*place, "--out", "c", "--seed", 1, "--n-components", 3, "--resume").stderr


def test_the_spectra_of_both_are_a_verb_of_their_own(place):
    result = call("spectra", "--ckpt", "one", "--ckpt", "two", "--out", "s")
    assert result.exit_code == 0, result.output
    models = load("one"), load("two")
    wanted = compare(*models, tokens_for(models[0], 6), names=("one", "two")).tables()
    for name in ("weight_spectra", "singular_values", "rank_budget"):
        pd.testing.assert_frame_equal(read_table("s", name), wanted[name], check_dtype=False, check_exact=True)


def test_a_plan_counts_the_text_of_both(place):
    plan = json.loads(call(*place, "--json", "--dry-run", "--out", "q").stdout)
    assert (plan["n_models"], plan["n_tokens"]) == (2, 2 * 5 * 24)
    assert not Path("q").exists()


def test_json_and_errors_of_the_verb(place):
    answer = json.loads(call(*place, "--json").stdout)
    assert len(answer["rows"]) == 4 * 4
    assert answer["out"] == str(Path.cwd() / "runs" / "compare")
    short = small_model("janus-v3", d_vocab=4096, n_ctx=9)
    short.tokenizer = wrap_tokenizer(load_tokenizer("embedded"))
    Path("short").mkdir()
    save(short, "short")
    for arguments, code, message in (
        ([*place[:2], "nowhere", *place[3:]], 1, "nowhere"),
        ([*place[:-1], 3], 1, "3 sequences; expected at least 4"),
        ([*place, "--n-components", 9], 1, "n_components: got 9"),
        ([*place[:2], "short", *place[3:]], 1, "windows of 24 tokens; expected 2 to the model's n_ctx = 9"),
        ([*place, "--set", "components=2"], 2, "unknown key 'components'"),
        (place[:2], 2, "Missing argument"),
    ):
        result = call(*arguments, "--out", "x")
        assert result.exit_code == code, result.output
        assert message in result.stderr
        assert not list(Path().glob("x*"))
