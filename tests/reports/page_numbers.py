"""What a rendered report shows, number by number, beside what its CSVs say: read from the page, computed anew here.

Nothing of the package is imported: means, sums and the way numbers are written are this module's own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

# tables, captions, claims and figures of the page as it stands
READ = """() => {
  const words = node => (node?.textContent ?? "").replace(/\\s+/g, " ").trim();
  const cell = td => [words(td.firstChild), words(td.querySelector("small"))];
  return {
    models: [...document.querySelectorAll(".made tbody th")].map(words),
    tables: [...document.querySelectorAll("table.grid")].map(table => ({
      panel: table.closest("figure").id,
      caption: words(table.caption),
      columns: [...table.tHead.rows[table.tHead.rows.length - 1].querySelectorAll("th.num")].map(words),
      rows: [...table.tBodies[0].rows].map(row => [
        [...row.querySelectorAll("th")].map(words), [...row.querySelectorAll("td")].map(cell),
      ]),
    })),
    facts: Object.fromEntries([...document.querySelectorAll("figure.panel")].map(panel => [
      panel.id, words(panel.querySelector("figcaption .small")),
    ])),
    claims: Object.fromEntries([...document.querySelectorAll("tr[id^=claim-]")].map(row => [
      row.id.slice(6), Object.fromEntries([...row.querySelectorAll("td")].map(td => [td.dataset.label, words(td)])),
    ])),
    sources: [...document.querySelectorAll("#sources ~ * tbody tr")].map(row => [...row.cells].slice(0, 3).map(words)),
    plots: [...document.querySelectorAll(".plot[data-drawn]")].map(plot => ({
      key: plot.dataset.figure,
      name: words(plot.parentElement.querySelector(".print-only")),
      data: plot.data,
      titles: (plot.layout.annotations ?? []).map(note => note.text),
      levels: (plot.layout.shapes ?? []).map(shape => shape.y0),
      legend: [...plot.querySelectorAll(".legendtext")].map(words),
    })),
  };
}"""


@dataclass
class Tally:
    """How many numbers were compared, and what differs."""

    n: int = 0
    wrong: list[str] = field(default_factory=list)
    by_place: dict[str, int] = field(default_factory=dict)

    def see(self, place: str, shown: Any, wanted: Any) -> None:
        """Compare a text, or a number to twelve digits: the page carries doubles, sums may differ in their last bit."""
        self.n += 1
        key = place.split()[0]
        self.by_place[key] = self.by_place.get(key, 0) + 1
        if isinstance(shown, int | float) and isinstance(wanted, int | float):
            is_equal = math.isclose(shown, wanted, rel_tol=1e-12, abs_tol=1e-15)
        else:
            is_equal = shown == wanted
        if not is_equal:
            self.wrong.append(f"{place}: the page has {shown!r}, the tables {wanted!r}")

    def see_all(self, place: str, shown: Mapping[Any, Any], wanted: Mapping[Any, Any]) -> None:
        """Compare values by key; one that either side lacks differs."""
        for key in [*wanted, *(key for key in shown if key not in wanted)]:
            self.see(f"{place} {key}", shown.get(key, "nothing"), wanted.get(key, "nothing"))


def decimals(value: float, digits: int, *, is_signed: bool = False) -> str:
    """A number as the page writes it: a true minus, none on what rounds to 0, a dash for nan."""
    if math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        return text.removeprefix("-")
    return ("+" if is_signed and value > 0 else "") + text.replace("-", "−")


def three_digits(value: float) -> str:
    """A positive number below 10 with three significant digits."""
    return decimals(value, 2 - math.floor(math.log10(value)))


def two_digits(value: float) -> str:
    """A number between 0.0001 and 1 with two significant digits."""
    return decimals(value, 1 - math.floor(math.log10(value)))


def beside(values: list[float], digits: int, notes: Sequence[str] = ("",) * 9, *, is_count: bool = False) -> list[str]:
    """The cells of a measure: the reference's, then each other model's with its change in per cent, of counts in their
    number; behind each value its note."""
    reference, *others = values
    cells = [decimals(reference, digits) + notes[0]]
    for value, note in zip(others, notes[1:], strict=False):
        if is_count:
            cells += [decimals(value, digits) + note, decimals(value - reference, 0, is_signed=True)]
            continue
        change = math.nan if reference == 0 or math.isnan(reference) else 100 * (value - reference) / abs(reference)
        text = decimals(change, 1 if abs(change) < 1000 else 0, is_signed=True)
        cells += [decimals(value, digits) + note, text if text == "–" else f"{text} %"]
    return cells


class Report:
    """A rendered report and the CSVs that it was drawn from, its models under their short names."""

    def __init__(self, page: Mapping[str, Any], directory: Path) -> None:
        self.page, self.tally = page, Tally()
        record = json.loads((directory / "study.json").read_text(encoding="utf-8"))
        names = dict(zip(dict.fromkeys(model["name"] for model in record["models"]), page["models"], strict=True))
        self.models = list(names.values())
        text = {"seeds": "str", "values": "str"}
        paths = [path for path in directory.glob("*.csv") if path.stem != "feature_atlas"]
        self.csv = {path.stem: pd.read_csv(path, dtype=text) for path in paths}
        self.sizes = {path.stem: path.stat().st_size for path in directory.glob("*.csv")}
        for name, df in self.csv.items():
            own = [column for column in ("model", "model_a", "model_b") if column in df and name != "ladder"]
            self.csv[name] = df.assign(**{column: df[column].map(names) for column in own})
        if "sae_training_results" in self.csv:
            self.saes = self.csv["sae_training_results"].query("head >= 0")
            sweep = sorted(self.saes["l1"].unique())
            self.l1 = sweep[(len(sweep) - 1) // 2]

    def error(self, measure: str, model: str, layer: int) -> float:
        """The standard error over blocks of a measure of a layer's trained SAEs; nan where there is none."""
        df = self.csv["text_errors"].query("table == 'sae_training_results'")
        if df.empty:  # without tables by block the columns of places are not there
            return math.nan
        df = df[df["dictionary"] == "trained"]
        own = df[(df["measure"] == measure) & (df["model"] == model) & (df["layer"] == layer) & (df["l1"] == self.l1)]
        return float(own["stderr"].iloc[0]) if len(own) else math.nan

    def tables(self, panel: str) -> list[dict[str, Any]]:
        return [table for table in self.page["tables"] if table["panel"] == panel]

    def plots(self, key: str) -> list[dict[str, Any]]:
        return [plot for plot in self.page["plots"] if plot["key"] == key]

    def rows_of(self, place: str, table: Mapping[str, Any], wanted: Callable[[tuple[str, ...]], list[str]]) -> None:
        """Compare a table row by row; `wanted` takes the row's headers."""
        for headers, cells in table["rows"]:
            expected = wanted(tuple(headers))
            self.tally.see(f"{place} {headers} cells", len(cells), len(expected))
            for column, (text, note), own in zip(table["columns"], cells, expected, strict=False):
                self.tally.see(f"{place} {table['caption']} {headers} {column}", f"{text} {note}".strip(), own)

    def lines(self, place: str, plot: Mapping[str, Any], wanted: Mapping[tuple[int, str, float], float]) -> None:
        """Compare the lines of a plot, by panel, name and x."""
        shown = {}
        for trace in plot["data"]:
            if "lines" not in trace.get("mode", "") or trace.get("fill") or not trace.get("customdata"):
                continue
            panel = int(trace.get("xaxis", "x")[1:] or 1) - 1
            for x, y in zip(trace["customdata"], trace["y"], strict=True):
                shown[panel, trace["name"], x] = y
        self.tally.see_all(place, shown, {key: value for key, value in wanted.items() if not math.isnan(value)})


