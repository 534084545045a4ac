"""Which tasks of prompt pairs a model does."""

from workbench.analyses.tasks.analysis import tasks

__all__ = ["tasks"]
