"""Activations of a model, stored as shuffled, checksummed shards."""

from workbench.analyses.harvest.analysis import harvest

__all__ = ["harvest"]
