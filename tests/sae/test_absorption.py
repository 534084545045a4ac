"""Feature absorption on toy SAEs whose absorbed words are known."""

from __future__ import annotations

import pytest
import torch

from sae import find_absorbed

D_IN, N_WORDS = 12, 30


def toy(n_absorbed: int, seed: int = 0, scale: float = 1.0):
    """Words that hold the concept's direction and one of their own. Feature 0 is the concept's; on the first words it
    is silent, and the feature of the word holds the concept too. Decoder rows are `scale` long."""
    basis = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(seed)).double())[0]
    concept, own = basis[0], basis[1:].repeat(3, 1)[:N_WORDS]
    x = concept + own
    directions = torch.cat([concept[None], own])
    directions[1 : n_absorbed + 1] += concept
    acts = torch.zeros(N_WORDS, 1 + N_WORDS).double()
    acts[n_absorbed:, 0] = 1
    acts[torch.arange(N_WORDS), torch.arange(N_WORDS) + 1] = 1
    assert torch.allclose(acts @ directions, x)
    return acts / scale, directions * scale, x, concept


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_absorbed", [0, 1, 7, N_WORDS])
@pytest.mark.parametrize("scale", [1.0, 0.01, 50.0])
def test_planted_absorption_is_found_and_no_other(seed, n_absorbed, scale) -> None:
    acts, directions, x, concept = toy(n_absorbed, seed, scale)
    found = find_absorbed(acts, directions, x, 3 * concept, [0])
    assert found.is_absorbed.tolist() == [i < n_absorbed for i in range(N_WORDS)]
    assert found.feature[:n_absorbed].tolist() == list(range(1, n_absorbed + 1))
    torch.testing.assert_close(found.share[:n_absorbed], torch.ones(n_absorbed).double())


def test_each_condition_is_needed() -> None:
    acts, directions, x, concept = toy(7)
    weak = acts.clone()
    weak[0, 0] = 1e-3  # the concept's feature fires a little: not silent
    assert int(find_absorbed(weak, directions, x, concept, [0]).is_absorbed.sum()) == 6
    assert int(find_absorbed(acts, directions, x, concept, [0, 1]).is_absorbed.sum()) == 6  # its absorber is a main one
    assert not find_absorbed(acts, directions, x, concept, [0], min_cosine=0.8).is_absorbed.any()  # cosine √½
    assert not find_absorbed(acts / 3, directions, x, concept, [0]).is_absorbed.any()  # a third of the projection
    against = find_absorbed(acts, directions, -x, concept, [0])
    assert not against.is_absorbed.any()
    assert against.share.isnan().all()


def test_the_cosine_in_place_of_the_product_misses_absorption_by_long_rows() -> None:
    """f cos(d, p̂), as SAEBench has it, is what a feature adds only where rows have norm 1."""
    acts, directions, x, concept = toy(7, scale=10.0)
    unit = directions / directions.norm(dim=1, keepdim=True)
    theirs = (acts * (unit @ concept))[:7, 1:].amax(dim=1) / (x @ concept)[:7]
    assert bool((theirs < 0.4).all())
    assert find_absorbed(acts, directions, x, concept, [0]).is_absorbed[:7].all()


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"main": []}, "got main features []; expected some"),
        ({"main": [99]}, r"got main features [99]"),
        ({"main": list(range(31))}, "expected some, not all, of 31"),
        ({"probe": torch.zeros(D_IN)}, "got a probe of zeros; expected a direction"),
        ({"x": torch.zeros(3, D_IN)}, "expected (31, 12) and (30, 12)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message) -> None:
    acts, directions, x, concept = toy(3)
    given = {"acts": acts, "directions": directions, "x": x, "probe": concept, "main": [0]} | change
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        find_absorbed(**given)
    assert message in str(caught.value)
