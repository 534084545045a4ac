"""Foreign models in the forms that people have: folders and GGUF files beside transformers; TransformerLens's ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import small_model, tokens_for, worded_model
from safetensors.torch import load_file, save_file

from workbench.analyses.evaluate.bits import evaluate
from workbench.data.tokenizer import load_tokenizer, train_bpe
from workbench.models.generate import generate
from workbench.models.interop import export, import_model
from workbench.models.load import load
from workbench.models.tokenizer_files import wrap_tokenizer
from workbench.models.transformer_lens import from_hooked_transformer, to_hooked_transformer
from workbench.models.weights import weights_sha256

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
]

BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
TOKENS = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(1))


def random_model(class_name: str = "LlamaConfig", **changes):
    """A transformers model with no weight at its initial value."""
    import transformers

    base = {} if class_name == "GPT2Config" else BASE
    config = getattr(transformers, class_name)(**base | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder: Path, **changes) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | changes, file, metadata={"format": "pt"})


@torch.no_grad()
def difference(folder: Path) -> float:
    """The largest one of logits, to those of transformers' reading of the same folder, in float32."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(
        str(folder), local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    )
    return float((load(folder, dtype="float32")(TOKENS) - theirs.eval()(TOKENS).logits).abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_keeps_its_dtype_there_and_back(dtype, tmp_path):
    model = small_model("kotodama").to(dtype)
    back = load(export(model, "hf", tmp_path / "hf"))
    assert back.cfg.dtype == dtype
    assert weights_sha256(back) == weights_sha256(model)
    assert weights_sha256(load(import_model(tmp_path / "hf", tmp_path / "ours"))) == weights_sha256(model)


@pytest.mark.parametrize("to", ["hf", "transformer-lens"])
def test_an_export_in_bfloat16_is_held_to_what_float32_is_held_to(to, tmp_path, monkeypatch):
    model = small_model("kotodama").to(torch.bfloat16)
    export(model, to, tmp_path / "right")
    write = save_file

    def write_a_fault(tensors, *args, **kwargs):
        name = next(n for n in tensors if n.endswith(("model.norm.weight", "ln_final.w")))
        write(tensors | {name: tensors[name] * 1.02}, *args, **kwargs)

    for module in ("huggingface", "transformer_lens"):
        monkeypatch.setattr(f"workbench.models.{module}.save_file", write_a_fault)
    with pytest.raises(ValueError, match=rf"export to {to}: logits differ by"):
        export(model, to, tmp_path / "wrong")


def test_of_mixed_weights_the_dtype_holds_all(tmp_path):
    random_model().to(torch.bfloat16).save_pretrained(tmp_path)
    edit_tensors(tmp_path, **{"model.norm.weight": torch.full((64,), 1 + 2.0**-20)})
    model = load(tmp_path)
    assert model.cfg.dtype == torch.float32
    assert float(model.ln_final.w[0]) == 1 + 2.0**-20


class TestRotarySettings:
    @pytest.fixture
    def folder(self, tmp_path):
        random_model().save_pretrained(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        "changes",
        [
            {"rope_scaling": {"type": "linear", "factor": 2.0}},  # added by hand beside rope_parameters
            {"rope_parameters": None, "rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": None, "rope_theta": 777.0, "rope_scaling": None},
        ],
    )
    def test_are_read_as_transformers_reads_them(self, folder, changes):
        edit_config(folder, **changes)
        assert difference(folder) < 1e-4

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"rope_scaling": {"type": "proportional"}}, "rope_type = 'proportional'; expected default, linear"),
            ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope without short_factor and long_factor"),
            ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "got 1 factors; exp"),
            ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
            ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5; expected 1"),
            ({"rope_parameters": {"full_attention": {"rope_theta": 5e5}}}, "expected one object for all layers"),
        ],
    )
    def test_that_cannot_be_expressed_are_refused(self, folder, changes, message):
        edit_config(folder, **changes)
        with pytest.raises(ValueError, match=message):
            load(folder)

    @pytest.mark.parametrize(
        ("changes", "window"), [({}, 20), ({"sliding_window": None}, None), ({"use_sliding_window": False}, 20)]
    )
    def test_a_window_of_mistral_is_in_every_layer(self, changes, window, tmp_path):
        random_model("MistralConfig", sliding_window=20).save_pretrained(tmp_path)
        edit_config(tmp_path, **changes)
        assert load(tmp_path).cfg.window_size == window
        assert difference(tmp_path) < 1e-4

    def test_a_window_that_is_no_number(self, tmp_path):
        random_model("MistralConfig").save_pretrained(tmp_path)
        edit_config(tmp_path, sliding_window="long")
        with pytest.raises(ValueError, match="sliding_window is 'long'; expected a whole number"):
            load(tmp_path)


