"""Spectra of weights: every singular value against NumPy's SVD, ranks of the same values, the budget by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_model, tokens_for

import probes
import probes.ranks
from reports.tables import COLUMNS, read_table, write_table
from workbench.analyses.compare.comparison import compare
from workbench.analyses.spectra.weights import (
    RANKS,
    budget_table,
    depth_parts,
    matrix_spectra,
    spectra_tables,
    weight_spectra,
)


def side_by_side(model, layer: int, name: str) -> np.ndarray:
    """A layer's matrix with its heads one beside the other, by plain indexing."""
    block = model.blocks[layer]
    part = block.mlp if name in ("W_gate", "W_in", "W_out") else block.attn
    weight = getattr(part, f"_{name}" if hasattr(part, f"_{name}") else name).detach().double().numpy()
    if weight.ndim == 2:
        return weight
    return np.concatenate(list(weight), axis=0 if name == "W_O" else 1)


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "untied-softcap"])
def test_all_singular_values_are_those_of_an_svd(kind, tmp_path):
    model = small_model(kind)
    tables = spectra_tables(matrix_spectra(model), "m", 3)
    assert {name: tuple(table.columns)[: len(COLUMNS[name])] for name, table in tables.items()} == {
        name: COLUMNS[name] for name in tables
    }
    write_table(tables["singular_values"], tmp_path, "singular_values")
    table = read_table(tmp_path, "singular_values")
    matrices = ["W_Q", "W_K", "W_V", "W_O", *(["W_gate"] if model.cfg.gated_mlp else []), "W_in", "W_out"]
    assert table[["layer", "matrix"]].to_numpy().tolist() == [[layer, name] for layer in range(3) for name in matrices]
    for row in table.itertuples():
        W = side_by_side(model, row.layer, row.matrix)
        sigma = json.loads(row.singular_values)
        assert len(sigma) == min(W.shape)
        # nine digits written; the Gram route is good to 1e-8 of the sum
        np.testing.assert_allclose(sigma, np.linalg.svd(W, compute_uv=False), rtol=6e-9, atol=1e-8)
        assert sigma == sorted(sigma, reverse=True)


@pytest.mark.parametrize("kind", ["kotodama", "attn-res"])
def test_ranks_are_taken_of_the_stored_values_and_of_no_second_decomposition(kind, monkeypatch):
    model, decomposed = small_model(kind), []
    plain = probes.ranks._singular_values
    monkeypatch.setattr(probes.ranks, "_singular_values", lambda W: decomposed.append(W.shape) or plain(W))
    found = matrix_spectra(model)
    tables = spectra_tables(found, "m", 0)
    assert len(decomposed) == len(found) == len(tables["singular_values"]) == len(tables["weight_spectra"])
    monkeypatch.undo()
    for (layer, name), spectrum in found.items():
        assert spectrum.ranks == probes.matrix_ranks(side_by_side(model, layer, name))
        sigma = spectrum.singular_values
        assert spectrum.ranks.stable_rank == pytest.approx((sigma**2).sum() / sigma[0] ** 2, rel=1e-12)
        assert spectrum.ranks.nuclear_rank == pytest.approx(sigma.sum() ** 2 / (sigma**2).sum(), rel=1e-12)
    pd.testing.assert_frame_equal(tables["weight_spectra"], weight_spectra(model, name="m"), check_exact=True)


def diagonal(model, values: list[list[float]]) -> None:
    """Set each layer's W_Q, its heads side by side, to a diagonal of these singular values."""
    with torch.no_grad():
        for block, sigma in zip(model.blocks, values, strict=True):
            wide = torch.zeros(32, 32)
            wide[range(len(sigma)), range(len(sigma))] = torch.tensor(sigma, dtype=torch.float32)
            block.attn.W_Q.copy_(wide.reshape(32, 4, 8).transpose(0, 1))


def test_the_budget_of_stable_rank_by_hand():
    model = small_model("kotodama", n_layers=4)
    # stable ranks 1, (4 + 4 + 1)/4 = 2.25, 3, (9 + 4)/9 = 13/9
    diagonal(model, [[5], [2, 2, 1], [1, 1, 1], [3, 2]])
    table = budget_table(matrix_spectra(model), "m", 7)
    assert tuple(table.columns) == COLUMNS["rank_budget"]
    own = table[table["matrix"] == "W_Q"].set_index("part")
    ranks = [1, 2.25, 3, 13 / 9]
    wanted = {"all": ranks, "early": ranks[:1], "middle": ranks[1:3], "late": ranks[3:], "last half": ranks[2:]}
    assert own.index.tolist() == list(wanted)
    np.testing.assert_allclose(own["stable_rank"], [sum(part) for part in wanted.values()], rtol=1e-12)
    np.testing.assert_allclose(own["share"], [sum(part) / sum(ranks) for part in wanted.values()], rtol=1e-12)
    assert own["n_layers"].tolist() == [4, 1, 2, 1, 2]
    assert set(table["model"]) == {"m"}
    assert set(table["seed"]) == {7}


@pytest.mark.parametrize(
    ("n_layers", "parts"),
    [
        (1, {"all": [0]}),
        (2, {"all": [0, 1], "early": [0], "late": [1], "last half": [1]}),
        (3, {"all": [0, 1, 2], "early": [0], "middle": [1], "late": [2], "last half": [2]}),
        (5, {"all": [0, 1, 2, 3, 4], "early": [0], "middle": [1, 2, 3], "late": [4], "last half": [3, 4]}),
    ],
)
def test_thirds_and_the_last_half(n_layers, parts):
    assert {part: list(layers) for part, layers in depth_parts(n_layers).items()} == parts


def test_a_layer_without_the_matrix_counts_for_nothing():
    whole = matrix_spectra(small_model("kotodama"))
    without = {place: found for place, found in whole.items() if place not in ((0, "W_Q"), (1, "W_Q"))}
    own = budget_table(without, "m", 0).query("matrix == 'W_Q'").set_index("part")
    assert own.index.tolist() == ["all", "late", "last half"]  # and no row, let alone a 0, of the others
    assert own["share"].tolist() == [1, 1, 1]
    assert own["n_layers"].tolist() == [1, 1, 1]


def test_a_zero_matrix_has_values_of_0_and_no_rank():
    model = small_model("kotodama")
    with torch.no_grad():
        model.blocks[1].attn.W_Q.zero_()
    with pytest.warns(probes.ConstantInputWarning, match="no spread"):
        found = matrix_spectra(model)
    assert (found[1, "W_Q"].singular_values == 0).all()
    assert all(math.isnan(getattr(found[1, "W_Q"].ranks, rank)) for rank in RANKS)
    own = budget_table(found, "m", 0).query("matrix == 'W_Q'").set_index("part")
    assert own.loc[["all", "middle"], "stable_rank"].isna().all()
    assert own["share"].isna().all()
    assert own.loc["early", "stable_rank"] > 1


def test_two_models_have_their_tables_one_below_the_other():
    a, b = small_model("kotodama"), small_model("attn-res", 1)
    tables = compare(a, b, tokens_for(a, 6), names=("a", "b"), seeds=(0, 4)).tables()
    for name in ("weight_spectra", "singular_values", "rank_budget"):
        own = [spectra_tables(matrix_spectra(model), *key)[name] for model, key in ((a, ("a", 0)), (b, ("b", 4)))]
        pd.testing.assert_frame_equal(tables[name], pd.concat(own, ignore_index=True), check_exact=True)
