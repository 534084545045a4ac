"""Subjects of every kind that an analysis takes, each beside a plain reading of it through torch's own module hooks.

A subject is a `HookedTransformer` or a `TransformerBridge` around a small random model; its reading never asks
TransformerLens's hook machinery: of a bridge it is an untouched copy of the transformers model.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from workbench.data.tokenizer import load_tokenizer
from workbench.models.tokenizer_files import wrap_tokenizer

N_LAYERS, N_HEADS, D_HEAD, D_MODEL, D_MLP, N_CTX, D_VOCAB = 2, 4, 8, 32, 48, 24, 300
RANGE = 0.3  # of initial weights, large enough for every head to matter


@dataclass(frozen=True)
class Reading:
    """What a model computes, by the modules that compute it."""

    model: nn.Module
    logits_of: Callable[[Tensor], Tensor]
    attentions_of: Callable[[Tensor], list[Tensor | None]]
    """of each layer [batch head query key]; None where it has no heads"""
    embed: nn.Module
    """whose output is hook_embed"""
    blocks: list[nn.Module]
    """whose outputs are hook_resid_post"""
    mixers: Mapping[int, nn.Module]
    """of each layer with heads, the module whose input (or output: `is_z`) is z"""
    mlps: Mapping[int, nn.Module]
    """of each layer with an MLP, the module whose output is added to the stream"""
    W_O: Mapping[int, Tensor]
    """of each layer with heads [head d_head d_model]"""
    matrices: list[dict[str, Tensor]]
    """of each layer"""
    is_z: bool = False

    @contextmanager
    def editing(self, edits: Mapping[tuple[str, int], Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Inside, ("z" | "mlp" | "post", layer) or ("embed", 0) pass through these functions; z is
        [batch pos head d_head]."""
        handles = []
        for (what, layer), edit in edits.items():
            if what == "z":
                handles.append(self._edit_z(self.mixers[layer], edit))
                continue
            places: Any = {"mlp": self.mlps, "post": self.blocks, "embed": [self.embed]}
            module: nn.Module = places[what][layer]
            handles.append(module.register_forward_hook(lambda m, i, out, edit=edit: _edited(out, edit)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _edit_z(self, mixer: nn.Module, edit: Callable[[Tensor], Tensor]) -> Any:
        if self.is_z:
            return mixer.register_forward_hook(lambda m, i, out: edit(out))
        return mixer.register_forward_pre_hook(
            lambda m, inputs: (edit(inputs[0].unflatten(-1, (N_HEADS, -1))).flatten(-2), *inputs[1:])
        )

    def seen(self, tokens: Tensor, *places: tuple[str, int]) -> list[Tensor]:
        """What passes these places."""
        found: dict[tuple[str, int], Tensor] = {}

        def keeper(place: tuple[str, int]) -> Callable[[Tensor], Tensor]:
            return lambda x: found.setdefault(place, x.detach())

        with torch.no_grad(), self.editing({place: keeper(place) for place in places}):
            self.logits_of(tokens)
        return [found[place] for place in places]

    def losses(
        self, tokens: Tensor, edits: Mapping[tuple[str, int], Callable[[Tensor], Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(mean next-token loss of each sequence, log-probabilities) under the edits."""
        with self.editing(edits or {}):
            log_p = torch.log_softmax(self.logits_of(tokens).double(), -1)
        return -log_p[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].mean(1), log_p[:, :-1]


def _edited(out: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(out, tuple):
        return (edit(out[0]), *out[1:])
    return edit(out[None])[0] if out.ndim == 2 else edit(out)  # OPT's MLP reads all sequences as one


@dataclass(frozen=True)
class Subject:
    """What an analysis is given, and what is true of it."""

    name: str
    model: Any
    reading: Reading
    tokens: Tensor = field(
        default_factory=lambda: torch.randint(1, D_VOCAB, (5, 12), generator=torch.Generator().manual_seed(0))
    )

    @property
    def layers(self) -> list[int]:
        """Those with heads."""
        return sorted(self.reading.mixers)


def tokenizer() -> Any:
    """Byte-level, of D_VOCAB entries, <|endoftext|> first."""
    return wrap_tokenizer(load_tokenizer(f"embedded-{D_VOCAB}")).wrapped


# --- HookedTransformer

_PLAIN: dict[str, Any] = {
    "n_layers": N_LAYERS, "d_model": D_MODEL, "n_ctx": N_CTX, "d_head": D_HEAD, "n_heads": N_HEADS, "d_vocab": D_VOCAB,
    "act_fn": "relu", "d_mlp": D_MLP, "seed": 0, "initializer_range": RANGE,
}  # fmt: skip
HOOKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention-only": {"attn_only": True},
    "grouped": {"n_key_value_heads": 2},
    "parallel": {"parallel_attn_mlp": True},
    "shortformer": {"positional_embedding_type": "shortformer"},
}


def _hooked(name: str) -> Subject:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with torch.random.fork_rng():
        model = HookedTransformer(HookedTransformerConfig(**_PLAIN | HOOKED[name]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.tokenizer = tokenizer()
    blocks: list[Any] = list(model.blocks)
    has_mlp = not model.cfg.attn_only

    def attentions_of(tokens: Tensor) -> list[Tensor | None]:
        kept: list[Tensor | None] = []
        points = [block.attn.hook_pattern for block in blocks]
        handles = [p.register_forward_hook(lambda m, i, out: kept.append(out.detach())) for p in points]
        model(tokens)
        for handle in handles:
            handle.remove()
        return kept

    def matrices(block: Any) -> dict[str, Tensor]:
        prefix = "_" if "n_key_value_heads" in HOOKED[name] else ""
        flat = lambda w: w.permute(1, 0, 2).flatten(1)  # noqa: E731
        found = {"W_Q": flat(block.attn.W_Q), "W_O": block.attn.W_O.flatten(0, 1)}
        found |= {which: flat(getattr(block.attn, prefix + which)) for which in ("W_K", "W_V")}
        return found | ({"W_in": block.mlp.W_in, "W_out": block.mlp.W_out} if has_mlp else {})

    reading = Reading(
        model,
        lambda tokens: model(tokens),
        attentions_of,
        model.hook_embed,
        [block.hook_resid_post for block in blocks],
        {layer: block.attn.hook_z for layer, block in enumerate(blocks)},
        {layer: block.hook_mlp_out for layer, block in enumerate(blocks)} if has_mlp else {},
        {layer: block.attn.W_O.detach() for layer, block in enumerate(blocks)},
        [matrices(block) for block in blocks],
        is_z=True,
    )
    return Subject(name, model, reading)


# --- transformers


@dataclass(frozen=True)
class Family:
    """Where a transformers model keeps its parts, and a small configuration of it."""

    config: str
    settings: dict[str, Any]
    blocks: str = "model.layers"
    embed: str = "model.embed_tokens"
    mixer: str = "self_attn.o_proj"
    mlp: str = "mlp"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    """one module each, or one for all"""
    ff: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


_GROUPED: dict[str, Any] = {
    "hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "num_key_value_heads": 2,
    "intermediate_size": D_MLP, "max_position_embeddings": N_CTX, "vocab_size": D_VOCAB, "initializer_range": RANGE,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
_UNGROUPED = {name: value for name, value in _GROUPED.items() if name != "num_key_value_heads"}
_SHORT = {"head_dim": D_HEAD, "sliding_window": 8, "query_pre_attn_scalar": 8}
FAMILIES: dict[str, Family] = {
    "gpt-neox": Family(
        "GPTNeoXConfig",
        _UNGROUPED,
        blocks="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        mixer="attention.dense",
        qkv=("attention.query_key_value",),
        ff=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    "gemma-2": Family("Gemma2Config", _GROUPED | _SHORT, mlp="post_feedforward_layernorm"),
    "gemma-3": Family(
        "Gemma3TextConfig",
        _GROUPED | _SHORT | {"layer_types": ["sliding_attention", "full_attention"]},
        mlp="post_feedforward_layernorm",
    ),
    "olmo-2": Family("Olmo2Config", _GROUPED, mlp="post_feedforward_layernorm"),
    "phi-3": Family("Phi3Config", _GROUPED, qkv=("self_attn.qkv_proj",), ff=("mlp.gate_up_proj", "mlp.down_proj")),
    "opt": Family(
        "OPTConfig",
        _UNGROUPED | {"ffn_dim": D_MLP, "word_embed_proj_dim": D_MODEL, "init_std": RANGE},
        blocks="model.decoder.layers",
        embed="model.decoder.embed_tokens",
        mixer="self_attn.out_proj",
        mlp="fc2",
        ff=("fc1", "fc2"),
    ),
    "gpt-j": Family(
        "GPTJConfig",
        _UNGROUPED | {"n_inner": D_MLP, "rotary_dim": 4, "tie_word_embeddings": False},
        blocks="transformer.h",
        embed="transformer.wte",
        mixer="attn.out_proj",
        qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        ff=("mlp.fc_in", "mlp.fc_out"),
    ),
    "gpt-neo": Family(
        "GPTNeoConfig",
        _UNGROUPED | {"attention_types": [[["global", "local"], 1]], "window_size": 8},
        blocks="transformer.h",
        embed="transformer.wte",
        mixer="attn.attention.out_proj",
        qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
        ff=("mlp.c_fc", "mlp.c_proj"),
    ),
    "qwen-3": Family("Qwen3Config", _GROUPED | {"head_dim": D_HEAD}),
    "lfm-2": Family(
        "Lfm2Config",
        _GROUPED | {"layer_types": ["conv", "full_attention"]},
        mixer="self_attn.out_proj",
        mlp="feed_forward",
        ff=("feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
    ),
    "granite": Family("GraniteConfig", _GROUPED),
    "mixtral": Family("MixtralConfig", _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, ff=()),
    "mamba": Family(
        "MambaConfig",
        {"vocab_size": D_VOCAB, "hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS, "state_size": 4},
        blocks="backbone.layers",
        embed="backbone.embeddings",
        mixer="",
        mlp="",
        ff=(),
    ),
}


def _bridge(name: str) -> Subject:
    import transformers
    from transformer_lens.model_bridge import TransformerBridge

    family = FAMILIES[name]
    config = getattr(transformers, family.config)(**family.settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in wrapped.parameters():  # norms and biases too
                parameter.add_(0.05 * torch.randn_like(parameter))
    plain = copy.deepcopy(wrapped)
    plain.set_attn_implementation("eager")
    with tempfile.TemporaryDirectory() as folder:  # where a bridge looks for the configuration and the tokenizer
        config.architectures = [type(wrapped).__name__]
        config.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        model = TransformerBridge.boot_transformers(folder, hf_model=wrapped)
    return Subject(name, model, _reading(plain, family))


def _reading(plain: Any, family: Family) -> Reading:
    blocks: list[nn.Module] = list(plain.get_submodule(family.blocks))
    has_heads = [family.mixer != "" and any(n == family.mixer for n, _ in block.named_modules()) for block in blocks]
    with_heads = {layer: block for layer, block in enumerate(blocks) if has_heads[layer]}
    mixers = {layer: block.get_submodule(family.mixer) for layer, block in with_heads.items()}

    def attentions_of(tokens: Tensor) -> list[Tensor | None]:
        with torch.no_grad():
            found = iter([a for a in plain(tokens, output_attentions=True).attentions if a is not None])
        return [next(found) if has else None for has in has_heads]

    return Reading(
        plain,
        lambda tokens: plain(tokens).logits,
        attentions_of,
        plain.get_submodule(family.embed),
        blocks,
        mixers,
        {layer: block.get_submodule(family.mlp) for layer, block in enumerate(blocks) if family.mlp},
        {layer: m.weight.detach().T.unflatten(0, (N_HEADS, -1)) for layer, m in mixers.items()},
        [_matrices(block, family, has) for block, has in zip(blocks, has_heads, strict=True)],
    )


def _matrices(block: nn.Module, family: Family, has_heads: bool) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if has_heads:
        parts = [block.get_submodule(name).weight.detach() for name in family.qkv]
        if family.config == "GPTNeoXConfig":  # q, k, v of each head in turn
            parts = list(parts[0].view(N_HEADS, 3, D_HEAD, D_MODEL).transpose(0, 1).flatten(1, 2))
        elif len(parts) == 1:
            n_kv = (len(parts[0]) - N_HEADS * D_HEAD) // 2
            parts = list(parts[0].split([N_HEADS * D_HEAD, n_kv, n_kv]))
        found = dict(zip(("W_Q", "W_K", "W_V"), parts, strict=True))
        found["W_O"] = block.get_submodule(family.mixer).weight.detach()
    parts = [block.get_submodule(name).weight.detach() for name in family.ff]
    if family.config == "Phi3Config":
        parts = [*parts[0].chunk(2), parts[1]]
    return found | dict(zip(("W_gate", "W_in", "W_out")[3 - len(parts) :], parts, strict=True))


SUBJECTS = tuple(name for name in (*HOOKED, *FAMILIES) if name != "mamba")  # which has no heads at all


@cache
def subject(name: str) -> Subject:
    """The subject of that name; built once."""
    return _hooked(name) if name in HOOKED else _bridge(name)
