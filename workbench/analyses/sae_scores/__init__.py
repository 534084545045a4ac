"""What the field reads about SAEs: fidelity, shrinkage, sparse probing, feature absorption."""

from workbench.analyses.sae_scores.analysis import sae_scores

__all__ = ["sae_scores"]
