"""Tables made again from what measurements left on disk: saved losses and texts, where that needs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from reports.tables import write_table
from workbench.analyses import find_analysis
from workbench.extend import Job, Subject
from workbench.runs import CONFIG, amend_manifest, read_config


def tabulate(directory: str | Path) -> list[str]:
    """Names of the tables made again in a run directory, or in those of a study's jobs, whose tables and pages follow.

    Raises:
        ValueError: a directory of neither, or of an analysis that cannot be tabulated without its model.
    """
    directory = Path(directory)
    config = read_config(directory)
    if config.get("verb") != "study":
        return _tabulate_run(directory, config, is_asked=True)
    made = []
    for path in sorted(directory.glob(f"*/*/{CONFIG}")):
        made += _tabulate_run(path.parent, read_config(path.parent), is_asked=False)
    from workbench.study.study import draw_again

    draw_again(directory)
    return sorted(set(made))


def _tabulate_run(directory: Path, config: dict[str, Any], *, is_asked: bool) -> list[str]:
    try:
        analysis = find_analysis(str(config.get("verb")))
    except ValueError:
        if is_asked:
            raise
        return []
    if analysis.tabulate is None:
        if is_asked:
            raise ValueError(f"tabulate: {analysis.name} keeps no state; expected an analysis whose losses are saved")
        return []
    (own,) = config["models"]
    names = zip(own["names"], own["seeds"], own["sources"], strict=True)
    subjects = tuple(Subject(cast(Any, None), name, seed, source) for name, seed, source in names)
    settings = analysis.settings.model_validate(config["settings"])
    tables = analysis.tabulate(Job(subjects, settings, directory, seed=own["seed"]))
    for name, table in tables.items():
        write_table(table, directory, name)
    amend_manifest(directory, [f"{name}.csv" for name in tables])
    return list(tables)
