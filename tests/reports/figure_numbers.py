"""What a rendered report's figures draw, point by point, beside what the study's CSVs say."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from page_numbers import Report, decimals, means

from reports.measure_names import name_measure
from reports.table_cells import percent_change, significant


def check_heatmaps(report: Report) -> None:
    df = report.csv["head_cosines"]
    layers = sorted(set(df["layer"]))
    basis = {"z": "z", "attention pattern": "pattern", "residual contribution": "residual"}
    for plot in report.plots("heatmaps"):
        own = df[df["basis"] == basis[plot["name"]]].set_index(["model", "layer", "head_i", "head_j"])["cos"]
        places = [(model, layer) for model in report.models for layer in layers]
        for (model, layer), trace in zip(places, plot["data"], strict=True):
            for i, row in zip(trace["y"], trace["z"], strict=True):
                for j, value in zip(trace["x"], row, strict=True):
                    wanted = None if i == j else own[model, layer, i, j]
                    report.tally.see(f"heatmaps {plot['name']} {model} {layer} {i} {j}", value, wanted)


def check_sae_lines(report: Report) -> None:
    measures = ("l0", "dense_fraction", "near_copy_share", "fvu")
    for key, columns in (("l0", ("l0",)), ("sae-health", [name for name in measures if name in report.saes])):
        for plot in report.plots(key):
            df = report.saes[report.saes["l1"] == float(plot["name"].split()[-1])] if plot["name"] else report.saes
            trained = df[df["dictionary"] == "trained"]
            wanted = {
                (panel, model, layer): y
                for panel, column in enumerate(columns)
                for (model, layer), y in means(trained, ["model", "layer"], column).items()
            }
            report.lines(f"{key} {plot['name']}", plot, wanted)
            heads, controls, column = {}, {}, columns[-1]
            for trace in plot["data"]:
                if trace["mode"] == "markers" and int(trace["xaxis"][1:] or 1) != len(columns):
                    continue
                if trace["mode"] == "markers":
                    places = [re.search(r"layer (\d+), head (\d+)", text).groups() for text in trace["text"]]
                    shown = zip(places, trace["y"], strict=True)
                    heads |= {(trace["legendgroup"], int(layer), int(head)): y for (layer, head), y in shown}
                elif trace["name"] in ("random dictionary", "shuffled activations"):
                    model = re.search(r", (.*)<br>", trace["hovertemplate"])[1]
                    shown = zip(trace["x"], trace["y"], strict=True)
                    controls |= {(trace["name"].split()[0], model, layer): y for layer, y in shown}
            own = trained.set_index(["model", "layer", "head"])[column].to_dict()
            report.tally.see_all(f"{key} heads {plot['name']}", heads, own)
            if key == "sae-health":
                others = df[df["dictionary"] != "trained"]
                report.tally.see_all("fvu controls", controls, means(others, ["dictionary", "model", "layer"], "fvu"))


def check_density(report: Report) -> None:
    df = report.csv["sae_density"]
    layers = sorted(set(df["layer"]))
    edges = pd.to_numeric(df["log10_density_bin"].replace("dead", None))
    width = min(b - a for a, b in zip(sorted(set(edges.dropna()))[:-1], sorted(set(edges.dropna()))[1:], strict=True))
    sums = df.groupby(["layer", "model", "log10_density_bin"])["n_features"].sum()
    wanted = {
        (layer, model, "dead" if edge == "dead" else float(edge)): int(n)
        for (layer, model, edge), n in sums.items()
        if n > 0
    }
    for plot in report.plots("density"):
        shown = {}
        for trace in plot["data"]:
            layer = layers[int(trace["xaxis"][1:] or 1) - 1]
            for x, y in zip(trace["x"], trace["y"], strict=True) if trace["mode"] == "markers" else ():
                edge = "dead" if trace["marker"]["symbol"].endswith("-open") else round(x - width / 2, 9)
                shown[layer, trace["name"], edge] = y
        report.tally.see_all("density", shown, wanted)


def check_ablation(report: Report) -> None:
    df = report.csv["ablation_results"].query("head >= 0 and kind == 'zero'").set_index(["model", "layer", "head"])
    for plot in report.plots("ablation"):
        seen = []
        for trace in plot["data"]:
            error = trace["error_y"]
            marks = (trace["customdata"], trace["y"], error["array"], error["arrayminus"], trace["text"])
            for (model, layer, head), y, above, below, text in zip(*marks, strict=True):
                row = df.loc[(model, layer, head)]
                seen.append((model, layer, head))
                report.tally.see(f"ablation {seen[-1]}", y, row["impact_pct"])
                report.tally.see(f"ablation {seen[-1]} high", y + above, row["ci_high"])
                report.tally.see(f"ablation {seen[-1]} low", y - below, row["ci_low"])
                impact, *ends = (decimals(row[c], 3, is_signed=True) for c in ("impact_pct", "ci_low", "ci_high"))
                report.tally.see(f"ablation {seen[-1]} hover", text, f"{impact} % [{ends[0]}, {ends[1]}]")
        report.tally.see("ablation heads", sorted(seen), sorted(df.index))


def check_topology_lines(report: Report) -> None:
    df = report.csv["topology_stats"]
    panels = [basis for basis in ("z", "pattern", "residual") if (df["basis"] == basis).any()]
    for plot in report.plots("redundancy"):
        own = means(df, ["basis", "model", "layer"], "mean_cos")
        report.lines("redundancy", plot, {(panels.index(b), model, layer): y for (b, model, layer), y in own.items()})
    for plot in report.plots("ranks"):
        own = means(df[df["basis"] == "z"], ["model", "layer"], "nuclear_rank")
        report.lines("ranks", plot, {(0, model, layer): y for (model, layer), y in own.items()})


def check_pareto(report: Report) -> None:
    df = report.saes[report.saes["dictionary"] == "trained"]
    layers = sorted(set(df["layer"]))
    for plot in report.plots("pareto"):
        for trace in plot["data"]:
            layer = layers[int(trace["xaxis"][1:] or 1) - 1]
            own = df[(df["layer"] == layer) & (df["model"] == trace["name"])].groupby("l1")[["l0", "fvu"]].mean()
            own = own.sort_values("l0")
            for axis, column in (("x", "l0"), ("y", "fvu")):
                shown, wanted = dict(enumerate(trace[axis])), dict(enumerate(own[column]))
                report.tally.see_all(f"pareto {layer} {trace['name']} {column}", shown, wanted)


def check_matched(report: Report) -> None:
    df = report.csv["sae_matched_l0"]
    columns = ("fvu_difference", "ce_recovered_difference")
    wanted = {
        (panel, f"{row['model_b']} − {row['model_a']}", row["layer"]): row[column]
        for panel, column in enumerate(columns, 1)
        for _, row in df.iterrows()
    }
    first, *others = report.models
    trained = report.saes[report.saes["dictionary"] == "trained"]
    for plot in report.plots("matched"):
        l1 = float(plot["name"].split()[-1]) if plot["name"] else report.l1
        fvu = means(trained[trained["l1"] == l1], ["model", "layer"], "fvu")
        for (model, layer), y in fvu.items():
            if model in others and (first, layer) in fvu:
                wanted[0, f"{model} − {first}", layer] = round(y - fvu[first, layer], 11)
        report.lines("matched", rounded(plot, "x"), wanted)
    for _, row in df[df["fvu_difference"].isna()].iterrows():
        said = f"{row['model_a']} – {row['model_b']}, seed {row['seed']}, layer {row['layer']}: "
        report.tally.see(f"matched gap {said}", said in report.page["facts"]["matched"], True)


def check_training(report: Report) -> None:
    log = report.csv["train_log"]
    for plot in report.plots("loss"):
        held_out = log.dropna(subset=["held_out_loss"])
        by_step, first = means(held_out, ["model", "step"], "held_out_loss"), report.models[0]
        wanted = {(0, m, x): y for (m, x), y in by_step.items()}
        for model, x in by_step:
            if model != first and (first, x) in by_step:
                wanted[1, f"{model} − {first}", x] = round(by_step[model, x] - by_step[first, x], 11)
        report.lines("loss", rounded(plot, "x2"), wanted)
        batches = {}
        for trace in plot["data"]:
            if trace.get("opacity") == 0.4:
                pairs = zip(trace["x"], trace["y"], strict=True)
                batches |= {(trace["legendgroup"], x): y for x, y in pairs if y is not None}
        report.tally.see_all("loss of batches", batches, means(log, ["model", "step"], "loss"))
        baselines = report.csv["baselines"]
        report.tally.see_all(
            "loss levels", dict(enumerate(plot["levels"][: len(baselines)])), dict(enumerate(baselines["nats"]))
        )
        texts = [f"{name} {nats:.2f}" for name, nats in zip(baselines["name"], baselines["nats"], strict=True)]
        report.tally.see_all("loss names", dict(enumerate(plot["titles"][-len(texts) :])), dict(enumerate(texts)))
    for plot in report.plots("pressure"):
        columns = ("vsm.lambda", "sigma_z", "sigma_pattern", "sigma_residual")
        report.lines("pressure", plot, over_steps(log, {i: [column] for i, column in enumerate(columns)}))
    for plot in report.plots("telemetry"):
        intervention = plot["name"] or next(c.rpartition(".")[0] for c in log if not c[-1].isdigit() and "." in c)
        columns = {name_measure(c.rpartition(".")[2]): c for c in log if c.startswith(f"{intervention}.")}
        own = {i: [columns[title]] for i, title in enumerate(plot["titles"])}
        report.lines(f"telemetry {intervention}", plot, over_steps(log, own))
    for plot in report.plots("rank-trajectories"):
        rank = plot["name"].replace(" ", "_") if plot["name"] else "nuclear_rank"
        names = dict(enumerate(plot["titles"]))
        if not plot["name"] and not any(column.startswith(f"{rank}.") for column in log):
            continue
        own = {i: [c for c in log if c.startswith(f"{rank}.{matrix}.")] for i, matrix in names.items()}
        report.lines(f"rank-trajectories {rank}", plot, over_steps(log, own))
    for plot in report.plots("monitors"):
        names = {name_measure(c.rpartition(".")[0]): c.rpartition(".")[0] for c in log if c[-1].isdigit() and "." in c}
        own = {i: [f"{names[plot['name']]}.{title.split()[1]}"] for i, title in enumerate(plot["titles"])}
        report.lines(f"monitors {plot['name']}", plot, over_steps(log, own))


def rounded(plot: Mapping[str, Any], axis: str) -> Mapping[str, Any]:
    """The plot with the panel of an axis rounded to what is left of effects, which have 12 decimals."""
    for trace in plot["data"]:
        if trace["xaxis"] == axis:
            trace["y"] = [round(y, 11) for y in trace["y"]]
    return plot


def over_steps(log: pd.DataFrame, panels: Mapping[int, list[str]]) -> dict[tuple[int, str, float], float]:
    """Panel, model, step -> the mean of the panel's columns."""
    found = {}
    for panel, columns in panels.items():
        own = log[["model", "seed", "step"]].assign(value=log[columns].mean(axis=1))
        found |= {(panel, model, x): y for (model, x), y in means(own, ["model", "step"], "value").items()}
    return found


