"""What a study says in a few sentences: what moved, what did not, what it cost, what held of the paper, what limits it.

Sentences are chosen by rules over rows of findings.csv, claims.csv, seed_means.csv, baselines.csv and
sae_training_results.csv. One whose rows are not there is left out.

    moved        findings whose interval excludes 0, by `at_least`: the least relative change that the interval allows
    did not      findings whose interval holds 0 and excludes changes beyond `NARROW` of the reference's value
    cost         the held-out loss, else the bits per byte
    claims       how many of the judged claims hold; those whose interval excludes the published figure
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.adequacy import judged_saes
from reports.figures.style import models_of
from reports.ledger import HOLDS, UNJUDGED, figure_text, interval_text, unit_of
from reports.paper_tables import of_one_kind
from reports.study import Study, problems
from reports.study_tables import FINDINGS
from reports.table_cells import fixed, p_text, percent_change, signed, significant
from reports.tables import MIN_SEEDS

NARROW = 0.05  # of the reference's value
LOSSES = ("held-out loss", "held-out perplexity", "bits per byte")
N_MOVED = 3  # measures that the first sentence names
N_MODELS = 4  # comparisons that it names
N_CONTRADICTED = 2
# never one without the other: a change of basis within heads moves the first and not the second
COMPANIONS = {"mean |cos| on z": "mean |cos|, residual"}
BASES = {"paired": "over seeds", "welch": "over seeds", "own": "over the text alone"}


@dataclass(frozen=True)
class Conclusion:
    """Sentences, one a comparison, and what they are about."""

    about: str  # "What moved"
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The sentences in one line."""
        return " ".join(self.sentences)


def conclude(study: Study) -> list[Conclusion]:
    """Return the sentences that a study has the data for."""
    found = findings_of(study)
    is_named = len(_pairs(found)) > 1
    said = {
        "What moved": say_moved(found, is_named),
        "What did not": say_unmoved(found, is_named),
        "Which head matters": say_top_heads(study),
        "What it cost": say_cost(found, is_named),
        "What held of the paper": say_claims(study),
    }
    return [Conclusion(about, tuple(sentences)) for about, sentences in said.items() if sentences]


