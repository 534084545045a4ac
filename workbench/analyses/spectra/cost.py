"""What `spectra` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """One matrix at a time in float64, and as many bytes twice more while it is decomposed; singular values, as numbers
    and as text. A decomposition of rows × columns takes about 4 rows · columns · min(rows, columns) operations."""
    from workbench.analyses.spectra.weights import weight_matrices
    from workbench.models.costs import counted, weights_bytes

    shapes = [tuple(matrix.shape) for block in counted(cfg).blocks for matrix in weight_matrices(block).values()]
    largest = max(rows * columns for rows, columns in shapes)
    n_values = sum(min(shape) for shape in shapes)
    flops = 4.0 * sum(rows * columns * min(rows, columns) for rows, columns in shapes)
    return Cost(flops=flops, bytes_in_memory=3 * 8 * largest + 40 * n_values, bytes_on_device=weights_bytes(cfg))
