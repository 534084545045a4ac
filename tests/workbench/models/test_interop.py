"""The model against its peers: TransformerLens, transformers, glassllm, SAELens's store; round trips; bad files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models_for_tests import small_config, small_model, tokens_for, worded_model
from safetensors.torch import load_file, save_file

from workbench.models import HookedLM, ModelConfig
from workbench.models.checkpoint import save
from workbench.models.interop import export, import_model
from workbench.models.load import load
from workbench.models.transformer_lens import from_hooked_transformer, to_hooked_transformer
from workbench.models.weights import weights_sha256
from workbench.training import build

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
]

TEXT = Path(__file__).parents[3] / "README.md"


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.detach() - theirs.detach()).abs().max())


@pytest.mark.parametrize("kind", ["janus-small", "janus-v3", "kotodama", "untied-softcap"])
def test_logits_hooks_and_loss_equal_transformer_lens(kind, record_property):
    model = small_model(kind)
    hooked = to_hooked_transformer(model)
    tokens = tokens_for(model)
    difference = largest_difference(model(tokens), hooked(tokens))
    record_property("max |difference of logits|", difference)
    assert difference < 1e-4
    assert float(model(tokens, return_type="loss")) == pytest.approx(
        float(hooked(tokens, return_type="loss")), abs=1e-4
    )
    hooked.set_use_attn_result(True)
    hooked.set_use_split_qkv_input(True)
    _, theirs = hooked.run_with_cache(tokens)
    _, ours = model.run_with_cache(tokens, names_filter=lambda n: n in theirs)
    shared = set(ours) & set(theirs)
    # every hook of their block that the forward visits is one of ours, under the same name
    assert set(theirs) - shared <= {"unembed.hook_in", "unembed.hook_out"}
    for name in shared:
        # the class (3.9.0) flattens q and k for their norms, whose hooks then have lost batch and position
        is_flat = ".q_norm." in name or ".k_norm." in name
        found = ours[name].flatten(0, 2) if is_flat else ours[name]
        finite = torch.isfinite(theirs[name])  # masked scores are −inf in both
        assert found.shape == theirs[name].shape, name
        torch.testing.assert_close(found[finite], theirs[name][finite], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["janus-small", "janus-v3-control", "p1-adamw"])
@torch.no_grad()
def test_full_size_logits_equal_transformer_lens(recipe, record_property):
    model = build(recipe, seed=0)
    hooked = to_hooked_transformer(model)
    tokens = tokens_for(model, batch=2, pos=256)
    difference = largest_difference(model(tokens), hooked(tokens))
    losses = [float(m(tokens, return_type="loss")) for m in (model, hooked)]
    record_property("max |difference of logits|", difference)
    record_property("|difference of losses|", abs(losses[0] - losses[1]))
    assert difference < 1e-4
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("kind", ["janus-small", "janus-v3", "kotodama", "untied-softcap"])
def test_transformer_lens_round_trip_is_bit_equal(kind):
    model = small_model(kind)
    back = from_hooked_transformer(to_hooked_transformer(model))
    assert weights_sha256(back) == weights_sha256(model)
    assert torch.equal(back(tokens_for(model)), model(tokens_for(model)))


def test_a_local_tokenizer_goes_to_transformer_lens_as_it_is():

    model = worded_model("janus-v3")
    hooked = to_hooked_transformer(model)
    text = "It is a truth universally acknowledged, that"
    assert torch.equal(hooked.to_tokens(text), model.to_tokens(text))
    assert hooked.to_tokens([text, "It is"])[:, 0].tolist() == [model.tokenizer.bos_token_id] * 2
    assert model.tokenizer.pad_token is None  # ours is left as it was


def test_a_folded_hooked_transformer_is_read():
    hooked = to_hooked_transformer(small_model("janus-small"))
    hooked.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    tokens = tokens_for(small_model("janus-small"))
    assert hooked.cfg.normalization_type == "LNPre"
    assert largest_difference(from_hooked_transformer(hooked)(tokens), hooked(tokens)) < 1e-4


@pytest.mark.parametrize("kind", ["janus-small", "janus-v3", "kotodama"])
@pytest.mark.parametrize("to", ["transformer-lens", "hf"])
def test_export_is_verified_and_opens_in_the_other_library(kind, to, tmp_path):
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import AutoModelForCausalLM

    model = small_model(kind)
    tokens = tokens_for(model)
    out = export(model, to, tmp_path / "out")
    if to == "hf":
        theirs = AutoModelForCausalLM.from_pretrained(str(out), local_files_only=True).eval()(tokens).logits
        back = load(out)
        assert weights_sha256(back) == weights_sha256(model)
        assert torch.equal(back(tokens), model(tokens))
    else:
        fields = json.loads((out / "hooked_transformer_config.json").read_text())
        hooked = HookedTransformer(HookedTransformerConfig.from_dict(fields))
        hooked.load_state_dict(hooked.state_dict() | load_file(out / "model.safetensors"), strict=True)
        theirs = hooked(tokens)
    assert largest_difference(model(tokens), theirs) < 1e-4


@pytest.mark.parametrize("kind", ["attn-res", "untied-softcap"])
def test_what_cannot_be_expressed_is_refused_and_nothing_is_left(kind, tmp_path):
    reasons = {"attn-res": "attention residuals", "untied-softcap": "output_logits_soft_cap = 0.0 in place of 30.0"}
    with pytest.raises(ValueError, match=reasons[kind]):
        export(small_model(kind), "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


LLAMAS = {
    "llama-gqa": ("LlamaConfig", {"num_key_value_heads": 2}),
    "llama-mha-untied-bias": ("LlamaConfig", {"num_key_value_heads": 4, "attention_bias": True}),
    "llama3-rope": (
        "LlamaConfig",
        {
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "llama-linear-rope": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "mistral": ("MistralConfig", {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
}


def random_llama(name: str):
    import transformers

    class_name, changes = LLAMAS[name]
    base = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 61,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    config = getattr(transformers, class_name)(**base | changes)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", sorted(LLAMAS))
def test_llama_family_folders(name, tmp_path, record_property):
    theirs = random_llama(name)
    with torch.no_grad():  # biases are zero at first in transformers
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tokens = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = largest_difference(ours(tokens), theirs(tokens).logits)
        loss = theirs(tokens, labels=tokens).loss
    record_property("max |difference of logits|", difference)
    assert difference < 1e-4
    assert float(ours(tokens, return_type="loss")) == pytest.approx(float(loss), abs=1e-4)


def test_gpt2_folder(tmp_path, record_property):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=61, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(0, 61, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = largest_difference(load(tmp_path)(tokens), theirs(tokens).logits)
    record_property("max |difference of logits|", difference)
    assert difference < 1e-4


def glassllm_model() -> tuple[HookedLM, object]:
    """glassllm's English weights in our model, and glassllm's own."""
    import glassllm

    theirs, _ = glassllm.load_pretrained("en")
    c = theirs.cfg
    weights = {n: torch.from_numpy(np.array(p.data)) for n, p in theirs.named_parameters().items()}
    d_head = c.d_model // c.n_heads
    cfg = ModelConfig(
        n_layers=c.n_layers,
        d_model=c.d_model,
        n_ctx=c.max_len,
        d_vocab=c.vocab_size,
        n_heads=c.n_heads,
        n_key_value_heads=c.n_kv_heads,
        d_head=d_head,
        d_mlp=weights["blocks.0.ffn.W1"].shape[1],
        eps=c.eps,
        rotary_base=c.rope_base,
        rotary_adjacent_pairs=True,
        tie_word_embeddings=True,
    )
    model = HookedLM(cfg, seed=None)
    names = {
        "norm1.gamma": "ln1.w",
        "norm2.gamma": "ln2.w",
        "ffn.W1": "mlp.W_gate",
        "ffn.W3": "mlp.W_in",
        "ffn.W2": "mlp.W_out",
    }
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, value in weights.items():
            head, _, leaf = name.partition(".")
            if head == "E":
                parameters["embed.W_E"].copy_(value)
            elif head == "norm_f":
                parameters["ln_final.w"].copy_(value)
            else:
                layer, _, part = leaf.partition(".")
                if part in names:
                    parameters[f"blocks.{layer}.{names[part]}"].copy_(value)
                elif part == "attn.W_O":
                    parameters[f"blocks.{layer}.{part}"].copy_(value.unflatten(0, (c.n_heads, d_head)))
                else:
                    kv = part != "attn.W_Q"
                    split = value.unflatten(1, (c.n_kv_heads if kv else c.n_heads, d_head)).permute(1, 0, 2)
                    parameters[f"blocks.{layer}.attn.{'_' if kv else ''}{part[5:]}"].copy_(split)
    return model, theirs


def test_glassllm_numpy_forward(record_property):
    model, theirs = glassllm_model()
    tokens = torch.randint(0, model.cfg.d_vocab, (2, 100), generator=torch.Generator().manual_seed(0))
    logits = torch.from_numpy(theirs.forward(tokens.numpy()).data)
    difference = largest_difference(model(tokens), logits)
    record_property("max |difference of logits|", difference)
    assert difference < 1e-4
    loss = theirs.loss(tokens[:, :-1].numpy(), tokens[:, 1:].numpy()).data
    assert float(model(tokens, return_type="loss")) == pytest.approx(float(loss), abs=1e-4)


def test_our_checkpoint_round_trip_with_tokenizer(tmp_path):
    model = worded_model("kotodama")
    save(model, tmp_path)
    back = load(tmp_path)
    assert weights_sha256(back) == weights_sha256(model)
    text = "It is a truth universally acknowledged"
    assert torch.equal(back.to_tokens(text), model.to_tokens(text))
    assert back.to_tokens(text)[0, 0] == model.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert back.tokenizer.decode(back.to_tokens(text)[0, 1:]) == text
    assert load(tmp_path, dtype="bfloat16").cfg.dtype == torch.bfloat16


def test_import_writes_a_checkpoint_of_ours(tmp_path):
    random_llama("llama-gqa").save_pretrained(tmp_path / "hf")
    out = import_model(tmp_path / "hf", tmp_path / "ours")
    assert weights_sha256(load(out)) == weights_sha256(load(tmp_path / "hf"))


@pytest.mark.filterwarnings("ignore:Dataset is not tokenized")
def test_sae_lens_activations_store_takes_the_model_as_it_is():
    from datasets import Dataset
    from sae_lens import ActivationsStore

    model = worded_model("janus-v3")
    text = "It is a truth universally acknowledged, that a single man in possession of a good fortune "
    store = ActivationsStore(
        model=model,
        dataset=Dataset.from_dict({"text": [text * 8] * 40}),
        streaming=False,
        hook_name="blocks.1.attn.hook_z",
        hook_head_index=2,
        context_size=16,
        d_in=8,
        n_batches_in_buffer=4,
        total_training_tokens=40,
        store_batch_size_prompts=4,
        train_batch_size_tokens=32,
        prepend_bos=True,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )
    batch = store.get_batch_tokens()
    acts = store.get_activations(batch)
    acts = acts if isinstance(acts, torch.Tensor) else next(iter(acts.values()))
    _, cache = model.run_with_cache(batch, names_filter="blocks.1.attn.hook_z")
    ours = cache["blocks.1.attn.hook_z"][:, :, 2]
    torch.testing.assert_close(acts.reshape(ours.shape), ours)


class TestBadCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path):
        save(small_model("kotodama"), tmp_path)
        return tmp_path

    def change(self, folder: Path, edit) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    def test_missing_tensor(self, folder):
        self.change(folder, lambda t: t.pop("blocks.1.attn._W_K"))
        with pytest.raises(ValueError, match="model.safetensors: blocks.1.attn._W_K is missing"):
            load(folder)

    def test_extra_tensor(self, folder):
        self.change(folder, lambda t: t.update(more=torch.zeros(1)))
        with pytest.raises(ValueError, match="more is unknown"):
            load(folder)

    def test_misshapen_tensor(self, folder):
        self.change(folder, lambda t: t.update({"ln_final.w": torch.zeros(31)}))
        with pytest.raises(ValueError, match=r"ln_final.w has shape \[31\], expected \[32\]"):
            load(folder)

    @pytest.mark.parametrize("keep", [0, 5, 100, 5000])
    def test_truncated_file(self, folder, keep):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(ValueError, match="model.safetensors: cannot be read as safetensors"):
            load(folder)

    def test_config_that_is_not_json(self, folder):
        (folder / "hooked_config.json").write_text("{")
        with pytest.raises(ValueError, match="hooked_config.json: not JSON"):
            load(folder)

    def test_config_with_an_unknown_key(self, folder):
        text = (folder / "hooked_config.json").read_text().replace('"n_layers"', '"n_layerz"')
        (folder / "hooked_config.json").write_text(text)
        with pytest.raises(ValueError, match="n_layerz"):
            load(folder)

    def test_tokenizer_larger_than_the_vocabulary(self, folder):
        from workbench.data.tokenizer import load_tokenizer

        load_tokenizer("embedded").save(str(folder / "tokenizer.json"))
        with pytest.raises(ValueError, match="tokenizer has 4096 entries; expected at most d_vocab = 61"):
            load(folder)

    def test_tokenizer_with_few_entries_and_an_id_behind_the_vocabulary(self, folder):
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        Tokenizer(WordLevel({"a": 0, "b": 61}, unk_token="a")).save(str(folder / "tokenizer.json"))
        with pytest.raises(ValueError, match="tokenizer has 62 entries; expected at most d_vocab = 61"):
            load(folder)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(ValueError, match="not there; expected a run directory"):
            load(tmp_path / "absent")
        with pytest.raises(ValueError, match="holds neither"):
            load(tmp_path)

    def test_pointer_out_of_the_directory(self, folder):
        (folder / "hooked_config.json").rename(folder / "moved.json")
        (folder / "latest").write_text("../elsewhere")
        with pytest.raises(ValueError, match="latest"):
            load(folder)

    def test_device(self, folder):
        with pytest.raises(ValueError, match="device: got 'cuda:99'"):
            load(folder, device="cuda:99")

    HF = {
        "family": ({"model_type": "spiral"}, "model_type = 'spiral': neither a family here"),
        "rope": ({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "rope_type = 'proportional'"),
        "mlp bias": ({"mlp_bias": True}, "mlp_bias"),
        "activation": ({"hidden_act": "tanh"}, "activation 'tanh'"),
        "size missing": ({"hidden_size": None}, "hidden_size is missing"),
        "heads": ({"num_attention_heads": 8, "head_dim": 8}, "has shape"),
        "layers": ({"num_hidden_layers": 1}, "is unknown"),
        "more layers": ({"num_hidden_layers": 3}, "is missing"),
    }

    @pytest.mark.parametrize("case", HF)
    def test_hugging_face_folders(self, case, tmp_path):
        changes, message = self.HF[case]
        random_llama("llama-gqa").save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=message):
            load(tmp_path)

    def test_hugging_face_folder_without_safetensors(self, tmp_path):
        random_llama("llama-gqa").save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="no .safetensors file"):
            load(tmp_path)

    def test_gguf_that_is_none(self, tmp_path):
        file = tmp_path / "x.gguf"
        file.write_bytes(b"GGUF" + b"\0" * 50)
        with pytest.raises(ValueError, match="x.gguf: cannot be read as GGUF"):
            load(file)


def test_small_config_is_what_the_tests_say():
    assert small_config("kotodama").kv_heads == 2
