"""GGUF files as llama.cpp's converter writes them, of a folder's tokenizer and its tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(file: Path, folder: Path, keys: dict[str, Any], **more: Any) -> Path:
    """`file` with the weights of a Llama folder (of one layer, 16 wide) and its tokenizer under `tokenizer.ggml.*`.

    keys: beside tokens, kinds, merges and scores, which come from tokenizer.json; more: keys of any other name.
    """
    import gguf

    writer = gguf.GGUFWriter(str(file), "llama")
    sizes = {"context_length": 64, "embedding_length": 16, "block_count": 1, "feed_forward_length": 24}
    sizes |= {"attention.head_count": 2, "attention.head_count_kv": 2, "rope.dimension_count": 8}
    for key, value in sizes.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = [str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
    added = {i: token.special for i, token in tokenizer.get_added_tokens_decoder().items()}
    is_bytes = [len(t) == 6 and t.startswith("<0x") for t in tokens]
    kinds = [(3 if added[i] else 4) if i in added else 6 if is_bytes[i] else 1 for i in range(len(tokens))]
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", kinds)
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    if keys["model"] == "llama":  # SentencePiece has scores in place of merges: the earlier a merge, the better
        rank = {left + right: i for i, (left, right) in reversed(list(enumerate(merges)))}
        writer.add_array("tokenizer.ggml.scores", [-float(rank.get(token, 1e6)) for token in tokens])
    else:
        writer.add_array("tokenizer.ggml.merges", [" ".join(pair) for pair in merges])
    for key, value in ({f"tokenizer.ggml.{k}": v for k, v in keys.items()} | more).items():
        add = {int: writer.add_uint32, str: writer.add_string, bool: writer.add_bool, float: writer.add_float32}
        add[type(value)](key, value)
    for name, tensor in load_file(folder / "model.safetensors").items():
        part, leaf = name.rsplit(".", 1)
        theirs = _WHOLE.get(part) or f"blk.0.{_NAMES[part.removeprefix('model.layers.0.')]}"
        writer.add_tensor(f"{theirs}.{leaf}", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
