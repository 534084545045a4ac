"""The features of two models that fire together."""

from workbench.analyses.match.analysis import match

__all__ = ["match"]
