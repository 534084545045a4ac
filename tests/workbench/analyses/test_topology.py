"""Head redundancy and ranks against the whole matrices, double loops and known truths."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_model, tokens_for

import probes
from workbench.analyses.topology import heads as topology_module
from workbench.analyses.topology.heads import (
    Size,
    effective_sizes,
    head_cosines,
    sigma_of_moment,
    topology,
    topology_tables,
)
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = [
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:topology. 48 tokens:probes.SmallSampleWarning"),
]
ENOUGH = (256, 16)  # 4,096 tokens


def whole(model, tokens, name):
    return model.run_with_cache(tokens, names_filter=name)[1][name].double()


def naive_cosines(vectors):
    """Cosine of every pair of rows, one pair at a time."""
    n = len(vectors)
    found = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            a, b = vectors[i], vectors[j]
            found[i, j] = float(a @ b / (a.norm() * b.norm()))
    return found


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "attn-res", "untied-softcap"])
def test_cosines_equal_a_double_loop_over_whole_vectors(kind):
    model = small_model(kind)
    tokens = tokens_for(model, 3)
    pairs = head_cosines(model, tokens)
    for layer in range(3):
        z = whole(model, tokens, f"blocks.{layer}.attn.hook_z")
        pattern = whole(model, tokens, f"blocks.{layer}.attn.hook_pattern")
        W_O = model.blocks[layer].attn.W_O.detach().double()
        vectors = {
            "z": [z[:, :, h].flatten() for h in range(4)],
            "pattern": [pattern[:, h].flatten() for h in range(4)],
            "residual": [(z[:, :, h] @ W_O[h]).flatten() for h in range(4)],
        }
        for basis, rows in vectors.items():
            at = pairs[(pairs["layer"] == layer) & (pairs["basis"] == basis)]
            found = at.pivot_table(index="head_i", columns="head_j", values="cos").to_numpy()
            # z itself is float32: fused and explicit kernels differ in the seventh digit
            np.testing.assert_allclose(found, naive_cosines(rows), atol=2e-6, err_msg=f"{layer} {basis}")


def test_statistics_are_of_the_cosines_off_the_diagonal():
    model = small_model("janus-v3")
    stats, pairs, _ = topology_tables(model, tokens_for(model, 3))
    for row in stats.itertuples():
        at = pairs[(pairs["layer"] == row.layer) & (pairs["basis"] == row.basis) & (pairs["head_i"] != pairs["head_j"])]
        np.testing.assert_allclose([row.max_cos, row.mean_cos], [at["cos"].abs().max(), at["cos"].abs().mean()])
    assert len(pairs) == 3 * 3 * 16


@pytest.mark.parametrize("kind", ["janus-v3", "attn-res"])
@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_equal_the_svd_of_all_of_z(kind, seed):
    model = small_model(kind, seed)
    tokens = tokens_for(model, *ENOUGH, seed=seed)
    stats = topology(model, tokens)
    for layer in range(3):
        z = whole(model, tokens, f"blocks.{layer}.attn.hook_z").flatten(0, 1).flatten(1).numpy()
        sigma = np.linalg.svd(z, compute_uv=False)
        p = sigma / sigma.sum()
        centred = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2
        want = {
            "nuclear_rank": sigma.sum() ** 2 / (sigma**2).sum(),
            "effective_rank": np.exp(-(p * np.log(p)).sum()),
            "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
            "participation_ratio": centred.sum() ** 2 / (centred**2).sum(),
            "rank_utilization": sigma.sum() ** 2 / (sigma**2).sum() / 32,
        }
        rows = stats[stats["layer"] == layer]
        assert rows["basis"].tolist() == ["z", "pattern", "residual"]
        for name, value in want.items():
            # z in float32 through two kernels: relative 1e-6
            np.testing.assert_allclose(rows[name], value, rtol=2e-6, err_msg=name)
        np.testing.assert_allclose(rows["participation_ratio"], probes.participation_ratio(z), rtol=2e-6)


def test_a_dead_head_takes_the_way_that_squares_nothing(monkeypatch):
    model = small_model("janus-v3")
    tokens = tokens_for(model, *ENOUGH)
    with torch.no_grad():
        model.blocks[1].attn.W_V[2] = 0
    used = []
    by_qr = topology_module._triangles_of_z
    monkeypatch.setattr(
        topology_module, "_triangles_of_z", lambda m, t, layers: used.extend(layers) or by_qr(m, t, layers)
    )
    stats = topology(model, tokens)
    assert used == [1]
    z = whole(model, tokens, "blocks.1.attn.hook_z").flatten(0, 1).flatten(1).numpy()
    rows = stats[stats["layer"] == 1]
    np.testing.assert_allclose(rows["nuclear_rank"], probes.nuclear_rank(z), rtol=2e-6)
    np.testing.assert_allclose(rows["effective_rank"], probes.effective_rank(z), rtol=2e-6)
    cosines = rows.set_index("basis")[["max_cos", "mean_cos"]].isna()
    assert cosines.loc[["z", "residual"]].all().all(), "the cosine with a zero head is undefined"
    assert not cosines.loc["pattern"].any(), "its map is still there"


def test_utilization_is_a_share_of_the_width_where_tokens_are_fewer(monkeypatch):
    monkeypatch.setattr(topology_module, "MIN_TOKENS", 1)
    model = small_model("janus-v3")
    tokens = tokens_for(model, 1, 5)
    stats = topology(model, tokens).query("basis == 'z'")
    for row in stats.itertuples():
        z = whole(model, tokens, f"blocks.{row.layer}.attn.hook_z").flatten(0, 1).flatten(1).numpy()
        assert z.shape == (5, 32)
        assert row.rank_utilization == pytest.approx(probes.nuclear_rank(z) / 32, rel=2e-6)


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-3, 1e-4, 1e-6, 1e-9, 0.0])
def test_the_second_moment_is_used_only_where_no_digit_is_lost(smallest):
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(5000, 24)))[0]
    right = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    sigma = np.geomspace(1.0, max(smallest, 1e-300), 24)
    sigma[-1] = smallest
    matrix = (left * sigma) @ right.T
    found = sigma_of_moment(matrix.T @ matrix, 5000)
    if found is None:
        assert smallest <= 1e-4
    else:
        assert smallest >= 1e-4
        np.testing.assert_allclose(found.sum(), sigma.sum(), rtol=1e-8)


def test_a_rotation_of_the_value_basis_changes_z_and_not_the_residual():
    model = small_model("janus-v3").double()
    tokens = tokens_for(model, 3)
    before = topology(model, tokens).set_index(["layer", "basis"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        attn = model.blocks[1].attn
        for head in range(4):
            turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
            attn.W_V[head] = attn.W_V[head] @ turn
            attn.W_O[head] = turn.T @ attn.W_O[head]
    after = topology(model, tokens).set_index(["layer", "basis"])
    for basis in ("pattern", "residual"):
        np.testing.assert_allclose(after.loc[(1, basis), "mean_cos"], before.loc[(1, basis), "mean_cos"], rtol=1e-9)
    assert abs(after.loc[(1, "z"), "mean_cos"] - before.loc[(1, "z"), "mean_cos"]) > 1e-3


def test_the_batches_do_not_show(monkeypatch):
    model = small_model("kotodama").double()
    tokens = tokens_for(model, *ENOUGH)
    whole_table = topology(model, tokens)
    monkeypatch.setattr(topology_module, "MAP_ELEMENTS", 4 * 16**2 * 100)
    columns = ["max_cos", "mean_cos", *topology_module.RANKS]
    np.testing.assert_allclose(topology(model, tokens)[columns], whole_table[columns], rtol=1e-10)


def test_a_transformer_lens_model_gives_the_same_tables():
    model = small_model("kotodama")
    tokens = tokens_for(model, *ENOUGH)
    ours, theirs = topology(model, tokens), topology(to_hooked_transformer(model), tokens)
    columns = ["max_cos", "mean_cos", *topology_module.RANKS]
    np.testing.assert_allclose(ours[columns], theirs[columns], rtol=1e-4)


def test_too_few_tokens_have_cosines_and_no_ranks():
    model = small_model("janus-v3")
    with pytest.warns(probes.SmallSampleWarning, match="4080 tokens; expected at least 4096"):
        stats = topology(model, tokens_for(model, 255, 16))
    assert stats[list(topology_module.RANKS)].isna().all().all()
    assert stats[["max_cos", "mean_cos"]].notna().all().all()


def test_effective_size_is_the_share_of_utilizations():
    rows = [
        {"model": name, "seed": 0, "layer": layer, "basis": basis, "rank_utilization": used}
        for name, of_layers in (("a", (0.5, 0.7)), ("b", (0.2, 0.4)))
        for layer, used in enumerate(of_layers)
        for basis in ("z", "residual")
    ]
    sizes = [Size(1000, 600, 2), Size(3000, 2000, 2)]
    found = effective_sizes(pd.DataFrame(rows), sizes).set_index(["model_a", "model_b", "layer_a"])
    assert len(found) == 4
    assert found.loc[("a", "b", -1), "n_eff"] == pytest.approx(1000 * 0.6 / 0.3)
    assert found.loc[("b", "a", -1), "n_eff"] == pytest.approx(3000 * 0.3 / 0.6)
    assert found.loc[("b", "a", -1), "n_eff_no_embedding"] == pytest.approx(2000 * 0.3 / 0.6)
    # of two layers the first is half the depth, nearer to 7/12 than the whole is
    assert found.loc[("a", "b", 0), ["utilization_a", "utilization_b"]].tolist() == [0.5, 0.2]
    assert found.loc[("a", "b", 0), "n_eff"] == pytest.approx(1000 * 0.5 / 0.2)
    assert found.loc[("a", "b", 0), "n_eff_no_embedding"] == pytest.approx(600 * 0.5 / 0.2)
    silent = [row | {"rank_utilization": math.nan} if row["layer"] and row["model"] == "b" else row for row in rows]
    known = effective_sizes(pd.DataFrame(silent), sizes).set_index("layer_a")["n_eff"]
    assert known.isna().tolist() == [True, True, False, False], "a mean over layers needs all of them"
    with pytest.raises(ValueError, match="got 1 sizes for 2 models"):
        effective_sizes(pd.DataFrame(rows), sizes[:1])


def test_the_papers_effective_size_is_43_6_of_40_million():
    """Equation 6: layer 6 of 12, 55.1 and 60.1 %; here of models of 12 and of 4 layers, where it is layer 1."""
    rows = [
        {"model": name, "seed": 0, "layer": layer, "basis": "z", "rank_utilization": used if layer == read else 0.9}
        for name, used, n_layers, read in (("control", 0.551, 12, 6), ("adaptive", 0.601, 4, 1))
        for layer in range(n_layers)
    ]
    found = effective_sizes(pd.DataFrame(rows), [Size(64, 38, 12), Size(60, 40, 4)])
    (row,) = found[(found["model_a"] == "adaptive") & (found["layer_a"] >= 0)].to_dict("records")
    assert (row["layer_a"], row["layer_b"]) == (1, 6)
    assert row["n_eff_no_embedding"] == pytest.approx(43.63, abs=0.005)
    without = [row for row in rows if row["layer"] != 1]  # a selection of layers without the paper's
    assert (effective_sizes(pd.DataFrame(without), [Size(64, 38, 12), Size(60, 40, 4)])["layer_a"] == -1).all()


def test_one_head_has_no_redundancy():
    model = small_model("janus-v3", n_heads=1)
    stats = topology(model, tokens_for(model, 3))
    assert stats[["max_cos", "mean_cos"]].isna().all().all()


def test_columns_layers_and_names():
    model = small_model("janus-v3")
    shares = []
    stats = topology(model, tokens_for(model, 3), layers=[2, 0], seed=7, name="a", on_progress=shares.append)
    assert list(stats.columns) == [
        "model", "seed", "layer", "basis", "max_cos", "mean_cos", "nuclear_rank", "effective_rank", "stable_rank",
        "participation_ratio", "rank_utilization", "n_tokens",
    ]  # fmt: skip
    assert stats["layer"].tolist() == [0, 0, 0, 2, 2, 2]
    assert set(stats["model"]) == {"a"}
    assert set(stats["seed"]) == {7}
    assert set(stats["n_tokens"]) == {48}
    assert shares[-1] == 1
    assert topology(model, tokens_for(model, 3), layers=np.array([2, 0]), seed=7, name="a").equals(stats)
    full = topology(model, tokens_for(model, 3))
    # layer 1 is not watched here and runs the fused kernel: the seventh digit of what follows it
    np.testing.assert_allclose(stats["mean_cos"], full[full["layer"] != 1]["mean_cos"], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [3]}, "layers: got 3; expected 0…2"),
        ({"layers": []}, "layers: got an empty selection"),
        ({"tokens": torch.zeros(4, dtype=torch.long)}, r"topology: tokens are shape \[4\]"),
        (
            {"tokens": torch.zeros(1, 25, dtype=torch.long)},
            "windows of 25 tokens; expected 1 to the model's n_ctx = 24",
        ),
    ],
)
def test_bad_input_is_refused(arguments, message):
    model = small_model("janus-v3")
    with pytest.raises(ValueError, match=message):
        topology(model, **{"tokens": tokens_for(model)} | arguments)
