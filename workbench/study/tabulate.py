"""Tables made again from what a measurement left on disk: saved losses and texts, where that needs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from reports.tables import write_table
from workbench.analyses import find_analysis
from workbench.extend import Job, Subject
from workbench.runs import amend_manifest, read_config


def tabulate_run(directory: Path, *, is_asked: bool = True) -> list[str]:
    """Names of the tables made again in the run directory of an analysis; none of one that needs its model for it.

    Raises:
        ValueError: no directory of an analysis; with is_asked, an analysis that keeps no state.
    """
    config = read_config(directory)
    if "verb" not in config:
        raise ValueError(f"tabulate: {directory} is not what an analysis or a study wrote; expected a directory of one")
    analysis = find_analysis(str(config["verb"]))
    if analysis.tabulate is None or len(config["models"]) != 1 or "steps" in config["models"][0]:
        if is_asked:
            raise ValueError(f"tabulate: {directory} keeps no state of one model; expected saved losses or texts")
        return []
    (own,) = config["models"]
    names = zip(own["names"], own["seeds"], own["sources"], strict=True)
    subjects = tuple(Subject(cast(Any, None), name, seed, source) for name, seed, source in names)
    usual = analysis.settings().model_dump(mode="json")  # not all may be given beside others
    given = {key: value for key, value in config["settings"].items() if key not in usual or usual[key] != value}
    settings = analysis.settings.model_validate(given)
    tables = analysis.tabulate(Job(subjects, settings, directory, seed=own["seed"]))
    for name, table in tables.items():
        write_table(table, directory, name)
    amend_manifest(directory, [f"{name}.csv" for name in tables])
    return list(tables)
