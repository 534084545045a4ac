"""Means over seeds for figures that are drawn without a study: rows of seed_means.csv from a table's rows."""

from __future__ import annotations

import pandas as pd

from workbench.study.effects import over_seeds
from workbench.study.seed_values import averaged


def average(df: pd.DataFrame, column: str, *by: str) -> pd.DataFrame:
    """The mean over seeds of a column, by other columns; rows of one seed there are averaged first."""
    return over_seeds(averaged(df, by, column), by)
