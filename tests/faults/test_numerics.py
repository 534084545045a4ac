"""Every metric against a float64 reference that knows nothing of ours (`naive`), on the same rounded input.

The error is therefore that of our arithmetic, not of the input's rounding. Where a model or an SAE itself runs in the
dtype ("of a model", "encoded"), the reference is the float64 one with the rounded weights: the error is what running
in that dtype costs.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import naive
import numpy as np
import pytest
import torch
from models_for_tests import small_model, tokens_for

import probes
import sae
from workbench.analyses.ablate.ablation import ablate
from workbench.analyses.attention.statistics import attention, bos_mass, entropy
from workbench.analyses.compare.comparison import compare
from workbench.analyses.sae_train.evaluation import recovered, splice
from workbench.analyses.topology.heads import LayerHeads, sigma_of_moment, topology
from workbench.models import cross_entropy
from workbench.models.activations import choose_slots
from workbench.models.cross_entropy import linear_cross_entropy
from workbench.models.geometry import BASES, head_entropy, max_abs_cos, mean_abs_cos
from workbench.training.head_grams import head_gram, pattern_gram, residual_gram, sigma
from workbench.training.interventions.vsm import vsm_loss

SEEDS = (0, 1, 2)
F64, F32, BF16, F16 = (str(name) for name in ("float64", "float32", "bfloat16", "float16"))


class Limit(NamedTuple):
    """How large an error may be: |ours − reference|, or where relative that over the reference's largest |value|."""

    metrics: tuple[str, ...]
    by_dtype: dict[str, float]
    why: str
    is_relative: bool = False


