"""How unequally a quantity is shared out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Real

from probes.checks import ConstantInputWarning, as_real, warn


def gini(values: Real[np.ndarray, " n"]) -> float:
    """Gini coefficient Σᵢⱼ|xᵢ − xⱼ| / (2 n² x̄), 0 for equal shares and (n − 1)/n when one has all.

    Of a layer's ablation impacts. The plain population form, without the n/(n − 1) correction. A few values below 0 (a
    head whose removal helps) are allowed: the formula still orders, but may pass 1. nan with a `ConstantInputWarning`
    where the sum is not positive, or no more than rounding leaves of values that cancel, for then no share is defined.
    Raises ValueError for what is not a finite vector. Source: Gini 1912; negative values: Chen, Tsaur & Rhai 1982.

    >>> gini(np.array([0.0, 0.0, 0.0, 1.0]))
    0.75
    """
    x = as_real("gini", "values", values)
    if x.ndim != 1:
        raise ValueError(f"gini: values has shape {x.shape}; expected [n]")
    n, scale = x.size, float(np.abs(x).max())
    x = np.sort(x / scale) if scale > 0 else x
    total = float(x.sum())
    if total <= n * np.finfo(np.float64).eps * float(np.abs(x).sum()):
        warn(ConstantInputWarning, f"gini: the values sum to {total * scale:g}; shares are undefined (nan)")
        return float("nan")
    return float(np.sum((2 * np.arange(1, n + 1) - n - 1) * x) / (n * total))
