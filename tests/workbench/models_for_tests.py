"""Small models of every architecture, shared by the tests of the model and of what reads it."""

from __future__ import annotations

import torch

from workbench.data.tokenizer import load_tokenizer
from workbench.models import AttnRes, Extensions, HookedLM, ModelConfig, Recurrence
from workbench.models.tokenizer_files import wrap_tokenizer

JANUS_SMALL = {
    "normalization_type": "LN",
    "positional_embedding_type": "standard",
    "act_fn": "gelu",
    "gated_mlp": False,
    "d_mlp": 128,
    "tie_word_embeddings": True,
    "extensions": Extensions(qkv_bias=True, out_bias=True, mlp_bias=True),
}
JANUS_V3 = {"rotary_adjacent_pairs": True, "tie_word_embeddings": True, "d_mlp": 86}
KOTODAMA = {"n_key_value_heads": 2, "use_qk_norm": True, "rotary_base": 5e5, "tie_word_embeddings": True, "d_mlp": 88}
UNTIED = {"d_mlp": 88, "output_logits_soft_cap": 30.0}
ATTN_RES = KOTODAMA | {"extensions": Extensions(attn_res=AttnRes(boundaries=(0, 2)))}
ATTENTION_CHANNEL = KOTODAMA | {"extensions": Extensions(attn_res=AttnRes(boundaries=(0, 2), streams="attention"))}
LEARNED = KOTODAMA | {"extensions": Extensions(attn_res=AttnRes(boundaries="learned", n_blocks=2))}
LEARNED_CHANNEL = KOTODAMA | {
    "extensions": Extensions(attn_res=AttnRes(boundaries="learned", n_blocks=2, streams="attention"))
}
EVERYTHING = Recurrence(
    n_unique=2, n_passes=3, attn_scale=True, mlp_scale=True, residual_mix=True, value_embed="value", resonance=True,
    carry_rank=4, confidence=True, memory=True, skips="mirror", td_rank=4, exit_gate="act", n_routes=3,
)  # fmt: skip
GOLF = {
    "n_layers": 6, "n_key_value_heads": 2, "use_qk_norm": True, "rotary_base": 5e5, "tie_word_embeddings": True,
    "act_fn": "relu2", "gated_mlp": False, "d_mlp": 64, "output_logits_soft_cap": 30.0,
}  # fmt: skip
RECURRENT = GOLF | {
    "extensions": Extensions(
        k_rank=6, q_gain=1.5, embed_norm=True, embed_init=0.1, spectral_init=True, recurrence=EVERYTHING
    )
}
# GPT-NeoX's blocks, Gemma 2's and OLMo 2's
PARALLEL = {
    "normalization_type": "LN", "parallel_attn_mlp": True, "rotary_dim": 4, "act_fn": "gelu", "gated_mlp": False,
    "d_mlp": 80, "extensions": Extensions(qkv_bias=True, out_bias=True, mlp_bias=True),
}  # fmt: skip
NORMED_TWICE = {
    "n_key_value_heads": 2, "use_normalization_before_and_after": True, "attn_scale": 3.0, "act_fn": "gelu_new",
    "attn_scores_soft_cap": 8.0, "output_logits_soft_cap": 20.0, "window_size": 5,
    "attn_types": ("local", "global", "local"), "tie_word_embeddings": True, "d_mlp": 80,
    "extensions": Extensions(norm_plus_one=True, embed_scale=32**0.5),
}  # fmt: skip
POST_NORMED = {
    "n_key_value_heads": 2, "use_qk_norm": True, "d_mlp": 80,
    "extensions": Extensions(post_norm=True, wide_qk_norm=True),
}  # fmt: skip
ARCHITECTURES = {
    "janus-small": JANUS_SMALL,
    "janus-v3": JANUS_V3,
    "kotodama": KOTODAMA,
    "untied-softcap": UNTIED,
    "attn-res": ATTN_RES,
    "attn-res-attention": ATTENTION_CHANNEL,
    "attn-res-learned": LEARNED,
    "attn-res-learned-attention": LEARNED_CHANNEL,
    "recurrent": RECURRENT,
    "parallel": PARALLEL,
    "normed-twice": NORMED_TWICE,
    "post-normed": POST_NORMED,
}


def small_config(kind: str, **changes) -> ModelConfig:
    """A 3-layer, 32-wide configuration of the named architecture."""
    base = {"n_layers": 3, "d_model": 32, "n_ctx": 24, "d_vocab": 61, "n_heads": 4, "d_head": 8}
    return ModelConfig(**base | ARCHITECTURES[kind] | changes)


def small_model(kind: str, seed: int = 0, **changes) -> HookedLM:
    """A model whose weights are all random and large enough to matter: norms, biases and routing queries too."""
    model = HookedLM(small_config(kind, **changes), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.empty(parameter.shape, dtype=parameter.dtype).normal_(0, 0.2, generator=generator)
            if name.startswith("mechanisms.") or name.endswith("q_gain"):  # about their initial values
                parameter.add_(noise)
            else:
                parameter.copy_(noise + 1 if name.endswith(".w") else noise)
    return model


def worded_model(kind: str, **changes) -> HookedLM:
    """A small model with the embedded tokenizer of 4,096 entries."""
    model = small_model(kind, d_vocab=4096, **changes)
    model.tokenizer = wrap_tokenizer(load_tokenizer("embedded"))
    return model


def tokens_for(model: HookedLM, batch: int = 2, pos: int = 16, seed: int = 0) -> torch.Tensor:
    """Random ids [batch pos] the model takes."""
    return torch.randint(0, model.cfg.d_vocab, (batch, pos), generator=torch.Generator().manual_seed(seed))
