"""Paths."""

from workbench.extend import Analysis, Settings

paths = Analysis(name="paths", summary="Stub.", settings=Settings, tables=[], measure=lambda job: {})
