"""A monitor armed on a model: its threshold, its false alarms, what it finds and when, and what acting costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

import probes
from probes.bootstrap import ratio_limits
from workbench.analyses.monitor.examples import Windows, text_offsets
from workbench.data.monitoring import Target, token_labels
from workbench.models.checks import device_of
from workbench.models.gates import Gate
from workbench.models.generate import generate
from workbench.models.monitors import CHANGES, Monitor
from workbench.models.tokenizer_files import stop_ids

N_PROMPT = 24  # tokens of a text's beginning that are continued
ROWS_TOGETHER = 64
N_DRAWS = 2000
TEMPERATURE = 1.0
NEVER = 1e300  # a threshold that no score passes


@dataclass(frozen=True)
class Continuations:
    """Texts behind their prompts, what a monitor's score was at each step, and which steps are positive."""

    scores: Float64[np.ndarray, "row step"]
    """nan behind a continuation's end"""
    is_positive: Bool[np.ndarray, "row step"]
    """the label of the token that each step reads"""
    n_positive: Int[np.ndarray, " row"]
    """positive new tokens"""
    document: Int[np.ndarray, " row"]
    fired: Int[np.ndarray, " row"]
    """step at which the gate fired; −1 where it did not"""

    @property
    def is_harmless(self) -> Bool[np.ndarray, " row"]:
        """Rows none of whose steps is positive."""
        return np.logical_not((self.is_positive & np.isfinite(self.scores)).any(axis=1))


def prompts_of(windows: Windows, n: int) -> Windows:
    """n windows that begin with their text and are longer than a prompt, in turn where there are fewer. Raises
    ValueError for none."""
    own = (windows.is_first & (windows.is_token.sum(dim=1) > N_PROMPT)).nonzero()[:, 0]
    if not len(own):
        raise ValueError(f"monitor: no text is longer than {N_PROMPT} tokens, a prompt; expected some")
    return windows.take(own[torch.arange(n) % len(own)])


Keep = Callable[[int, int, Callable[[], Continuations]], Continuations]
"""Makes batch number i of n, or reads it where it was kept."""


def write(
    model: Any,
    monitor: Monitor,
    sae: Any,
    prompts: Windows,
    target: Target,
    n_new: int,
    seed: int,
    keep: Keep = lambda batch, n_batches, make: make(),
) -> Continuations:
    """What the model writes behind the prompts while the monitor is armed, drawn at temperature 1."""
    gate, stops = Gate(model, monitor, sae), stop_ids(model)

    def make(start: int) -> Continuations:
        own = prompts.take(torch.arange(start, min(len(prompts), start + ROWS_TOGETHER)))
        generator = torch.Generator().manual_seed(seed + start)
        tokens = own.tokens[:, :N_PROMPT]
        grown = generate(model, tokens, n_new, temperature=TEMPERATURE, stop_at=stops, generator=generator, gate=gate)
        return _continuations(model, target, own, grown.cpu(), gate)

    starts = range(0, len(prompts), ROWS_TOGETHER)
    return _join([keep(i, len(starts), partial(make, start)) for i, start in enumerate(starts)], n_new)


def _continuations(model: Any, target: Target, prompts: Windows, grown: Tensor, gate: Gate) -> Continuations:
    found = gate.firings
    scores = found.scores.numpy()
    labels = np.zeros(grown.shape, dtype=bool)
    n_steps, n_positive = scores.shape[1], np.zeros(len(grown), dtype=np.int64)
    for row, ids in enumerate(grown.tolist()):
        n_own = int(np.isfinite(scores[row]).sum())
        if gate.monitor.action == "stop" and found.step[row] >= 0:
            n_own -= 1  # the step that stops it draws no token
        if target.find is None:  # the prompt's document says it
            labels[row] = bool(prompts.labels[row, N_PROMPT - 1])
            continue
        text, offsets = text_offsets(model.tokenizer, ids[: N_PROMPT + n_own])
        own = token_labels(target.find(text), offsets)
        labels[row, : len(own)] = own
        n_positive[row] = own[N_PROMPT:].sum()
    is_positive = labels[:, N_PROMPT - 1 : N_PROMPT - 1 + n_steps]
    return Continuations(scores, is_positive, n_positive, prompts.document.numpy(), found.step.numpy())


