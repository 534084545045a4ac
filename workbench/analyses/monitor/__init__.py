"""Monitors: a linear probe trained, calibrated and tested on labelled text, and what arming it does."""

from workbench.analyses.monitor.analysis import monitor

__all__ = ["monitor"]
