"""Statistics of representations: arrays in, frozen results out; NumPy and SciPy only, no files, no models."""

from probes.bootstrap import ConfidenceInterval
from probes.checks import (
    ConstantInputWarning,
    DuplicatePointsWarning,
    LowPrecisionWarning,
    ProbeWarning,
    SmallSampleWarning,
)
from probes.concentration import gini
from probes.distances import (
    cosine_distances,
    cyclic_distances,
    euclidean_distances,
    great_circle_km,
    levenshtein_distances,
    ordinal_distances,
)
from probes.intrinsic_dimension import (
    GrideResult,
    TwoNNCurve,
    TwoNNResult,
    gride,
    two_nn,
    two_nn_curve,
    two_nn_from_distances,
)
from probes.mantel import (
    MantelManyResult,
    MantelResult,
    PartialMantelResult,
    mantel,
    mantel_many,
    partial_mantel,
)
from probes.multiplicity import benjamini_hochberg, pool_permutations, westfall_young
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
    "ConfidenceInterval",
    "ConstantInputWarning",
    "DuplicatePointsWarning",
    "GrideResult",
    "LowPrecisionWarning",
    "MantelManyResult",
    "MantelResult",
    "MatrixRanks",
    "PartialMantelResult",
    "ProbeWarning",
    "SmallSampleWarning",
    "TwoNNCurve",
    "TwoNNResult",
    "benjamini_hochberg",
    "cosine_distances",
    "cyclic_distances",
    "effective_rank",
    "euclidean_distances",
    "gini",
    "great_circle_km",
    "gride",
    "levenshtein_distances",
    "mantel",
    "mantel_many",
    "matrix_ranks",
    "nuclear_rank",
    "ordinal_distances",
    "partial_mantel",
    "participation_ratio",
    "pool_permutations",
    "rank_utilization",
    "ranks_of_spectrum",
    "singular_values",
    "stable_rank",
    "two_nn",
    "two_nn_curve",
    "two_nn_from_distances",
    "westfall_young",
]
