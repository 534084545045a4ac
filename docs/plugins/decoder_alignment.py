"""Whether SAE features point where their head writes: an analysis that needs SAEs."""

import pandas as pd
import torch

from sae import StackedSAE
from workbench.extend import Analysis, Column, Settings, Table


class DecoderAlignmentSettings(Settings):
    """Nothing to set."""


def measure(job):
    """Mean |cos| of a head's decoder rows, written to the stream by its W_O, with W_O's first left singular vector."""
    own = job.subject
    stack = StackedSAE.load(job.needs["sae-train"][0] / "sae")
    rows = []
    for k, source in enumerate(stack.info.sources):
        if source.head is None:
            continue
        W_O = own.model.blocks[source.layer].attn.W_O[source.head].detach().float().cpu()  # [d_head d_model]
        written = torch.nn.functional.normalize(stack.W_dec[k].detach().float().cpu() @ W_O, dim=-1)
        first = torch.linalg.svd(W_O, full_matrices=False).Vh[0]
        rows.append((own.name, own.seed, source.layer, source.head, k, float((written @ first).abs().mean())))
    columns = ["model", "seed", "layer", "head", "sae", "alignment"]
    return {"decoder_alignment": pd.DataFrame(rows, columns=columns)}


decoder_alignment = Analysis(
    name="decoder-alignment",
    summary="How far SAE features of a head point along what its W_O writes most.",
    settings=DecoderAlignmentSettings,
    needs=("sae-train",),
    tables=[
        Table(
            "decoder_alignment",
            key=("model", "seed", "layer", "head", "sae"),
            columns=[Column("alignment", "mean over features of |cos| with W_O's first singular vector", unit="1")],
        )
    ],
    measure=measure,
)
