"""Attribution of a task's answer: by what parts write, by layer, and by gradients beside exact values."""

from workbench.analyses.attribute.analysis import attribute

__all__ = ["attribute"]
