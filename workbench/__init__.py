"""A workbench for prescriptive interpretability: what notebooks use, imported on first use.

The verbs of the command line call exactly these functions; that of an analysis is made from its record.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.analyses.ablate.ablation import ablate
    from workbench.analyses.ablate.pairs import ablate_pairs
    from workbench.analyses.attention.statistics import attention
    from workbench.analyses.attention_patterns.patterns import attention_patterns
    from workbench.analyses.attribute.attribution import attribute
    from workbench.analyses.compare.comparison import compare
    from workbench.analyses.content_share.share import content_share
    from workbench.analyses.evaluate.bits import evaluate
    from workbench.analyses.feature_effects.effects import feature_effects
    from workbench.analyses.harvest.storing import harvest
    from workbench.analyses.ladder.rungs import ladder
    from workbench.analyses.mechanisms.switches import mechanisms
    from workbench.analyses.patch.patching import patch
    from workbench.analyses.paths.mapping import paths
    from workbench.analyses.probe.concept_tests import probe
    from workbench.analyses.sae_scores.scoring import sae_scores
    from workbench.analyses.sae_train.head_saes import sae_train
    from workbench.analyses.sae_train.loading import load_sae
    from workbench.analyses.text_quality.quality import text_quality
    from workbench.analyses.topology.heads import topology
    from workbench.data.text_windows import analysis_tokens
    from workbench.models.attached import attached
    from workbench.models.direct_attribution import direct_logit_attribution
    from workbench.models.generate import generate
    from workbench.models.interop import export, import_model
    from workbench.models.load import load
    from workbench.models.steering import steered
    from workbench.models.streams import stream
    from workbench.models.transformer_lens import from_hooked_transformer, to_hooked_transformer
    from workbench.study.over_training import over_training
    from workbench.study.study import study
    from workbench.training import build, train
    from workbench.training import recipe_names as recipes

# name -> "module:name there"; the names of analyses come from their records
_WHERE = MappingProxyType(
    {
        "ablate_pairs": "workbench.analyses.ablate.pairs:ablate_pairs",
        "analysis_tokens": "workbench.data.text_windows:analysis_tokens",
        "attached": "workbench.models.attached:attached",
        "build": "workbench.training:build",
        "direct_logit_attribution": "workbench.models.direct_attribution:direct_logit_attribution",
        "export": "workbench.models.interop:export",
        "from_hooked_transformer": "workbench.models.transformer_lens:from_hooked_transformer",
        "generate": "workbench.models.generate:generate",
        "import_model": "workbench.models.interop:import_model",
        "load": "workbench.models.load:load",
        "load_sae": "workbench.analyses.sae_train.loading:load_sae",
        "over_training": "workbench.study.over_training:over_training",
        "recipes": "workbench.training:recipe_names",
        "steered": "workbench.models.steering:steered",
        "stream": "workbench.models.streams:stream",
        "study": "workbench.study.study:study",
        "to_hooked_transformer": "workbench.models.transformer_lens:to_hooked_transformer",
        "train": "workbench.training:train",
    }
)
__all__ = [
    "ablate",
    "ablate_pairs",
    "analysis_tokens",
    "attached",
    "attention",
    "attention_patterns",
    "attribute",
    "build",
    "compare",
    "content_share",
    "direct_logit_attribution",
    "evaluate",
    "export",
    "feature_effects",
    "from_hooked_transformer",
    "generate",
    "harvest",
    "import_model",
    "ladder",
    "load",
    "load_sae",
    "mechanisms",
    "over_training",
    "patch",
    "paths",
    "probe",
    "recipes",
    "sae_scores",
    "sae_train",
    "steered",
    "stream",
    "study",
    "text_quality",
    "to_hooked_transformer",
    "topology",
    "train",
]


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        from workbench.analyses import analysis_names, find_analysis

        if name.startswith("_") or name.replace("_", "-") not in analysis_names():
            raise AttributeError(f"module 'workbench' has no attribute {name!r}")
        analysis = find_analysis(name)
        where = analysis.function
        if not where:
            from workbench.study.measuring import make_function

            return make_function(analysis)
    module, _, there = where.partition(":")
    return getattr(importlib.import_module(module), there)


def __dir__() -> list[str]:
    from workbench.analyses import analysis_names

    return sorted({*globals(), *__all__, *(name.replace("-", "_") for name in analysis_names())})
