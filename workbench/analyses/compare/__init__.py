"""Two models side by side: principal components and geometry of their states, and the spectra of their weights."""

from workbench.analyses.compare.analysis import compare

__all__ = ["compare"]
