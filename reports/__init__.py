"""CSV in, HTML out: the column contract, figures, the study's page and the feature atlas."""

from reports.tables import COLUMNS, find_tables, read_table, write_table

__all__ = ["COLUMNS", "find_tables", "read_table", "write_table"]