RANKS = ("nuclear_rank", "effective_rank", "stable_rank", "participation_ratio")
COSINES = tuple(f"{name} on {basis}" for basis in BASES for name in ("max_cos", "mean_cos"))
THREE = (F32, BF16, F16)
WIDE = dict.fromkeys(THREE, 1e-14)
NUMPY = dict.fromkeys((F64, F32), 1e-14)
# problem -> its limits; the dtypes are those that the function is given, or that the model runs in
TOLERANCES: dict[str, tuple[Limit, ...]] = {
    "heads": (
        Limit(COSINES, WIDE, "sums in float64 whatever comes in"),
        Limit(RANKS, dict.fromkeys(THREE, 1e-13), "eigenvalues of a float64 Gram matrix", True),
        Limit(("head_entropy, training", "bos_mass"), WIDE, "sums in float64 whatever comes in"),
        Limit(("head_entropy",), dict.fromkeys(THREE, 1e-7), "p ln p in float32, summed in float64"),
        Limit(("sigma, training", "VSM loss", "VSM loss on residual"), dict.fromkeys(THREE, 1e-6),
              "Gram matrix in float32"),
        Limit(("VSM loss on pattern",), dict.fromkeys(THREE, 1e-6), "Gram matrix in float32", True),
        Limit(("VSM gradient",), {F32: 1e-6, BF16: 1e-2, F16: 2e-3}, "float32, then rounded to z's dtype", True),
    ),
    "model": (
        Limit(("loss of a model", "ce_spliced", "ce_zero"), {F32: 2e-7, BF16: 4e-3, F16: 4e-4},
              "half a unit of each logit, which averages out", True),
        Limit(("impact_pct", "stderr"), {F32: 2e-5, BF16: 0.2, F16: 0.05}, "a hundred times a loss's error"),
        Limit(("KL of ablation",), {F32: 2e-6, BF16: 2e-2, F16: 2e-3}, "from differences of logits", True),
        Limit(("ce_recovered",), {F32: 5e-5, BF16: 0.3, F16: 0.1}, "divides by the small ce_zero − ce_base", True),
        Limit(tuple(f"{c} of a model" for c in COSINES), {F32: 2e-7, BF16: 2e-3, F16: 4e-4}, "of z in that dtype"),
        Limit(tuple(f"{r} of a model" for r in RANKS), {F32: 2e-7, BF16: 6e-3, F16: 8e-4}, "of z in that dtype", True),
        Limit(("head_entropy of a model", "bos_mass of a model"), {F32: 1e-6, BF16: 2e-2, F16: 2e-3},
              "of maps in that dtype"),
        Limit(("eigenspectra_divergence",), WIDE, "weights as they are, ranks in float64"),
    ),
    "saes": (
        Limit(("l0", "dead_fraction", "density"), dict.fromkeys(THREE, 1e-15), "counts"),
        Limit(("mse", "fvu", "explained_variance"), WIDE, "sums and means merged in float64", True),
        Limit(("stability",), WIDE, "unit rows in float64"),
        Limit(("l0, encoded",), {F32: 1e-3, BF16: 1e-2, F16: 3e-3}, "a sum near 0 may change its sign", True),
        Limit(("mse, encoded",), {F32: 1e-7, BF16: 2e-3, F16: 2e-4}, "products in the dtype", True),
    ),
    "cross_entropy": (
        Limit(("cross-entropy",), {F32: 1e-6, BF16: 4e-3, F16: 5e-4}, "as per row, averaged"),
        Limit(("cross-entropy, per row",), {F32: 4e-6, BF16: 8e-2, F16: 8e-3}, "half a unit of logits up to 10"),
        Limit(("cross-entropy, gradient of x", "cross-entropy, gradient of W_U"),
              {F32: 3e-6, BF16: 2e-2, F16: 2e-3}, "softmax in float32, products in the dtype", True),
    ),
    "distances": (
        Limit(("euclidean", "cosine distance", "great_circle_km"), dict.fromkeys((F64, F32), 1e-11),
              "rounded to 12 digits, so that ties are ties", True),
        Limit(("mantel, spearman", "mantel, pearson", "partial_mantel", "partial_mantel, r2", "mantel_many"), NUMPY,
              "float64 whatever comes in"),
        Limit(("mantel, p", "partial_mantel, p", "mantel_many, p"), dict.fromkeys((F64, F32), 1e-15), "counts"),
    ),
    "clouds": (
        Limit(tuple(f"{r} of weights" for r in RANKS), dict.fromkeys((F64, F32), 1e-13), "Gram matrix or SVD, float64",
              True),
        Limit(("pc_abs_cosine", "procrustes", "principal_angles"), dict.fromkeys((F64, F32), 1e-12),
              "SVD in float64; its gaps cost a digit or two"),
        Limit(("linear_cka", "linear_cka, biased"), dict.fromkeys((F64, F32), 1e-13), "float64 whatever comes in"),
        Limit(("two_nn", "two_nn, mle"), dict.fromkeys((F64, F32), 1e-13), "neighbours refined in float64", True),
        Limit(("trajectory_consistency", "lag_decay", "pair_parallelism", "gini"), NUMPY, "float64 whatever comes in"),
    ),
}  # fmt: skip
ROWS = [
    pytest.param(problem, limit, metric, dtype, id=f"{metric}-{dtype}")
    for problem, limits in TOLERANCES.items()
    for limit in limits
    for metric in limit.metrics
    for dtype in limit.by_dtype
]
Answers = dict[str, tuple[Any, Any]]
"""metric -> (ours, the reference's)"""


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(x: torch.Tensor | None) -> np.ndarray:
    assert x is not None, "a gradient was made"
    return x.detach().double().numpy()


