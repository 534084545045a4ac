"""What a rendered atlas shows beside what feature_atlas.csv says, read from its rows and sheets.

Numbers are written anew here as JavaScript writes them: halves away from 0, of the double's exact value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pandas as pd
from page_numbers import Tally, decimals

# every row of the list, page after page
ROWS = """() => {
  const words = node => node.textContent.trim();
  const found = [];
  for (;;) {
    for (const row of document.querySelectorAll("tr.feature")) {
      const name = ["b", "span:nth-child(2)"].map(part => words(row.querySelector(`.opener ${part}`)));
      found.push([...name, ...[...row.querySelectorAll("td.num")].map(words)]);
    }
    const next = document.getElementById("next");
    if (next.disabled) return found;
    next.click();
  }
}"""

# the sheet of one feature, opened by its address
SHEET = """key => new Promise(resolve => {
  location.hash = new URLSearchParams({ state: "all", open: key });
  setTimeout(() => {
    const [card, match] = document.querySelectorAll("tr.detail .card");
    const words = node => node.textContent.trim();
    const numbers = list => [...list.querySelectorAll("li .num")].map(words);
    resolve({
      facts: Object.fromEntries([...card.querySelectorAll(".facts li")].map(fact => [
        words(fact.firstChild), words(fact.querySelector("b")),
      ])),
      contexts: [...card.querySelectorAll(".contexts li")].map(item => ({
        value: words(item.querySelector(".num span")),
        interval: words(item.querySelector("small") ?? document.createElement("small")),
        titles: [...item.querySelectorAll(".tok")].map(token => token.title).filter(title => title),
        peaks: item.querySelectorAll(".peak").length,
      })),
      logits: [...card.querySelectorAll("section.logits")].map(numbers),
      bins: [...card.querySelectorAll(".histogram title")].map(words),
      near: [...card.querySelectorAll(".near button")].map(words),
      match: match ? words(match.querySelector("h2")).split(":")[0] : "",
    });
  }, 0);
})"""


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals."""
    text = str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def activation(value: float) -> str:
    """An activation: two decimals, or two digits and an exponent where that would hide it."""
    if value == 0:
        return "0"
    if 5e-3 <= abs(value) < 1e5:
        return fixed(value, 2)
    exponent = math.floor(math.log10(abs(value)))
    digits = Decimal(value).scaleb(-exponent).quantize(Decimal("0.1"), ROUND_HALF_UP)
    if abs(digits) >= 10:
        digits, exponent = digits / 10, exponent + 1
    return f"{digits:.1f}e{exponent:+d}".replace("-", "−")


def density(value: float) -> str:
    """A share of tokens in per cent."""
    if value == 0:
        return "0"
    return (
        f"{fixed(100 * value, 2)} %" if value >= 5e-5 else f"{100 * value:.0e} %".replace("e-0", "e-").replace("-", "−")
    )


def compare_rows(rows: Sequence[Sequence[str]], table: pd.DataFrame, names: Mapping[str, str]) -> Tally:
    """Compare the list of all features with the table: density, largest and mean activation."""
    tally = Tally()
    wanted = {
        (f"L{row.layer} H{row.head} #{row.feature}", names[row.model]): (row.density, row.max_act, row.mean_act)
        for row in table.itertuples()
    }
    tally.see("rows", len(rows), len(wanted))
    for feature, model, *shown in rows:
        of_table = wanted.get((feature, model), (math.nan, math.nan, math.nan))
        for name, text, write, value in zip(
            ("density", "largest", "mean"), shown, (density, activation, activation), of_table, strict=True
        ):
            tally.see(f"{name} {model} {feature}", text, write(value))
    return tally


def compare_sheet(tally: Tally, sheet: Mapping[str, Any], row: Any, impacts: pd.DataFrame | None) -> None:
    """Compare a feature's sheet with its row of the table."""
    where = f"{row.model} {row.layer} {row.head} {row.feature}"
    facts = {"density": density(row.density), "max": activation(row.max_act), "mean": activation(row.mean_act)}
    if impacts is not None:
        own = impacts.loc[(row.model, row.layer, row.head)]
        bounds = f"[{fixed(own['ci_low'], 2)}, {fixed(own['ci_high'], 2)}]"
        facts["removing this head"] = f"{decimals(own['impact_pct'], 2, is_signed=True)} % {bounds}"
    tally.see_all(f"facts {where}", sheet["facts"], facts)
    contexts = json.loads(row.top_contexts or "[]") + json.loads(row.interval_contexts or "[]")
    tally.see(f"contexts {where}", len(sheet["contexts"]), len(contexts))
    for shown, context in zip(sheet["contexts"], contexts, strict=True):
        titles = [
            activation(act) if act is not None else "not measured: position 0 or a special token"
            for act in context["acts"]
            if act != 0
        ]
        tally.see(f"values {where}", shown["value"], activation(context["value"]))
        bounds = [activation(context[bound]) for bound in ("low", "high") if bound in context]
        tally.see(f"interval {where}", shown["interval"], "–".join(bounds))
        tally.see(f"peaks {where}", shown["peaks"], 1)
        tally.see_all(f"tokens {where}", dict(enumerate(shown["titles"])), dict(enumerate(titles)))
    for name, texts in zip(("logit_promoted", "logit_suppressed"), sheet["logits"], strict=False):
        values = [value for _, value in json.loads(getattr(row, name) or "[]")]
        places = min(6, max(0, 2 - math.floor(math.log10(max(map(abs, values)) or 1))))
        wanted = {i: fixed(value, places) for i, value in enumerate(values)}
        tally.see_all(f"{name} {where}", dict(enumerate(texts)), wanted)
    near = [f"#{feature} · {fixed(cosine, 2)}" for feature, cosine in json.loads(row.neighbours or "[]")]
    tally.see_all(f"neighbours {where}", dict(enumerate(sheet["near"])), dict(enumerate(near)))
    if row.match:
        found = json.loads(row.match)
        is_shown = found and found[3] >= 0.5
        wanted = f"Best match in this layer, correlation {fixed(found[3], 2)}" if is_shown else ""
        tally.see(f"match {where}", sheet["match"], wanted)
    histogram = json.loads(row.histogram or '{"counts": []}')
    bins = {
        i: f"{activation(i * histogram['width'])} to {activation((i + 1) * histogram['width'])}: "
        f"{count:,} token{'' if count == 1 else 's'}"
        for i, count in enumerate(histogram["counts"])
    }
    tally.see_all(f"bins {where}", dict(enumerate(sheet["bins"])), bins)


def read_atlas_table(directory: Path) -> pd.DataFrame:
    """feature_atlas.csv with its texts as they are."""
    text = ("model", "top_token", "top_contexts", "logit_promoted", "logit_suppressed", "neighbours", "match")
    text += ("histogram", "interval_contexts")
    return pd.read_csv(
        directory / "feature_atlas.csv",
        dtype=dict.fromkeys(text, str),
        keep_default_na=False,
        float_precision="round_trip",
    )
