"""A workbench for prescriptive interpretability: what notebooks use, imported on first use.

The verbs of the command line call exactly these functions.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.analyses.ablate.ablation import ablate
    from workbench.analyses.ablate.pairs import ablate_pairs
    from workbench.analyses.attention.patterns import attention_patterns
    from workbench.analyses.attention.statistics import attention
    from workbench.analyses.compare import compare
    from workbench.analyses.evaluate.bits import evaluate
    from workbench.analyses.harvest.storing import harvest
    from workbench.analyses.ladder.rungs import ladder
    from workbench.analyses.mechanisms.switches import mechanisms
    from workbench.analyses.probe.probe import probe
    from workbench.analyses.sae_train.head_saes import sae_train
    from workbench.analyses.text_quality.quality import text_quality
    from workbench.analyses.topology.heads import topology
    from workbench.data.text_windows import analysis_tokens
    from workbench.models.generate import generate
    from workbench.models.interop import export, import_model
    from workbench.models.load import load
    from workbench.models.streams import stream
    from workbench.models.transformer_lens import from_hooked_transformer, to_hooked_transformer
    from workbench.study.study import study
    from workbench.training import build, train
    from workbench.training import recipe_names as recipes

# name -> (module, name there)
_WHERE = MappingProxyType(
    {
        "ablate": ("workbench.analyses.ablate.ablation", "ablate"),
        "ablate_pairs": ("workbench.analyses.ablate.pairs", "ablate_pairs"),
        "analysis_tokens": ("workbench.data.text_windows", "analysis_tokens"),
        "attention": ("workbench.analyses.attention.statistics", "attention"),
        "attention_patterns": ("workbench.analyses.attention.patterns", "attention_patterns"),
        "build": ("workbench.training", "build"),
        "compare": ("workbench.analyses.compare", "compare"),
        "evaluate": ("workbench.analyses.evaluate.bits", "evaluate"),
        "export": ("workbench.models.interop", "export"),
        "from_hooked_transformer": ("workbench.models.transformer_lens", "from_hooked_transformer"),
        "generate": ("workbench.models.generate", "generate"),
        "harvest": ("workbench.analyses.harvest.storing", "harvest"),
        "import_model": ("workbench.models.interop", "import_model"),
        "ladder": ("workbench.analyses.ladder.rungs", "ladder"),
        "load": ("workbench.models.load", "load"),
        "mechanisms": ("workbench.analyses.mechanisms.switches", "mechanisms"),
        "probe": ("workbench.analyses.probe.probe", "probe"),
        "recipes": ("workbench.training", "recipe_names"),
        "sae_train": ("workbench.analyses.sae_train.head_saes", "sae_train"),
        "stream": ("workbench.models.streams", "stream"),
        "study": ("workbench.study.study", "study"),
        "text_quality": ("workbench.analyses.text_quality.quality", "text_quality"),
        "to_hooked_transformer": ("workbench.models.transformer_lens", "to_hooked_transformer"),
        "topology": ("workbench.analyses.topology.heads", "topology"),
        "train": ("workbench.training", "train"),
    }
)

__all__ = [
    "ablate",
    "ablate_pairs",
    "analysis_tokens",
    "attention",
    "attention_patterns",
    "build",
    "compare",
    "evaluate",
    "export",
    "from_hooked_transformer",
    "generate",
    "harvest",
    "import_model",
    "ladder",
    "load",
    "mechanisms",
    "probe",
    "recipes",
    "sae_train",
    "stream",
    "study",
    "text_quality",
    "to_hooked_transformer",
    "topology",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    module, there = _WHERE[name]
    value = getattr(importlib.import_module(module), there)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
