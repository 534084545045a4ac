"""Concept sets put to models: the states of their words at every layer, and what the probes say of them."""

from workbench.analyses.probe.analysis import probe

__all__ = ["probe"]
