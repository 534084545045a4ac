"""The metrics once more, as their definitions read: float64, loops, no shortcut; nothing of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors, its sums exact but for their terms' rounding."""
    return math.fsum(a * b) / math.sqrt(math.fsum(a * a) * math.fsum(b * b))


def cosines_between(vectors: Sequence[np.ndarray]) -> list[float]:
    """|cos| of every pair of different vectors."""
    square = [math.fsum(v * v) for v in vectors]
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i)]
    return [abs(math.fsum(vectors[i] * vectors[j])) / math.sqrt(square[i] * square[j]) for i, j in pairs]


def head_vectors(z: np.ndarray, pattern: np.ndarray, W_O: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Each head as one vector in each basis: z [batch pos head d], pattern [batch head query key], W_O [head d m]."""
    n_heads = z.shape[2]
    return {
        "z": [z[:, :, h].ravel() for h in range(n_heads)],
        "pattern": [pattern[:, h].ravel() for h in range(n_heads)],
        "residual": [(z[:, :, h] @ W_O[h]).ravel() for h in range(n_heads)],
    }


def entropy(pattern: np.ndarray) -> list[float]:
    """Of each head of [batch head query key]: mean over batch and queries of −Σ p ln p."""
    found = []
    for head in pattern.transpose(1, 0, 2, 3):
        rows = head.reshape(-1, head.shape[-1])
        found.append(math.fsum(-p * math.log(p) for row in rows for p in row if p > 0) / len(rows))
    return found


def bos_mass(pattern: np.ndarray) -> list[float]:
    """Of each head: mean attention to position 0 from queries ≥ 1."""
    return [math.fsum(head[:, 1:, 0].ravel()) / head[:, 1:, 0].size for head in pattern.transpose(1, 0, 2, 3)]


def ranks(matrix: np.ndarray) -> dict[str, float]:
    """The four soft ranks from a singular value decomposition of [rows, cols], participation of the centred matrix."""
    sigma = np.linalg.svd(matrix, compute_uv=False)
    p = sigma / sigma.sum()
    eigenvalues = np.linalg.svd(matrix - matrix.mean(0), compute_uv=False) ** 2
    return {
        "nuclear_rank": sigma.sum() ** 2 / (sigma**2).sum(),
        "effective_rank": math.exp(-math.fsum(x * math.log(x) for x in p if x > 0)),
        "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "participation_ratio": eigenvalues.sum() ** 2 / (eigenvalues**2).sum(),
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def next_token_loss(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Mean loss of each sequence, from logits [batch pos vocab] and tokens [batch pos]."""
    log_p = log_softmax(logits)[:, :-1]
    return np.array([np.mean([-row[t] for row, t in zip(log_p[b], tokens[b, 1:], strict=True)])
                     for b in range(len(tokens))])  # fmt: skip


def kl(clean: np.ndarray, ablated: np.ndarray) -> float:
    """Mean KL(clean‖ablated) of next-token predictions, from logits [batch pos vocab], the last left out."""
    p, q = log_softmax(clean)[:, :-1], log_softmax(ablated)[:, :-1]
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def vsm_loss(vectors: Sequence[Sequence[np.ndarray]], power: float) -> float:
    """Σ_ℓ ((ℓ+1)/L)^p ‖G_ℓ − I‖_F of the heads' vectors of each layer."""
    total = 0.0
    for layer, heads in enumerate(vectors):
        pairs = cosines_between(heads)
        total += ((layer + 1) / len(vectors)) ** power * math.sqrt(2 * math.fsum(c * c for c in pairs))
    return total


def sae_metrics(x: np.ndarray, acts: np.ndarray, recon: np.ndarray) -> dict[str, np.ndarray]:
    """Of one SAE: x, recon [tokens d_in], acts [tokens d_sae]."""
    error = math.fsum(((x - recon) ** 2).ravel())
    fires = acts > 0
    fvu = error / math.fsum(((x - x.mean(0)) ** 2).ravel())
    return {
        "l0": np.array(sum(int(row.sum()) for row in fires) / len(x)),
        "mse": np.array(error / x.size),
        "fvu": np.array(fvu),
        "explained_variance": np.array(1 - fvu),
        "dead_fraction": np.array(np.mean([not column.any() for column in fires.T])),
        "density": fires.mean(0),
    }


def spearman_ranks(values: np.ndarray) -> np.ndarray:
    """1 … n, ties at their average."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's."""
    return cosine(a - math.fsum(a) / a.size, b - math.fsum(b) / b.size)


def mantel(x: np.ndarray, y: np.ndarray, permutations: np.ndarray, method: str, z: np.ndarray | None = None):
    """(r, p) of square distances, partial where z is given: x permuted by each permutation in turn."""
    upper = np.triu_indices(len(x), 1)
    ranked = spearman_ranks if method == "spearman" else np.asarray
    b = ranked(y[upper])
    c = None if z is None else ranked(z[upper])

    def statistic(own: np.ndarray) -> float:
        a = ranked(own[upper])
        r = correlation(a, b)
        if c is None:
            return r
        r_xz, r_yz = correlation(a, c), correlation(b, c)
        return (r - r_xz * r_yz) / math.sqrt((1 - r_xz**2) * (1 - r_yz**2))

    observed = statistic(x)
    n_extreme = sum(statistic(x[np.ix_(p, p)]) >= observed - 1e-9 for p in permutations)
    return observed, (n_extreme + 1) / (len(permutations) + 1)


def euclidean(X: np.ndarray) -> np.ndarray:
    """Distances [n, n] of rows."""
    return np.array([[math.sqrt(math.fsum((a - b) ** 2)) for b in X] for a in X])


def cosine_distances(X: np.ndarray) -> np.ndarray:
    """1 − cos [n, n] of rows."""
    return np.array([[1 - cosine(a, b) for b in X] for a in X])


def principal_direction(X: np.ndarray) -> np.ndarray:
    """The unit eigenvector of the largest eigenvalue of the covariance."""
    centred = X - X.mean(0)
    return np.linalg.eigh(centred.T @ centred)[1][:, -1]


def principal_angles(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Descending, from the eigenvalues cos² of the product of the centred column spaces' projectors."""
    p, q = (m @ np.linalg.inv(m.T @ m) @ m.T for m in (A - A.mean(0), B - B.mean(0)))
    cos2 = np.sort(np.linalg.eigvals(p @ q).real)[::-1][: min(A.shape[1], B.shape[1])]
    return np.sort(np.arccos(np.sqrt(np.clip(cos2, 0, 1))))[::-1]


def linear_cka(A: np.ndarray, B: np.ndarray, unbiased: bool) -> float:
    """Song et al. 2012's unbiased HSIC, or the plain one with H = I − 11ᵀ/n, of AAᵀ and BBᵀ; normalised."""
    n = len(A)

    def hsic(K: np.ndarray, L: np.ndarray) -> float:
        if not unbiased:
            H = np.eye(n) - 1 / n
            return float(np.trace(K @ H @ L @ H))
        K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
        one = np.ones(n)
        middle = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
        return float((np.trace(K @ L) + middle - 2 * (one @ K @ L @ one) / (n - 2)) / (n * (n - 3)))

    K, L = A @ A.T, B @ B.T
    return hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))


