"""`python -m docs.build`: writes docs/verbs.md from the command line itself, so that the two cannot disagree."""

from __future__ import annotations

from pathlib import Path

import typer.main

from reports.contract import Table
from workbench.analyses import find_analysis
from workbench.cli.app import VERBS, app

PAGE = Path(__file__).parent / "verbs.md"
HEAD = """# Verbs

Written by `make docs` from the command line itself. A verb prints its results and, last, its output path on stdout;
progress goes to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted with the state saved.

`workbench --offline VERB …` refuses every connection that would leave the machine: a hub name must then be in the local
cache. Without it, the network is used only where a hub name is given.
"""


def render() -> str:
    """The page: a section a verb, a row an option; of an analysis the tables that it writes as well."""
    sections = [HEAD]
    group = typer.main.get_command(app)
    context = typer.Context(group)
    for name in group.list_commands(context):  # type: ignore[attr-defined]
        command = group.get_command(context, name)  # type: ignore[attr-defined]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join(["workbench", name, *(p.metavar or p.name.upper() for p in arguments)])
        lines = [f"## {name}\n", f"{command.help}\n", f"    {usage} [options]\n"]
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| `{p.metavar or p.name.upper()}` | {_meaning(p)} |" for p in arguments]
        lines += [f"| {_flags(p)} | {_meaning(p)} |" for p in options]
        for table in () if name in VERBS else find_analysis(name).tables:
            lines += ["", *_describe(table)]
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


def _describe(table: Table) -> list[str]:
    """What `<name>.csv` holds: its meaning, its key, and a row for each further column."""
    keys = ", ".join(f"`{name}`" for name in table.key)
    lines = [f"`{table.name}.csv`: {table.meaning} By {keys}:", "", "| column | meaning | unit |", "|---|---|---|"]
    bar = "\\|"  # as Markdown writes it within a table
    columns = (*table.columns, *table.trailing)
    return lines + [f"| `{own.name}` | {own.meaning.replace('|', bar)} | {own.unit} |" for own in columns]


def _flags(option: object) -> str:
    return ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))  # type: ignore[attr-defined]


def _meaning(option: object) -> str:
    text = (option.help or "").replace("|", "\\|")  # type: ignore[attr-defined]
    default = option.default  # type: ignore[attr-defined]
    if option.required:  # type: ignore[attr-defined]
        return f"{text} Required."
    if isinstance(option.show_default, str):  # type: ignore[attr-defined]
        return f"{text} [default: {option.show_default}]"  # type: ignore[attr-defined]
    plain = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    return f"{text} [default: {default}]" if plain else text


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