class TestFilesOfAFolder:
    def test_what_lies_beside_the_weights_is_left(self, tmp_path):
        random_model().save_pretrained(tmp_path)
        save_file({"layers.0.attention.wq.weight": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
        assert difference(tmp_path) < 1e-4

    def test_shards_are_those_of_the_index(self, tmp_path):
        random_model().save_pretrained(tmp_path, max_shard_size="40KB")
        files = list(tmp_path.glob("*.safetensors"))
        assert len(files) > 3
        save_file({"layers.0.attention.wq.weight": torch.zeros(2)}, tmp_path / "consolidated.safetensors")
        assert difference(tmp_path) < 1e-4
        files[1].unlink()
        with pytest.raises(ValueError, match=f"in {files[1].name}, which is not there"):
            load(tmp_path)

    def test_an_unembedding_of_its_own_in_a_tied_model(self, tmp_path):
        model = random_model(tie_word_embeddings=True)
        model.save_pretrained(tmp_path)
        edit_tensors(tmp_path, **{"lm_head.weight": model.model.embed_tokens.weight.detach().clone()})
        assert difference(tmp_path) < 1e-4
        edit_tensors(tmp_path, **{"lm_head.weight": torch.randn(300, 64)})
        with pytest.raises(ValueError, match=r"lm_head.weight is not the tied .* expected tie_word_embeddings = false"):
            load(tmp_path)

    @pytest.mark.parametrize("kind", ["LlamaConfig", "GPT2Config"])
    def test_a_tied_matrix_under_the_name_of_the_unembedding(self, kind, tmp_path):
        from safetensors.torch import save_model

        changes = {"n_embd": 48, "n_layer": 1, "n_head": 6, "vocab_size": 300} if kind == "GPT2Config" else {}
        model = random_model(kind, tie_word_embeddings=True, **changes)
        model.save_pretrained(tmp_path)
        save_model(model, str(tmp_path / "model.safetensors"))
        assert not any("wte" in n or "embed_tokens" in n for n in load_file(tmp_path / "model.safetensors"))
        assert difference(tmp_path) < 1e-4
        edit_config(tmp_path, tie_word_embeddings=False)
        with pytest.raises(ValueError, match=r"(wte|embed_tokens).weight is missing"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("kind", "name", "shape"),
        [
            ("Qwen2Config", "model.layers.0.self_attn.q_proj.bias", (63,)),
            ("GPT2Config", "transformer.h.0.attn.c_attn.bias", (95,)),
            ("GPT2Config", "transformer.h.0.attn.c_proj.weight", (47, 48)),
        ],
    )
    def test_a_misshapen_tensor_is_named(self, kind, name, shape, tmp_path):
        changes = {"n_embd": 48, "n_layer": 1, "n_head": 6, "vocab_size": 61} if kind == "GPT2Config" else {}
        random_model(kind, **changes).save_pretrained(tmp_path)
        edit_tensors(tmp_path, **{name: torch.zeros(shape)})
        with pytest.raises(ValueError, match=rf"{tmp_path.name}.*: {name} has shape"):
            load(tmp_path)

    def test_numbers_of_eight_bits(self, tmp_path):
        random_model().save_pretrained(tmp_path)
        name = "model.layers.0.mlp.up_proj.weight"
        edit_tensors(tmp_path, **{name: torch.zeros(96, 64).to(torch.float8_e4m3fn)})
        with pytest.raises(ValueError, match="is of float8_e4m3fn; expected float64, float32, bfloat16, float16"):
            load(tmp_path)


def test_qk_norm_with_all_attention_biases_is_exported(tmp_path):
    random_model("Qwen3Config", head_dim=12, attention_bias=True).save_pretrained(tmp_path / "in")
    model = load(tmp_path / "in")
    assert weights_sha256(load(export(model, "hf", tmp_path / "out"))) == weights_sha256(model)


@pytest.mark.parametrize(("kind", "said"), [("Qwen2Config", False), ("MistralConfig", True)])
def test_attention_biases_are_the_class_s_where_it_asks_no_configuration(kind, said, tmp_path):
    random_model(kind).save_pretrained(tmp_path)
    edit_config(tmp_path, attention_bias=said)
    assert difference(tmp_path) < 1e-4


@pytest.mark.parametrize(
    ("kind", "changes", "silent"),
    [
        ("Qwen3Config", {"head_dim": 128}, "head_dim"),
        ("Qwen3Config", {"num_key_value_heads": 32, "num_attention_heads": 32, "head_dim": 4}, "num_key_value_heads"),
        ("Qwen2Config", {"num_key_value_heads": 32, "num_attention_heads": 32}, "num_key_value_heads"),
        ("MistralConfig", {"num_key_value_heads": 8, "num_attention_heads": 8}, "num_key_value_heads"),
        ("LlamaConfig", {"num_key_value_heads": 4, "head_dim": None}, "head_dim"),
    ],
)
def test_what_a_configuration_does_not_say_is_its_class_s_default(kind, changes, silent, tmp_path):
    random_model(kind, **changes).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop(silent)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert difference(tmp_path) < 1e-4


def test_unscaled_attention_is_exported_as_gpt2_and_no_other_scale(tmp_path):
    shape = {"n_embd": 48, "n_layer": 1, "n_head": 6, "vocab_size": 300}
    random_model("GPT2Config", scale_attn_weights=False, **shape).save_pretrained(tmp_path / "in")
    model = load(tmp_path / "in")
    out = export(model, "hf", tmp_path / "out")
    assert load(out).cfg.attn_scale == 1.0
    assert weights_sha256(load(out)) == weights_sha256(model)
    with pytest.raises(ValueError, match="the nearest, has attn_scale = "):
        export(small_model("janus-small", attn_scale=2.0), "hf", tmp_path / "other")
    with pytest.raises(ValueError, match="the nearest, has attn_scale = "):
        export(small_model("kotodama", attn_scale=1.0), "hf", tmp_path / "other")


class TestTokenizers:
    def folder(self, directory: Path, kind: str, tokenizer, **named: str) -> Path:
        from transformers import PreTrainedTokenizerFast

        random_model(kind).save_pretrained(directory)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(directory)
        return directory

    def test_qwen_reads_without_bos_and_stays_so_when_imported(self, tmp_path):
        import tokenizers

        tokenizer = train_bpe(["the dog"] * 9, 270)  # <|endoftext|>, which others call their BOS, is 0
        tokenizer.normalizer = tokenizers.normalizers.NFC()  # as Qwen2's own
        tokenizer.add_special_tokens(["<|im_end|>"])
        ids, end = tokenizer.encode("the dog").ids, tokenizer.token_to_id("<|im_end|>")
        folder = self.folder(tmp_path / "in", "Qwen2Config", tokenizer, eos_token="<|im_end|>")
        for model in (load(folder), load(import_model(folder, tmp_path / "out"))):
            assert model.to_tokens("the dog").tolist() == [ids]
            assert model.to_tokens("the dog", prepend_bos=True).tolist() == [[end, *ids]]  # as TransformerLens does
            assert (model.tokenizer.bos_token, model.tokenizer.eos_token) == (None, "<|im_end|>")

    def test_without_bos_and_eos_a_text_stands_alone(self, tmp_path):
        import tokenizers

        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[X]": 0, "the": 1, "dog": 2}, "[X]"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        model = load(self.folder(tmp_path, "LlamaConfig", tokenizer))
        assert model.to_tokens("the dog").tolist() == [[1, 2]]
        with pytest.raises(ValueError, match="no BOS token; expected prepend_bos=False"):
            model.to_tokens("the dog", prepend_bos=True)


NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


class TestGGUF:
    """Files as llama.cpp's converter writes them, beside the transformers model whose weights they hold."""

    def write(self, file: Path, model, arch: str = "llama", kind: str = "F32", reshape: dict | None = None, **changes):
        """The model's weights in a file, dequantised back into the model; changes: metadata keys, None to leave out."""
        import gguf

        cfg, quant = model.config, gguf.GGMLQuantizationType[kind]
        d_head = cfg.head_dim or cfg.hidden_size // cfg.num_attention_heads
        keys = {
            "context_length": 64, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96,
            "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": d_head,
            "attention.key_length": d_head, "attention.value_length": d_head,
            "attention.layer_norm_rms_epsilon": cfg.rms_norm_eps, "rope.freq_base": 10000.0,
        }  # fmt: skip
        writer = gguf.GGUFWriter(str(file), arch)
        for key, value in (keys | changes).items():
            add = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string, bool: writer.add_bool}
            if value is not None:
                add[type(value)](f"{arch}.{key}", value)  # type: ignore[misc]
        state = model.state_dict()
        for name, tensor in state.items():
            theirs = WHOLE.get(name, "output.weight")
            if name.startswith("model.layers."):
                _, _, layer, part = name.split(".", 3)
                part, leaf = part.rsplit(".", 1)
                theirs = f"blk.{layer}.{NAMES[part]}.{leaf}"
            weight, turned = tensor.numpy(), arch == "llama" and (".attn_q." in theirs or ".attn_k." in theirs)
            heads = 4 if ".attn_q." in theirs else 2
            if turned:  # halves to adjacent pairs
                weight = weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
            weight = weight[: (reshape or {}).get(theirs)]
            data = gguf.quants.quantize(weight, quant) if weight.ndim == 2 else np.ascontiguousarray(weight)
            writer.add_tensor(theirs, data, raw_dtype=quant if weight.ndim == 2 else None)
            if weight.ndim == 2 and not reshape:
                weight = gguf.quants.dequantize(data, quant)
                if turned:
                    weight = weight.reshape(heads, -1, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
                state[name].copy_(torch.from_numpy(np.array(weight)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    @pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
    @torch.no_grad()
    def test_every_kind_of_weights(self, kind, tmp_path):
        theirs = random_model()
        self.write(tmp_path / "x.gguf", theirs, kind=kind)
        ours = load(tmp_path / "x.gguf")
        assert ours.tokenizer is None
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)

    FAMILIES = {
        "biases": ("LlamaConfig", "llama", {"attention_bias": True}),
        "wide heads": ("LlamaConfig", "llama", {"head_dim": 32}),
        "qwen2": ("Qwen2Config", "qwen2", {"head_dim": 16}),
        "qwen3": ("Qwen3Config", "qwen3", {"head_dim": 32}),
    }

    @pytest.mark.parametrize("family", FAMILIES)
    @torch.no_grad()
    def test_every_family(self, family, tmp_path):
        class_name, arch, changes = self.FAMILIES[family]
        theirs = random_model(class_name, **changes)
        self.write(tmp_path / "x.gguf", theirs, arch)
        ours = load(tmp_path / "x.gguf")
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        "changes",
        [
            {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
            {"rope.scaling.factor": 2.0},  # llama.cpp's default kind
            {"rope.scale_linear": 2.0},  # and its older name of the factor
        ],
    )
    @torch.no_grad()
    def test_linear_stretching(self, changes, tmp_path):
        rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
        theirs = random_model(rope_parameters=rope)
        self.write(tmp_path / "x.gguf", theirs, **changes)
        ours = load(tmp_path / "x.gguf")
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"rope.scaling.type": "yarn"}, "stretched rotary frequencies"),
            ({"rope.scaling.type": "linear"}, "llama.rope.scaling.factor is missing"),
            ({"rope.scaling.attn_factor": 1.2}, r"llama.rope.scaling.attn_factor is 1.2\d*; expected .*, 1$"),
            ({"attention.causal": False}, "llama.attention.causal is False; expected causal attention"),
            ({"expert_count": 8}, "llama.expert_count is 8; expected a dense model, not a mixture of experts"),
            ({"rope.dimension_count": 8}, "rope.dimension_count is 8; expected a head's 16 dimensions"),
            ({"attention.value_length": 8}, "attention.value_length is 8"),
            ({"attention.head_count": "x"}, "attention.head_count is 'x'; expected a number above 0"),
            ({"attention.head_count": 0}, "attention.head_count is 0; expected a number above 0"),
            ({"reshape": {"blk.0.attn_q.weight": 63}}, r"blk.0.attn_q.weight has shape \[63, 64\]; does not fit"),
        ],
    )
    def test_what_cannot_be_read_is_named(self, changes, message, tmp_path):
        with torch.no_grad():
            self.write(tmp_path / "x.gguf", random_model(), **changes)
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "x.gguf")


