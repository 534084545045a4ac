"""`python -m docs.claims`: writes docs/claims.md from the claims and the rules themselves, so that none disagree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from reports.ledger import GROUPS
from workbench.data.claims import Against, Beside, Claim, Compared, Measure, read_claims
from workbench.data.remarks import Case, Number, Remark
from workbench.runs.records import Frozen
from workbench.study import effects, measures, sizes, verdicts

PAGE = Path(__file__).parent / "claims.md"
HEAD = """# Claims

Written by `make docs` from `workbench/data/published` and the rules in the code. A study whose recipe names `roles`
(which model stands for which one of the published claims) writes `claims.csv`: one row for each claim below, with the
measured effect, its 95 % interval over seeds, n, the verdict, the rows it was read from (`source_table`,
`source_rows`), and what speaks for or against reading it as published (`control`, `why`). A study of several sizes
writes `claims_by_size.csv` and `size_slopes.csv` too, and its `claims.csv` is that of the largest. A claim that the
study's models or tables do not cover is `not measured`, and its `why` says what is missing; one whose measure was never
published is `not defined`. The page of a study counts for each paper how many of its claims hold: are `reproduced`, or
go in the `same direction`.

Two limits of the verdicts. They are not corrected for multiple testing: of twenty 95 % intervals, about one misses the
true value. And they are about the models of the study: if sizes, steps or text differ from the published ones, a
claim that is not seen here is not refuted there.

## Rules
"""
OWN = """## Your own claims

A claim is data: which number of which table, between which models, what was published, and what to say of the
outcome. Write a file as this one and give it to a study, `workbench study STUDY --claims mine.toml` (repeatable; in
Python `workbench.study(…, claims="mine.toml")`, in a study's recipe `claims = ["mine.toml"]`). Its claims stand in
`claims.csv` behind the published ones, and are judged by the same rules.

```toml
[remarks.dimensions]
numbers.before = { of = "reference", column = "rank_utilization", where = { basis = "z" }, times = 100 }
numbers.used = { of = "treated", column = "rank_utilization", where = { basis = "z" }, times = 100 }
numbers.kept = { ratio = ["used", "before"], times = 100 }

[[remarks.dimensions.cases]]
when = ["effect < 0", "kept < 90"]
say = "They differ by using less: {used:.1f} % of their dimensions, {kept:.0f} % of what the reference uses."

[[remarks.dimensions.cases]]
when = ["effect < 0"]
say = "They use {used:.1f} % of their dimensions, the reference {before:.1f} %."

[[remarks.dimensions.cases]]
when = ["effect >= 0"]
say = "They are no less alike here: {reference:.3f} → {treated:.3f}."

[heads-write-apart]
group = "mine"
claim = "Heads under pressure write less alike"
published = ".30 → .24, mean over layers"
effect = -0.2
scale = "ratio"
direction = "falls"
compared = { reference = "control", treated = "adaptive" }
measure.name = "mean |cos| of what heads write"
measure.table = "topology_stats"
measure.column = "mean_cos"
measure.where = { basis = "residual" }
beside = [{ name = "on z", where = { basis = "z" } }]
control = "The cosine on z changes with a head's basis, the cosine of what heads write does not."
remarks = ["dimensions"]
source = "notes of May, run 14"

[heads-write-apart-last]
base = "heads-write-apart"
claim = "Heads of the last layer write less alike"
published = ".35 → .21"
effect = -0.4
measure = { layers = "last" }
```

- `[remarks.NAME]` are remarks that claims name. Of the cases of a remark, the first is said whose conditions all hold
  and whose numbers were all measured; if there is none, nothing is said. Those of the package
  (`workbench/data/published/remarks.toml`) can be named too.
- `effect`, `reference` and `treated` can be quoted and tested without being declared: the claim's own effect (treated /
  reference − 1, or treated − reference), and the means over seeds of both models.
- `{used:.1f}` formats a number as Python does; `{effect:percent}`, `factor`, `points` and `plain` as the ledger does.
- `base` names a claim above, or one of the package; the claim then holds only what differs, tables key by key.
- Tables and columns are those that analyses declare ([verbs](verbs.md)), roles those of the study's recipe or of a
  study of the package; another name is refused before anything is trained. A claim on one of them that this study does
  not have is `not measured`, and its `why` names what is missing.
- `study.json` records each file with its SHA-256. `--resume` judges a finished study again when a file has changed;
  other files need a new directory, into which `--reuse` copies the finished jobs.