def means(df: pd.DataFrame, by: list[str], column: str) -> dict[Any, float]:
    """The mean of a column by some others, over one seed's rows first and then over seeds."""
    own = df.groupby([*by, "seed"])[column].mean().groupby(by).mean() if "seed" in df else df.groupby(by)[column].mean()
    return own.dropna().to_dict()


# --- tables


def check_topology_table(report: Report) -> None:
    df = report.csv["topology_stats"]
    cosines = (("max_cos", 4), ("mean_cos", 4))
    kinds = {"(a)": ("z", cosines), "(b)": ("pattern", cosines), "(c)": ("residual", cosines)}
    kinds["(d)"] = ("z", (("nuclear_rank", 1), ("rank_utilization", 3)))
    for table in report.tables("topology"):
        basis, measures = kinds[table["caption"][:3]]
        own = df[df["basis"] == basis].set_index(["model", "layer"])

        def wanted(headers: tuple[str, ...], own: pd.DataFrame = own, measures: tuple = measures) -> list[str]:
            layer = int(headers[0])
            values = [([own.loc[(m, layer), column] for m in report.models], digits) for column, digits in measures]
            return [cell for own_values, digits in values for cell in beside(own_values, digits)]

        report.rows_of("topology", table, wanted)


def check_effective_size_table(report: Report) -> None:
    df = report.csv["effective_size"]

    def wanted(headers: tuple[str, ...]) -> list[str]:
        model, _, reference = headers[0].partition(" against ")
        layer = -1 if headers[1] == "all, mean" else int(headers[1])
        own = df[(df["model_a"] == model) & (df["model_b"] == reference) & (df["layer_a"] == layer)]
        (row,) = own.to_dict("records")
        used = [decimals(100 * row[f"utilization_{end}"], 1) for end in "ab"]
        sizes = ("n_parameters", "n_eff", "n_parameters_no_embedding", "n_eff_no_embedding")
        return [*used, *(decimals(row[name] / 1e6, 3) for name in sizes)]

    for table in report.tables("effective-size"):
        report.rows_of("effective-size", table, wanted)


