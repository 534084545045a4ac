"""What each mechanism of a recurrent model is worth: bits per byte with it set to its identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType

import pandas as pd

from workbench.analyses.evaluate.bits import (
    bits_per_byte,
    bits_with_interval,
    encode_text,
    plan_windows,
    token_nats,
    window_length,
)
from workbench.models import HookedLM
from workbench.models.tokenizer_files import tokenizer_of
from workbench.models.transformer import check_ours

# mechanism -> what its switch becomes; absence is the identity. The gate that no longer acts is still read: what it
# says to the next pass (`confidence`) is a mechanism of its own.
OFF = MappingProxyType(
    {
        "attn_scale": False, "mlp_scale": False, "residual_mix": False, "value_embed": "off", "resonance": False,
        "carry_rank": None, "confidence": False, "memory": False, "skips": "off", "td_rank": None,
        "exit_gate": "read", "n_routes": None,
    }
)  # fmt: skip


def switched_on(model: HookedLM) -> list[str]:
    """The mechanisms that can be turned off, by the names of their switches, in the order of `OFF`.

    Raises:
        ValueError: no `HookedLM`, or one without depth recurrence.
    """
    check_ours("mechanisms", model)
    recurrence = model.cfg.extensions.recurrence
    if recurrence is None:
        raise ValueError(f"mechanisms: {model.cfg.model_name} has no depth recurrence; expected a recurrent model")
    return [name for name, off in OFF.items() if getattr(recurrence, name) not in (off, "off")]


def without(model: HookedLM, mechanism: str) -> HookedLM:
    """The model with one mechanism set to its identity, its other weights shared with `model`.

    Raises:
        ValueError: a mechanism that the model lacks, or a model without any.
    """
    known = switched_on(model)
    if mechanism not in known:
        offered = f"expected one of {', '.join(known)}" if known else "no mechanism is enabled"
        raise ValueError(f"mechanism: got {mechanism!r}; {offered}")
    extensions = model.cfg.extensions
    assert extensions.recurrence is not None, "switched_on has looked"
    recurrence = extensions.recurrence.model_copy(update={mechanism: OFF[mechanism]})
    cfg = model.cfg.model_copy(update={"extensions": extensions.model_copy(update={"recurrence": recurrence})})
    reduced = HookedLM(cfg, seed=None, tokenizer=model.own_tokenizer)
    for name, parameter in reduced.named_parameters():
        parameter.data = model.get_parameter(name).data
    return reduced.train(model.training)


def mechanisms(
    model: HookedLM,
    texts: Sequence[str],
    *,
    n_ctx: int | None = None,
    seed: int = 0,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The rows of mechanisms.csv: bits per byte over plain windows with each mechanism off, and the change.

    delta_bits is off − base, positive where the mechanism helps; its error and 95 % interval are paired over stretches
    of n_ctx tokens, as head ablation pairs sequences.

    Raises:
        ValueError: a model without mechanisms, a window longer than the model's context, or a text that `evaluate`
            refuses.
    """
    found = switched_on(model)
    length = window_length(model, n_ctx)
    text = encode_text(tokenizer_of(model), texts)
    windows = plan_windows(len(text.tokens), length)
    base = token_nats(model, text, windows)
    rows = []
    for i, mechanism in enumerate(found):
        nats = token_nats(without(model, mechanism), text, windows)
        change = bits_with_interval(nats - base, text.n_bytes, length, seed)
        rows.append(
            {
                "model": name or model.cfg.model_name,
                "seed": seed,
                "mechanism": mechanism,
                "base_bits": bits_per_byte(base, text.n_bytes),
                "off_bits": bits_per_byte(nats, text.n_bytes),
                "delta_bits": change.value,
                "stderr": change.stderr,
                "ci_low": change.low,
                "ci_high": change.high,
                "n_tokens": text.n_scored,
                "n_bytes": text.n_bytes,
                "n_ctx": length,
            }
        )
        if on_progress is not None:
            on_progress((i + 1) / len(found))
    return pd.DataFrame(rows)
