"""Sparse autoencoders in stacks: tensors in, tensors out."""

from sae.absorption import Absorbed, find_absorbed
from sae.architecture import Architecture, LossAndGradients
from sae.config import SAEConfig, SAESource, StackInfo, TrainConfig
from sae.controls import random_dictionary, shuffle_coordinates
from sae.edits import set_feature, steer
from sae.gradients import loss_and_gradients
from sae.metrics import (
    MatchedL0,
    MetricSums,
    SAEMetrics,
    Stability,
    density_histogram,
    interpolate_at_l0,
    match_l0,
    max_cosine,
    nearest_features,
    stability,
)
from sae.scores import SAEScores, ScoreSums, WeightScores, weight_scores
from sae.stack import StackedSAE, check_model, geometric_median, spawn_generators
from sae.top_activations import TopActivations
from sae.train import StepStats, Trainer, l1_share_at, lr_at, train_stack

__all__ = [
    "Absorbed",
    "Architecture",
    "LossAndGradients",
    "MatchedL0",
    "MetricSums",
    "SAEConfig",
    "SAEMetrics",
    "SAEScores",
    "SAESource",
    "ScoreSums",
    "Stability",
    "StackInfo",
    "StackedSAE",
    "StepStats",
    "TopActivations",
    "TrainConfig",
    "Trainer",
    "WeightScores",
    "check_model",
    "density_histogram",
    "find_absorbed",
    "geometric_median",
    "interpolate_at_l0",
    "l1_share_at",
    "loss_and_gradients",
    "lr_at",
    "match_l0",
    "max_cosine",
    "nearest_features",
    "random_dictionary",
    "set_feature",
    "shuffle_coordinates",
    "spawn_generators",
    "stability",
    "steer",
    "train_stack",
    "weight_scores",
]