def check_sae_table(report: Report) -> None:
    kinds = {"(a)": ("l0", 2, 1), "(b)": ("mse", 5, 1), "(c)": ("fvu", 3, 1), "(d)": ("dead_fraction", 0, 1)}
    kinds["(e)"] = ("", 3, 1)
    df = report.saes[report.saes["l1"] == report.l1]
    for table in report.tables("saes"):
        column, digits, _ = kinds[table["caption"][:3]]

        def value(model: str, layer: int, kind: str, column: str = column) -> float:
            own = df[(df["model"] == model) & (df["layer"] == layer) & (df["dictionary"] == kind)]
            if column:
                return float(own[column].mean())
            known = own.dropna(subset=["ce_spliced"])
            cost = (known["ce_zero"] - known["ce_base"]).sum()
            return float((known["ce_zero"] - known["ce_spliced"]).sum() / cost) if cost > 0 else math.nan

        def wanted(
            headers: tuple[str, ...], value: Any = value, digits: int = digits, column: str = column
        ) -> list[str]:
            layer, cells = int(headers[0]), []
            scale = 1
            if column == "dead_fraction":
                own = df[(df["layer"] == layer) & (df["dictionary"] == "trained") & (df["model"] == report.models[0])]
                scale = int(own["d_sae"].sum())
            for kind in ("trained", "random", "shuffled"):
                values = [scale * value(model, layer, kind) for model in report.models]
                if kind == "trained":
                    errors = [scale * report.error(column or "ce_recovered", model, layer) for model in report.models]
                    is_shown = column in ("", "dead_fraction")
                    notes = [f" ± {decimals(e, max(digits, 1))}" if is_shown and e == e else "" for e in errors]
                    cells += beside(values, digits, notes, is_count=column == "dead_fraction")
                else:
                    cells += [decimals(v, digits) for v in values]
            return cells

        report.rows_of("saes", table, wanted)


def check_ablation_table(report: Report) -> None:
    df = report.csv["ablation_results"].query("head >= 0 and kind == 'zero'")
    ranked = df.sort_values("impact_pct", ascending=False)

    def wanted(headers: tuple[str, ...]) -> list[str]:
        row = ranked.iloc[int(headers[0]) - 1]
        bounds = f"[{decimals(row['ci_low'], 2)}, {decimals(row['ci_high'], 2)}]"
        place = [row["model"], str(int(row["layer"])), str(int(row["head"]))]
        return [*place, f"{decimals(row['impact_pct'], 2)} {bounds}"]

    for table in report.tables("ablation-table"):
        report.tally.see("ablation-table rows", len(table["rows"]), 5)
        report.rows_of("ablation-table", table, wanted)


