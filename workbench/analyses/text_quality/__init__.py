"""Text quality of a model."""

from workbench.analyses.text_quality.analysis import text_quality

__all__ = ["text_quality"]
