"""A workbench for prescriptive interpretability: what notebooks use, imported on first use.

The verbs of the command line call exactly these functions.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.experiments.ablation.ablate import ablate
    from workbench.experiments.ablation.pairs import ablate_pairs
    from workbench.experiments.attention import attention
    from workbench.experiments.attention_patterns import attention_patterns
    from workbench.experiments.compare import compare
    from workbench.experiments.concepts.probe import probe
    from workbench.experiments.evaluate import evaluate
    from workbench.experiments.harvest import harvest, stream
    from workbench.experiments.mechanisms import ladder, mechanisms
    from workbench.experiments.saes.head_saes import sae_train
    from workbench.experiments.study.study import study
    from workbench.experiments.text_quality.quality import text_quality
    from workbench.experiments.texts import analysis_tokens
    from workbench.experiments.topology import topology
    from workbench.models.generate import generate
    from workbench.models.interop import export, import_model
    from workbench.models.load import load
    from workbench.models.transformer_lens import from_hooked_transformer, to_hooked_transformer
    from workbench.training import build, train
    from workbench.training import recipe_names as recipes

# name -> (module, name there)
_WHERE = MappingProxyType(
    {
        "ablate": ("workbench.experiments.ablation.ablate", "ablate"),
        "ablate_pairs": ("workbench.experiments.ablation.pairs", "ablate_pairs"),
        "analysis_tokens": ("workbench.experiments.texts", "analysis_tokens"),
        "attention": ("workbench.experiments.attention", "attention"),
        "attention_patterns": ("workbench.experiments.attention_patterns", "attention_patterns"),
        "build": ("workbench.training", "build"),
        "compare": ("workbench.experiments.compare", "compare"),
        "evaluate": ("workbench.experiments.evaluate", "evaluate"),
        "export": ("workbench.models.interop", "export"),
        "from_hooked_transformer": ("workbench.models.transformer_lens", "from_hooked_transformer"),
        "generate": ("workbench.models.generate", "generate"),
        "harvest": ("workbench.experiments.harvest", "harvest"),
        "import_model": ("workbench.models.interop", "import_model"),
        "ladder": ("workbench.experiments.mechanisms", "ladder"),
        "load": ("workbench.models.load", "load"),
        "mechanisms": ("workbench.experiments.mechanisms", "mechanisms"),
        "probe": ("workbench.experiments.concepts.probe", "probe"),
        "recipes": ("workbench.training", "recipe_names"),
        "sae_train": ("workbench.experiments.saes.head_saes", "sae_train"),
        "stream": ("workbench.experiments.harvest", "stream"),
        "study": ("workbench.experiments.study.study", "study"),
        "text_quality": ("workbench.experiments.text_quality.quality", "text_quality"),
        "to_hooked_transformer": ("workbench.models.transformer_lens", "to_hooked_transformer"),
        "topology": ("workbench.experiments.topology", "topology"),
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