def _join(parts: list[Continuations], n_steps: int) -> Continuations:
    def wide(rows: np.ndarray, filler: Any) -> np.ndarray:
        return np.pad(rows, ((0, 0), (0, n_steps - rows.shape[1])), constant_values=filler)

    return Continuations(
        np.concatenate([wide(own.scores, np.nan) for own in parts]),
        np.concatenate([wide(own.is_positive, False) for own in parts]),
        *(np.concatenate([getattr(own, name) for own in parts]) for name in ("n_positive", "document", "fired")),
    )


@torch.no_grad()
def read(model: Any, monitor: Monitor, sae: Any, windows: Windows, n_new: int) -> tuple[Continuations, np.ndarray]:
    """The texts themselves in the place of what the model writes, as long, and the loss of each under the armed monitor
    [row], nats per token behind the prompt."""
    rows = windows.take((windows.is_first & (windows.is_token.sum(dim=1) >= N_PROMPT + n_new)).nonzero()[:, 0])
    gate, scores, fired, losses = Gate(model, monitor, sae), [], [], []
    for tokens in rows.tokens[:, : N_PROMPT + n_new].split(ROWS_TOGETHER):
        with gate.armed(N_PROMPT):
            loss = model(tokens.to(device_of(model)), return_type="loss", loss_per_token=True)
        losses.append(loss[:, N_PROMPT - 1 :].double().mean(dim=1).cpu().numpy())
        found = gate.firings
        scores.append(found.scores[:, :n_new].numpy())
        fired.append(torch.where(found.step < n_new, found.step, -1).numpy())
    labels = rows.labels.numpy()
    n_positive = labels[:, N_PROMPT : N_PROMPT + n_new].sum(axis=1)
    is_positive = labels[:, N_PROMPT - 1 : N_PROMPT - 1 + n_new]
    if not scores:
        raise ValueError(f"monitor: no test text has {N_PROMPT + n_new} tokens; expected some, or fewer max_new_tokens")
    given = (np.concatenate(scores), is_positive, n_positive, rows.document.numpy(), np.concatenate(fired))
    return Continuations(*given), np.concatenate(losses)


def highest_pooled(monitor: Monitor, scores: Float64[np.ndarray, "row step"]) -> Float64[np.ndarray, " row"]:
    """The highest pooled score of each continuation: above the threshold where the monitor fires."""
    return np.nanmax(monitor.pooled(torch.from_numpy(scores)).numpy(), axis=1)


def calibrate(monitor: Monitor, found: Continuations, alpha: float) -> Monitor:
    """The monitor with the threshold that its highest pooled scores in harmless continuations give for this rate of
    false alarms.

    Raises:
        ValueError: fewer than 1/alpha − 1 harmless continuations.
    """
    own = highest_pooled(monitor, found.scores[found.is_harmless]) if found.is_harmless.any() else np.zeros(0)
    least = int(np.ceil(1 / alpha - 1 - 1e-9))
    if len(own) < least:
        raise ValueError(
            f"monitor: {len(own)} of {len(found.scores)} validation continuations are harmless; expected at least "
            f"{least} for alpha = {alpha:g} (more n_continuations, or a higher alpha)"
        )
    return replace(monitor, threshold=probes.conformal_threshold(own, alpha))


def gate_row(monitor: Monitor, text: str, found: Continuations, rng: np.random.Generator) -> dict[str, Any]:
    """One row of monitor_gate.csv: alarms in harmless continuations, and what is found of the others, and when."""
    pooled = monitor.pooled(torch.from_numpy(found.scores)).numpy()
    is_over, is_step = pooled > monitor.threshold, np.isfinite(found.scores)
    harmless, fires = found.is_harmless, found.fired >= 0
    first = np.where(harmless, -1, (found.is_positive & is_step).argmax(axis=1))
    delays = (found.fired - first)[~harmless & fires & (found.fired >= first)]
    false_rate = _rate(fires & harmless, harmless, found.document, rng)
    detection = _rate(fires & ~harmless, ~harmless, found.document, rng)
    early = ~harmless & fires & (found.fired < first)
    n_harmless, n_positive = int(harmless.sum()), int((~harmless).sum())
    steps = is_step[harmless].sum()
    return {
        "text": text,
        "false_alarm_rate": false_rate[0],
        "false_low": false_rate[1],
        "false_high": false_rate[2],
        "false_per_token": float((is_over & is_step)[harmless].sum() / steps) if steps else np.nan,
        "detection_rate": detection[0],
        "detection_low": detection[1],
        "detection_high": detection[2],
        "early_rate": float(early.sum() / n_positive) if n_positive else np.nan,
        "delay": float(np.median(delays)) if len(delays) else np.nan,
        "n_harmless": n_harmless,
        "n_positive": n_positive,
        "n_documents": len(np.unique(found.document)),
    }


