"""Statistics of representations: arrays in, frozen results out; NumPy and SciPy only, no files, no models."""

from probes.checks import (
    ConstantInputWarning,
    DuplicatePointsWarning,
    LowPrecisionWarning,
    ProbeWarning,
    SmallSampleWarning,
)
from probes.ranks import (
    MatrixRanks,
    effective_rank,
    matrix_ranks,
    nuclear_rank,
    participation_ratio,
    rank_utilization,
    ranks_of_spectrum,
    singular_values,
    stable_rank,
)

__all__ = [
    "ConstantInputWarning",
    "DuplicatePointsWarning",
    "LowPrecisionWarning",
    "MatrixRanks",
    "ProbeWarning",
    "SmallSampleWarning",
    "effective_rank",
    "matrix_ranks",
    "nuclear_rank",
    "participation_ratio",
    "rank_utilization",
    "ranks_of_spectrum",
    "singular_values",
    "stable_rank",
]
