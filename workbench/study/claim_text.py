"""What the ledger says of a claim's evidence in words: the figure, how sure it is, and its controls."""

from __future__ import annotations

import math

from workbench.data.claims import Measure
from workbench.study.effects import Effect, shown
from workbench.study.evidence import Evidence
from workbench.study.measures import Reading, top_heads

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
    if not evidence.reference.values:
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
    return in_unit(shown(value, "ratio" if unit in ("percent", "factor") else "difference"), unit)


def in_unit(value: float, unit: str) -> str:
    """A number as tables show it in a unit, of a ratio r − 1."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else "no limit"
    text = {
        "percent": f"{100 * value:+z.1f} %",
        "factor": f"{1 + value:.3g} ×",
        "points": f"{100 * value:+z.1f} points",
        "plain": f"{value:+z.3f}",
    }[unit]
    return text.replace("-", "−")


def sureness(effect: Effect, unit: str) -> str:
    """How many seeds, and the interval: "3 seeds: 95 % interval over seeds −70.1 % to −50.2 %"."""
    if effect.bounds is None:
        return f"{_seeds(effect.n)}: no interval"
    over = {"paired": "over seeds", "welch": "over unpaired seeds", "own": "over the text alone"}[effect.basis]
    low, high = (say(bound, unit) for bound in effect.bounds)
    return f"{_seeds(effect.n)}: 95 % interval {over} {low} to {high}"


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def place(measure: Measure, reading: Reading) -> str:
    """Where a measure was read: " at layer 2 of 4", with the l1 of SAEs; nothing for all layers."""
    layers = reading.layers
    text = ""
    if layers and measure.kind in ("rows", "last over first") and len(layers) < reading.n_layers:
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


def _name_heads(evidence: Evidence) -> str:
    said, measure = [], evidence.claim.measure
    for role in evidence.claim.compared.roles:
        top = top_heads(evidence.tables, measure, evidence.model(role))[["layer", "head", measure.column]]
        heads = ", ".join(f"L{int(layer)}H{int(head)} {impact:z.2f} %" for layer, head, impact in top.to_numpy())
        said.append(f"{role} {heads}")
    return "; ".join(said)