"""
RECORDS = (Claim, Measure, Compared, Beside, Against, Remark, Case, Number)
NAMED_ROWS = ("text_quality", "ladder", "mechanisms")  # tables of which a row is a measure or a mechanism
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
    rules = [f"```text\n{(module.__doc__ or '').strip()}\n```\n" for module in (effects, verdicts, measures, sizes)]
    sections = [HEAD, *rules, OWN, *map(_fields, RECORDS)]
    claims = read_claims()
    sections.append(_count(claims))
    for group in dict.fromkeys(claim.group for claim in claims):
        sections.append(f"## {GROUPS.get(group, group)}\n")
        sections += [_section(claim) for claim in claims if claim.group == group]
    return "\n".join(sections)


def _fields(record: type[Frozen]) -> str:
    """A table of the fields of a record of claims."""
    lines = [f"### Fields: {record.__name__.lower()}\n", "| field | meaning |", "|---|---|"]
    for name, field in record.model_fields.items():
        values = (
            [repr(value) for value in get_args(field.annotation) if value]
            if get_origin(field.annotation) is Literal
            else []
        )
        text = "; ".join(filter(None, [" or ".join(values).replace("'", "`"), field.description])).replace(
            "|", chr(92) + "|"
        )
        lines.append(f"| `{name}`{'' if field.is_required() else ', optional'} | {text} |")
    return "\n".join(lines) + "\n"


def _count(claims: Sequence[Claim]) -> str:
    """A table of how many claims each paper has, and how they can be judged."""
    lines = ["## Claims by paper\n", "| paper | claims | of a change | of likeness | full size only | not defined |"]
    lines.append("|---|---|---|---|---|---|")
    for group in [*dict.fromkeys(claim.group for claim in claims), ""]:
        own = [claim for claim in claims if group in ("", claim.group)]
        undefined = [claim for claim in own if claim.undefined]
        full_size = [claim for claim in own if claim.compared.recipe]
        alike = [claim for claim in own if claim.direction == "agrees" and not claim.compared.recipe]
        n_changes = len(own) - len(undefined) - len(full_size) - len(alike)
        numbers = map(str, (len(own), n_changes, len(alike), len(full_size), len(undefined)))
        lines.append(f"| {GROUPS.get(group, group or 'all')} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def _section(claim: Claim) -> str:
    measure = claim.measure
    direction, margin = claim.direction, claim.margin or 0
    if margin:
        unit = claim.scale == "ratio" or measure.unit == "points"
        direction += f", within ± {100 * margin:.0f} %" if unit else f", within ± {margin:g}"
    rows = [("published", f"{claim.published} ({claim.source})")]
    if claim.undefined:
        rows += [("not defined", claim.undefined), ("confounds", claim.control)]
    else:
        rows += [
            ("direction", direction),
            ("models", _models(claim.compared)),
            ("measure", f"{measure.name}; {_where(measure)}; a {claim.scale}"),
            ("source", f"`{measure.table}.csv`, `{measure.column}`"),
            ("beside it", "; ".join(other.name for other in claim.beside)),
            ("control models", "; ".join(_against(claim, i) for i in range(len(claim.against)))),
            ("confounds", claim.control),
            ("to read", claim.why),
        ]
    lines = [f"### {claim.claim}\n", "| | |", "|---|---|"]
    lines += [f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows if text]
    return "\n".join(lines) + "\n"


def _models(compared: Compared) -> str:
    """Which models are compared, by role."""
    if compared.pairs:
        return "pairs " + ", ".join(f"{a} and {b}" for a, b in compared.pairs)
    if compared.among:
        return f"{compared.take} over {', '.join(compared.among)}, against {compared.null:.10g}"
    if compared.weights:
        terms = (f"{weight:+g} × {role}".replace("-", "−", weight < 0) for role, weight in compared.weights.items())
        return f"{', '.join(terms)}; the sum against {compared.null:.10g}"
    if compared.reference:
        return f"{compared.treated} against {compared.reference}"
    said = f"{compared.treated} against {compared.null:.10g}"
    return said + (f"; full size only: the recipe `{compared.recipe}` as it stands" if compared.recipe else "")


def _where(measure: Measure) -> str:
    """Which layers, step or row a measure is read at."""
    if " of " in measure.layers:
        return f"layer {measure.layers}"
    if measure.kind == "last":
        return "the last step"
    if measure.table in NAMED_ROWS:
        return f"the row {next(iter(measure.where.values()))}"
    return "the whole text" if measure.table == "evaluation" else LAYERS[measure.layers]


def _against(claim: Claim, index: int) -> str:
    other = claim.against[index]
    reference = other.reference or claim.compared.reference
    return f"{other.name} ({other.treated}{f' against {reference}' if reference else ''})"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
