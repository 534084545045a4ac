"""Plotly figures of a study: each function takes tables and returns a Figure; nothing is computed beyond reshaping."""

from reports.figures.ablation import ablation_profile, ablation_strip, pair_interactions
from reports.figures.attention import (
    bos_mass_by_layer,
    head_entropy_gallery,
    head_maps,
    text_measures,
    weight_ranks,
)
from reports.figures.comparisons import (
    lag_decay,
    raw_against_partial,
    raw_beside_partial,
    spectra_divergence,
    trajectory_regimes,
)
from reports.figures.concept_plane import concept_points
from reports.figures.concepts import (
    crystallisation,
    crystallisation_layers,
    dimension_by_points,
    effective_dimension,
    intrinsic_dimension,
    pair_parallelism,
    pc_alignment,
    trajectory_bars,
)
from reports.figures.interventions import changes
from reports.figures.lineage import beside_published, rank_over_phase
from reports.figures.recurrent import ladder, mechanism_bars
from reports.figures.sae_health import sae_health
from reports.figures.saes import (
    at_l1,
    feature_density,
    l0_by_layer,
    matched_l0,
    of_heads,
    pareto,
    stability,
)
from reports.figures.sizes import effects_over_size
from reports.figures.small_multiples import measure_by_layer
from reports.figures.spectra import spectra_over_index
from reports.figures.topology import cosine_heatmaps, redundancy_by_layer
from reports.figures.training import (
    loss_curves,
    monitor_over_steps,
    pressure_and_redundancy,
    ranks_over_steps,
    telemetry_over_steps,
)

__all__ = [
    "ablation_profile",
    "ablation_strip",
    "at_l1",
    "beside_published",
    "bos_mass_by_layer",
    "changes",
    "concept_points",
    "cosine_heatmaps",
    "crystallisation",
    "crystallisation_layers",
    "dimension_by_points",
    "effective_dimension",
    "effects_over_size",
    "feature_density",
    "head_entropy_gallery",
    "head_maps",
    "intrinsic_dimension",
    "l0_by_layer",
    "ladder",
    "lag_decay",
    "loss_curves",
    "matched_l0",
    "measure_by_layer",
    "mechanism_bars",
    "monitor_over_steps",
    "of_heads",
    "pair_interactions",
    "pair_parallelism",
    "pareto",
    "pc_alignment",
    "pressure_and_redundancy",
    "telemetry_over_steps",
    "rank_over_phase",
    "ranks_over_steps",
    "raw_against_partial",
    "raw_beside_partial",
    "redundancy_by_layer",
    "sae_health",
    "spectra_divergence",
    "spectra_over_index",
    "stability",
    "text_measures",
    "trajectory_bars",
    "trajectory_regimes",
    "weight_ranks",
]