SUMMARIES = {
    "Gini": "gini",
    "p of the top head": "load_bearing_p",
    "rank correlation": "rank_correlation",
    "top head − runner-up": "top_margin",
}


def check_summary_table(report: Report) -> None:
    df = report.csv["ablation_summary"].query("kind == 'zero'")
    for table in report.tables("ablation-summary"):
        (measure,) = (own for title, own in SUMMARIES.items() if table["caption"].startswith(title))
        own = df[df["measure"] == measure].set_index(["layer", "model"])

        def write(row: pd.Series, measure: str = measure) -> str:
            if measure == "load_bearing_p":
                is_least = row["value"] <= (1 + 1e-9) / (row.get("n_permutations", math.nan) + 1)
                return f"≤ {row['value']:.4f}".replace("0.", ".") if is_least else two_digits(row["value"])[1:]
            note = f" [{decimals(row['ci_low'], 3)}, {decimals(row['ci_high'], 3)}]" if measure == "top_margin" else ""
            return decimals(row["value"], 3) + note

        def wanted(headers: tuple[str, ...], own: pd.DataFrame = own, write: Any = write) -> list[str]:
            layer = -1 if headers[0] == "all" else int(headers[0])
            return [write(own.loc[(layer, model)]) for model in report.models]

        report.rows_of("ablation-summary", table, wanted)


def check_losses_table(report: Report) -> None:
    named = dict(report.csv["baselines"][["name", "nats"]].itertuples(index=False))
    perplexities = dict(report.csv["baselines"][["name", "perplexity"]].itertuples(index=False))
    log = report.csv["train_log"].dropna(subset=["held_out_loss"])

    def wanted(headers: tuple[str, ...]) -> list[str]:
        if headers[0] in named:
            return [decimals(named[headers[0]], 3), decimals(perplexities[headers[0]], 2), *["–" for _ in named]]
        last = log[log["model"] == headers[0].partition(",")[0]].sort_values("step").iloc[-1]
        loss, perplexity = last["held_out_loss"], last["held_out_perplexity"]
        return [
            decimals(loss, 3),
            decimals(perplexity, 2),
            *(decimals(loss - nats, 3, is_signed=True) for nats in named.values()),
        ]

    for table in report.tables("losses"):
        report.rows_of("losses", table, wanted)


def check_text_and_bits(report: Report) -> None:
    for table in report.tables("text-table"):
        df = report.csv["text_quality"].set_index(["measure", "model"])

        def of_text(headers: tuple[str, ...], df: pd.DataFrame = df) -> list[str]:
            rows = [df.loc[(headers[0].replace(" ", "_"), model)] for model in report.models]
            return [
                f"{decimals(r['value'], 3)} [{decimals(r['ci_low'], 3)}, {decimals(r['ci_high'], 3)}]" for r in rows
            ]

        report.rows_of("text-table", table, of_text)
    for table in report.tables("bits"):
        df = report.csv["evaluation"]

        def of_bits(headers: tuple[str, ...], df: pd.DataFrame = df) -> list[str]:
            own = df[df["model"] == headers[0]]
            pairs = own[["bits_per_byte", "perplexity"]].itertuples(index=False)
            cells = [cell for bits, perplexity in pairs for cell in (decimals(bits, 4), decimals(perplexity, 2))]
            return [*cells, f"{own['artifact_bytes'].max():,.0f}"]

        report.rows_of("bits", table, of_bits)
    for table in report.tables("ladder-table"):
        rungs = report.csv["ladder"].set_index("rung")

        def of_rung(headers: tuple[str, ...], rungs: pd.DataFrame = rungs) -> list[str]:
            row = rungs.loc[int(headers[0])]
            bits = [decimals(row["bits_per_byte"], 4), decimals(row["delta_bits"], 4)]
            return [*bits, f"{row['n_parameters']:,}", str(row["n_steps"])]

        report.rows_of("ladder-table", table, of_rung)


