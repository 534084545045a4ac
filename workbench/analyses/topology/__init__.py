"""Redundancy of heads and ranks of what they put out, layer by layer."""

from workbench.analyses.topology.analysis import topology

__all__ = ["topology"]
