"""The hooked model, its configuration, and the ways in and out of it."""

from workbench.models.config import AttnRes, Extensions, ModelConfig, Recurrence, parse_dtype
from workbench.models.layers import KeyValueCache
from workbench.models.transformer import HookedLM

__all__ = ["AttnRes", "Extensions", "HookedLM", "KeyValueCache", "ModelConfig", "Recurrence", "parse_dtype"]
