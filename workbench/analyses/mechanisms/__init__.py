"""What each mechanism of a recurrent model is worth."""

from workbench.analyses.mechanisms.analysis import mechanisms

__all__ = ["mechanisms"]
