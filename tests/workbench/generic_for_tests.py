"""Models without a family file: small random ones in folders, each beside a plain reading of it by transformers alone,
through torch's own module hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.data.tokenizer import load_tokenizer
from workbench.models.tokenizer_files import wrap_tokenizer, write_tokenizer

N_LAYERS, N_HEADS, D_HEAD, D_MODEL, D_MLP, N_CTX, D_VOCAB = 2, 4, 8, 32, 48, 64, 300
RANGE = 0.3  # of initial weights, large enough for every head to matter

_PLAIN: dict[str, Any] = {
    "vocab_size": D_VOCAB, "hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS,
    "intermediate_size": D_MLP, "max_position_embeddings": N_CTX, "initializer_range": RANGE, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
_OLD: dict[str, Any] = {
    "vocab_size": D_VOCAB, "n_embd": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS, "n_positions": N_CTX,
    "n_inner": D_MLP, "initializer_range": RANGE, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_WIDE = _GROUPED | {"head_dim": D_HEAD}
_EXPERTS = _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
_GRANITE = {
    "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0,
}  # fmt: skip
_QWEN_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
_LATENT = _PLAIN | {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_MAMBA_2 = {
    "mamba_n_heads": 4, "mamba_d_state": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_expand": 2,
    "shared_intermediate_size": 24, "layer_types": ["mamba", "attention"], "position_embedding_type": "rope",
}  # fmt: skip
_MAMBA_1 = {
    "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8,
    "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_dt_rank": 4, "use_mamba_kernels": False,
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A small configuration, and where the model keeps its parts."""

    config: str
    settings: dict[str, Any]
    blocks: str = "model.layers"
    embed: str = "model.embed_tokens"
    norm: str = "model.norm"
    mixer: str = "self_attn.o_proj"
    """whose input is z"""
    mlp: str | None = "mlp"
    """whose output is the MLP's; None: what an MLP writes has no hook"""
    matrices: Mapping[str, str] = field(default_factory=dict)
    """module within a block -> which weight of ours it is, of those that stand alone"""
    writes: float | None = 1.0
    """z W_O times this enters the stream; None: a norm stands behind it"""
    unembeds: float = 1.0
    """logits are this times the unembedding's product"""
    layers: tuple[int, ...] = (0, 1)
    """those with heads"""


_QKVO = {f"self_attn.{name}_proj": f"W_{name.upper()}" for name in "qkvo"}
_GATED = {"mlp.gate_proj": "W_gate", "mlp.up_proj": "W_in", "mlp.down_proj": "W_out"}
_UNGATED = {"mlp.up_proj": "W_in", "mlp.down_proj": "W_out"}
_LLAMA = _QKVO | _GATED
_H = {"blocks": "transformer.h", "embed": "transformer.wte", "norm": "transformer.ln_f"}

