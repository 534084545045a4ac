"""Loss by position in the window: an analysis that reads text, saves its state batch by batch, and draws a figure."""

import pandas as pd
import plotly.express as px
import torch
from pydantic import Field

from workbench.extend import Analysis, Column, Cost, Settings, Table, Windows
from workbench.runs.resume_state import read_state, write_state


class PositionLossSettings(Settings):
    """How positions are grouped, and read."""

    n_bins: int = Field(default=8, description="groups of positions, of equal width", ge=1)
    batch_size: int = Field(default=16, description="windows per forward pass, and per saved state", ge=1)


def measure(job):
    """Mean loss of the positions of each group; what was summed so far is kept in the directory."""
    own, tokens, size = job.subject, job.tokens, job.settings.batch_size
    file, n = job.directory / "sums.safetensors", 0
    sums = torch.zeros(tokens.shape[1] - 1, dtype=torch.float64)
    if file.is_file():  # of a run that was killed
        state, _ = read_state(file)
        n, sums = int(state["n"]), state["sums"]
    while n < len(tokens):
        batch = tokens[n : n + size].to(job.device)
        with torch.no_grad():
            losses = own.model(batch, return_type="loss", loss_per_token=True)
        sums, n = sums + losses.double().cpu().sum(0), n + len(batch)
        write_state(file, {"n": torch.tensor(n), "sums": sums})
        job.progress(n / len(tokens))
    bins = torch.arange(len(sums)) * job.settings.n_bins // len(sums)
    rows = [
        (own.name, own.seed, i, float(sums[bins == i].mean() / n), int((bins == i).sum()) * n)
        for i in range(job.settings.n_bins)
    ]
    return {"position_loss": pd.DataFrame(rows, columns=["model", "seed", "bin", "loss", "n_tokens"])}


def cost(cfg, settings, text):
    """A forward pass over the text: 2 operations for each weight of blocks and unembedding, and each token."""
    n_weights = cfg.n_layers * 12 * cfg.d_model**2 + cfg.d_model * cfg.d_vocab
    rows = min(settings.batch_size, text.n_windows) * text.n_ctx
    return Cost(flops=2.0 * n_weights * text.n_tokens, bytes_on_device=4 * (n_weights + 3 * rows * cfg.d_vocab))


def draw(table):
    """Loss against the group of positions, a line for each model."""
    means = table.groupby(["model", "bin"], as_index=False)["loss"].mean()
    return px.line(means, x="bin", y="loss", color="model", markers=True)


position_loss = Analysis(
    name="position-loss",
    summary="Loss by position in the window: what more context is worth.",
    settings=PositionLossSettings,
    reads=Windows(n_tokens=16_384),
    tables=[
        Table(
            "position_loss",
            key=("model", "seed", "bin"),
            columns=[Column("loss", "mean cross-entropy", unit="nats"), Column("n_tokens", kind="integer")],
            meaning="A group of positions of equal width, from the window's beginning.",
        )
    ],
    measure=measure,
    cost=cost,
    figures=[draw],
)
