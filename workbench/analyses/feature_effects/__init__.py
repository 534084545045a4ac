"""What each feature of an SAE does to the loss."""

from workbench.analyses.feature_effects.analysis import feature_effects

__all__ = ["feature_effects"]
