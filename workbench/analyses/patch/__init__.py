"""What putting one prompt's activations into another's forward pass does to its answer."""

from workbench.analyses.patch.analysis import patch

__all__ = ["patch"]
