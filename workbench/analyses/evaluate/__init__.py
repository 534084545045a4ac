"""Bits per byte of a model on a text."""

from workbench.analyses.evaluate.analysis import evaluate

__all__ = ["evaluate"]
