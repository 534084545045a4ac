"""A recurrent model trained without its mechanisms, then with one more each time."""

from workbench.analyses.ladder.analysis import ladder

__all__ = ["ladder"]