def check_attention(report: Report) -> None:
    df = report.csv["attention_stats"]
    for plot in report.plots("entropy"):
        own = df.set_index(["model", "layer", "head"])["entropy_share"]
        for model, trace in zip(report.models, plot["data"], strict=True):
            for layer, row in zip(trace["y"], trace["z"], strict=True):
                for head, value in zip(trace["x"], row, strict=True):
                    report.tally.see(f"entropy {model} {layer} {head}", value, own[model, layer, head])
    for plot in report.plots("head-spread"):
        groups = df.groupby(["model", "layer"])["entropy"]
        own = groups.mean() if plot["name"].startswith("mean") else groups.std(ddof=0)
        report.lines(f"head-spread {plot['name']}", plot, {(0, model, layer): y for (model, layer), y in own.items()})
    for plot in report.plots("bos"):
        own = means(df, ["model", "layer"], "bos_mass")
        report.lines("bos", plot, {(0, model, layer): y for (model, layer), y in own.items()})
        heads = {}
        for trace in plot["data"]:
            if trace["mode"] == "markers":
                places = [re.search(r"layer (\d+), head (\d+)", text).groups() for text in trace["text"]]
                shown = zip(places, trace["y"], strict=True)
                heads |= {(trace["legendgroup"], int(layer), int(head)): y for (layer, head), y in shown}
        report.tally.see_all("bos heads", heads, df.set_index(["model", "layer", "head"])["bos_mass"].to_dict())


