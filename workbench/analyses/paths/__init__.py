"""Which part of a model acts through which: paths from heads and MLPs to their readers."""

from workbench.analyses.paths.analysis import paths

__all__ = ["paths"]
