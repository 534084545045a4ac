"""The study's page: `report.html`, drawn from the CSVs of a study directory and from nothing else."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.against import compare_with_old
from reports.bundle import pack_json, render_page
from reports.conclusions import conclude, introduce, limits
from reports.continuations import Continuations
from reports.glossary import Glossary
from reports.heads import HEADS, has_heads
from reports.ledger import NEEDS as LEDGER_NEEDS
from reports.ledger import drawn_in, ledger_groups, verdict_counts
from reports.panels import SECTIONS, Drawing, Panel, Section
from reports.panels.checkpoints import tables_over_training, training_section
from reports.panels.others import Figures, other_section
from reports.seed_means import FORMULA
from reports.setup import describe_setup
from reports.study import Study, problems, read_study
from reports.table_cells import Grid, count_parts, name_seeds, thousands
from reports.tables import MADE, MIN_SEEDS

# a table whose gzip is larger is named on the page and not carried by it
MAX_EMBEDDED_BYTES = 600_000

SCRIPTS = (
    "unpack.js", "theme.js", "plots.js", "marks.js", "values.js", "navigation.js", "characters.js", "continuations.js",
    "glossary.js", "head_address.js", "report.js",
)  # fmt: skip
STYLES = ("base.css", "report.css", "conclusions.css")

REFERENCE = re.compile(r"\{([a-z0-9-]+)\}")  # a panel's key in the text of another

# tables that one analysis writes: where one is there, its companion is missing and not unwanted
WRITTEN_TOGETHER = (
    ("topology_stats", "head_cosines"),
    ("sae_training_results", "sae_density"),
    ("train_log", "baselines"),
)


@dataclass(frozen=True)
class Shown:
    """A panel as the page shows it: numbered, with its grids, or its figure's variants, or texts, or what it lacks."""

    panel: Panel
    number: str  # "Table 1", "Figure 2"
    grids: tuple[Grid, ...]
    variants: tuple[str, ...]
    texts: Continuations | None
    problems: tuple[str, ...]
    facts: str  # n, seeds
    sources: tuple[str, ...]
    says: tuple[str, ...] = ()
    warns: tuple[str, ...] = ()


def write_report(directory: str | Path, out: str | Path | None = None, figures: Figures | None = None) -> Path:
    """Return the path of the study's page, `<directory>/report.html` by default, drawn from the directory's CSVs alone.

    A table or a column that is not there costs the figures that need it, which then say so; the page is drawn anyway.
    Tables that no panel of the page's own needs are drawn by `figures` (table -> functions), or shown as they are.

    Raises:
        ValueError: if the directory holds no known table, a CSV is ragged, or study.json is malformed.
    """
    study = read_study(directory)
    out = Path(directory) / "report.html" if out is None else Path(out)
    counts = {"Table": 0, "Figure": 0}
    payload: dict[str, list[Any]] = {}
    own = tables_of_panels()
    followed = tables_over_training(study)
    rest = study.without(followed)  # a panel of one state of each model would take steps for rows of it
    sections = [
        (section, show_section(part, section, counts, payload))
        for part, section in (
            (study, training_section(study, followed)),
            *((rest, section) for section in (*SECTIONS, other_section(rest, own, figures or {}))),
        )
    ]
    numbers = {item.panel.key: item.number for _, shown in sections for item in shown}
    sections = [(section, [name_panels(item, numbers) for item in shown]) for section, shown in sections]
    groups = ledger_groups(study)
    has_atlas = "feature_atlas" in study.paths or (out.parent / "atlas.html").is_file()
    return render_page(
        "report.html.j2",
        out,
        scripts=SCRIPTS,
        styles=STYLES,
        title=study.record.get("title") or Path(directory).resolve().name,
        notes=[*(as_text(note) for note in study.record.get("notes", ())), *study.notes],
        facts=describe(study.record),
        models=model_rows(study),
        setup=describe_setup(study),
        intro=introduce(study),
        conclusions=conclude(study),
        limits=limits(study),
        glossary=Glossary(),
        against=compare_with_old(study),
        ledger=groups,
        ledger_problems=problems(study, LEDGER_NEEDS) if "claims" in study.paths else [],
        counts=verdict_counts(groups),
        drawn_in=drawn_in(sections),
        formula=FORMULA,
        n_seeds=count_seeds(study),
        sections=[(section, shown) for section, shown in sections if shown],
        absent=[] if followed else absent_panels(study),
        sources=source_rows(study),
        atlas="atlas.html" if has_atlas else "",
        heads=HEADS if has_heads(study) else "",
        page_data=pack_json(
            {
                "figures": payload,
                "names": {short: name for name, short in study.names.items()},
            }
        ),
    )