def check_changes(report: Report) -> None:
    """A row a measure: the first model's number, the second's less it, and that in per cent."""
    csv, heads = report.csv, "head >= 0 and kind == 'zero'"
    log = csv["train_log"].dropna(subset=["held_out_loss"]).sort_values("step")
    values = {"held-out loss": log.groupby("model")["held_out_loss"].last()}
    values["held-out perplexity"] = log.groupby("model")["held_out_perplexity"].last()
    topology = csv["topology_stats"].groupby(["basis", "model"])
    values["mean |cos| on z"] = topology["mean_cos"].mean()["z"]
    values["mean |cos|, residual"] = topology["mean_cos"].mean()["residual"]
    values["nuclear rank of z"] = topology["nuclear_rank"].mean()["z"]
    trained = report.saes[(report.saes["dictionary"] == "trained") & (report.saes["l1"] == report.l1)]
    values |= {f"SAE {column}": trained.groupby("model")[column].mean() for column in ("l0", "fvu")}
    values["largest head impact (%)"] = csv["ablation_results"].query(heads).groupby("model")["impact_pct"].max()
    attention = csv["attention_stats"]
    first = attention[attention["layer"] == 0].groupby("model")["entropy"]
    values |= {"layer-0 head entropy, mean": first.mean(), "layer-0 head entropy, std": first.std(ddof=0)}
    for table in report.tables("relative-changes"):
        reference, treated = report.models
        wanted = {}
        for title, of_model in values.items():
            before, change = of_model[reference], of_model[treated] - of_model[reference]
            if not math.isnan(change):
                sign = "+" if round(change, 12) > 0 else ""
                cells = (
                    significant(before),
                    sign + significant(round(change, 12)),
                    percent_change(before + change, before),
                )
                wanted[name_measure(title)] = cells
        shown = {headers[0]: tuple(text for text, _ in cells) for headers, cells in table["rows"]}
        report.tally.see_all("changes", {name: shown.get(name) for name in wanted}, wanted)


