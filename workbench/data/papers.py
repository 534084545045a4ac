"""The papers whose findings are judged: how large the models were that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import Field

from workbench.data.claims import Claim
from workbench.runs import read_toml
from workbench.runs.records import Frozen

PAPERS = Path(__file__).with_name("published") / "papers.toml"


class Paper(Frozen):
    """One paper's model."""

    published: str = Field(description="its size in the paper's own words", min_length=1)
    recipe: str = Field(description="the training recipe of that model, full size", min_length=1)
    n_parameters: int = Field(description="its parameters without token and position tables and unembedding", ge=1)


@cache
def read_papers() -> Mapping[str, Paper]:
    """Group of claims -> the paper's model."""
    return {group: Paper.model_validate(own) for group, own in read_toml(PAPERS, "papers").items()}


def published_size(claim: Claim) -> int | None:
    """Parameters without embeddings of the model that a claim is about: its own figure, else that of its group's paper;
    None where neither is known."""
    paper = read_papers().get(claim.group)
    return claim.published_params or (paper.n_parameters if paper else None)
