"""What `--ckpt` means: our checkpoints, Hugging Face folders and hub names, GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from workbench.models.checkpoint import (
    at_revision,
    find_checkpoint,
    load_checkpoint,
    read_checkpoint_config,
    training_config,
)
from workbench.models.config import ModelConfig, parse_dtype
from workbench.models.tokenizer_files import begin_ids, tokenizer_of


def load(source: str | Path, device: str = "auto", dtype: str | torch.dtype | None = None) -> Any:
    """Return the model that `source` names, in evaluation mode, with its tokenizer where there is one: a `HookedLM`, or
    a `Generic` of a Hugging Face folder of any other family or of quantized weights, with a warning.

    Args:
        source: a run or checkpoint directory of ours (`latest` is followed; RUN@step400 is an earlier one that it
            kept), a Hugging Face folder or hub name (NAME@REVISION: a branch, tag or commit), or a .gguf file of the
            Llama family.
        device: "auto" (CUDA where there is one), a torch device, or several ("cuda:0,cuda:1"), over which the layers
            of a `HookedLM` are spread.
        dtype: of the weights; None keeps what is stored (float32 for GGUF; for mixed weights the dtype that can hold
            all).

    Raises:
        ValueError: nothing there, a damaged file, missing, extra or misshapen tensors (each named), a model that
            `ModelConfig` cannot express, or a tokenizer larger than the vocabulary.
    """
    name, revision = at_revision(source)
    path = Path(name)
    wanted = None if dtype is None else parse_dtype(dtype)
    if path.is_file() and path.suffix == ".gguf":
        from workbench.models.gguf import load_gguf

        model = load_gguf(path)
    elif (directory := find_checkpoint(path)) is not None:
        model = load_checkpoint(directory, wanted)
    else:
        model = _load_foreign(name, revision, wanted)
    _check_tokenizer(model, source)
    if (tokenizer := tokenizer_of(model)) is not None:  # what TransformerLens goes by, wherever the model goes
        begins = bool(begin_ids(tokenizer))
        model.cfg = model.cfg.model_copy(update={"default_prepend_bos": begins})
    devices = resolve_devices(device)
    model = model.to(dtype=wanted or model.cfg.dtype).eval()
    if len(devices) == 1:
        return model.to(devices[0])
    from workbench.models.spread import spread

    return spread(model, devices)


def load_config(source: str | Path) -> tuple[ModelConfig, bool]:
    """(configuration of the model that `source` names, whether it is a run of ours), without its weights.

    Raises:
        ValueError: as `load`; a model by the generic path, whose costs no formula here knows.
    """
    name, revision = at_revision(source)
    path = Path(name)
    if path.is_file() and path.suffix == ".gguf":
        from workbench.models.gguf import read_gguf_config

        return read_gguf_config(path), False
    if (directory := find_checkpoint(path)) is not None:
        return read_checkpoint_config(directory), bool(training_config(directory))
    from workbench.models.huggingface import find_folder, has_family, read_folder_config

    folder = find_folder(name, revision)
    if not has_family(folder):
        raise ValueError(f"{source}: goes by the generic path, of which no plan is made; expected no --dry-run")
    return read_folder_config(folder), False


def _load_foreign(name: str, revision: str | None, dtype: torch.dtype | None) -> Any:
    """The model of a Hugging Face folder or hub name, by its family's file or by the generic path."""
    from workbench.models.huggingface import find_folder, has_family, load_folder

    folder = find_folder(name, revision)
    if has_family(folder):
        return load_folder(folder, dtype)
    from workbench.models.bridge import load_generic

    return load_generic(folder, dtype)


def resolve_device(device: str) -> str:
    """ "auto" made definite: cuda where there is one, else cpu.

    Raises:
        ValueError: a device torch does not know or does not see.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: got {device!r} ({str(error).splitlines()[0]}); expected auto, cpu or cuda[:n]"
        ) from error
    return device


def resolve_devices(device: str) -> list[str]:
    """The devices of a list such as "cuda:0,cuda:1", over which a model's layers are spread; of one device, that.

    Raises:
        ValueError: as `resolve_device`, and a device that is given twice.
    """
    names = [part.strip() for part in device.split(",")]
    if len(names) > 1 and (len(set(names)) < len(names) or "auto" in names):
        raise ValueError(f"device: got {device!r}; expected different devices, such as cuda:0,cuda:1")
    return [resolve_device(name) for name in names]


def _check_tokenizer(model: Any, source: str | Path) -> None:
    if (tokenizer := tokenizer_of(model)) is None:
        return
    size = max(tokenizer.get_vocab().values(), default=-1) + 1  # ids may have gaps, so their number may be less
    if size > model.cfg.d_vocab:
        raise ValueError(f"{source}: the tokenizer has {size} entries; expected at most d_vocab = {model.cfg.d_vocab}")