def check_layers_of_others(report: Report) -> None:
    """Figures by layer that a study without concepts or spectra does not have."""
    for plot in report.plots("spectra"):
        df, rank = report.csv["weight_spectra"], plot["name"].replace(" ", "_")
        panels = {title: i for i, title in enumerate(plot["titles"])}
        own = means(df, ["matrix", "model", "layer"], rank)
        report.lines(f"spectra {rank}", plot, {(panels[w], model, layer): y for (w, model, layer), y in own.items()})
    for plot in report.plots("intrinsic-dimension"):
        for trace in plot["data"]:
            own = report.csv["intrinsic_dimension"].query(f"model == {trace['name']!r}").set_index("layer")["dimension"]
            shown = dict(zip(trace["x"], trace["y"], strict=True))
            report.tally.see_all(f"intrinsic-dimension {trace['name']}", shown, own.to_dict())
    for plot in report.plots("dimension-curve"):
        df = report.csv["intrinsic_dimension_curve"]
        layers = sorted(set(df["layer"]))
        own = means(df, ["layer", "model", "n_points"], "dimension")
        wanted = {(layers.index(layer), model, n): y for (layer, model, n), y in own.items()}
        report.lines("dimension-curve", plot, wanted)
    for plot in report.plots("crystallisation"):
        df = report.csv["concept_mantel"]
        panels = {title.split(" (")[0]: i for i, title in enumerate(plot["titles"])}
        own = means(df, ["set", "model", "layer"], "r")
        report.lines("crystallisation", plot, {(panels[s], model, layer): y for (s, model, layer), y in own.items()})
    for plot in report.plots("effective-dimension"):
        own = report.csv["concept_geometry"].set_index(["model", "set", "layer"])["effective_dim"]
        for model, trace in zip(report.models, plot["data"], strict=True):
            for name, row in zip(trace["y"], trace["z"], strict=True):
                for layer, value in zip(trace["x"], row, strict=True):
                    report.tally.see(f"effective-dimension {model} {name} {layer}", value, own[model, name, layer])


