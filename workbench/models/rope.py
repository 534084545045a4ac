"""RoPE's settings in a config.json, in the form of transformers 5 (`rope_parameters`) or 4 (`rope_theta`,
`rope_scaling`), both ways."""

from __future__ import annotations

from typing import Any

from workbench.models.config import ModelConfig
from workbench.models.family import Described
from workbench.runs import shorten


def read_rope(config: Described) -> dict[str, Any]:
    """Our fields of their settings.

    Raises:
        ValueError: settings that cannot be expressed.
    """
    # as in transformers 5: a rope_scaling beside rope_parameters (added by hand, say) takes their place
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    source = config.source
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"{source}: rope_parameters are {shorten(repr(rope))}; expected one object for all layers")
    own = Described(rope, source)
    fields: dict[str, Any] = {"rotary_base": own.get("rope_theta", config.get("rope_theta", 10000.0))}
    kind = own.get("rope_type", own.get("type", "default"))
    partial = own.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):  # transformers passes it over, or fails, in these families
        raise ValueError(f"{source}: partial_rotary_factor = {shorten(repr(partial))}; expected 1, or none")
    if kind == "linear":
        fields["rotary_scaling_factor"] = own.need("factor")
    elif kind == "llama3":
        fields |= {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": own.need("factor"),
            "NTK_by_parts_low_freq_factor": own.need("low_freq_factor"),
            "NTK_by_parts_high_freq_factor": own.need("high_freq_factor"),
            "NTK_original_ctx_len": own.need("original_max_position_embeddings"),
        }
    elif kind != "default":
        raise ValueError(f"{source}: rope_type = {shorten(repr(kind))}; expected default, linear or llama3")
    return fields


def write_rope(cfg: ModelConfig) -> dict[str, Any]:
    """Their settings, in the form of transformers 5."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": cfg.rotary_base}
    if cfg.use_NTK_by_parts_rope:
        rope |= {
            "rope_type": "llama3",
            "factor": cfg.NTK_by_parts_factor,
            "low_freq_factor": cfg.NTK_by_parts_low_freq_factor,
            "high_freq_factor": cfg.NTK_by_parts_high_freq_factor,
            "original_max_position_embeddings": cfg.NTK_original_ctx_len,
        }
    elif cfg.rotary_scaling_factor != 1.0:
        rope |= {"rope_type": "linear", "factor": cfg.rotary_scaling_factor}
    return rope
