"""The share of content words among the words at which a head's features fire."""

from workbench.analyses.content_share.analysis import content_share

__all__ = ["content_share"]
