"""Every family beside transformers: logits, weights there and back, caches, padding; tiny models of random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench.analyses import load_plugin
from workbench.models import KeyValueCache
from workbench.models.families import BUILT_IN
from workbench.models.interop import export
from workbench.models.load import load
from workbench.models.masks import pad_rows
from workbench.models.weights import weights_sha256

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
]

N_CTX = 64
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 211,
    "max_position_embeddings": N_CTX,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GROUPED, SINGLE = {"num_key_value_heads": 2}, {"num_key_value_heads": 1}
ALL = {"num_key_value_heads": 4}
ODD = {"head_dim": 14}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.3 * i for i in range(8)], "original_max_position_embeddings": 32,
}  # fmt: skip
GPT2 = {"n_embd": 48, "n_head": 4, "n_layer": 4, "n_positions": N_CTX, "vocab_size": 211}
NEO = SIZES | {"num_layers": 4, "num_heads": 4, "window_size": 7, "attention_types": [[["global", "local"], 2]]}
NEO = {k: v for k, v in NEO.items() if k not in ("num_hidden_layers", "num_attention_heads")}
WINDOW = {"sliding_window": 7}

# family -> class of its configuration, and changes of it
CASES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "llama": (
        "LlamaConfig",
        [
            GROUPED, SINGLE, ALL | TIED, GROUPED | ODD, GROUPED | {"attention_bias": True},
            GROUPED | {"rope_parameters": LLAMA3}, GROUPED | {"rope_parameters": YARN},
            ALL | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}},
            ALL | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            ALL | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        ],
    ),
    "mistral": (
        "MistralConfig", [GROUPED | WINDOW, SINGLE | WINDOW, ALL | WINDOW, GROUPED | {"sliding_window": None},
                          GROUPED | ODD | WINDOW, GROUPED | TIED | {"sliding_window": N_CTX}],
    ),
    "qwen2": (
        "Qwen2Config",
        [
            GROUPED, SINGLE, ALL | TIED, GROUPED | UNTIED, GROUPED | {"rope_parameters": YARN},
            GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 2},
        ],
    ),
    "qwen3": (
        "Qwen3Config",
        [
            GROUPED | ODD, SINGLE | ODD, ALL | TIED | ODD, GROUPED | {"head_dim": 12, "attention_bias": True},
            GROUPED | ODD | {"rope_parameters": YARN},
            GROUPED | ODD | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
        ],
    ),
    "smollm3": (
        "SmolLM3Config",
        [
            GROUPED, SINGLE, ALL | UNTIED, GROUPED | {"attention_bias": True}, GROUPED | {"no_rope_layer_interval": 2},
            GROUPED | {"no_rope_layers": [1, 0, 0, 1]}, GROUPED | WINDOW | {"use_sliding_window": True},
        ],
    ),
    "gemma": (
        "GemmaConfig",
        [GROUPED | ODD, SINGLE | ODD, ALL | ODD, GROUPED | {"head_dim": 12}, GROUPED | ODD | UNTIED,
         GROUPED | ODD | {"attention_bias": True}],
    ),
    "gemma2": (
        "Gemma2Config",
        [
            GROUPED | ODD | WINDOW, SINGLE | ODD | WINDOW, ALL | ODD | WINDOW, GROUPED | ODD | WINDOW | UNTIED,
            GROUPED | ODD | WINDOW | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
            GROUPED | ODD | WINDOW | {"query_pre_attn_scalar": 20, "attention_bias": True},
            GROUPED | ODD | {"sliding_window": N_CTX},
        ],
    ),
    "gemma3_text": (
        "Gemma3TextConfig",
        [
            GROUPED | ODD | WINDOW, SINGLE | ODD | WINDOW, ALL | ODD | WINDOW | UNTIED,
            GROUPED | ODD | WINDOW | {"sliding_window_pattern": 2},
            GROUPED | WINDOW | {"head_dim": 12, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            GROUPED | ODD | WINDOW | {"layer_types": ["full_attention", "sliding_attention"] * 2},
            GROUPED | ODD | WINDOW | {"final_logit_softcapping": 20.0, "attention_bias": True},
        ],
    ),
    "olmo": (
        "OlmoConfig",
        [GROUPED, SINGLE, ALL | TIED, GROUPED | {"clip_qkv": 0.5}, GROUPED | {"attention_bias": True},
         ALL | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}],
    ),
    "olmo2": (
        "Olmo2Config",
        [GROUPED, SINGLE, ALL | TIED, GROUPED | {"attention_bias": True}, ALL, GROUPED | {"rope_parameters": YARN}],
    ),
    "phi": (
        "PhiConfig",
        [GROUPED, SINGLE, ALL, GROUPED | {"partial_rotary_factor": 0.25}, GROUPED | {"partial_rotary_factor": 1.0},
         GROUPED | TIED],
    ),
    "phi3": (
        "Phi3Config",
        [
            GROUPED, SINGLE | WINDOW, ALL | TIED, GROUPED | {"rope_parameters": {"partial_rotary_factor": 0.5}},
            GROUPED | {"rope_parameters": LONG, "original_max_position_embeddings": 32},
            GROUPED | WINDOW | {"rope_parameters": LONG | {"attention_factor": 1.3},
                                "original_max_position_embeddings": 32},
        ],
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        [{}, {"use_parallel_residual": False}, {"rotary_pct": 0.5}, {"rotary_pct": 1.0}, TIED,
         {"attention_bias": False}, {"hidden_act": "gelu_new", "num_attention_heads": 8}],
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        [{}, {"attention_types": [[["global"], 4]]}, {"attention_types": [[["local"], 3], [["global"], 1]]},
         {"window_size": 1}, UNTIED, {"intermediate_size": None}],
    ),
    "gpt2": (
        "GPT2Config",
        [{}, UNTIED, {"scale_attn_weights": False}, {"n_inner": 60}, {"activation_function": "relu"}, {"n_head": 3}],
    ),
}  # fmt: skip
# keys of config.json that hold what no model of ours can do
ACTIVATION = {"gpt2": "activation_function", "gpt_neo": "activation_function", "gemma2": "hidden_activation",
              "gemma3_text": "hidden_activation"}  # fmt: skip
UNSUPPORTED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "llama": [({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope_type = 'spiral'; expected ")],
    "gpt2": [({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True; expected False")],
    "gpt_neo": [({"attention_types": [[["ring"], 4]]}, "attention_")],
    "qwen3": [({"layer_types": ["ring_attention"] * 4}, "layer_types is ['ring_attention'")],
    "qwen2": [({"layer_types": ["ring_attention"] * 4}, "layer_types is ['ring_attention'")],
    "smollm3": [({"layer_types": ["ring_attention"] * 4}, "layer_types is ['ring_attention'")],
    "olmo2": [({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected a whole number, 1 or more")],
}
EACH = [(family, i) for family, (_, changes) in CASES.items() for i in range(len(changes))]
# a dozen lines of theirs that need more than two positions to show a window, a cap or a long context
TOKENS = torch.randint(0, 211, (2, 50), generator=torch.Generator().manual_seed(1))
# texts of unequal lengths, all longer than windows; of LongRoPE's long kind, which transformers chooses by the longest
# of a batch, and of its short kind, which alone lets a cache grow
TEXTS, SHORT_TEXTS = (
    [torch.randint(0, 211, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]
    for lengths in ((50, 41, 33), (31, 22, 14))
)


def theirs(family: str, i: int, dtype: torch.dtype = torch.float32) -> Any:
    """A transformers model with no weight at its initial value."""
    import transformers

    kind, changes = CASES[family]
    base = {"gpt2": GPT2, "gpt_neo": NEO}.get(family, SIZES)
    config = getattr(transformers, kind)(**base | changes[i])
    with torch.random.fork_rng():
        torch.manual_seed(i)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.to(dtype)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    made: dict[tuple[str, int], Any] = {}

    def make(family: str, i: int) -> Any:
        if (family, i) not in made:
            model, folder = theirs(family, i), tmp_path_factory.mktemp(f"{family}-{i}")
            model.save_pretrained(folder)
            made[family, i] = (model, folder)
        return made[family, i]

    return make


def test_every_family_is_tried():
    assert set(CASES) == set(BUILT_IN)
    assert min(len(changes) for _, changes in CASES.values()) >= 6


@pytest.mark.parametrize(("family", "i"), EACH)
@torch.no_grad()
def test_logits_are_those_of_transformers(family, i, pair):
    model, folder = pair(family, i)
    ours = load(folder)
    assert ours.cfg.n_ctx == N_CTX
    wanted = model(TOKENS).logits
    watched = ours.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: "pattern" in name, lambda x, hook: x)])
    for found in (ours(TOKENS), watched):
        difference = float((found - wanted).abs().max())
        assert difference <= 1e-4


@pytest.mark.parametrize(("family", "i"), EACH)
def test_weights_come_back(family, i, pair, tmp_path):
    _, folder = pair(family, i)
    model = load(folder)
    back = export(model, "hf", tmp_path / "back")
    assert weights_sha256(load(back)) == weights_sha256(model)
    described = [json.loads((where / "config.json").read_text())["model_type"] for where in (folder, back)]
    if described[0] == described[1]:
        before, after = (load_file(where / "model.safetensors") for where in (folder, back))
        assert set(before) == set(after)
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("family", "i"), EACH)
@torch.no_grad()
def test_no_token_changes_an_earlier_one_and_a_cache_changes_nothing(family, i, pair):
    _, folder = pair(family, i)
    model = load(folder, dtype="float64")
    tokens = TOKENS[:, :31]  # of LongRoPE's short kind: the long one counts for all positions of a long sequence
    whole = model(tokens)
    changed = tokens.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 211
    difference = float((model(changed)[:, :20] - whole[:, :20]).abs().max())
    assert difference < 1e-12
    cache = KeyValueCache(31)
    parts = [model(tokens[:, a:b], past_kv_cache=cache) for a, b in ((0, 9), (9, 10), (10, 31))]
    difference = float((torch.cat(parts, dim=1) - whole).abs().max())
    assert difference < 1e-10


@pytest.mark.parametrize(("family", "i"), EACH)
@torch.no_grad()
def test_padding_changes_no_text(family, i, pair):
    """Padded on either side, each text has the logits that transformers gives it, that it has alone, and with a cache
    that is read in parts."""
    model, folder = pair(family, i)
    ours = load(folder)
    batches = {side: pad_rows(TEXTS, 3, side) for side in ("left", "right")}
    for tokens, mask in batches.values():
        position_ids = (mask.cumsum(1) - 1).clamp_min(0)
        wanted = model(tokens, attention_mask=mask.long(), position_ids=position_ids).logits
        watched = ours.run_with_hooks(
            tokens, attention_mask=mask, fwd_hooks=[(lambda name: "pattern" in name, lambda x, hook: x)]
        )
        for found in (ours(tokens, attention_mask=mask), watched):
            assert bool(found.isfinite().all())
            assert float((found - wanted)[mask].abs().max()) <= 1e-4
    ours = ours.double()
    alone = torch.cat([ours(torch.tensor([text]))[0] for text in TEXTS])
    for tokens, mask in batches.values():
        assert float((ours(tokens, attention_mask=mask)[mask] - alone).abs().max()) < 1e-10
    alone = torch.cat([ours(torch.tensor([text]))[0] for text in SHORT_TEXTS])
    for side in batches:
        tokens, mask = pad_rows(SHORT_TEXTS, 3, side)
        cache, parts = KeyValueCache(31), ((0, 9), (9, 10), (10, 31))
        logits = [ours(tokens[:, a:b], past_kv_cache=cache, attention_mask=mask[:, a:b]) for a, b in parts]
        assert float((torch.cat(logits, dim=1)[mask] - alone).abs().max()) < 1e-10


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_of_sixteen_bits(family, dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    theirs(family, 0, dtype).save_pretrained(tmp_path, max_shard_size="20KB")
    ours = load(tmp_path)
    assert ours.cfg.dtype == dtype
    # read anew: converted in place, it would keep rounded frequencies
    wide = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        difference = (ours.float()(TOKENS) - wide.eval()(TOKENS).logits).abs().max()
    assert difference <= 1e-4


def rewritten(folder: Path, out: Path, config: dict[str, Any], **tensors: torch.Tensor | None) -> Path:
    """The folder's model with other entries of config.json, and other tensors, or none of that name."""
    said = json.loads((folder / "config.json").read_text()) | config
    (out / "config.json").write_text(json.dumps(said))
    kept = load_file(folder / "model.safetensors") | tensors
    save_file({name: own for name, own in kept.items() if own is not None}, out / "model.safetensors")
    return out


