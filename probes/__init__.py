"""Statistics of representations: arrays in, frozen results out; NumPy and SciPy only, no files, no models.

Its modules `import scipy` whole, which loads `scipy.stats` and its kin where they are first used: they take as long to
import as half of torch.
"""

from probes.bootstrap import ConfidenceInterval
from probes.checks import (
    ConstantInputWarning,
    DuplicatePointsWarning,
    LowPrecisionWarning,
    ProbeWarning,
    SmallSampleWarning,
)
from probes.classification import LogisticProbe, auroc, auroc_limits, binomial_limits, fit_logistic
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
    PartialMantelManyResult,
    PartialMantelResult,
    mantel,
    mantel_many,
    partial_mantel,
    partial_mantel_many,
)
from probes.multiplicity import benjamini_hochberg, pool_permutations, westfall_young
from probes.paired_effects import Gap, Recovery, mean_gap, recovery, sign_flip_test
from probes.ranks import (
    MatrixRanks,
    MatrixSpectrum,
    effective_rank,
    matrix_ranks,
    matrix_spectrum,
    nuclear_rank,
    participation_ratio,
    rank_utilization,
    ranks_of_spectrum,
    singular_values,
    stable_rank,
)
from probes.subspaces import (
    linear_cka,
    pc_abs_cosine,
    principal_angles,
    procrustes_disparity,
    random_pc_cosine,
)
from probes.trajectories import (
    Crystallisation,
    ParallelismResult,
    TrajectoryNulls,
    crystallisation,
    lag_decay,
    pair_parallelism,
    trajectory_consistency,
    trajectory_nulls,
)

__all__ = [
    "ConfidenceInterval",
    "ConstantInputWarning",
    "Crystallisation",
    "DuplicatePointsWarning",
    "Gap",
    "GrideResult",
    "LogisticProbe",
    "LowPrecisionWarning",
    "MantelManyResult",
    "MantelResult",
    "MatrixRanks",
    "MatrixSpectrum",
    "ParallelismResult",
    "PartialMantelManyResult",
    "PartialMantelResult",
    "ProbeWarning",
    "Recovery",
    "SmallSampleWarning",
    "TrajectoryNulls",
    "TwoNNCurve",
    "TwoNNResult",
    "auroc",
    "auroc_limits",
    "benjamini_hochberg",
    "binomial_limits",
    "cosine_distances",
    "crystallisation",
    "cyclic_distances",
    "effective_rank",
    "euclidean_distances",
    "fit_logistic",
    "gini",
    "great_circle_km",
    "gride",
    "lag_decay",
    "levenshtein_distances",
    "linear_cka",
    "mantel",
    "mantel_many",
    "mean_gap",
    "matrix_ranks",
    "matrix_spectrum",
    "nuclear_rank",
    "ordinal_distances",
    "pair_parallelism",
    "partial_mantel",
    "partial_mantel_many",
    "participation_ratio",
    "pc_abs_cosine",
    "pool_permutations",
    "principal_angles",
    "procrustes_disparity",
    "random_pc_cosine",
    "rank_utilization",
    "ranks_of_spectrum",
    "recovery",
    "sign_flip_test",
    "singular_values",
    "stable_rank",
    "trajectory_consistency",
    "trajectory_nulls",
    "two_nn",
    "two_nn_curve",
    "two_nn_from_distances",
    "westfall_young",
]
