"""Where heads look: entropy, mass on position 0, scores on repeated tokens, and mean maps of some layers."""

from workbench.analyses.attention.analysis import attention

__all__ = ["attention"]
