"""Panels of sampled text."""

from __future__ import annotations

from reports import figures
from reports.panels.panel import Panel, Section, drawn, needing

TEXT = Section(
    "text",
    "Text quality",
    "What sampled continuations look like when they are counted.",
    (
        Panel(
            "text-quality",
            "Measures of sampled text",
            "Overlapping intervals mean no difference that this many samples can show.",
            needing("text_quality", "model seed measure value ci_low ci_high"),
            drawn("text_quality", figures.text_measures),
            ("n", "prompts, of recall scenarios"),
            "Bars are 95 % intervals over what the column unit names; a mark a seed.",
            is_by_seed=True,
            is_core=False,
        ),
    ),
)
