"""RoPE's settings in a config.json, in the form of transformers 5 (`rope_parameters`) or 4 (`rope_theta`,
`rope_scaling`), both ways."""

from __future__ import annotations

from typing import Any

from workbench.models.config import ModelConfig, RopeScaling
from workbench.models.family import Described
from workbench.runs import shorten

_STRETCHED = ("dynamic", "yarn", "longrope")


def read_rope(config: Described, d_head: int, *, partial: float | None = None) -> dict[str, Any]:
    """Our fields of their settings, `extensions.rope` under the name rope.

    Args:
        partial: the family's share of a head that is rotated, where the file is silent; None: it rotates all.

    Raises:
        ValueError: settings that cannot be expressed.
    """
    # as in transformers 5: a rope_scaling beside rope_parameters (added by hand, say) takes their place
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(
            f"{config.source}: rope_parameters are {shorten(repr(rope))}; expected one object for all layers"
        )
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", config.get("rotary_pct")))
    if partial is None and share not in (None, 1.0):  # transformers passes it over, or fails, in these families
        raise ValueError(f"{config.source}: partial_rotary_factor = {shorten(repr(share))}; expected 1, or none")
    fields = read_one_rope(config, rope)
    rotary_dim = int(d_head * (partial if share is None else share)) if partial is not None else d_head
    return fields | {"rotary_dim": None if rotary_dim == d_head else rotary_dim}


def read_one_rope(config: Described, rope: dict[str, Any]) -> dict[str, Any]:
    """Our fields of one object of settings."""
    own, source = Described(rope, config.source), config.source
    base = own.get("rope_theta", config.get("rope_theta", config.get("rotary_emb_base", 10000.0)))
    fields: dict[str, Any] = {"rotary_base": base}
    kind = own.get("rope_type", own.get("type", "default"))
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
    elif kind in _STRETCHED:
        before = config.get("original_max_position_embeddings", config.get("max_position_embeddings"))
        known: dict[str, Any] = {key: own.get(key) for key in RopeScaling.model_fields if own.get(key) is not None}
        if kind != "longrope" and "original_max_position_embeddings" not in known:
            own.need("factor")  # how far, if nothing says from where
        fields["rope"] = RopeScaling(**{"original_max_position_embeddings": before, **known, "rope_type": kind})
    elif kind != "default":
        expected = ", ".join(("default", "linear", "llama3", *_STRETCHED[:-1]))
        raise ValueError(f"{source}: rope_type = {shorten(repr(kind))}; expected {expected} or {_STRETCHED[-1]}")
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
    elif cfg.extensions.rope is not None:
        rope |= cfg.extensions.rope.model_dump(mode="json", exclude_defaults=True)
    elif cfg.rotary_scaling_factor != 1.0:
        rope |= {"rope_type": "linear", "factor": cfg.rotary_scaling_factor}
    if cfg.rotary_dim not in (None, cfg.d_head):
        rope["partial_rotary_factor"] = cfg.rotary_dim / cfg.d_head
    return rope