@pytest.mark.parametrize("family", CASES)
def test_what_is_wrong_with_a_folder_is_named(family, pair, tmp_path):
    _, folder = pair(family, 0)
    names = sorted(load_file(folder / "model.safetensors"))
    some = next(name for name in names if "2" in name)  # of a layer
    wrong = load_file(folder / "model.safetensors")[some][:-1]
    for tensors, said in (
        ({some: None}, f"{some} is missing"),
        ({"model.extra.weight": torch.ones(2)}, "model.extra.weight is unknown"),
        ({some: wrong}, f"{some} has shape {list(wrong.shape)}; expected "),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: {said}")):
            load(rewritten(folder, tmp_path, {}, **tensors))
    mish = ({ACTIVATION.get(family, "hidden_act"): "mish"}, "activation 'mish'; expected silu")
    for config, said in (mish, *UNSUPPORTED.get(family, [])):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'config.json'}: {said}")):
            load(rewritten(folder, tmp_path, config))


@torch.no_grad()
def test_a_family_of_ones_own_is_one_file(tmp_path):
    import transformers

    load_plugin("docs/plugins/stablelm.py")
    config = transformers.StableLmConfig(**SIZES | GROUPED, use_qkv_bias=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "in")
    ours = load(tmp_path / "in")
    difference = float((ours(TOKENS) - model(TOKENS).logits).abs().max())
    assert difference <= 1e-4
    assert weights_sha256(load(export(ours, "hf", tmp_path / "out"))) == weights_sha256(ours)
