"""Point clouds for the intrinsic-dimension tests, and the reference values of other programs on them.

Written with Python 3.11, NumPy 1.26.4, DADApy 0.3.4 and scikit-dimension 0.5.0, in an environment of their own (DADApy
pins NumPy below 2), by
    python tests/probes/golden/clouds.py > tests/probes/golden/intrinsic_dimension.csv
Every cloud comes from uniform numbers of one PCG64 stream, which NumPy keeps stable across versions.
"""

from __future__ import annotations

import math
import sys

import numpy as np


def uniform(seed, n, d):
    return np.random.Generator(np.random.PCG64(seed)).random((n, d))


def normal(seed, n, d):
    u, v = uniform(seed, n, d), uniform(seed + 1000, n, d)
    return np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * math.pi * v)


def embedded(points, d):
    """Points in d dimensions after a fixed linear map."""
    return points @ normal(77, points.shape[1], d)


def sphere(seed, n, d):
    points = normal(seed, n, d + 1)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def swiss_roll(seed, n):
    u = uniform(seed, n, 2)
    angle = 1.5 * math.pi * (1 + 2 * u[:, 0])
    return np.stack([angle * np.cos(angle), 21 * u[:, 1], angle * np.sin(angle)], axis=1)


def torus(seed, n):
    angle = 2 * math.pi * uniform(seed, n, 2)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


CLOUDS = {
    "line": embedded(uniform(1, 400, 1), 3),
    "square": uniform(2, 500, 2),
    "cube5": uniform(3, 800, 5),
    "cube10_in_24": embedded(uniform(4, 700, 10), 24),
    "gauss3": normal(5, 600, 3),
    "gauss20_in_64": embedded(normal(6, 500, 20), 64),
    "sphere4": sphere(7, 700, 4),
    "swiss_roll": swiss_roll(8, 600),
    "torus": torus(9, 500),
    "noisy_plane": embedded(normal(10, 500, 2), 30) + 0.01 * normal(11, 500, 30),
    "offset": normal(12, 500, 12) + 1000.0,
}


def main():
    import dadapy
    import skdim

    sys.stdout.write("cloud,estimator,n1,value\n")
    for name, X in CLOUDS.items():
        fits = {}
        for algorithm in ("base", "ml"):
            data = dadapy.Data(X)
            data.compute_distances(maxk=100)
            fits[f"dadapy_{algorithm}"] = data.compute_id_2NN(algorithm=algorithm, mu_fraction=0.9)[0]
        for method in ("linear", "mle"):
            estimator = skdim.id.TwoNN(discard_fraction=0.1, method=method)
            fits[f"skdim_{method}"] = estimator.fit(X).dimension_
        for estimator, value in fits.items():
            sys.stdout.write(f"{name},{estimator},1,{float(value):.15g}\n")
        data = dadapy.Data(X)
        data.compute_distances(maxk=100)
        dimensions, _, _ = data.return_id_scaling_gride(range_max=64)
        for scale, value in enumerate(dimensions):
            n1 = 2**scale
            mu = data.distances[:, 2 * n1] / data.distances[:, n1]
            high, middle = np.percentile(mu, [95, 50])
            if (mu < 20 * (high - middle) + middle).all():  # else DADApy has dropped some ratios
                sys.stdout.write(f"{name},dadapy_gride,{n1},{float(value):.15g}\n")


if __name__ == "__main__":
    main()