def check_stability_table(report: Report) -> None:
    df = report.csv["mantel_stability"].set_index(["set", "measure", "model", "seed", "permutation_seed"]).sort_index()
    for table in report.tables("mantel-stability"):
        name, _, kind = table["caption"].partition(", ")
        measure = {"raw": "r", "given spelling": "partial_r"}[kind]

        def wanted(headers: tuple[str, ...], key: tuple[str, str] = (name, measure)) -> list[str]:
            own = df.loc[(*key, headers[0], int(headers[1]))]
            pooled = own.loc[-1]
            p, *by_seed = (two_digits(p).removeprefix("0") for p in own["p"].loc[[-1, *own.index.drop(-1)]])
            by_seed = ", ".join(by_seed)
            limits = f"[{two_digits(pooled['p_low'])}, {two_digits(pooled['p_high'])}]"
            return [
                decimals(pooled["value"], 3), by_seed, f"{p} {limits}",
                f"{int(pooled['n_permutations']):,}",
            ]  # fmt: skip

        report.rows_of("mantel-stability", table, wanted)


# --- the ledger, the captions, the list of tables


def in_unit(value: float, unit: str) -> str:
    """An effect as the ledger writes it in a unit, without the unit's name."""
    if unit == "factor":
        return three_digits(1 + value) if value > -1 else decimals(1 + value, 0)
    scale = 1 if unit == "plain" else 100
    return decimals(scale * value, 3 if scale == 1 else 1 if abs(scale * value) < 1000 else 0, is_signed=True)


def check_claims(report: Report) -> None:
    df = report.csv["claims"].set_index("claim_id").fillna({"measured": "", "published": "", "unit": "", "figure": ""})
    suffixes = {"percent": " %", "factor": " ×", "points": " points", "plain": ""}
    for key, row in df.iterrows():
        shown, unit = report.page["claims"][key], row["unit"]
        published = (
            "" if math.isnan(row["published_effect"]) else in_unit(row["published_effect"], unit) + suffixes[unit]
        )
        seeds = f"{row['n']:,} seed{'s' if row['n'] != 1 else ''}" if row["n"] else "–"
        report.tally.see(f"ledger {key} published", shown["Published"].startswith(published + row["published"]), True)
        report.tally.see(f"ledger {key} n", shown["n"].startswith(seeds), True)
        report.tally.see(f"ledger {key} verdict", shown["Verdict"].endswith((row["verdict"], "of one seed")), True)
        if math.isnan(row["effect"]):
            continue
        figure = in_unit(row["effect"], unit) + suffixes[unit]
        if math.isfinite(row["ci_low"]) and math.isfinite(row["ci_high"]):
            figure += f" [{', '.join(in_unit(row[end], unit) for end in ('ci_low', 'ci_high'))}]"
            if row["figure"]:
                is_held = row["ci_low"] <= row["published_effect"] <= row["ci_high"]
                report.tally.see(f"ledger {key} figure", row["figure"], "holds" if is_held else "excludes")
                figure += f", {row['figure']} {published}"
        report.tally.see(f"ledger {key} measured", shown["Measured here"][: len(figure)], figure)
    measures = {"mean |cos| on z": "mean_cos", "nuclear rank of z": "nuclear_rank", "l0": "l0"}
    for key, row in df.iterrows() if "reference_value" in df else ():
        column = measures.get(row["measure"])
        if column is None or not isinstance(row["source_rows"], str):
            continue
        own = report.csv[row["source_table"]]
        own = own[own["head"] >= 0] if "head" in own else own
        for part in row["source_rows"].split():
            name, _, value = part.partition("=")
            own = own[own[name].astype(str).str.removesuffix(".0") == value]
        for end, model in (("reference", report.models[0]), ("treated", report.models[1])):
            found = own[own["model"] == model][column].mean()
            report.tally.see(f"ledger {key} {end}", float(row[f"{end}_value"]), float(found))
            report.tally.see(f"ledger {key} {end} as written", f"{found:.3g}" in row["measured"], True)
            written = report.page["claims"][key]["Measured here"]
            report.tally.see(f"ledger {key} {end} as shown", three_digits(float(found)) in written, True)
        change = (
            own[own["model"] == report.models[1]][column].mean() / own[own["model"] == report.models[0]][column].mean()
        )
        text = decimals(100 * (change - 1), 1, is_signed=True)
        report.tally.see(f"ledger {key} change", f"{text} %" in report.page["claims"][key]["Measured here"], True)