def tables_of_panels() -> set[str]:
    """Return the tables that the page's own panels draw."""
    return {name for section in SECTIONS for panel in section.panels for name in (*panel.needs, *panel.uses)}


def show_section(study: Study, section: Section, counts: dict[str, int], payload: dict[str, list[Any]]) -> list[Shown]:
    """Return the panels of a section, numbering them on in `counts` and adding their figures to `payload`."""
    shown = []
    for panel in section.panels:
        faults = problems(study, panel.needs) or list(panel.faults(study))
        drawings = [one for one in ([] if faults else panel.draw(study)) if not isinstance(one, tuple) or one[1].data]
        is_wanted = (panel.is_core and has_part(study, panel)) or lacks_made(study, panel) or panel.faults(study)
        if not drawings and not is_wanted:
            continue
        word = "Table" if panel.is_table else "Figure"
        counts[word] += 1
        plots: list[Drawing] = [drawing for drawing in drawings if isinstance(drawing, tuple)]
        if plots:
            payload[panel.key] = [figure_json(figure) for _, figure in plots]
        shown.append(
            Shown(
                panel,
                f"{word} {counts[word]}",
                tuple(drawing for drawing in drawings if isinstance(drawing, Grid)),
                tuple(name for name, _ in plots),
                next((drawing for drawing in drawings if isinstance(drawing, Continuations)), None),
                tuple(faults) or (() if drawings else ("Its tables hold no row that it could show.",)),
                "" if faults else panel_facts(study, panel),
                tuple(name for name in (*panel.needs, *panel.uses) if name in study.paths),
                says=() if faults else tuple(panel.says(study)),
                warns=() if faults else tuple(panel.warns(study)),
            )
        )
    return shown


def name_panels(shown: Shown, numbers: Mapping[str, str]) -> Shown:
    """Return a panel whose text calls the others that it refers to, as {key}, by the numbers that they have here."""

    def named(text: str) -> str:
        return REFERENCE.sub(lambda found: numbers.get(found[1], "not drawn here"), text)

    return replace(shown, panel=replace(shown.panel, read=named(shown.panel.read), detail=named(shown.panel.detail)))


def panel_facts(study: Study, panel: Panel) -> str:
    """Return, in words, n of what a panel shows, its gaps, and the seeds of its first table."""
    table = study.tables.get(next(iter(panel.needs)))
    if table is None or table.empty:
        return ""
    column, unit = panel.n
    parts = panel.counted(study) if panel.counted else {"": table}
    known = {name: df[column] for name, df in parts.items() if column in df and is_numeric(df[column])}
    facts = [*([count_parts(known, unit)] if known else []), *panel.gaps(study)]
    seed = next((name for name in ("seed", "seed_a") if name in table), "")
    if seed:
        seeds = list(dict.fromkeys(table[seed]))
        if len(seeds) > 1 and panel.is_first_seed:
            facts.append(f"{name_seeds(seeds[:1])}, the first of {len(seeds)}")
        else:
            facts.append(name_seeds(seeds) + said_of_seeds(len(seeds), panel))
    text = "; ".join(facts)
    return text if text.startswith("n ") else text[:1].upper() + text[1:]


def said_of_seeds(n: int, panel: Panel) -> str:
    """Return how a panel shows several seeds; nothing for one, or where each has rows of its own."""
    if n == 1 or panel.is_by_seed:
        return ""
    if n >= MIN_SEEDS:
        return f": mean and 95 % interval over seeds, {'in brackets' if panel.is_table else panel.interval}"
    return ", each given" if panel.is_table else f": {panel.of_two}"


