"""What the ledger says of a claim's evidence in words: the figure, how sure it is, its controls, how to read it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sae.metrics import match_l0
from workbench.analyses.ablate.load_bearing import LOAD_BEARING_UP_TO
from workbench.data.claims import Measure, Remark
from workbench.study.effects import UNKNOWN, Effect, effect_over_seeds, shown
from workbench.study.evidence import Evidence
from workbench.study.measures import Frame, Reading, load_bearing_ps, read_measure, rows_of, top_heads

MISSING = "–"


def measured(evidence: Evidence) -> str:
    """The effect with its interval, where it was read, and the measures beside it."""
    effect, measure = evidence.effect, evidence.claim.measure
    if not effect.is_known:
        return MISSING
    figure = say(effect.estimate, measure.unit)
    if evidence.is_other_size:
        said = [f"{measure.name}: {_figure(evidence.treated.mean)} ({_seeds(effect.n)})"]
        return "; ".join([*said, *_values_beside(evidence)])
    if measure.kind == "top head":
        text = f"{figure} ({_name_heads(evidence)}); {sureness(effect, measure.unit)}"
    else:
        where = measure.name + place(measure, evidence.treated)
        text = f"{where}: {figure}{_values(evidence)} ({sureness(effect, measure.unit)})"
    if evidence.claim.compared.pairs:
        text += f", {evidence.n_pairs} of {len(evidence.claim.compared.pairs)} published pairs"
    if evidence.claim.compared.recipe:
        return "; ".join([text, *_values_beside(evidence)])
    known = [(name, other) for name, other in evidence.beside.items() if other.is_known]
    return "; ".join([text, *(f"{name} {say(other.estimate, measure.unit)}" for name, other in known)])


def _values(evidence: Evidence) -> str:
    """Both models' means over seeds: ", .0335 → .0073"; of an absolute figure ", 1.23 against 1.2271"; nothing where
    one model is held against another null."""
    compared = evidence.claim.compared
    if compared.recipe:
        return f", {_figure(evidence.treated.mean)} against {_figure(compared.null)}"
    if not compared.reference:
        return ""
    means = (reading.mean for reading in (evidence.reference, evidence.treated))
    return ", " + " → ".join(f"{mean:.3g}".replace("-", "−") for mean in means)


def _values_beside(evidence: Evidence) -> list[str]:
    """The measures beside an absolute figure, as they are."""
    return [f"{name} {_figure(value)}" for name, value in evidence.values_beside.items() if math.isfinite(value)]


def _figure(value: float) -> str:
    """A figure with five digits, whole from 10,000 on."""
    return (f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.5g}").replace("-", "−")


def say(value: float, unit: str) -> str:
    """A number of the working scale in a unit: "−60.3 %", "2.54 ×", "−34.1 points" or "+0.390"."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else ("no limit" if value > 0 or unit != "factor" else "0 ×")
    text = {
        "percent": lambda: f"{100 * shown(value, 'ratio'):+z.1f} %",
        "factor": lambda: f"{1 + shown(value, 'ratio'):.3g} ×",
        "points": lambda: f"{100 * value:+z.1f} points",
        "plain": lambda: f"{value:+z.3f}",
    }[unit]()
    return text.replace("-", "−")


def sureness(effect: Effect, unit: str) -> str:
    """How many seeds, and the interval: "3 seeds: 95 % interval over seeds −70.1 % to −50.2 %"."""
    if effect.bounds is None:
        return f"{_seeds(effect.n)}: no interval"
    over = {"paired": "over seeds", "welch": "over unpaired seeds", "own": "over sequences"}[effect.basis]
    low, high = (say(bound, unit) for bound in effect.bounds)
    return f"{_seeds(effect.n)}: 95 % interval {over} {low} to {high}"


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def place(measure: Measure, reading: Reading) -> str:
    """Where a measure was read: " at layer 2 of 4", with the l1 of SAEs; nothing for all layers."""
    layers = reading.layers
    text = ""
    if layers and measure.kind == "rows" and len(layers) < reading.n_layers:
        named = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}–{layers[-1]}"
        text = f" at {named} of {reading.n_layers}"
    return text + (f", l1 {reading.chosen['l1']:g}" if "l1" in reading.chosen else "")


