"""What a circuit keeps of a task while everything outside it is resampled."""

from workbench.analyses.scrub.analysis import scrub

__all__ = ["scrub"]
