"""`python -m docs.claims`: writes docs/claims.md from the claims and the rules themselves, so that none disagree."""

from __future__ import annotations

from pathlib import Path

from workbench.data.claims import Claim, read_claims
from workbench.study import effects, measures, verdicts

PAGE = Path(__file__).parent / "claims.md"
HEAD = """# Claims

Written by `make docs` from `workbench/data/claims.toml` and the rules in the code. A study whose recipe names `roles`
(which model stands for which one of the published claims) writes `claims.csv`: one row for each claim below, with the
measured effect, its 95 % interval over seeds, n, the verdict, the rows it was read from (`source_table`,
`source_rows`), and what speaks for or against reading it as published (`control`, `why`). A claim that the study's
models or tables do not cover is `not measured`, and its `why` says what is missing. The reports have more findings than
these: one that has no row here is judged by no study.

Two limits of the verdicts. They are not corrected for multiple testing: of twenty 95 % intervals, about one misses the
true value. And they are about the models of the study: if sizes, steps or text differ from the published ones, a
claim that is not seen here is not refuted there.

## Rules
"""
GROUPS = {
    "janus": "First paper: pressure on heads (Janus)",
    "kotodama": "Second paper: Muon, automata, attention residuals (Kotodama)",
    "recurrent": "Third source: depth recurrence (recurrent-golf)",
}
LAYERS = {
    "all": "all layers",
    "first": "the first layer",
    "last": "the last layer",
    "first third": "the first third of the layers",
    "last third": "the last third of the layers",
}


def render() -> str:
    """The page: the rules, then a section a claim."""
    # a reader of the page sees the rules as the code states them
    rules = [f"```text\n{(module.__doc__ or '').strip()}\n```\n" for module in (effects, verdicts, measures)]
    sections = [HEAD, *rules]
    claims = read_claims()
    for group in dict.fromkeys(claim.group for claim in claims):
        sections.append(f"## {GROUPS.get(group, group)}\n")
        sections += [_section(claim) for claim in claims if claim.group == group]
    return "\n".join(sections)


def _section(claim: Claim) -> str:
    measure, compared = claim.measure, claim.compared
    if compared.pairs:
        whom = "pairs " + ", ".join(f"{a} and {b}" for a, b in compared.pairs)
    elif compared.reference:
        whom = f"{compared.treated} against {compared.reference}"
    else:
        whom = f"{compared.treated} against {compared.null:.10g}"
        whom += f"; full size only: the recipe `{compared.recipe}` as it stands" if compared.recipe else ""
    where = LAYERS.get(measure.layers, measure.layers)
    if " of " in where:
        where = f"layer {where}"
    elif measure.kind == "last":
        where = "the last step"
    elif measure.table == "evaluation":
        where = "the whole text"
    rows = [
        ("published", f"{claim.published} ({claim.source})"),
        ("direction", claim.direction + (f", within ± {100 * claim.margin:.0f} %" if claim.margin else "")),
        ("models", whom),
        ("measure", f"{measure.name}; {where}; a {claim.scale}"),
        ("source", f"`{measure.table}.csv`, `{measure.column}`"),
        ("beside it", "; ".join(other.name for other in claim.beside)),
        ("control models", "; ".join(_against(claim, i) for i in range(len(claim.against)))),
        ("confounds", claim.control),
        ("to read", claim.why),
    ]
    lines = [f"### {claim.claim}\n", "| | |", "|---|---|"]
    lines += [f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows if text]
    return "\n".join(lines) + "\n"


def _against(claim: Claim, index: int) -> str:
    other = claim.against[index]
    reference = other.reference or claim.compared.reference
    return f"{other.name} ({other.treated}{f' against {reference}' if reference else ''})"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
