"""Where heads look: entropy, mass on position 0, scores on repeated tokens, kinds of heads."""

from workbench.analyses.attention.analysis import attention

__all__ = ["attention"]
