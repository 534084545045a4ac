"""Every feature of every SAE, and the page that shows them."""

from workbench.analyses.atlas.analysis import atlas

__all__ = ["atlas"]