# panel -> the measure whose means over seeds are its lines
DRAWN_MEANS = {
    "redundancy": ("topology_stats", "mean_cos"), "bos": ("attention_stats", "bos_mass"),
    "l0": ("sae_training_results", "l0"), "sae-health": ("sae_training_results", ""),
    "loss": ("train_log", "held_out_loss"),
    "crystallisation": ("concept_mantel", "r"), "spectra": ("weight_spectra", ""), "monitors": ("train_log", ""),
    "rank-trajectories": ("train_log", ""),
    "trajectories": ("trajectories", "value"), "dimension-curve": ("intrinsic_dimension_curve", "dimension"),
}  # fmt: skip


def check_made_tables(report: Report) -> None:
    """Every point of a line is a mean of seed_means.csv."""
    made = report.csv["seed_means"]
    for key, (table, measure) in DRAWN_MEANS.items():
        own = made[(made["table"] == table) & ((made["measure"] == measure) | (measure == ""))]
        for plot in report.plots(key):
            for trace in plot["data"]:
                if "lines" in trace.get("mode", "") and trace.get("customdata") and trace["name"] in report.models:
                    known = own[own["model"] == trace["name"]]["mean"].to_numpy()
                    for y in (y for y in trace["y"] if y is not None):
                        report.tally.see(
                            f"seed-means {key} {trace['name']}", bool((abs(known - y) < 1e-12).any()), True
                        )


def check_legends(report: Report) -> None:
    """A legend that names one model names every model that is drawn."""
    for plot in report.page["plots"]:
        drawn = {t.get("name") for t in plot["data"] if any(y is not None for y in t.get("y") or ())} & {*report.models}
        named = drawn & {*plot["legend"]}
        if named:
            report.tally.see(f"legends {plot['key']} {plot['name']}", sorted(named), sorted(drawn))


# check -> the tables that it needs
FIGURE_CHECKS: dict[Callable[[Report], None], tuple[str, ...]] = {
    check_heatmaps: ("head_cosines",),
    check_sae_lines: ("sae_training_results",),
    check_density: ("sae_density",),
    check_ablation: ("ablation_results",),
    check_topology_lines: ("topology_stats",),
    check_pareto: ("sae_training_results",),
    check_matched: ("sae_matched_l0",),
    check_training: ("train_log", "baselines"),
    check_attention: ("attention_stats",),
    check_changes: ("train_log", "topology_stats", "sae_training_results", "ablation_results", "attention_stats"),
    check_layers_of_others: (),
    check_made_tables: ("seed_means", "effects"),
    check_legends: (),
}