def check_counts(report: Report) -> None:
    """The n of each caption, from the rows that the panel shows."""

    def said(values: Iterable[float]) -> str:
        ends = sorted({int(value) for value in values})
        return " to ".join(f"{end:,}" for end in dict.fromkeys((ends[0], ends[-1])))

    wanted = {}
    if "topology_stats" in report.csv:
        n = f"n = {said(report.csv['topology_stats']['n_tokens'])} held-out tokens"
        wanted |= dict.fromkeys(("topology", "redundancy", "ranks", "heatmaps"), n)
    if "sae_training_results" in report.csv:
        unit = "held-out tokens an SAE"
        kinds = {kind: report.saes[report.saes["dictionary"] == kind] for kind in ("trained", "random", "shuffled")}
        counts = {kind: said(rows["n_eval_tokens"]) for kind, rows in kinds.items()}
        n_losses = said(report.saes.dropna(subset=["ce_spliced"])["n_ce_tokens"])
        wanted |= dict.fromkeys(("l0", "density", "pareto"), f"n = {counts['trained']} {unit};")
        wanted |= {"fvu": of_parts(counts, unit), "saes": of_parts(counts | {"(e)": n_losses}, unit)}
        wanted["matched"] = of_parts({"fvu": counts["trained"], "loss recovered": n_losses}, unit)
    if "ablation_results" in report.csv:
        n = said(report.csv["ablation_results"].query("head >= 0 and kind == 'zero'")["n_tokens"])
        wanted |= dict.fromkeys(("ablation", "ablation-table"), f"n = {n} held-out tokens, the same for all heads;")
    if "baselines" in report.csv:
        wanted["losses"] = f"n = {said(report.csv['baselines']['n_tokens'])} held-out tokens;"
    if "attention_stats" in report.csv:
        n = f"n = {said(report.csv['attention_stats']['n_tokens'])} tokens;"
        wanted |= dict.fromkeys(("entropy", "head-spread", "bos"), n)
    for key, text in wanted.items():
        if key in report.page["facts"]:
            report.tally.see(
                f"captions {key}: {text} in {report.page['facts'][key]!r}", text in report.page["facts"][key], True
            )


def of_parts(counts: Mapping[str, str], unit: str) -> str:
    """The n of several parts: those of one count together, the first with the unit."""
    names: dict[str, list[str]] = {}
    for name, count in counts.items():
        names.setdefault(count, []).append(name)
    (first, own), *others = names.items()
    head = f"n = {first} {unit}" + (f" ({', '.join(own)})" if others else "")
    return "; ".join([head, *(f"{', '.join(named)}: {count}" for count, named in others)]) + ";"


def check_sources(report: Report) -> None:
    for name, rows, size in report.page["sources"]:
        stem = name.removesuffix(".csv")
        if stem in report.sizes:
            report.tally.see(f"sources {stem} size", size, f"{report.sizes[stem] / 1000:,.1f} kB")
        if stem in report.csv:
            report.tally.see(f"sources {stem} rows", rows, f"{len(report.csv[stem]):,}")


# check -> the tables that it needs
TABLE_CHECKS: dict[Callable[[Report], None], tuple[str, ...]] = {
    check_topology_table: ("topology_stats",),
    check_effective_size_table: ("effective_size",),
    check_sae_table: ("sae_training_results",),
    check_ablation_table: ("ablation_results",),
    check_summary_table: ("ablation_summary",),
    check_losses_table: ("baselines", "train_log"),
    check_text_and_bits: (),
    check_stability_table: ("mantel_stability",),
    check_claims: ("claims",),
    check_counts: (),
    check_sources: (),
}
