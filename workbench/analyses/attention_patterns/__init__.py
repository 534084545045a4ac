"""Attention maps of heads: their mean over windows without position 0, and those of a few example sentences."""

from workbench.analyses.attention_patterns.analysis import attention_patterns

__all__ = ["attention_patterns"]
