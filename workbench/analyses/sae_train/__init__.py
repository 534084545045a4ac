"""SAEs for every head at once."""

from reports.contract import declare
from workbench.analyses.sae_train.analysis import sae_train

__all__ = ["sae_train"]

declare(sae_train.tables)  # the engine, imported by itself, writes and reads them
