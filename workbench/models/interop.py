"""Into other libraries' forms and back, each verified by logits and token ids before anything is in place."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch

from workbench import runs
from workbench.models import huggingface, transformer_lens
from workbench.models.checkpoint import save
from workbench.models.load import load
from workbench.models.tokenizer_files import different_text
from workbench.models.transformer import HookedLM, check_ours
from workbench.models.weights import weights_sha256

TOLERANCE = 1e-4  # largest |Δ logit| allowed, relative to the largest |logit| where that exceeds 1


def export(model: HookedLM, to: Literal["transformer-lens", "hf"], out: str | Path) -> Path:
    """Write the model in another library's form and return the directory; the written files are opened again by that
    library and must give the same logits before the directory gets its name.

    "transformer-lens": hooked_transformer_config.json and model.safetensors for `HookedTransformer`.
    "hf": a folder for `AutoModelForCausalLM` and `AutoTokenizer` (Llama, Qwen2, Qwen3 or GPT-2 class), whose tokenizer
    must also give our ids of a list of hard texts.

    Raises:
        ValueError: no `HookedLM`, what the other form cannot express, an existing `out`, or logits or ids that differ.
    """
    check_ours("export", model)
    if to not in ("transformer-lens", "hf"):
        raise ValueError(f"export: to = {to!r}; expected 'transformer-lens' or 'hf'")
    with runs.open_run(
        out, {"verb": "export", "to": to, "model": weights_sha256(model)}, device=model.cfg.device
    ) as run:
        if to == "transformer-lens":
            transformer_lens.write_folder(model, run.path)
            other = transformer_lens.read_folder(run.path)
            _verify(model, lambda tokens: other(tokens), to)
        else:
            from transformers import AutoModelForCausalLM

            huggingface.write_folder(model, run.path)
            dtype = torch.promote_types(model.cfg.dtype, torch.float32)
            other = AutoModelForCausalLM.from_pretrained(
                str(run.path), local_files_only=True, dtype=dtype, attn_implementation="eager"
            )
            _verify(model, lambda tokens: other.eval()(tokens).logits, to)
    return Path(out)


def import_model(source: str | Path, out: str | Path) -> Path:
    """Write a model that `load` takes as a checkpoint directory of ours, and return it.

    Raises:
        ValueError: as `load`; a model by the generic path; an existing `out`; or weights or token ids that do not come
            back as they were.
    """
    model = load(source, device="cpu")
    check_ours("import", model)
    digest = weights_sha256(model)
    with runs.open_run(out, {"verb": "import", "source": str(source), "model": digest}) as run:
        save(model, run.path)
        back = load(run.path, device="cpu")
        if weights_sha256(back) != digest:
            raise ValueError(f"import: {out} does not give back the weights of {source}")
        if model.tokenizer is not None and (text := different_text(model.tokenizer, back.tokenizer)) is not None:
            raise ValueError(f"import: {out} does not give back the tokens of {text!r}")
    return Path(out)


@torch.no_grad()
def _verify(model: HookedLM, other: Any, to: str) -> None:
    """Raise ValueError unless `other` gives our logits on 2 random sequences of up to 64 tokens, both in float32 or
    float64: narrower products of two implementations differ by more than a fault would."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.cfg.d_vocab, (2, min(64, model.cfg.n_ctx)), generator=generator)
    dtype = torch.promote_types(model.cfg.dtype, torch.float32)
    wide = model if model.cfg.dtype == dtype else copy.deepcopy(model).to(dtype)
    ours = wide(tokens).cpu()
    theirs = other(tokens).cpu()
    allowed = TOLERANCE * max(1.0, float(ours.abs().max()))
    difference = float((ours - theirs).abs().max())
    if not difference <= allowed:
        raise ValueError(f"export to {to}: logits differ by {difference:.3g}; expected at most {allowed:.3g}")