ARCHITECTURES: dict[str, Architecture] = {
    # tested by default: experts, ALiBi and a joint projection, a hybrid of attention and Mamba 2 with experts
    "mixtral": Architecture("MixtralConfig", _EXPERTS, matrices=_QKVO),
    "bloom": Architecture(
        "BloomConfig",
        {n: v for n, v in _OLD.items() if n not in ("n_embd", "n_positions", "n_inner")} | {"hidden_size": D_MODEL},
        blocks="transformer.h",
        embed="transformer.word_embeddings_layernorm",
        norm="transformer.ln_f",
        mixer="self_attention.dense",
        mlp="mlp.dense_4h_to_h",  # the MLP itself adds the stream to what it gives
        matrices={"self_attention.dense": "W_O", "mlp.dense_h_to_4h": "W_in", "mlp.dense_4h_to_h": "W_out"},
    ),
    "granitemoehybrid": Architecture(
        "GraniteMoeHybridConfig",
        _EXPERTS | _GRANITE | _MAMBA_2,
        mlp=None,
        matrices=_QKVO,
        writes=0.5,
        unembeds=0.5,
        layers=(1,),
    ),
    # slow
    "opt": Architecture(
        "OPTConfig",
        {n: v for n, v in _PLAIN.items() if n not in ("intermediate_size", "initializer_range")}
        | {"ffn_dim": D_MLP, "word_embed_proj_dim": D_MODEL, "init_std": RANGE},
        blocks="model.decoder.layers",
        embed="model.decoder.embed_tokens",
        norm="model.decoder.final_layer_norm",
        mixer="self_attn.out_proj",
        mlp="fc2",
        matrices={f"self_attn.{n}_proj": f"W_{n.upper()}" for n in "qkv"}
        | {"self_attn.out_proj": "W_O", "fc1": "W_in", "fc2": "W_out"},
    ),
    "gptj": Architecture(
        "GPTJConfig",
        _OLD | {"rotary_dim": 4},
        **_H,
        mixer="attn.out_proj",
        matrices={f"attn.{n}_proj": f"W_{n.upper()}" for n in "qkv"}
        | {"attn.out_proj": "W_O", "mlp.fc_in": "W_in", "mlp.fc_out": "W_out"},
    ),
    "falcon": Architecture(
        "FalconConfig",
        _PLAIN | {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "bias": False},
        blocks="transformer.h",
        embed="transformer.word_embeddings",
        norm="transformer.ln_f",
        mixer="self_attention.dense",
        matrices={"self_attention.dense": "W_O", "mlp.dense_h_to_4h": "W_in", "mlp.dense_4h_to_h": "W_out"},
    ),
    "mpt": Architecture(
        "MptConfig",
        {
            "vocab_size": D_VOCAB,
            "d_model": D_MODEL,
            "n_layers": N_LAYERS,
            "n_heads": N_HEADS,
            "max_seq_len": N_CTX,
            "initializer_range": RANGE,
            "expansion_ratio": 2,
        },  # fmt: skip
        blocks="transformer.blocks",
        embed="transformer.wte",
        norm="transformer.norm_f",
        mixer="attn.out_proj",
        mlp="ffn.down_proj",  # the MLP itself adds the stream to what it gives
        matrices={"attn.out_proj": "W_O", "ffn.up_proj": "W_in", "ffn.down_proj": "W_out"},
    ),
    "gpt_bigcode": Architecture(
        "GPTBigCodeConfig",
        _OLD,
        **_H,
        mixer="attn.c_proj",
        matrices={"attn.c_proj": "W_O", "mlp.c_fc": "W_in", "mlp.c_proj": "W_out"},
    ),
    "seed_oss": Architecture("SeedOssConfig", _WIDE, matrices=_LLAMA),
    "starcoder2": Architecture(
        "Starcoder2Config", _GROUPED, matrices=_QKVO | {"mlp.c_fc": "W_in", "mlp.c_proj": "W_out"}
    ),
    "nemotron": Architecture("NemotronConfig", _GROUPED, matrices=_QKVO | _UNGATED),
    "apertus": Architecture("ApertusConfig", _GROUPED, matrices=_QKVO | _UNGATED),
    "granite": Architecture("GraniteConfig", _GROUPED | _GRANITE, matrices=_LLAMA, writes=0.5, unembeds=0.5),
    "granitemoe": Architecture(
        "GraniteMoeConfig", _EXPERTS | _GRANITE, mlp="block_sparse_moe", matrices=_QKVO, writes=0.5, unembeds=0.5
    ),
    "glm": Architecture("GlmConfig", _WIDE, matrices=_QKVO | {"mlp.down_proj": "W_out"}),
    "glm4": Architecture(
        "Glm4Config", _WIDE, mlp="post_mlp_layernorm", matrices=_QKVO | {"mlp.down_proj": "W_out"}, writes=None
    ),
    "olmo3": Architecture(
        "Olmo3Config",
        _GROUPED | {"sliding_window": 16},
        mlp="post_feedforward_layernorm",
        matrices=_LLAMA,
        writes=None,
    ),
    "exaone4": Architecture(
        "Exaone4Config",
        _GROUPED | {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
        mlp="post_feedforward_layernorm",
        matrices=_LLAMA,
        writes=None,
    ),
    "gemma3": Architecture(
        "Gemma3Config",
        {
            "text_config": _WIDE | {"sliding_window": 16, "query_pre_attn_scalar": 8},
            "vision_config": _VISION,
        },
        blocks="model.language_model.layers",
        embed="model.language_model.embed_tokens",
        norm="model.language_model.norm",
        mlp="post_feedforward_layernorm",
        matrices=_LLAMA,
        writes=None,
    ),
    "olmoe": Architecture("OlmoeConfig", _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}, matrices=_QKVO),
    "qwen2_moe": Architecture(
        "Qwen2MoeConfig", _GROUPED | _QWEN_MOE | {"shared_expert_intermediate_size": 24}, matrices=_QKVO
    ),
    "qwen3_moe": Architecture("Qwen3MoeConfig", _WIDE | _QWEN_MOE, matrices=_QKVO),
    "gpt_oss": Architecture("GptOssConfig", _EXPERTS | {"head_dim": D_HEAD, "sliding_window": 16}, matrices=_QKVO),
    "deepseek_v2": Architecture("DeepseekV2Config", _LATENT, matrices={"self_attn.o_proj": "W_O"} | _GATED),
    "deepseek_v3": Architecture("DeepseekV3Config", _LATENT, matrices={"self_attn.o_proj": "W_O"} | _GATED),
    "llama4_text": Architecture(
        "Llama4TextConfig",
        _WIDE
        | {
            "intermediate_size_mlp": D_MLP,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "attention_chunk_size": 64,
            "interleave_moe_layer_step": 2,
        },  # fmt: skip
        mlp="feed_forward",
        matrices=_QKVO | {name.replace("mlp", "feed_forward"): ours for name, ours in _GATED.items()},
    ),
    "lfm2": Architecture(
        "Lfm2Config",
        _GROUPED | {"layer_types": ["conv", "full_attention"]},
        norm="model.embedding_norm",
        mixer="self_attn.out_proj",
        mlp="feed_forward",
        matrices={f"self_attn.{n}_proj": f"W_{n.upper()}" for n in "qkv"}
        | {"self_attn.out_proj": "W_O", "feed_forward.w1": "W_gate", "feed_forward.w3": "W_in"}
        | {"feed_forward.w2": "W_out"},
        layers=(1,),
    ),
    "jamba": Architecture(
        "JambaConfig",
        _GROUPED | _MAMBA_1,
        norm="model.final_layernorm",
        mlp="feed_forward",
        matrices=_QKVO | {name.replace("mlp", "feed_forward"): ours for name, ours in _GATED.items()},
        layers=(1,),
    ),
    "mamba": Architecture(
        "MambaConfig",
        {"vocab_size": D_VOCAB, "hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "state_size": 4}
        | {"initializer_range": RANGE, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
        blocks="backbone.layers",
        embed="backbone.embeddings",
        norm="backbone.norm_f",
        mlp=None,
        layers=(),
    ),
}
QUICK = ("mixtral", "bloom", "granitemoehybrid")
# what the bridge of TransformerLens 3.9 gets wrong or cannot do with transformers 5.24: model_type -> part of the line
WRONG = {
    "cohere": ("CohereConfig", _GROUPED, "computes other logits of model_type 'cohere' than transformers"),
    "codegen": (
        "CodeGenConfig", _OLD | {"n_ctx": N_CTX, "rotary_dim": 4}, "fails on model_type 'codegen' with transformers",
    ),
    "helium": ("HeliumConfig", _WIDE, ") nor TransformerLens"),
    "bert": (
        "BertConfig",
        {name: value for name, value in _PLAIN.items() if name != "bos_token_id"},
        "model_type = 'bert': BertForMaskedLM is no causal language model; expected one",
    ),
}  # fmt: skip


def build(config: str, settings: dict[str, Any]) -> Any:
    """A random model of transformers, its norms and biases random too."""
    import transformers

    made = getattr(transformers, config)(**settings)
    kinds = {"BertConfig": "AutoModelForMaskedLM", "Gemma3Config": "AutoModelForImageTextToText"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kinds.get(config, "AutoModelForCausalLM")).from_config(made).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def write_folder(folder: Path, config: str, settings: dict[str, Any]) -> Path:
    """Such a model as transformers saves it, with a byte-level tokenizer whose <|endoftext|> begins no text."""
    build(config, settings).save_pretrained(folder)
    write_tokenizer(wrap_tokenizer(load_tokenizer(f"embedded-{D_VOCAB}")), folder)
    return folder


class Plain:
    """A folder's model as transformers alone runs it."""

    def __init__(self, folder: Path, about: Architecture) -> None:
        import transformers

        kind = "AutoModelForImageTextToText" if about.config == "Gemma3Config" else "AutoModelForCausalLM"
        self.model = getattr(transformers, kind).from_pretrained(str(folder), attn_implementation="eager").eval()
        self.about, self.blocks = about, list(self.model.get_submodule(about.blocks))
        self.W_U = self.model.get_output_embeddings().weight.detach()

    def logits(self, tokens: Tensor) -> Tensor:
        """[batch pos d_vocab]"""
        return self.model(tokens, use_cache=False).logits

    def maps(self, tokens: Tensor) -> dict[int, Tensor]:
        """Of each layer with heads [batch head query key]."""
        with torch.no_grad():
            found = self.model(tokens, use_cache=False, output_attentions=True).attentions
        kept = [attention for attention in found if attention is not None]
        return dict(zip(self.about.layers, kept, strict=True))

    def W_O(self, layer: int) -> Tensor:
        """[head d_head d_model]"""
        return self.matrix(layer, self.about.mixer).T.unflatten(0, (N_HEADS, -1))

    def matrix(self, layer: int, module: str) -> Tensor:
        """A linear layer's weight, [d_out d_in]."""
        return self.blocks[layer].get_submodule(module).weight.detach()

    @contextmanager
    def editing(self, edits: Mapping[tuple[str, int], Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Inside, ("z" | "mlp" | "post", layer), ("embed", 0) and ("norm", 0) pass through these functions."""
        handles = [self._edit(what, layer, edit) for (what, layer), edit in edits.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _edit(self, what: str, layer: int, edit: Callable[[Tensor], Tensor]) -> Any:
        about = self.about
        if what == "z":
            mixer = self.blocks[layer].get_submodule(about.mixer)
            heads = lambda x: edit(x.unflatten(-1, (N_HEADS, -1))).flatten(-2)  # noqa: E731
            return mixer.register_forward_pre_hook(lambda m, inputs: (heads(inputs[0]), *inputs[1:]))
        modules: dict[str, Callable[[], nn.Module]] = {
            "mlp": lambda: self.blocks[layer].get_submodule(str(about.mlp)),
            "post": lambda: self.blocks[layer],
            "embed": lambda: self.model.get_submodule(about.embed),
            "norm": lambda: self.model.get_submodule(about.norm),
        }
        return modules[what]().register_forward_hook(lambda m, inputs, out: _edited(out, edit))

    def seen(self, tokens: Tensor, *places: tuple[str, int]) -> list[Tensor]:
        """What passes these places."""
        found: dict[tuple[str, int], Tensor] = {}

        def keeper(place: tuple[str, int]) -> Callable[[Tensor], Tensor]:
            return lambda x: found.setdefault(place, x.detach()) * 1

        with torch.no_grad(), self.editing({place: keeper(place) for place in places}):
            self.logits(tokens)
        return [found[place] for place in places]

    def losses(self, tokens: Tensor, edits: Mapping[tuple[str, int], Callable[[Tensor], Tensor]] | None = None):
        """(mean next-token loss of each sequence, log-probabilities) under the edits."""
        with torch.no_grad(), self.editing(edits or {}):
            log_p = torch.log_softmax(self.logits(tokens).double(), -1)
        return -log_p[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].mean(1), log_p[:, :-1]


def _edited(out: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(out, tuple):
        return (edit(out[0]), *out[1:])
    return edit(out[None])[0] if out.ndim == 2 else edit(out)  # OPT's MLP reads all sequences as one