def control(evidence: Evidence) -> str:
    """Which confound speaks to the claim, and the same measure on the models that control for it."""
    claim = evidence.claim
    unit = claim.measure.unit
    said = [
        f"{name} {say(effect.estimate, unit)} ({sureness(effect, unit)})" if effect.is_known else f"{name} undefined"
        for name, effect in evidence.controls.items()
    ]
    return claim.control + (f" Here: {'; '.join(said)}." if said else "")


def why(evidence: Evidence) -> str:
    """How to read the outcome, or what is missing."""
    claim, table = evidence.claim, evidence.claim.measure.table
    if evidence.missing_roles:
        return f"The study has no model in the role of {', '.join(evidence.missing_roles)}."
    if not evidence.effect.is_known:
        if table not in evidence.tables:
            return f"The study has no {table}.csv."
        if not evidence.treated.values or (claim.compared.reference and not evidence.reference.values):
            whom = "both models" if claim.compared.reference else "the models"
            return f"{table}.csv holds no rows of {whom} to compare."
        return f"The measure is undefined on the rows of {table}.csv."
    remark = REMARKS[claim.measure.remark](evidence) if claim.measure.remark else ""
    only = ""
    if evidence.is_other_size:
        only = (
            f"The published figure is of one full-size model and is judged on the recipe {claim.compared.recipe} as it "
            f"stands; {evidence.model(claim.compared.treated)} is another or was trained otherwise."
        )
    return " ".join(text for text in (only, remark, claim.why) if text)


# --- remarks that depend on the outcome


def _on_correlation(evidence: Evidence) -> str:
    start = "Cosines on z depend on each head's basis, which can turn without changing the function"
    on_residual = evidence.beside.get("on the residual contributions", UNKNOWN)
    if not on_residual.is_known:
        return f"{start}; the residual contributions, which do not, were not measured."
    on_z, kept = shown(evidence.effect.estimate, "ratio"), shown(on_residual.estimate, "ratio")
    if on_z >= 0:
        return f"{start}; here they do not fall even there."
    if kept >= 0:
        return f"{start}: what the heads write to the stream became no less alike at all, so the fall is one of basis."
    share = 100 * kept / on_z
    if share < 50:
        return f"{start}: on what the heads write only {share:.0f} % of the fall is left; most is one of basis."
    return f"{start}; but what the heads write falls too, by {share:.0f} % of it, so most is no matter of basis."


def _on_rank(evidence: Evidence) -> str:
    said = (
        "This rank does not change when a head's basis is rotated, but it does when a head's directions are scaled; it "
        "counts evenly used directions, not information."
    )
    middle, last = evidence.effect.estimate, evidence.beside.get("at the last layer", UNKNOWN).estimate
    if middle * last < 0:
        said += " Middle and last layer move in opposite directions."
    elif middle < 0 and last < 0:
        said += " Here pressure takes directions away, most where it is strongest."
    return said


def _on_utilization(evidence: Evidence) -> str:
    """What N_eff, the paper's equation 5, makes of the two utilizations, in parameters without and with embeddings."""
    df: Frame = evidence.tables.get("effective_size")
    counts = ("n_parameters_no_embedding", "n_eff_no_embedding", "n_parameters", "n_eff")
    if df is None or not {"layer_a", *counts} <= set(df.columns):
        return "N_eff was not measured."
    reference, treated = (evidence.model(role) for role in evidence.claim.compared.roles)
    is_own = (df["model_a"] == treated) & (df["model_b"] == reference) & (df["seed_a"] == df["seed_b"])
    own = df[is_own & df["layer_a"].isin(evidence.treated.layers)].dropna(subset=["n_eff"])
    if own.empty:
        return "N_eff was not measured."
    n, n_eff, n_all, n_eff_all = (f"{own[name].mean() / 1e6:.3g}M" for name in counts)
    return (
        f"N_eff at that layer is {n_eff} of {n} parameters without embeddings ({n_eff_all} of {n_all} with them), the "
        "ratio of the two utilizations in another unit."
    )