def procrustes(A: np.ndarray, B: np.ndarray) -> float:
    """Squared distance after shift, scale to norm 1 and the best rotation and scale, which is applied."""
    a, b = (m - m.mean(0) for m in (A, B))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    left, sigma, right = np.linalg.svd(b.T @ a)
    return float(((a - sigma.sum() * b @ left @ right) ** 2).sum())


def two_nn(X: np.ndarray, discard: float = 0.1) -> dict[str, float]:
    """TwoNN's slope through the origin, and its maximum likelihood."""
    logs = []
    for i, x in enumerate(X):
        first, second = sorted(math.dist(x, other) for j, other in enumerate(X) if j != i)[:2]
        logs.append(math.log(second / first))
    logs.sort()
    n = len(logs)
    kept = [(x, -math.log(1 - (i + 1) / n)) for i, x in enumerate(logs[: int(n * (1 - discard) + 1e-9)])]
    slope = math.fsum(x * y for x, y in kept) / math.fsum(x * x for x, _ in kept)
    return {"regression": slope, "mle": (n - 1) / math.fsum(logs)}


def lag_decay(states: np.ndarray) -> list[float]:
    """Mean cosine of displacements k layers apart, of states [concept layer d]."""
    n_layers = states.shape[1]
    moves = [[h[i + 1] - h[i] for i in range(n_layers - 1)] for h in states]
    return [float(np.mean([cosine(own[i], own[i + lag]) for own in moves for i in range(n_layers - 1 - lag)]))
            for lag in range(1, n_layers - 1)]  # fmt: skip


def parallelism(first: np.ndarray, second: np.ndarray) -> float:
    """Mean pairwise cosine of the pairs' differences."""
    d = second - first
    return float(np.mean([cosine(d[i], d[j]) for i in range(len(d)) for j in range(i)]))


def gini(values: np.ndarray) -> float:
    """Σᵢⱼ|xᵢ − xⱼ| / (2 n² x̄)."""
    return sum(abs(a - b) for a in values for b in values) / (2 * len(values) ** 2 * float(np.mean(values)))


def great_circle_km(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """By the angle between unit vectors: R·atan2(‖u × v‖, u·v)."""
    phi, lam = np.radians(lat), np.radians(lon)
    u = np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], -1)
    return np.array([[6371.0088 * math.atan2(np.linalg.norm(np.cross(a, b)), a @ b) for b in u] for a in u])
