"""What pages call a measure: one name for a column in titles, on axes and in lists of variants."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from reports.contract import Table

# column, or what a monitor of a layer is called in the log -> name for readers
NAMES: Mapping[str, str] = MappingProxyType(
    {
        "head_entropy": "head entropy (nats)",
        "head_entropy_std": "spread of head entropy over heads (nats)",
        "bos_mass": "attention to position 0",
        "sigma_z": "σ on z",
        "sigma_pattern": "σ on the attention pattern",
        "sigma_residual": "σ on the residual contribution",
        "nuclear_rank": "nuclear rank",
        "stable_rank": "stable rank",
        "effective_rank": "effective rank",
        "participation_ratio": "participation ratio",
        "lambda": "pressure λ",
        "sigma": "σ that is pressed on",
        "loss": "term of the loss (nats)",
        "held_out_loss": "held-out loss (nats per token)",
        "l0": "L0",
        "fvu": "FVU",
        "SAE l0": "L0 of the SAEs",
        "SAE fvu": "FVU of the SAEs",
        "first-layer BOS mass": "attention to position 0, first layer",
        "mid-layer BOS mass": "attention to position 0, middle layer",
        "last-layer BOS mass": "attention to position 0, last layer",
        "layer-0 head entropy, mean": "head entropy in layer 0, mean over heads (nats)",
        "layer-0 head entropy, std": "head entropy in layer 0, spread over heads (nats)",
        "mean |cos| on z": "mean |cos| between heads, z",
        "mean |cos|, residual": "mean |cos| between heads, residual contribution",
        "largest head impact (%)": "largest loss increase by removing a head (%)",
        "bits_per_byte": "bits per byte",
        "delta_bits": "change in bits per byte",
        "loop_rate": "share of sampled texts that loop",
    }
)
MAX_MEANING = 48  # letters of a contract's meaning that still make a title


def name_measure(column: str, table: Table | None = None) -> str:
    """Return the name of a measure for readers: of `NAMES`, else the contract's meaning where it is short, else the
    column's own words. A monitor of one matrix, `stable_rank.W_O`, names that too.

    >>> name_measure("head_entropy"), name_measure("stable_rank.W_O"), name_measure("loop_share")
    ('head entropy (nats)', 'stable rank of W_O', 'loop share')
    """
    if column in NAMES:
        return NAMES[column]
    own, _, part = column.partition(".")
    if part and own in NAMES:
        return f"{NAMES[own]} of {part}"
    columns = (*table.columns, *table.trailing) if table else ()
    meaning = next((known.meaning for known in columns if known.name == column), "")
    return meaning if 0 < len(meaning) <= MAX_MEANING else words(column)


def words(name: str) -> str:
    """Return a column's name in words; a name that is in words already as it is, W_O and all."""
    return name if " " in name else name.replace("_", " ")