def introduce(study: Study) -> str:
    """Return which two models are compared, where there are no more, and what brackets are."""
    found = findings_of(study)
    pairs = _pairs(found)
    texts = [_name(pairs[0])] if len(pairs) == 1 else []
    known = found[found["ci_low"].notna()]
    if len(known):
        over = " or ".join(dict.fromkeys(BASES.get(str(basis), str(basis)) for basis in known["interval"]))
        ns = sorted({int(n) for n in known["n"]})
        seeds = " to ".join(str(n) for n in dict.fromkeys((ns[0], ns[-1])))
        texts.append(f"brackets are 95 % intervals {over} ({seeds} {'seed' if ns[-1] == 1 else 'seeds'})")
    text = "; ".join(texts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def findings_of(study: Study) -> pd.DataFrame:
    """Return the findings; none where there is no such table or it lacks columns."""
    columns = list(FINDINGS.leading)
    return pd.DataFrame(columns=columns) if problems(study, {"findings": columns}) else study.tables["findings"]


def say_moved(found: pd.DataFrame, is_named: bool) -> list[str]:
    """Return the largest changes whose interval excludes 0, each from another table while there are such."""
    moved = found[(found["at_least"] > 0) & ~found["measure"].isin(LOSSES)].sort_values("at_least", ascending=False)
    pairs = _pairs(moved)
    if not pairs and len(found) and found["ci_low"].isna().all():
        return ["No difference between the models has an interval, so none is known to be more than chance."]
    n_each = max(1, N_MOVED // max(1, len(pairs)))
    clauses = []
    for pair in pairs[:N_MODELS]:
        own = _of_pair(moved, pair)
        shown = pd.concat([own.drop_duplicates("table"), own]).drop_duplicates(["table", "measure"]).head(n_each)
        shown = _with_companions(shown, _of_pair(found, pair))
        clauses.append(_named(pair, is_named) + "; ".join(map(_say_change, _rows(shown))))
    return _joined(clauses, len(pairs))


def _with_companions(shown: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows, each with its companion behind it, moved or not."""
    names = dict.fromkeys(name for own in shown["measure"] for name in (own, COMPANIONS.get(own)) if name)
    rows = found[found["measure"].isin(list(names))].drop_duplicates("measure").set_index("measure", drop=False)
    return rows.loc[[name for name in names if name in rows.index]]


def say_unmoved(found: pd.DataFrame, is_named: bool) -> list[str]:
    """Return the measures whose interval holds 0 and leaves little room for a change, the narrowest first."""
    is_null = (found["at_least"] == 0) & (found["at_most"] <= NARROW) & ~found["measure"].isin(LOSSES)
    is_null &= found["at_most"] > 0  # what is equal in every seed is so by construction, as weights before training
    nulls = found[is_null].sort_values("at_most")
    pairs, clauses = _pairs(nulls), []
    for pair in pairs[:N_MODELS]:
        rows = list(_rows(_of_pair(nulls, pair).head(N_MOVED)))
        texts = [f"{_say_values(row)} (by no more than {significant(100 * row['at_most'], 2)} %)" for row in rows]
        clauses.append(_named(pair, is_named) + ", ".join(texts))
    return _joined(clauses, len(pairs))


def say_cost(found: pd.DataFrame, is_named: bool) -> list[str]:
    """Return what the treated models' held-out loss is against the reference's, with the perplexities."""
    measure = next((name for name in LOSSES[::2] if (found["measure"] == name).any()), "")
    rows = found[found["measure"] == measure]
    clauses = []
    for row in list(_rows(rows))[:N_MODELS]:
        pair = (row["model_a"], row["model_b"])
        said = ", without an interval"
        if math.isfinite(row["ci_low"]):
            said = ", which holds 0" if row["ci_low"] <= 0 <= row["ci_high"] else ", which excludes 0"
        unit = f" {row['unit']}" if isinstance(row["unit"], str) and row["unit"] else ""
        text = f"{row['label']} {signed(row['effect'], 3)}{unit}{_bounds(row, 3)}{said}"
        own = _of_pair(found[found["measure"] == LOSSES[1]], pair) if measure == LOSSES[0] else rows.iloc[:0]
        for other in _rows(own.head(1)):
            values = f"{significant(other['value_a'])} → {significant(other['value_b'])}"
            text += f"; perplexity {values}, {percent_change(other['value_b'], other['value_a'])}"
        clauses.append(_named(pair, is_named) + text)
    return _joined(clauses, len(rows))


def say_top_heads(study: Study) -> list[str]:
    """Return each model's head of largest impact, its lead over the second with its paired interval, and its p; of a
    study of one seed, as heads of two seeds do not correspond."""
    needs = {
        "ablation_results": ("model", "seed", "layer", "head", "kind", "impact_pct"),
        "ablation_summary": ("model", "seed", "kind", "layer", "measure", "value", "ci_low", "ci_high"),
    }
    if problems(study, needs):
        return []
    heads, summary = (of_one_kind(study.tables[name]) for name in needs)
    heads = heads[(heads["head"] >= 0) & heads["impact_pct"].notna()]
    if heads.groupby("model")["seed"].nunique().max() != 1:
        return []
    models = models_of(heads, study.models)
    clauses = []
    for model in models[:N_MODELS]:
        own = heads[heads["model"] == model].sort_values("impact_pct", ascending=False)
        top = next(_rows(own))
        said = summary[(summary["model"] == model) & (summary["layer"] == -1)]
        by_measure = {str(row["measure"]): row for row in _rows(said)}
        text = f"{model} L{top['layer']:g}H{top['head']:g}: loss {signed(top['impact_pct'], 2)} % without it"
        text += _say_lead(by_measure.get("top_margin"))
        if tested := by_measure.get("load_bearing_p"):
            text += f"; above the heads of its layer, {p_text(tested['value'], tested.get('n_permutations'))}"
        clauses.append(text)
    return _joined(clauses, len(models))


def _say_lead(margin: Mapping[str, Any] | None) -> str:
    """Return how far the first head lies before the second; nothing without an interval."""
    if margin is None or not math.isfinite(margin["ci_low"]):
        return ""
    is_open = margin["ci_low"] <= 0 <= margin["ci_high"]
    said = "so which is first is open" if is_open else "which excludes 0"
    return f", {signed(margin['value'], 2)} points before the second{_bounds(margin, 2)}, {said}"


def say_claims(study: Study) -> list[str]:
    """Return how many of the judged claims hold, and which published figures their intervals exclude."""
    needs = {
        "claims": ("claim", "verdict", "effect", "published_effect", "ci_low", "ci_high", "scale", "unit", "figure")
    }
    if problems(study, needs):
        return []
    claims = study.tables["claims"]
    judged = claims[~claims["verdict"].isin(UNJUDGED)]
    if judged.empty:
        return []
    counts = judged["verdict"].value_counts()
    given = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    n_held = int(judged["verdict"].isin(HOLDS).sum())
    text = f"{n_held} of the {len(judged)} claims that could be measured hold at least in direction ({given})."
    against = judged[(judged["figure"] == "excludes") & ~judged["verdict"].isin(HOLDS)]
    said = [
        f"“{row['claim']}”, {figure_text(row['effect'], unit_of(row))} "
        f"{interval_text(row['ci_low'], row['ci_high'], unit_of(row))}, "
        f"excludes {figure_text(row['published_effect'], unit_of(row))}"
        for row in _rows(against.head(N_CONTRADICTED))
    ]
    n_more = len(against) - len(said)
    more = f"; and {n_more} more" if n_more else ""
    return [text, *([f"Measured otherwise than published: {'; '.join(said)}{more}."] if said else [])]


# --- limits


def limits(study: Study) -> list[str]:
    """Return, in sentences, what keeps the study from saying more: seeds, size, how much was learned, its SAEs."""
    return [text for text in (say_seeds(study), say_size(study), say_learned(study), say_saes(study)) if text]


def say_seeds(study: Study) -> str:
    """Return how many seeds each model has, where they are too few for an interval."""
    tables = [df for df in study.tables.values() if {"model", "seed"} <= set(df.columns) and len(df)]
    n = max((int(n) for df in tables for n in df.groupby("model")["seed"].nunique()), default=0)
    if n == 0 or n >= MIN_SEEDS:
        return f"{n} seeds per model: an interval over them is wide." if n == MIN_SEEDS else ""
    return (
        f"{'One seed' if n == 1 else 'Two seeds'} per model: intervals are of the text alone, and another seed may "
        f"reverse any difference; an interval over seeds takes {MIN_SEEDS}."
    )


def say_size(study: Study) -> str:
    """Return the size of the largest model beside those of the models that the judged claims are about."""
    sizes = [model.get("n_parameters_no_embedding") for model in study.record.get("models", ())]
    known = [size for size in sizes if isinstance(size, int | float)]
    if not known or problems(study, {"claims": ("verdict", "published_params")}):
        return ""
    claims = study.tables["claims"]
    published = sorted(set(claims.loc[~claims["verdict"].isin(UNJUDGED), "published_params"].dropna()))
    if not published:
        return ""
    ends = " to ".join(dict.fromkeys(f"{size / 1e6:.1f} M" for size in (published[0], published[-1])))
    share = significant(100 * max(known) / published[-1], 2)
    return f"Size: {max(known) / 1e6:.2f} M parameters without embeddings against {ends} published ({share} %)."


def say_learned(study: Study) -> str:
    """Return how far each model's held-out loss lies from that of a bigram model of the same text."""
    if problems(study, {"baselines": ("name", "nats")}):
        return ""
    nats = study.tables["baselines"].set_index("name")["nats"].get("bigram")
    means = study.means("train_log", "held-out loss", "model")
    if nats is None or means.empty:
        return ""
    gaps = [(model, mean - nats) for model, mean in zip(means["model"], means["mean"], strict=True)]
    said = [f"{model} {abs(gap):.3f} nats {'below' if gap < 0 else 'above'}" for model, gap in gaps[:N_MODELS]]
    more = f" and {len(gaps) - len(said)} more" if len(gaps) > len(said) else ""
    return f"Distance to a bigram model of the same text ({nats:.3f} nats): {', '.join(said)}{more}."


def say_saes(study: Study) -> str:
    """Return how many SAEs are inadequate by the page's rule, where any is."""
    judged = judged_saes(study.tables.get("sae_training_results", pd.DataFrame()))
    n_left = int((~judged["is_adequate"].astype(bool)).sum()) if len(judged) else 0
    return (
        f"{n_left} of {len(judged)} SAEs are inadequate: what is said of their features says little." if n_left else ""
    )


# --- words


def _rows(df: pd.DataFrame) -> Iterator[dict[str, Any]]:
    yield from ({str(key): value for key, value in row.items()} for row in df.to_dict("records"))


def _pairs(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (reference, treated) of the rows, in their order."""
    return list(dict.fromkeys(zip(rows["model_a"], rows["model_b"], strict=True)))


def _of_pair(rows: pd.DataFrame, pair: Sequence[str]) -> pd.DataFrame:
    return rows[(rows["model_a"] == pair[0]) & (rows["model_b"] == pair[1])]


def _name(pair: Sequence[str]) -> str:
    return f"{pair[1]} against {pair[0]}"


def _named(pair: Sequence[str], is_named: bool) -> str:
    return f"{_name(pair)}: " if is_named else ""


def _joined(clauses: Sequence[str], n: int) -> list[str]:
    """Return the clauses of n comparisons, of which no more than `N_MODELS` are said, as sentences."""
    n_more = n - len(clauses) if clauses else 0
    more = [f"{n_more} further comparisons are in findings.csv."] if n_more else []
    return [*(f"{text[:1].upper()}{text[1:]}." for text in clauses), *more]


def _say_values(row: Mapping[str, Any]) -> str:
    """Return "mean |cos| on z: .034 → .0037"; of shares "1.0 % → 4.5 %"."""
    is_share = row["unit"] == "share"
    ends = [f"{fixed(100 * row[key], 1)} %" if is_share else significant(row[key]) for key in ("value_a", "value_b")]
    return f"{row['label']}: {' → '.join(ends)}"


def _say_change(row: Mapping[str, Any]) -> str:
    """Return "mean |cos| on z: .034 → .0037, −89.1 % (difference −.0303 [−.0323, −.0284])", of shares in points."""
    if row["unit"] == "share":
        points = {key: 100 * row[key] for key in ("effect", "ci_low", "ci_high")}
        return f"{_say_values(row)} ({signed(points['effect'], 1)} points{_bounds(points, 1)})"
    effect = significant(row["effect"]) if row["effect"] < 0 else f"+{significant(row['effect'])}"
    change = percent_change(row["value_b"], row["value_a"])
    return f"{_say_values(row)}, {change} (difference {effect}{_bounds(row)})"


def _bounds(row: Mapping[str, Any], digits: int | None = None) -> str:
    if not math.isfinite(row["ci_low"]):
        return ""
    ends = [significant(row[end]) if digits is None else signed(row[end], digits) for end in ("ci_low", "ci_high")]
    return f" [{', '.join(ends)}]"