@pytest.mark.parametrize("kind", ["janus-small", "janus-v3", "kotodama"])
@torch.no_grad()
def test_logits_are_attributed_as_transformer_lens_does_it(kind):
    tokenizer = load_tokenizer("embedded")
    ours = small_model(kind, d_vocab=tokenizer.get_vocab_size(), tie_word_embeddings=False)
    ours.tokenizer = wrap_tokenizer(tokenizer)
    theirs, tokens = to_hooked_transformer(ours), tokens_for(ours)

    def attributed(model):
        cache = model.run_with_cache(tokens)[1]
        heads, labels = cache.stack_head_results(pos_slice=-1, incl_remainder=True, return_labels=True)
        yield cache.logit_attrs(heads, tokens=tokens[:, 3], incorrect_tokens=tokens[:, 5], pos_slice=-1)
        yield cache.logit_attrs(cache.decompose_resid(), tokens=" the", incorrect_tokens=" a")
        yield cache.get_full_resid_decomposition(expand_neurons=False)
        yield cache.get_full_resid_decomposition(layer=1, mlp_input=True, expand_neurons=True, apply_ln=True)
        for layer, mlp_input in ((0, False), (0, True), (2, True), (3, False)):
            yield model.accumulated_bias(layer, mlp_input)
        yield model.accumulated_bias(2, include_mlp_biases=False)
        for one in (7, tokens[0, 0], tokens[0, :1], tokens[0], tokens):
            yield model.tokens_to_residual_directions(one)
        yield [labels, model.to_str_tokens("It is a truth"), model.to_str_tokens(tokens[:1]), model.to_string(tokens)]
        yield [
            model.to_string(tokens[0]),
            model.to_single_token(" the"),
            model.to_str_tokens(["It is", "truth"], False),
        ]

    for got, wanted in zip(attributed(ours), attributed(theirs), strict=True):
        if isinstance(got, list):
            assert got == wanted
        else:
            torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["janus-small", "janus-v3", "kotodama"])
