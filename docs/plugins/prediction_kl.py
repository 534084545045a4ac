"""How far two models' predictions lie apart: an analysis of a pair."""

import pandas as pd
import torch

from workbench.extend import Analysis, Column, Settings, Table, Windows


class PredictionKlSettings(Settings):
    """Nothing to set beside the text."""


def same_vocabulary(a, b):
    """Why two models have no KL divergence; nothing if they have."""
    return "" if a.d_vocab == b.d_vocab else f"has another vocabulary ({b.d_vocab} for {a.d_vocab})"


def measure(job):
    """Mean KL(reference‖other) of the next-token prediction, and how often both have the same first choice."""
    first, second = job.models
    kl, agreed, n = 0.0, 0, 0
    for i, window in enumerate(job.tokens.split(8)):
        with torch.no_grad():
            p, q = (own.model(window.to(job.device)).double().log_softmax(-1).cpu() for own in job.models)
        kl += float((p.exp() * (p - q)).sum())
        agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
        n += window.numel()
        job.progress((i + 1) * 8 / len(job.tokens))
    row = (first.name, second.name, second.seed, kl / n, agreed / n, n)
    columns = ["model_a", "model_b", "seed", "kl", "agreement", "n_tokens"]
    return {"prediction_kl": pd.DataFrame([row], columns=columns)}


prediction_kl = Analysis(
    name="prediction-kl",
    summary="KL divergence of two models' next-token predictions on the same text.",
    settings=PredictionKlSettings,
    reads=Windows(n_tokens=4096),
    takes="pair",
    requires=same_vocabulary,
    tables=[
        Table(
            "prediction_kl",
            key=("model_a", "model_b", "seed"),
            columns=[
                Column("kl", "KL(a‖b), mean over tokens", unit="nats"),
                Column("agreement", "share of tokens with the same first choice", unit="1"),
                Column("n_tokens", kind="integer"),
            ],
        )
    ],
    measure=measure,
)
