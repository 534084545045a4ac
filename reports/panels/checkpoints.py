"""Panels of tables over training: the measures of several checkpoints of a model, told apart by the column `step`."""

from __future__ import annotations

from collections.abc import Collection

from reports.contract import Table
from reports.figures.checkpoints import is_measure, line_of, over_checkpoints
from reports.panels.panel import Drawing, Panel, Section
from reports.study import Study
from reports.tables import declared

LEAD = "Each measure over the steps of training, each panel with its own scale from 0."


def tables_over_training(study: Study) -> list[str]:
    """Return the names of the tables that hold several checkpoints of each model, which no other panel can draw."""
    known = declared()
    ordered = [*(name for name in known if name in study.tables), *(name for name in study.tables if name not in known)]
    of_steps = [name for name in ordered if "step" in study.contracts[name].key]
    return [name for name in of_steps if name not in known or "step" not in known[name].key]


def training_section(study: Study, names: Collection[str]) -> Section:
    """Return the section of the tables over training; those that have too many lines or panels are named."""
    tables = [study.contracts[name] for name in names]
    whole = [table for table in tables if {*table.key} <= {*study.tables[table.name].columns}]
    drawn = {table.name: over_checkpoints(study.tables[table.name], table) for table in whole}
    left = [f"{name}.csv" for name, figures in drawn.items() if not figures]
    lead = f"{LEAD} Not drawn, for their many rows per step: {', '.join(left)}." if left else LEAD
    panels = [_panel(study, table, drawn.get(table.name, ())) for table in tables if drawn.get(table.name, True)]
    return Section("over-training", "Over training", lead, tuple(panels))


def _panel(study: Study, table: Table, drawings: Collection[Drawing]) -> Panel:
    line = line_of([name for name in table.key if name not in ("model", "seed", "step")])
    columns = [own for own in (*table.columns, *table.trailing) if own.name in study.tables[table.name]]
    meanings = [f"{own.name}: {own.meaning}" for own in columns if own.meaning and is_measure(own)]
    return Panel(
        f"{table.name}-over-training",
        f"{table.name.replace('_', ' ')} over training",
        f"{table.meaning} A line per {line}." if line else table.meaning,
        {table.name: table.leading},
        lambda study: list(drawings),
        detail="; ".join(meanings) + "." if meanings else "",
        is_by_seed=True,
    )