def _rate(
    counted: np.ndarray, of: np.ndarray, document: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Σ counted / Σ of with its interval over documents; nan of none."""
    if not of.any():
        return np.nan, np.nan, np.nan
    _, at = np.unique(document, return_inverse=True)
    above, below = np.bincount(at, counted), np.bincount(at, of)
    low, high = ratio_limits(above[None], below, rng, N_DRAWS)
    return float(above.sum() / below.sum()), float(low[0]), float(high[0])


def effect_columns(
    monitor: Monitor,
    before: Continuations,
    after: Continuations | None,
    has_rule: bool,
    n_new: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Positive new tokens over all that were asked for, without the action and with it, of the same prompts and draws.

    The tokens that a stop leaves out count as asked for: over the tokens written, a continuation that is stopped late
    would weigh more than one that is stopped at once, and a gate that stops nearly all would look as if it did harm.
    What the cut alone does is `target_cut`: the mean over all pairs of continuations of what the one would have if it
    ended where the other was stopped.
    """
    names = ("target_before", "target_after", "target_change", "change_low", "change_high", "target_cut")
    nothing: dict[str, float] = dict.fromkeys(names, np.nan)
    if not has_rule:
        return nothing
    found = nothing | {"target_before": float(before.n_positive.sum() / (n_new * len(before.n_positive)))}
    if after is None:
        return found
    _, at = np.unique(before.document, return_inverse=True)
    change = np.bincount(at, after.n_positive - before.n_positive)
    size = np.bincount(at) * float(n_new)
    low, high = ratio_limits(change[None], size, rng, N_DRAWS)
    found |= {
        "target_after": float(after.n_positive.sum() / (n_new * len(after.n_positive))),
        "target_change": float(change.sum() / size.sum()),
        "change_low": float(low[0]),
        "change_high": float(high[0]),
    }
    if monitor.action == "stop":
        ends = np.where(after.fired < 0, n_new, after.fired)
        # step k reads new token k − 1; none reads the last
        so_far = np.cumsum(before.is_positive[:, 1:], axis=1)
        so_far = np.column_stack([np.zeros(len(so_far), dtype=int), so_far, before.n_positive])
        found["target_cut"] = float(so_far[:, ends].mean() / n_new)
    return found


def loss_columns(
    monitor: Monitor, found: Continuations, armed: np.ndarray, plain: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Δ loss of harmless text while the monitor is armed; nan where its action changes no activation."""
    own = found.is_harmless
    if monitor.action not in CHANGES or not own.any():
        return dict.fromkeys(("delta_loss", "loss_low", "loss_high"), np.nan)
    _, at = np.unique(found.document[own], return_inverse=True)
    rise = (armed - plain)[own]
    low, high = ratio_limits(np.bincount(at, rise)[None], np.bincount(at).astype(float), rng, N_DRAWS)
    return {"delta_loss": float(rise.mean()), "loss_low": float(low[0]), "loss_high": float(high[0])}


def score_rows(monitor: Monitor, found: Continuations, n_each: int = 3) -> pd.DataFrame:
    """Scores step by step of a few test texts of each kind, the first of them."""
    pooled, rows = monitor.pooled(torch.from_numpy(found.scores)).numpy(), []
    for is_harmless in (False, True):
        for n, row in enumerate((found.is_harmless == is_harmless).nonzero()[0][:n_each].tolist()):
            name = f"{'harmless' if is_harmless else 'positive'} {n + 1}"
            for step in range(found.scores.shape[1]):
                own = (found.scores[row, step], pooled[row, step], int(found.is_positive[row, step]))
                rows.append((name, step, *map(float, own[:2]), own[2]))
    return pd.DataFrame(rows, columns=["example", "step", "score", "pooled", "is_positive"])