def _on_loss(evidence: Evidence) -> str:
    """The perplexities of the same losses."""
    claim, roles = evidence.claim, evidence.claim.compared.roles
    measure = claim.measure.model_copy(update={"column": "held_out_perplexity"})
    models = [evidence.model(role) for role in roles]
    means = [read_measure(evidence.tables, measure, model, models).mean for model in models]
    if not all(map(math.isfinite, means)):
        return "Perplexities were not measured."
    said = " → ".join(f"{mean:.4g}" for mean in means)
    return f"Perplexity {said}; it compares with models of the same tokenizer only."


def _on_l0(evidence: Evidence) -> str:
    l0, fvu = evidence.effect, evidence.beside.get("fvu", UNKNOWN)
    if not fvu.is_known:
        said = "The same l1 buys another sparsity where activations have another size."
    elif l0.estimate * fvu.estimate < 0:
        more, less = ("Fewer", "more") if l0.estimate < 0 else ("More", "less")
        said = (
            f"{more} features are active and {less} variance is left over: at one l1 the two models stand at different "
            "points of the same trade, which is no evidence of simpler or richer features."
        )
    else:
        better = "fewer features leave less over" if l0.estimate < 0 else "more features leave more over"
        said = f"Not a trade of sparsity for error: {better}, at one l1."
    matched = fvu_at_matched_l0(evidence)
    if matched.is_known:
        said += f" At matched l0, along the sweep of l1, fvu is {say(matched.estimate, 'percent')}."
    return said + _near_copies(evidence)


def _near_copies(evidence: Evidence) -> str:
    """How alike the living features of the same SAEs are: l0 counts each near-copy of a direction."""
    measure, roles = evidence.claim.measure, evidence.claim.compared.roles
    rows = rows_of(evidence.tables, measure.table, measure.where, [evidence.model(role) for role in roles])
    if not {"neighbour_cosine", "near_copy_share", "layer"} <= set(rows.columns):
        return ""
    said = []
    for role, reading in zip(roles, (evidence.reference, evidence.treated), strict=True):
        own = rows[(rows["model"] == evidence.model(role)) & rows["layer"].isin(reading.layers)]
        cosine, share = own["neighbour_cosine"].median(), own["near_copy_share"].mean()
        if not math.isnan(share):
            said.append(f"{100 * share:.0f} % in {role} (median cosine {cosine:.4f})")
    return f" Living features with another within a cosine of .9: {', '.join(said)}." if said else ""


def fvu_at_matched_l0(evidence: Evidence) -> Effect:
    """Change of fvu at equal l0, mean over the range of l0 that both sweeps reach; unknown for a single l1 or where the
    ranges do not meet."""
    claim = evidence.claim
    models = [evidence.roles[role] for role in claim.compared.roles]
    where = {column: value for column, value in claim.measure.where.items() if column != "l1"}
    rows = rows_of(evidence.tables, claim.measure.table, where, models)
    means: tuple[dict[int, float], dict[int, float]] = {}, {}
    if not {"l1", "l0", "fvu", "seed", "layer"} <= set(rows.columns) or rows["l1"].nunique() < 2:
        return effect_over_seeds({}, {}, "ratio")
    for seed in sorted(set(rows["seed"])):
        sweeps = []
        for model, reading in zip(models, (evidence.reference, evidence.treated), strict=True):
            own = rows[(rows["model"] == model) & (rows["seed"] == seed) & rows["layer"].isin(reading.layers)]
            curve = own.groupby("l1")[["l0", "fvu"]].mean()
            sweeps += [curve["l0"].to_numpy(), curve["fvu"].to_numpy()]
        matched = match_l0(*sweeps)
        if len(matched.first):
            for values, found in zip(means, (matched.first, matched.second), strict=True):
                values[int(seed)] = float(np.mean(found))
    return effect_over_seeds(*means, "ratio")