def array(seed: int, dtype: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def heads(seed: int, name: str) -> Answers:
    """One layer's z, maps and W_O; heads share a part, so that their cosines are not all noise. Two batches."""
    dtype = getattr(torch, name)
    z = (normal(seed, 4, 20, 4, 6) + normal(seed + 9, 4, 20, 1, 6)).to(dtype)
    scores = normal(seed + 1, 4, 4, 20, 20).masked_fill(torch.ones(20, 20).triu(1).bool(), -torch.inf)
    pattern = (2 * scores).softmax(-1).to(dtype)
    W_O = normal(seed + 2, 4, 6, 10).to(dtype)
    vectors = naive.head_vectors(exact(z), exact(pattern), exact(W_O))
    layer = LayerHeads()
    for half in (slice(0, 1), slice(1, 4)):
        layer.add(z[half], pattern[half])
    found: Answers = {}
    for basis in BASES:
        cos, pairs = layer.redundancy.cosines(basis, W_O), naive.cosines_between(vectors[basis])
        found[f"max_cos on {basis}"] = max_abs_cos(cos), max(pairs)
        found[f"mean_cos on {basis}"] = mean_abs_cos(cos), np.mean(pairs)
    spectrum = sigma_of_moment(layer.moment(), 80)
    assert spectrum is not None, "80 rows of 24 columns have a condition that the Gram matrix bears"
    ours = vars(probes.ranks_of_spectrum(spectrum)) | {"participation_ratio": layer.centred_participation()}
    wanted = naive.ranks(exact(z).reshape(80, 24))
    found |= {rank: (ours[rank], wanted[rank]) for rank in RANKS}
    found["head_entropy, training"] = exact(head_entropy(pattern)), naive.entropy(exact(pattern))
    found["head_entropy"] = exact(entropy(pattern)) / 4, naive.entropy(exact(pattern))
    found["bos_mass"] = exact(bos_mass(pattern)) / 4, naive.bos_mass(exact(pattern))
    leaf = z.clone().requires_grad_()
    loss = vsm_loss([head_gram(leaf), head_gram(leaf[:2])], 3)
    loss.backward()
    layers = [vectors["z"], naive.head_vectors(exact(z[:2]), exact(pattern), exact(W_O))["z"]]
    found["VSM loss"] = loss.item(), naive.vsm_loss(layers, 3)
    found["VSM loss on pattern"] = (
        float(vsm_loss([pattern_gram(pattern)], 3.0)),
        naive.vsm_loss([vectors["pattern"]], 3),
    )
    found["VSM loss on residual"] = (
        float(vsm_loss([residual_gram(z, W_O)], 3.0)),
        naive.vsm_loss([vectors["residual"]], 3),
    )
    found["sigma, training"] = float(sigma(head_gram(z))), np.mean(naive.cosines_between(vectors["z"]))
    found["VSM gradient"] = exact(leaf.grad), _vsm_gradient(z.double())
    return found


def _vsm_gradient(z: torch.Tensor) -> np.ndarray:
    """By autograd in float64 through normalised rows."""
    leaf, total = z.clone().requires_grad_(), torch.zeros((), dtype=torch.float64)
    for weight, part in ((1 / 8, leaf), (1.0, leaf[:2])):
        V = torch.nn.functional.normalize(part.transpose(0, 2).reshape(4, -1), dim=1)
        total = total + weight * (V @ V.T - torch.eye(4, dtype=torch.float64)).norm()
    total.backward()
    return exact(leaf.grad)


def model(seed: int, name: str) -> Answers:
    """A model in the dtype beside the float64 one of the same rounded weights: ablations, geometry, splices."""
    rounded = small_model("janus-v3", seed, n_layers=2).to(getattr(torch, name))
    wide = copy.deepcopy(rounded).to(torch.float64)
    tokens = tokens_for(rounded, 6, seed=seed)
    names = [f"blocks.{layer}.attn.hook_{what}" for layer in (0, 1) for what in ("z", "pattern")]
    with torch.no_grad():
        logits, cached = wide.run_with_cache(tokens, names_filter=names)
    clean, ids = exact(logits), tokens.numpy()
    own_base = naive.next_token_loss(clean, ids)
    base = own_base.mean()
    impact, spread, divergence, of_zero = [], [], [], []
    for layer in (0, 1):
        for head in range(4):
            without = _spliced(wide, tokens, layer, head, None)
            losses = naive.next_token_loss(without, ids)
            of_zero.append(losses.mean())
            ratio = (losses.mean() - base) / base
            impact.append(100 * ratio)
            rest = losses - own_base - ratio * own_base
            spread.append(100 * np.std(rest, ddof=1) / len(ids) ** 0.5 / base)
            divergence.append(naive.kl(clean, without))
    table = ablate(rounded, tokens, dtype=name, n_bootstrap=100)
    found: Answers = {
        "loss of a model": (table["base_loss"][0], base),
        "impact_pct": (table["impact_pct"].to_numpy(), impact),
        "stderr": (table["stderr"].to_numpy(), spread),
        "KL of ablation": (table["kl"].to_numpy(), divergence),
    }
    looks = attention(rounded, tokens, n_repeated=0)
    maps = [exact(cached[f"blocks.{layer}.attn.hook_pattern"]) for layer in (0, 1)]
    found["head_entropy of a model"] = looks["entropy"].to_numpy(), np.concatenate([naive.entropy(m) for m in maps])
    found["bos_mass of a model"] = looks["bos_mass"].to_numpy(), np.concatenate([naive.bos_mass(m) for m in maps])
    found["eigenspectra_divergence"] = _divergence(rounded, seed)
    return found | _geometry_of(rounded, wide, seed) | _splices(rounded, wide, tokens, base, of_zero, seed)


def _divergence(rounded: Any, seed: int) -> tuple[Any, Any]:
    """Of attention, MLP and both, between this model's weights and another's."""
    other = small_model("janus-v3", seed + 5, n_layers=2).to(next(rounded.parameters()).dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 8 sequences are few for what else is compared
        table = compare(rounded, other, tokens_for(rounded, 8), n_components=1).eigenspectra_divergence
    shares: dict[str, list[float]] = {"attention": [], "mlp": []}
    for own, theirs in zip(rounded.blocks, other.blocks, strict=True):
        for name in ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out"):
            part = "mlp" if name in ("W_gate", "W_in", "W_out") else "attention"
            a, b = (
                naive.ranks(
                    _side_by_side(name, exact(getattr(getattr(block, "attn" if part == "attention" else "mlp"), name)))
                )["nuclear_rank"]
                for block in (own, theirs)
            )
            shares[part].append(abs(a - b) / ((a + b) / 2))
    wanted = shares | {"all": shares["attention"] + shares["mlp"]}
    return table["divergence"].to_numpy(), [np.mean(wanted[part]) for part in table["part"]]


def _side_by_side(name: str, weight: np.ndarray) -> np.ndarray:
    """A weight as a matrix: heads' columns, and W_O's rows, laid end to end."""
    if weight.ndim == 2:
        return weight
    return np.concatenate(list(weight), axis=0 if name == "W_O" else 1)


def _spliced(wide: Any, tokens: torch.Tensor, layer: int, head: int, stack: sae.StackedSAE | None) -> np.ndarray:
    """Logits with one head's z replaced by zero or by the SAE's reconstruction."""

    def replace(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        own = z[:, :, head]
        z[:, :, head] = 0 if stack is None else stack(own.flatten(0, 1)[None])[1][0].view(own.shape)
        return z

    with torch.no_grad():
        return exact(wide.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", replace)]))


def _geometry_of(rounded: Any, wide: Any, seed: int) -> Answers:
    """topology_stats of enough tokens for ranks."""
    tokens = tokens_for(rounded, 256, seed=seed)
    stats = topology(rounded, tokens)
    ours: dict[str, list[float]] = {}
    wanted: dict[str, list[float]] = {}
    with torch.no_grad():
        cached = wide.run_with_cache(tokens, names_filter=lambda n: n.endswith(("hook_z", "hook_pattern")))[1]
    for layer in (0, 1):
        z, pattern = (exact(cached[f"blocks.{layer}.attn.hook_{what}"]) for what in ("z", "pattern"))
        vectors = naive.head_vectors(z, pattern, exact(wide.blocks[layer].attn.W_O))
        own = naive.ranks(z.reshape(len(z) * z.shape[1], -1))
        for basis in BASES:
            pairs = naive.cosines_between(vectors[basis])
            own |= {f"max_cos on {basis}": max(pairs), f"mean_cos on {basis}": float(np.mean(pairs))}
            row = stats[(stats["layer"] == layer) & (stats["basis"] == basis)].iloc[0]
            for kind in ("max_cos", "mean_cos"):
                ours.setdefault(f"{kind} on {basis}", []).append(row[kind])
        for rank in RANKS:
            ours.setdefault(rank, []).append(row[rank])
        for key, value in own.items():
            wanted.setdefault(key, []).append(value)
    return {f"{key} of a model": (ours[key], wanted[key]) for key in wanted}


def _stack(seed: int, n_saes: int, d_in: int, dtype: torch.dtype) -> sae.StackedSAE:
    """SAEs whose weights and biases are all random, so that features fire, some never."""
    d_sae = 3 * d_in
    tensors = {
        "W_enc": normal(seed, n_saes, d_in, d_sae) / d_in**0.5, "W_dec": normal(seed + 1, n_saes, d_sae, d_in) / d_in,
        "b_enc": normal(seed + 2, n_saes, d_sae) - 1, "b_dec": 0.1 * normal(seed + 3, n_saes, d_in),
    }  # fmt: skip
    tensors["b_enc"][:, 0] = -100.0
    config = sae.SAEConfig(n_saes=n_saes, d_in=d_in, d_sae=d_sae)
    return sae.StackedSAE.from_tensors(config, {k: t.to(dtype).contiguous() for k, t in tensors.items()})


def _splices(rounded: Any, wide: Any, tokens: torch.Tensor, base: float, of_zero: list[float], seed: int) -> Answers:
    """A stack of the dtype in the place of every head's z."""
    stack = _stack(seed, 8, 8, next(rounded.parameters()).dtype)
    slots = choose_slots(rounded.cfg)
    losses = splice(rounded, tokens, slots, list(range(8)), {"trained": stack})
    own = losses.spliced["trained"]
    double, ids = copy.deepcopy(stack).double(), tokens.numpy()
    spliced = np.array([
        naive.next_token_loss(_spliced(wide, tokens, s.layer, int(s.head or 0), double.select([k])), ids).mean()
        for k, s in enumerate(slots)
    ])  # fmt: skip
    zero = np.array(of_zero)
    return {
        "ce_spliced": (exact(own), spliced),
        "ce_zero": (exact(losses.zero), zero),
        "ce_recovered": (exact(recovered(losses.base, losses.zero, own)), (zero - spliced) / (zero - base)),
    }


def saes(seed: int, name: str) -> Answers:
    """Two SAEs on 1,500 tokens, in two batches: the measures of what they gave, and what they gave."""
    dtype = getattr(torch, name)
    stack, x = _stack(seed, 2, 8, dtype), (normal(seed + 4, 2, 1500, 8) + 1).to(dtype)
    with torch.no_grad():
        acts, recon = stack(x)
        wide_acts, wide_recon = copy.deepcopy(stack).double()(x.double())
    sums = sae.MetricSums(stack.config)
    for part in (slice(0, 1100), slice(1100, None)):
        sums.update(x[:, part], acts[:, part], recon[:, part])
    ours = sums.result()
    wanted, encoded = (
        [naive.sae_metrics(exact(x[k]), exact(a[k]), exact(r[k])) for k in (0, 1)]
        for a, r in ((acts, recon), (wide_acts, wide_recon))
    )
    found: Answers = {m: (exact(getattr(ours, m)), [own[m] for own in wanted]) for m in wanted[0]}
    found |= {f"{m}, encoded": (exact(getattr(ours, m)), [own[m] for own in encoded]) for m in ("l0", "mse")}
    other = _stack(seed + 20, 2, 8, dtype)
    best = [[max(naive.cosine(a, b) for b in exact(other.W_dec[k])) for a in exact(stack.W_dec[k])] for k in (0, 1)]
    found["stability"] = exact(sae.stability(stack.W_dec, other.W_dec).mean), np.mean(best, axis=1)
    return found


def cross_entropies(seed: int, name: str) -> Answers:
    """Loss and gradients of 70 rows and 300 tokens, in chunks of 16 rows; logits of some ± 6."""
    dtype = getattr(torch, name)
    x, W = normal(seed, 70, 24).to(dtype), (0.4 * normal(seed + 1, 24, 300)).to(dtype)
    targets = torch.randint(0, 300, (70,), generator=torch.Generator().manual_seed(seed))
    leaves = [t.clone().requires_grad_() for t in (x, W)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CHUNK_ELEMENTS", 16 * 300)
        loss = linear_cross_entropy(leaves[0], leaves[1], targets)
        loss.backward()
        rows = linear_cross_entropy(x, W, targets, per_row=True)
    a, b = exact(x), exact(W)
    log_p = naive.log_softmax(a @ b)
    wanted = -log_p[np.arange(70), targets.numpy()]
    slope = (np.exp(log_p) - np.eye(300)[targets.numpy()]) / 70
    return {
        "cross-entropy": (loss.item(), wanted.mean()),
        "cross-entropy, per row": (exact(rows), wanted),
        "cross-entropy, gradient of x": (exact(leaves[0].grad), slope @ b.T),
        "cross-entropy, gradient of W_U": (exact(leaves[1].grad), a.T @ slope),
    }


def distances(seed: int, dtype: str) -> Answers:
    """Ten items: distances between them, and Mantel's statistics of distances of that dtype."""
    X = array(seed, dtype, 10, 4)
    lat, lon = degrees = np.stack([60 * array(seed + k, dtype, 10).clip(-1.4, 1.4) for k in (1, 2)])
    found: Answers = {
        "euclidean": (probes.euclidean_distances(X), naive.euclidean(X.astype(float))),
        "cosine distance": (probes.cosine_distances(X), naive.cosine_distances(X.astype(float))),
        "great_circle_km": (probes.great_circle_km(lat, lon), naive.great_circle_km(*degrees.astype(float))),
    }  # fmt: skip
    x = naive.euclidean(X.astype(float)).astype(dtype)
    y = probes.ordinal_distances(10).astype(dtype)
    z = naive.euclidean(X[:, :1] + array(seed + 5, dtype, 10, 2)).astype(dtype)
    permutations = np.stack([np.random.default_rng([seed, k]).permutation(10) for k in range(60)])
    for method in ("spearman", "pearson"):
        own = probes.mantel(x, y, method=method, permutations=permutations, rng=0)
        r, p = naive.mantel(x.astype(float), y.astype(float), permutations, method)
        found[f"mantel, {method}"] = own.statistic, r
        found["mantel, p"] = own.pvalue, p
    partial = probes.partial_mantel(x, y, z, permutations=permutations, rng=0)
    r, p = naive.mantel(x.astype(float), y.astype(float), permutations, "spearman", z.astype(float))
    found |= {"partial_mantel": (partial.statistic, r), "partial_mantel, r2": (partial.r2, r**2)}
    found["partial_mantel, p"] = partial.pvalue, p
    many = probes.mantel_many(np.stack([x, z]), y, permutations=permutations, rng=0)
    wanted = [naive.mantel(own.astype(float), y.astype(float), permutations, "spearman") for own in (x, z)]
    found["mantel_many"] = many.statistic, [r for r, _ in wanted]
    found["mantel_many, p"] = many.pvalue, [p for _, p in wanted]
    return found


def clouds(seed: int, dtype: str) -> Answers:
    """Matrices of states of the same items, a cloud, trajectories, pairs, impacts."""
    W = array(seed, dtype, 30, 12)
    found: Answers = {}
    for rank, value in naive.ranks(W.astype(float)).items():
        found[f"{rank} of weights"] = getattr(probes, rank)(W), value
    scales = np.array([4, 2, 1], dtype=dtype)
    A, B = array(seed + 1, dtype, 14, 3) * scales, array(seed + 2, dtype, 14, 3)
    B = B * scales + A * dtype_of(dtype, 0.5)
    a, b = A.astype(float), B.astype(float)
    found["pc_abs_cosine"] = (
        probes.pc_abs_cosine(A, B), abs(naive.principal_direction(a) @ naive.principal_direction(b))
    )  # fmt: skip
    found["principal_angles"] = probes.principal_angles(A, B, center=True), naive.principal_angles(a, b)
    found["linear_cka"] = probes.linear_cka(A, B), naive.linear_cka(a, b, True)
    found["linear_cka, biased"] = probes.linear_cka(A, B, unbiased=False), naive.linear_cka(a, b, False)
    found["procrustes"] = probes.procrustes_disparity(A, B), naive.procrustes(a, b)
    cloud = array(seed + 3, dtype, 90, 12) + dtype_of(dtype, 3)
    wanted = naive.two_nn(cloud.astype(float))
    found["two_nn"] = probes.two_nn(cloud).dimension, wanted["regression"]
    found["two_nn, mle"] = probes.two_nn(cloud, fit="mle").dimension, wanted["mle"]
    states = array(seed + 4, dtype, 5, 7, 6).cumsum(1)
    decay = naive.lag_decay(states.astype(float))
    found["trajectory_consistency"] = probes.trajectory_consistency(states), decay[0]
    found["lag_decay"] = probes.lag_decay(states), decay
    first, second = array(seed + 5, dtype, 6, 8), array(seed + 6, dtype, 6, 8)
    own = probes.pair_parallelism(first, second, n_resamples=0, rng=0).statistic
    found["pair_parallelism"] = own, naive.parallelism(first.astype(float), second.astype(float))
    impacts = np.exp(array(seed + 7, dtype, 12))
    found["gini"] = probes.gini(impacts), naive.gini(impacts.astype(float))
    return found


def dtype_of(name: str, value: float) -> np.generic:
    return np.dtype(name).type(value)


PROBLEMS: dict[str, Callable[[int, str], Answers]] = {
    "heads": heads, "model": model, "saes": saes, "cross_entropy": cross_entropies, "distances": distances,
    "clouds": clouds,
}  # fmt: skip


@cache
def answers(problem: str, seed: int, dtype: str) -> Answers:
    return PROBLEMS[problem](seed, dtype)


def error_of(ours: Any, wanted: Any, is_relative: bool) -> float:
    """The largest error; infinite where one is no number or where the shapes differ."""
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.abs(a - b).max() / (np.abs(b).max() if is_relative else 1.0))


@pytest.mark.parametrize(("problem", "limit", "metric", "dtype"), ROWS)
def test_errors_stay_within_the_table(problem, limit, metric, dtype, tally, record_property) -> None:
    errors = [error_of(*answers(problem, seed, dtype)[metric], limit.is_relative) for seed in SEEDS]
    tolerance = limit.by_dtype[dtype]
    tally("numerics", f"{metric}, {dtype}", len(errors), sum(error <= tolerance for error in errors))
    row = {"metric": metric, "dtype": dtype, "largest": max(errors), "tolerance": tolerance}
    record_property("error", json.dumps(row | {"is_relative": limit.is_relative, "why": limit.why}))
    assert max(errors) <= tolerance, f"{metric}, {dtype}: errors {errors}; expected at most {tolerance}"


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_answer_has_a_row(problem) -> None:
    limits = TOLERANCES[problem]
    wanted = {metric for limit in limits for metric in limit.metrics}
    assert set(answers(problem, SEEDS[0], F32)) == wanted
    assert len({dtype for limit in limits for dtype in limit.by_dtype}) > 1


def test_an_error_is_seen() -> None:
    assert error_of([1.0, 2.0], [1.0, 2.5], is_relative=False) == 0.5
    assert error_of([1.0, 2.0], [1.0, 2.5], is_relative=True) == 0.2
    assert error_of(float("nan"), 1.0, is_relative=True) == error_of([1.0], 1.0, is_relative=False) == float("inf")
