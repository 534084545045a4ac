"""What pages say of SAEs that are not adequate: as dense as their input, or hardly better than random directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

RULE = "l0 ≤ d_in / 3 and fvu ≤ .75 of the random dictionary’s at equal l0"
MAX_NAMED = 12  # SAEs that a sentence names
PLACE = ["model", "seed", "layer", "head"]


def judged_saes(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of sae_training_results that say whether their SAE is adequate: of trained ones; none of a table
    of earlier versions, which lacks the columns."""
    if not {"is_adequate", "fvu_over_random", "l0", *PLACE} <= {*results.columns}:
        return results.iloc[:0]
    return results[results["is_adequate"].notna()]


def say_adequacy(results: pd.DataFrame) -> list[str]:
    """Return, a sentence for each l1, how many of each model's SAEs are adequate and which heads' are not."""
    judged = judged_saes(results)
    if judged.empty:
        return []
    sweep = sorted(judged["l1"].dropna().unique()) if "l1" in judged else []
    parts = {f"at l1 {l1:g} ": judged[judged["l1"] == l1] for l1 in sweep} if len(sweep) > 1 else {"": judged}
    said = [
        at + ", ".join(_say_model(str(model), rows) for model, rows in own.groupby("model", sort=False))
        for at, own in parts.items()
    ]
    return [f"adequate SAEs ({RULE}): {said[0]}", *said[1:]]


def warn_adequacy(results: pd.DataFrame) -> list[str]:
    """Return, a sentence for each l1 that has any, how many SAEs are inadequate and where; nothing where none is."""
    judged = judged_saes(results)
    said = []
    for l1, rows in judged.groupby("l1", dropna=False) if "l1" in judged else [("", judged)]:
        left = rows[~rows["is_adequate"].astype(bool)]
        if len(left):
            at = f"At λ₁ = {l1:g}, " if isinstance(l1, float) and l1 == l1 else ""  # nan is not itself
            places = "; ".join(f"{model} {name_places(own)}" for model, own in left.groupby("model", sort=False))
            said.append(
                f"{at}{len(left)} of {len(rows)} SAEs are inadequate: {places}. Do not read their features as features "
                f"of the head (expected {RULE})."
            )
    return said


def _say_model(model: str, rows: pd.DataFrame) -> str:
    left = rows[~rows["is_adequate"].astype(bool)]
    counted = f"{model} {len(rows) - len(left)} of {len(rows)}"
    return f"{counted} (not {name_places(left)})" if len(left) and len(left) < len(rows) else counted


def name_places(rows: pd.DataFrame) -> str:
    """Return the layers and heads of these rows as `L1 H3`, the first of many."""
    places = list(dict.fromkeys(zip(rows["layer"], rows["head"], strict=True)))
    named = [f"L{layer:g}" + (f" H{head:g}" if head >= 0 else "") for layer, head in places]
    more = len(named) - MAX_NAMED
    return ", ".join(named[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def atlas_adequacy(
    features: pd.DataFrame, results: pd.DataFrame | None, names: Mapping[str, str]
) -> tuple[list[str], list[list[Any]]]:
    """Return (sentences on the SAEs that an atlas shows, a row [model, seed, layer, head, l0, fvu_over_random] of each
    that is not adequate); neither where the tables do not say it.

    names: model -> its short name.
    """
    keys = [key for key in (*PLACE, "l1", "sae_seed") if key in features]
    if results is None or not {*PLACE} <= {*keys} or not {*keys} <= {*results.columns}:
        return [], []
    judged = judged_saes(results).drop_duplicates(keys, keep=False)  # of several kinds, none is told apart by these
    shown = features[keys].drop_duplicates().merge(judged, on=keys)
    if shown.empty:
        return [], []
    left = shown[~shown["is_adequate"].astype(bool)]
    if left.empty:
        return [f"Each of the {len(shown)} SAEs shown is adequate: {RULE}."], []
    n_shown = shown["model"].value_counts()
    places = "; ".join(
        f"{names[str(model)]} {'all' if len(rows) == n_shown[model] else name_places(rows)}"
        for model, rows in left.groupby("model", sort=False)
    )
    said = (
        f"{len(left)} of the {len(shown)} SAEs shown are inadequate (expected {RULE}), so that how many features "
        f"are active says little of the head: {places}."
    )
    columns = (left["model"], left["seed"], left["layer"], left["head"], left["l0"], left["fvu_over_random"])
    rows = [
        [model, str(seed), int(layer), int(head), float(l0), float(ratio)]
        for model, seed, layer, head, l0, ratio in zip(*columns, strict=True)
    ]
    return [said], rows