def _on_top_head(evidence: Evidence) -> str:
    said = []
    for role in evidence.claim.compared.roles:
        ps = load_bearing_ps(evidence.tables, evidence.claim.measure, evidence.model(role))
        n_bearing = sum(p <= LOAD_BEARING_UP_TO for p in ps)
        values = ", ".join(f"{p:.2g}" for p in ps)
        said.append(f"{role} in {n_bearing} of {len(ps)} seeds (p {values})" if ps else f"{role} not tested")
    return (
        "The largest of many noisy impacts is flattering to both models. The top head is load-bearing if "
        f"p ≤ {LOAD_BEARING_UP_TO:g}, under the null that the heads of a layer are exchangeable: {'; '.join(said)}."
    )


def _name_heads(evidence: Evidence) -> str:
    said = []
    for role in evidence.claim.compared.roles:
        top = top_heads(evidence.tables, evidence.claim.measure, evidence.model(role))
        heads = ", ".join(f"L{int(r.layer)}H{int(r.head)} {r.impact_pct:z.2f} %" for r in top.itertuples())
        said.append(f"{role} {heads}")
    return "; ".join(said)


def _on_divergence(evidence: Evidence) -> str:
    """The null: how far seeds of one and the same model diverge, attention over MLP."""
    chance = evidence.chance
    if chance is None:
        return "Two seeds of one model, the null of this ratio, were not both measured."
    times = f"{math.exp(chance):.2f} times"
    return f"Between seeds of one and the same model attention diverges {times} as far as MLPs: the null."


def _on_bos_mass(evidence: Evidence) -> str:
    """Whether the reference has a sink at all: more than twice what even attention gives to position 0."""
    measure = evidence.claim.measure
    rows = rows_of(evidence.tables, measure.table, measure.where, [evidence.model(evidence.claim.compared.reference)])
    if "bos_uniform" not in rows or rows["bos_uniform"].isna().all():
        return ""
    even = float(rows["bos_uniform"].mean())
    said = f"Even attention over these windows would give position 0 {100 * even:.1f} %."
    if evidence.reference.mean > 2 * even:
        return said
    return said + " The reference gives it less than twice that: it has no sink that could be taken away."


def _on_trajectories(evidence: Evidence) -> str:
    """Where the value lies between the two nulls of the same rows."""
    measure = evidence.claim.measure
    rows = rows_of(evidence.tables, measure.table, measure.where, [evidence.model(evidence.claim.compared.treated)])
    if "null_independent" not in rows or rows["null_independent"].isna().all():
        return ""
    null = float(rows["null_independent"].mean())
    side = "below" if evidence.treated.mean < null else "above"
    return (
        f"States that share nothing from layer to layer would give {say(null, 'plain')}; the measured lies {side} it."
    )


def _on_components(evidence: Evidence) -> str:
    """The pairs' likeness in item space."""
    df: Frame = evidence.tables[evidence.claim.measure.table]
    if not {"cka", "cka_null"} <= set(df.columns):
        return ""
    named = [
        {evidence.roles[a], evidence.roles[b]}
        for a, b in evidence.claim.compared.pairs
        if a in evidence.roles and b in evidence.roles
    ]
    own = df[[{a, b} in named for a, b in zip(df["model_a"], df["model_b"], strict=True)]]
    cka, null = (own.loc[own["layer"] >= 0, column].mean() for column in ("cka", "cka_null"))
    return f"In item space the same pairs have a CKA of {cka:z.2f} (items shuffled: {null:z.2f})."


REMARKS: dict[Remark, Callable[[Evidence], str]] = {
    "basis": _on_correlation,
    "rank": _on_rank,
    "utilization": _on_utilization,
    "l0": _on_l0,
    "loss": _on_loss,
    "sink": _on_bos_mass,
    "top head": _on_top_head,
    "trajectory": _on_trajectories,
    "components": _on_components,
    "divergence": _on_divergence,
}