def count_seeds(study: Study) -> int:
    """Return the largest number of seeds that one model has in any table."""
    tables = [df for df in study.tables.values() if {"model", "seed"} <= set(df.columns) and len(df)]
    return max((int(n) for df in tables for n in df.groupby("model")["seed"].nunique()), default=0)


def has_part(study: Study, panel: Panel) -> bool:
    """Return whether the study made what a panel shows: its tables, or another that the same analysis writes."""
    written = [table for job in WRITTEN_TOGETHER for table in job if set(job) & set(panel.needs)]
    return any(name in study.paths for name in (*written, *panel.needs) if name not in MADE)


def lacks_made(study: Study, panel: Panel) -> bool:
    """Return whether the study has a panel's tables but not those made of them, as those of earlier versions lack."""
    missing = {*panel.needs} - {*study.paths}
    return bool(missing) and missing <= {*MADE}


def is_numeric(column: pd.Series) -> bool:
    """Return whether a column holds numbers, so that an n can be read from it."""
    return pd.api.types.is_numeric_dtype(column)


def figure_json(figure: go.Figure) -> Any:
    """Return a figure as plain JSON, its floats as the tables have them."""
    return json.loads(figure.to_json() or "{}")


def describe(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the record says of how the study was made, as (term, text) pairs."""
    pairs = [(key, record[key]) for key in ("command", "corpus", "device", "created", "versions") if key in record]
    return [(key, as_text(value)) for key, value in pairs]


def as_text(value: Any) -> str:
    """Return a record's value in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {as_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(as_text(item) for item in value)
    return str(value)


def model_rows(study: Study) -> list[dict[str, str]]:
    """Return a row per model, its seeds together: the record's where there is one, else the names in the tables."""
    listed = study.record.get("models") or [{"name": name} for name in study.names]
    rows = []
    for name in dict.fromkeys(str(model.get("name", "")) for model in listed):
        own = [model for model in listed if str(model.get("name", "")) == name]
        seeds = [str(model["seed"]) for model in own if model.get("seed") is not None]
        seconds = [model["seconds"] for model in own if isinstance(model.get("seconds"), int | float)]
        rows.append(
            {
                "short": study.names.get(name, ""),
                "name": name,
                "recipe": str(own[0].get("recipe", "")),
                "seeds": ", ".join(seeds),
                "parameters": millions(own[0].get("n_parameters")),
                "without": millions(own[0].get("n_parameters_no_embedding")),
                "time": " to ".join(dict.fromkeys(duration(end) for end in (min(seconds), max(seconds))))
                if seconds
                else "",
            }
        )
    return rows


def millions(count: Any) -> str:
    """Return a count of parameters in millions; nothing for nothing."""
    return f"{count / 1e6:.2f} M" if isinstance(count, int | float) else ""


def duration(seconds: Any) -> str:
    """Return seconds as hours, minutes and seconds; nothing for nothing."""
    if not isinstance(seconds, int | float):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def absent_panels(study: Study) -> list[str]:
    """Return the titles of the panels that are left out because their tables are not in the study."""
    panels = [panel for section in SECTIONS for panel in section.panels]
    absent = [panel for panel in panels if any(name not in study.paths for name in panel.needs)]
    shown = [panel for panel in absent if (panel.is_core and has_part(study, panel)) or lacks_made(study, panel)]
    return [panel.title for panel in absent if panel not in shown]


def source_rows(study: Study) -> list[dict[str, Any]]:
    """Return every table of the study with its size, and its bytes as they lie on disk where they are few."""
    rows = []
    for name, path in study.paths.items():
        raw = path.read_bytes() if path.stat().st_size <= 60 * MAX_EMBEDDED_BYTES and name != "feature_atlas" else b""
        packed = gzip.compress(raw, compresslevel=9, mtime=0) if raw else b""
        is_carried = 0 < len(packed) <= MAX_EMBEDDED_BYTES
        table = study.tables.get(name)
        rows.append(
            {
                "name": name,
                "file": path.name,
                "rows": thousands(len(table)) if table is not None else "",
                "size": f"{path.stat().st_size / 1000:,.1f} kB",
                "columns": list(table.columns) if table is not None else [],
                "data": base64.b64encode(packed).decode("ascii") if is_carried else "",
            }
        )
    return rows
