"""Whether an SAE is adequate: sparse beside the width of what it reads, and better than random directions as sparse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

L0_SHARE = 1 / 3  # of d_in, what l0 may be at most: more active features than dimensions take nothing apart
FVU_SHARE = 0.75  # of the random dictionary's fvu, what fvu may be at most
INADEQUATE = "inadequate"


def fvu_over_random(fvu: Float[Tensor, "n_saes"], random_fvu: Float[Tensor, "n_saes"]) -> Float[Tensor, "n_saes"]:
    """fvu / fvu of the random dictionary of the same size and l0; nan where either is, or the second is 0.

    >>> fvu_over_random(torch.tensor([0.2, 0.3]), torch.tensor([0.4, 0.0])).tolist()
    [0.5, nan]
    """
    return torch.where(random_fvu > 0, fvu / random_fvu, torch.nan)


def is_adequate(l0: Float[Tensor, "n_saes"], ratio: Float[Tensor, "n_saes"], d_in: int) -> list[bool | float]:
    """Whether l0 ≤ d_in / 3 and `fvu_over_random` ≤ .75, of every SAE; nan where the ratio is.

    >>> is_adequate(torch.tensor([5.0, 6.0, 5.0, 5.0]), torch.tensor([0.7, 0.7, 0.8, torch.nan]), d_in=16)
    [True, False, False, nan]
    """
    is_met = (l0 <= L0_SHARE * d_in) & (ratio <= FVU_SHARE)
    is_known = ~ratio.isnan()
    return [met if known else math.nan for met, known in zip(is_met.tolist(), is_known.tolist(), strict=True)]


def inadequate_alarms(results: pd.DataFrame, columns: Sequence[Any], step: int) -> pd.DataFrame:
    """The alarms of the SAEs of sae_training_results that are not adequate, a row for each, with these columns.

    value and threshold are of l0 where it is above d_in / 3, else of fvu_over_random. step: the last of the training.
    """
    rows = results[results["is_adequate"].eq(False)]
    largest_l0 = L0_SHARE * rows["d_in"]
    is_dense = rows["l0"] > largest_l0
    found = rows.assign(
        step=step,
        kind=INADEQUATE,
        value=rows["fvu_over_random"].where(~is_dense, rows["l0"]),
        threshold=largest_l0.where(is_dense, FVU_SHARE),
    )
    return found[list(columns)].reset_index(drop=True)
