"""Impact of heads, layers, MLPs and pairs of heads on the loss."""

from workbench.analyses.ablate.analysis import ablate

__all__ = ["ablate"]
