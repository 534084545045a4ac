"""Settings of `compare`, and what it warns of."""

from __future__ import annotations

from pydantic import Field

from workbench.extend import Settings

N_COMPONENTS = 4
NO_SHARED_BASIS = (
    "two models share no basis: pc_cosine compares coordinates, which training from other initial weights permutes and "
    "rotates; principal_angle, cka and procrustes compare the items' geometry"
)


class CompareSettings(Settings):
    """How much of the states is compared."""

    n_components: int = Field(
        default=N_COMPONENTS, description="principal components of each layer that are compared", ge=1
    )
