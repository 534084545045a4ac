"""The spectra of a model's weights: all singular values of every matrix, their ranks, and what the ranks sum to."""

from workbench.analyses.spectra.analysis import spectra

__all__ = ["spectra"]
