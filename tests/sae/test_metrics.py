"""Measures against naive loops over all tokens at once, and known values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stacks_for_tests import seeded

from sae import (
    MetricSums,
    SAEConfig,
    StackedSAE,
    density_histogram,
    interpolate_at_l0,
    match_l0,
    max_cosine,
    metrics,
    nearest_features,
    stability,
)
from sae.metrics import count_active, neighbour_cosines


def measured_stack(seed: int, offset: float = 0.0, dtype: torch.dtype = torch.float32):
    config = SAEConfig(n_saes=2, d_in=6, d_sae=20, decoder_init_norm=0.5)
    sae = StackedSAE(config, seeded(seed), dtype=dtype)
    with torch.no_grad():
        sae.b_enc.copy_(torch.randn(2, 20, generator=seeded(seed + 1)) - 1)
        sae.b_enc[1, 4:7] = -1000
        x = torch.randn(2, 300, 6, generator=seeded(seed + 2)).to(dtype) * 2
        acts, recon = sae(x)
    return config, x + offset, acts, recon + offset


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 7, 300])
def test_streamed_measures_equal_the_definitions_on_all_tokens(seed, batch):
    config, x, acts, recon = measured_stack(seed)
    sums = MetricSums(config)
    for part in range(0, 300, batch):
        sums.update(*(t[:, part : part + batch] for t in (x, acts, recon)))
    result = sums.result()
    assert result.n_tokens == 300
    for s in range(2):
        own = [t[s].double().numpy() for t in (x, acts, recon)]
        n_active = [sum(float(a) > 0 for a in token) for token in own[1]]
        assert float(result.l0[s]) == pytest.approx(sum(n_active) / 300, rel=1e-14)
        errors = [(a - b) ** 2 for a, b in zip(own[0].ravel(), own[2].ravel(), strict=True)]
        assert float(result.mse[s]) == pytest.approx(sum(errors) / len(errors), rel=1e-12)
        mean = own[0].mean(axis=0)
        spread = sum(((token - mean) ** 2).sum() for token in own[0])
        assert float(result.fvu[s]) == pytest.approx(sum(errors) / spread, rel=1e-12)
        assert float(result.explained_variance[s]) == pytest.approx(1 - sum(errors) / spread, rel=1e-12)
        density = (own[1] > 0).mean(axis=0)
        np.testing.assert_allclose(result.density[s].numpy(), density, rtol=1e-14)
        assert float(result.dead_fraction[s]) == pytest.approx((density == 0).mean(), abs=1e-15)
    assert float(result.dead_fraction[1]) >= 3 / 20


@pytest.mark.parametrize("first", [0, 1, 150, 300])
def test_sums_of_two_parts_merge_to_those_of_all(first):
    config, x, acts, recon = measured_stack(3, offset=1e4, dtype=torch.float64)
    whole, parts = MetricSums(config), [MetricSums(config), MetricSums(config)]
    whole.update(x, acts, recon)
    for part, rows in zip(parts, (slice(0, first), slice(first, 300)), strict=True):
        part.update(x[:, rows], acts[:, rows], recon[:, rows])
    parts[0].merge(parts[1])
    for name, own in whole.result()._asdict().items():
        np.testing.assert_allclose(parts[0].result()._asdict()[name], own, rtol=1e-10, err_msg=name)
    with pytest.raises(ValueError, match="MetricSums.merge: got sums of"):
        whole.merge(MetricSums(SAEConfig(n_saes=1, d_in=6, d_sae=20)))


def test_a_large_mean_costs_no_digits():
    config, x, acts, recon = measured_stack(0, dtype=torch.float64)
    _, far, _, far_recon = measured_stack(0, offset=1e6, dtype=torch.float64)
    near_sums, far_sums = MetricSums(config), MetricSums(config)
    for part in range(0, 300, 50):
        rows = slice(part, part + 50)
        near_sums.update(x[:, rows], acts[:, rows], recon[:, rows])
        far_sums.update(far[:, rows], acts[:, rows], far_recon[:, rows])
    # 1e6 has 1e-10 spacing in float64, deviations are of order 1
    torch.testing.assert_close(far_sums.result().fvu, near_sums.result().fvu, rtol=1e-8, atol=0)


def test_what_is_undefined_is_nan():
    config = SAEConfig(n_saes=1, d_in=3, d_sae=4)
    empty = MetricSums(config).result()
    assert empty.n_tokens == 0
    assert all(bool(t.isnan().all()) for t in empty[1:])
    sums = MetricSums(config)
    sums.update(torch.ones(1, 5, 3), torch.zeros(1, 5, 4), torch.zeros(1, 5, 3))
    constant = sums.result()
    assert bool(constant.fvu.isnan())
    assert float(constant.mse) == 1
    assert float(constant.dead_fraction) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_count_active_counts_positive_only(dtype):
    acts = torch.randn(9001, 5, generator=seeded()).to(dtype)
    acts[:, 0] = 0
    acts[:, 1] = 1
    assert torch.equal(count_active(acts), (acts > 0).sum(dim=0).double())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 5, 7), (2, 5, 20), (2, 5, 6)), "x has shape"),
        (((2, 5, 6), (2, 4, 20), (2, 5, 6)), r"acts has shape \(2, 4, 20\)"),
        (((2, 5, 6), (2, 5, 20), (1, 5, 6)), "recon has shape"),
        (((5, 6), (5, 20), (5, 6)), "x has shape"),
    ],
)
def test_bad_shapes_are_named(shapes, message):
    sums = MetricSums(SAEConfig(n_saes=2, d_in=6, d_sae=20))
    with pytest.raises(ValueError, match=message):
        sums.update(*(torch.zeros(shape) for shape in shapes))


def test_nan_activations_are_named():
    sums = MetricSums(SAEConfig(n_saes=2, d_in=3, d_sae=4))
    x = torch.zeros(2, 5, 3)
    x[1, 2, 0] = torch.nan
    with pytest.raises(ValueError, match=r"x of SAE \[1\] has nan or inf"):
        sums.update(x, torch.zeros(2, 5, 4), torch.zeros(2, 5, 3))


def test_density_histogram_puts_every_feature_in_its_bin():
    density = torch.tensor(
        [[1.0, 0.1, 0.01, 0.001, 0.0, 1e-9], [0.5, 0.0, 0.0, 0.05, 0.011, 1e-6]], dtype=torch.float64
    )
    edges, counts, n_dead = density_histogram(density, bin_width=1.0, lowest=-6.0)
    np.testing.assert_allclose(edges, [-6, -5, -4, -3, -2, -1])
    # powers of ten stand at the lower edge of their bin; 1 in the last one, 1e-9 in the first
    np.testing.assert_array_equal(counts, [[1, 0, 0, 1, 1, 2], [1, 0, 0, 0, 2, 1]])
    np.testing.assert_array_equal(n_dead, [1, 2])
    _, fine, dead = density_histogram(torch.rand(3, 50, generator=seeded(), dtype=torch.float64))
    np.testing.assert_array_equal(fine.sum(axis=-1) + dead, [50, 50, 50])


@pytest.mark.parametrize(
    ("density", "bin_width", "lowest"),
    [(torch.tensor([1.5]), 0.25, -6.0), (torch.tensor([-0.1]), 0.25, -6.0), (torch.tensor([torch.nan]), 0.25, -6.0),
     (torch.tensor([0.5]), 0.0, -6.0), (torch.tensor([0.5]), 0.7, -6.0), (torch.tensor([0.5]), 0.25, 1.0)],
)  # fmt: skip
def test_density_histogram_refuses(density, bin_width, lowest):
    with pytest.raises(ValueError, match="density_histogram"):
        density_histogram(density, bin_width, lowest)


@pytest.mark.parametrize("seed", [0, 1])
def test_max_cosine_and_stability_equal_the_naive_loop(seed):
    a = torch.randn(2, 7, 5, generator=seeded(seed))
    b = torch.randn(2, 9, 5, generator=seeded(seed + 1))
    b[0, 3] = 4 * a[0, 2]
    best = max_cosine(a, b)
    for s in range(2):
        for i in range(7):
            cosines = [np.dot(a[s, i], row) / (np.linalg.norm(a[s, i]) * np.linalg.norm(row)) for row in b[s].numpy()]
            assert float(best[s, i]) == pytest.approx(max(cosines), abs=1e-6)
    assert float(best[0, 2]) == pytest.approx(1, abs=1e-12)
    result = stability(a, b, threshold=0.7)
    torch.testing.assert_close(result.mean, best.mean(dim=-1))
    torch.testing.assert_close(result.share_above, (best > 0.7).double().mean(dim=-1))


def test_stability_of_a_permuted_dictionary_is_one_and_of_its_negative_is_not():
    rows = torch.randn(1, 30, 8, generator=seeded())
    same = stability(rows, rows[:, torch.randperm(30, generator=seeded())] * 3)
    torch.testing.assert_close(same.mean, torch.ones(1, dtype=torch.float64))
    assert float(same.share_above) == 1
    assert float(stability(rows, -rows).mean) < 0.9


def test_rows_of_zeros_have_no_cosine():
    rows = torch.eye(3).unsqueeze(0).clone()
    rows[0, 1] = 0
    result = stability(rows, rows)
    assert result.max_cosine[0].isnan().tolist() == [False, True, False]
    assert float(result.mean) == 1
    assert bool(max_cosine(rows, torch.zeros(1, 2, 3)).isnan().all())
    assert bool(stability(torch.zeros(1, 2, 3), rows).mean.isnan())
    _, features = nearest_features(rows, 1)
    assert features[0, 0, 0] == 2
    assert features[0, 2, 0] == 0


def test_nearest_features_equal_the_naive_order():
    rows = torch.randn(2, 12, 5, generator=seeded())
    cosines, features = nearest_features(rows, 4)
    for s in range(2):
        unit = torch.nn.functional.normalize(rows[s].double(), dim=-1)
        for i in range(12):
            ranked = sorted(((float(unit[i] @ unit[j]), j) for j in range(12) if j != i), reverse=True)[:4]
            assert features[s, i].tolist() == [j for _, j in ranked]
            np.testing.assert_allclose(cosines[s, i].numpy(), [c for c, _ in ranked], atol=1e-12)


def test_nearest_features_of_many_rows_and_of_equal_cosines(monkeypatch):
    rows = torch.randn(2, 23, 4, generator=seeded(2))
    rows[1, [3, 9, 20]] = rows[1, 14].clone()
    whole = nearest_features(rows, 6)
    monkeypatch.setattr(metrics, "_ROWS_AT_ONCE", 5)
    parts = nearest_features(rows, 6)
    assert torch.equal(parts[1], whole[1])
    torch.testing.assert_close(parts[0], whole[0], atol=1e-12, rtol=0)
    assert whole[1][1, 14, :3].tolist() == [3, 9, 20]
    assert whole[1][1, 3, :3].tolist() == [9, 14, 20]


@pytest.mark.parametrize("at_once", [3, 1024])
def test_neighbour_cosines_are_of_the_living_features_alone(monkeypatch, at_once):
    monkeypatch.setattr(metrics, "_ROWS_AT_ONCE", at_once)
    rows = torch.randn(3, 17, 4, generator=seeded(4))
    rows[0, 5] = 2 * rows[0, 11]
    rows[1, 3] = 0
    is_alive = torch.rand(3, 17, generator=seeded(5)) < 0.6
    is_alive[0, [5, 11]] = True
    is_alive[1, 3] = True
    is_alive[2] = False
    is_alive[2, 8] = True
    found = neighbour_cosines(rows, is_alive)
    for k in range(2):
        unit = torch.nn.functional.normalize(rows[k].double(), dim=-1)
        for i in range(17):
            others = [j for j in range(17) if j != i and is_alive[k, j] and bool(rows[k, j].any())]
            if is_alive[k, i] and bool(rows[k, i].any()):
                assert float(found[k, i]) == pytest.approx(max(float(unit[i] @ unit[j]) for j in others), abs=1e-12)
            else:
                assert bool(found[k, i].isnan())
    assert float(found[0, 5]) == pytest.approx(1)
    assert bool(found[2].isnan().all()), "the only living feature has no other"


def test_interpolation_in_log_l0():
    # fvu = a + b log10 l0 is met exactly between the points, whatever their order; outside is nan
    l0 = np.array([100.0, 1.0, 10.0])
    fvu = 0.9 - 0.3 * np.log10(l0)
    got = interpolate_at_l0(l0, fvu, [1, 5, 10, 50, 100, 0.5, 200])
    np.testing.assert_allclose(got[:5], 0.9 - 0.3 * np.log10([1, 5, 10, 50, 100]), atol=1e-14)
    assert np.isnan(got[5:]).all()
    np.testing.assert_allclose(interpolate_at_l0([2, 2, 4], [1, 3, 5], [2]), [2])
    np.testing.assert_allclose(interpolate_at_l0([0, 2, np.nan, 4], [9, 1, 9, 3], [2, 4]), [1, 3])
    assert np.isnan(interpolate_at_l0([], [], [1])).all()
    with pytest.raises(ValueError, match="interpolate_at_l0: l0 has shape"):
        interpolate_at_l0([1, 2], [1], [1])


def test_match_l0_compares_on_the_common_range_only():
    l0_a, l0_b = np.array([1.0, 8.0, 64.0]), np.array([4.0, 32.0, 256.0])
    value = lambda l0, shift: 1 - 0.2 * np.log10(l0) + shift  # noqa: E731
    matched = match_l0(l0_a, value(l0_a, 0.0), l0_b, value(l0_b, 0.05), n_points=9)
    assert matched.l0[0] == 4
    assert matched.l0[-1] == 64
    np.testing.assert_allclose(matched.second - matched.first, 0.05, atol=1e-12)
    assert matched.mean_difference == pytest.approx(0.05, abs=1e-12)
    for l0 in np.linspace(4.1, 60, 97):  # one point within the other's range is a range too
        one = match_l0(l0_a, value(l0_a, 0.0), [l0], [value(l0, 0.05)])
        assert one.mean_difference == pytest.approx(0.05, abs=1e-12), l0
    apart = match_l0([1, 2], [0.5, 0.4], [10, 20], [0.3, 0.2])
    assert len(apart.l0) == 0
    assert np.isnan(apart.mean_difference)
    with pytest.raises(ValueError, match="n_points is 1"):
        match_l0(l0_a, l0_a, l0_b, l0_b, n_points=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_cosine(torch.zeros(3, 4), torch.zeros(3, 5)), "max_cosine: rows"),
        (lambda: max_cosine(torch.zeros(2, 3, 4), torch.zeros(3, 3, 4)), "expected the same stack and width"),
        (lambda: max_cosine(torch.zeros(3, 4), torch.zeros(1, 3, 4)), "max_cosine"),
        (lambda: nearest_features(torch.zeros(1, 3, 4), 3), "1 ≤ n_neighbours < d_sae = 3"),
        (lambda: nearest_features(torch.zeros(1, 3, 4), 0), "n_neighbours is 0"),
    ],
)
def test_bad_inputs_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
