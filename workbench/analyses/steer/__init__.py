"""What pushing activations along a feature of an SAE does: dose curves beside controls."""

from workbench.analyses.steer.analysis import steer

__all__ = ["steer"]
