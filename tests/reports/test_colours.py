"""Nine models are told apart in every figure by everyone: by marker, by dash, and the first four by colour alone.

Colour vision deficiencies are simulated by the matrices of Machado, Oliveira & Fernandes (2009), severity 1, in linear
RGB; distances are CIE76 in CIELAB (D65), of which about 2.3 can just be noticed.
"""

from __future__ import annotations

import itertools
from itertools import combinations

import numpy as np
import pytest

from reports.figures.style import DARK, DASHES, DEPTH, PALETTE, PAPER, SYMBOLS, marks_of

VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = TO_XYZ.sum(axis=1)
DARK_PALETTE = tuple(DARK[colour] for colour in PALETTE)
N_MODELS = 9


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    t = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(a: str, b: str, vision: str) -> float:
    return float(np.linalg.norm(lab(VISIONS[vision] @ linear(a)) - lab(VISIONS[vision] @ linear(b))))


def contrast(a: str, b: str) -> float:
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (a, b))
    return (high + 0.05) / (low + 0.05)


def test_the_measures_know_what_is_known():
    assert lab(linear("#ffffff")) == pytest.approx([100, 0, 0], abs=0.01)
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)  # Lindbloom's calculator
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert distance("#ff0000", "#808000", "protanopia") < distance("#ff0000", "#808000", "normal") / 2


def test_no_two_of_nine_share_a_marker_or_a_dash():
    for marks in (PALETTE, SYMBOLS, DASHES):
        assert len(set(marks[:N_MODELS])) == len(marks) == N_MODELS


def test_more_than_nine_differ_in_mark_and_dash_where_the_colour_comes_again():
    many = [marks_of(index) for index in range(45)]
    assert many[:N_MODELS] == list(zip(PALETTE, SYMBOLS, DASHES, strict=True))
    for one, other in combinations(many, 2):
        assert sum(a != b for a, b in zip(one, other, strict=True)) >= 2


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("palette", [PALETTE, DARK_PALETTE], ids=["light", "dark"])
def test_the_first_four_stay_apart_by_colour_alone(palette, vision):
    for a, b in combinations(palette[:4], 2):
        assert distance(a, b, vision) > 12, (a, b)


@pytest.mark.parametrize("vision", ["normal", "tritanopia"])
@pytest.mark.parametrize("palette", [PALETTE, DARK_PALETTE], ids=["light", "dark"])
def test_no_two_of_nine_look_alike(palette, vision):
    least = 15 if vision == "normal" else 8
    for a, b in combinations(palette, 2):
        assert distance(a, b, vision) > least, (a, b)


@pytest.mark.parametrize(("palette", "paper"), [(PALETTE, PAPER), (DARK_PALETTE, DARK[PAPER])], ids=["light", "dark"])
def test_every_colour_stands_out_from_the_page(palette, paper):
    depth = DEPTH if palette is PALETTE else tuple(DARK[colour] for colour in DEPTH)
    assert min(contrast(colour, paper) for colour in (*palette, *depth)) >= 3  # WCAG 2.2, 1.4.11


@pytest.mark.parametrize("depth", [DEPTH, tuple(DARK[colour] for colour in DEPTH)], ids=["light", "dark"])
def test_neighbours_in_an_order_are_told_apart(depth):
    for one, other in itertools.pairwise(depth):
        assert distance(one, other, "normal") > 15