@torch.no_grad()
def test_weights_of_all_layers_are_stacked_as_in_transformer_lens(kind):
    ours = small_model(kind)
    theirs = to_hooked_transformer(ours)
    names = ["W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", *(["W_gate"] if ours.cfg.gated_mlp else [])]
    for name in names:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=0, rtol=0)
    for name in ("QK", "OV"):
        got, wanted = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(got.AB, wanted.AB, atol=1e-6, rtol=1e-5)


def test_a_text_of_several_tokens_is_no_single_one():
    model = worded_model("janus-v3")
    with pytest.raises(ValueError, match=r"to_single_token: 'It is' is \d tokens; expected a text that is one"):
        model.to_single_token("It is")


def test_what_takes_only_our_class_says_so(tmp_path):
    hooked = to_hooked_transformer(small_model("janus-v3"))
    tokens = torch.zeros(1, 3, dtype=torch.long)
    for call in (
        lambda: generate(hooked, tokens, 3, temperature=0),
        lambda: export(hooked, "hf", tmp_path / "out"),
        lambda: evaluate(hooked, ["text"]),
    ):
        with pytest.raises(ValueError, match="got a HookedTransformer; expected a HookedLM"):
            call()


def test_an_activation_that_we_lack_is_one_line():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes: dict[str, Any] = {"n_layers": 1, "d_model": 8, "n_ctx": 4, "d_vocab": 5, "d_head": 4, "d_mlp": 8}
    hooked = HookedTransformer(HookedTransformerConfig(**sizes, act_fn="solu_ln"))
    with pytest.raises(ValueError, match=r"from TransformerLens: act_fn: Input should be 'silu'[^\n]*'solu_ln'\)$"):
        from_hooked_transformer(hooked)
