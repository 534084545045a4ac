"""The record of `evaluate`: bits per byte over plain and sliding windows, as stored and after an int8 round trip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from workbench.analyses.evaluate.cost import cost
from workbench.extend import Analysis, Column, Documents, Job, Settings, Table

if TYPE_CHECKING:
    import pandas as pd

PACKED = "model.int8.zlib"


class EvaluateSettings(Settings):
    """Which windows, and which weights."""

    n_ctx: int | None = Field(default=None, description="tokens per window, by default the model's n_ctx", ge=2)
    stride: int | None = Field(
        default=None,
        description="tokens that a sliding window scores, by default 64, or n_ctx if that is less",
        ge=1,
    )
    use_int8: bool = Field(
        default=False, description="measure after an int8 and zlib round trip too, and keep the packed model"
    )


def check(job: Job) -> None:
    """Raise the ValueErrors of windows, text and weights that need no forward pass."""
    from workbench.analyses.evaluate.bits import check_evaluation

    own = job.settings
    check_evaluation(job.subject.model, job.texts, n_ctx=own.n_ctx, stride=own.stride, quantized=own.use_int8)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The table; the packed model in the directory."""
    from workbench.analyses.evaluate.bits import evaluate
    from workbench.runs import atomic_write
    from workbench.training.quantization import pack_model

    own, subject = job.settings, job.subject
    settings = {"n_ctx": own.n_ctx, "stride": own.stride, "quantized": own.use_int8, "seed": job.seed}
    table = evaluate(subject.model, job.texts, name=subject.name, on_progress=job.progress, **settings)
    if own.use_int8:
        atomic_write(job.directory / PACKED, pack_model(subject.model))
    return {"evaluation": table.assign(seed=subject.seed)}


evaluate = Analysis(
    name="evaluate",
    summary="Bits per byte of any text, with plain and sliding windows, before and after int8 quantization.",
    settings=EvaluateSettings,
    reads=Documents(n_bytes=200_000),
    tables=[
        Table(
            "evaluation",
            key=("model", "seed", "weights", "windows", "n_ctx", "stride"),
            columns=[
                Column("nats", "mean of −ln p of a token", unit="nats per token"),
                Column("bits_per_byte", "Σ −log2 p over the text's UTF-8 bytes", unit="bits per byte"),
                Column("stderr", "of bits_per_byte, paired over stretches of n_ctx tokens", unit="bits per byte"),
                Column("ci_low", "95 % bootstrap interval over stretches of n_ctx tokens", unit="bits per byte"),
                Column("ci_high", unit="bits per byte"),
                Column("n_tokens", "that are scored", kind="integer"),
                Column("n_bytes", "of the text, in UTF-8", kind="integer"),
                Column("artifact_bytes", "of the packed int8 model", unit="bytes"),
                Column("exit_depth", "mean expected number of passes of a token of a recurrent model", unit="passes"),
            ],
            trailing=[
                Column("perplexity", "exp(nats)"),
                Column("perplexity_low", "exp of the lower end of nats"),
                Column("perplexity_high", "exp of the upper end of nats"),
            ],
            meaning="Bits per byte of a text; weights are stored or int8 (packed, and unpacked again), windows plain "
            "(one behind the other) or sliding (each scores its last stride tokens).",
        )
    ],
    measure=measure,
    over_training=True,
    cost=cost,
    check=check,
    function="workbench.analyses.evaluate.bits:evaluate",
)
