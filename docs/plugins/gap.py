"""Ratio of neighbouring singular values of W_O: the smallest analysis, of weights alone."""

import numpy as np
import pandas as pd
from pydantic import Field

from workbench.extend import Analysis, Column, Settings, Table


class GapSettings(Settings):
    """Which gap."""

    index: int = Field(default=1, description="which singular value, from 1", ge=1)


def measure(job):
    """A row for each layer."""
    rows, i = [], job.settings.index
    for own in job.models:
        for layer, W_O in enumerate(own.model.stacked("attn.W_O")):
            s = np.linalg.svd(W_O.flatten(0, 1).detach().float().numpy(), compute_uv=False)
            rows.append((own.name, own.seed, layer, float(s[i - 1] / s[i])))
    return {"spectral_gap": pd.DataFrame(rows, columns=["model", "seed", "layer", "gap"])}


spectral_gap = Analysis(
    name="spectral-gap",
    summary="Ratio of neighbouring singular values of W_O, by layer.",
    settings=GapSettings,
    tables=[Table("spectral_gap", key=("model", "seed", "layer"), columns=[Column("gap", "σ_i / σ_{i+1}", unit="1")])],
    measure=measure,
    over_training=True,  # --steps and --revisions
)
