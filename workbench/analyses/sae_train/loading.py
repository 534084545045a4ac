"""SAEs from wherever they are: read, and tried on the model that they are meant for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from sae.checkpoint import CONFIG_FILE
from sae.config import SAESource
from sae.gemma_scope import find_params
from sae.metrics import MetricSums
from sae.sae_lens_format import sae_lens_folders
from sae.stack import StackedSAE, check_model
from workbench.analyses.sae_train.head_saes import STACK, find_stack
from workbench.data.text_windows import spread_windows, window_length
from workbench.models.activations import Positions, special_ids
from workbench.models.checks import checked_tokens, device_of, run_watched
from workbench.models.config import parse_dtype
from workbench.models.sae_places import HookSAEs, saes_by_hook, stack_slots, written_slots
from workbench.models.sae_sources import find_sae
from workbench.models.tokenizer_files import tokenizer_of
from workbench.models.weights import weights_sha256
from workbench.runs import shorten

N_TOKENS = 4096  # that SAEs of which no hash tells the model are tried on
FORWARD_TOKENS, BLOCK_TOKENS = 2048, 512  # run, and encoded, at once
_SAME_NAME = {"gpt2-small": "gpt2"}  # TransformerLens's name -> the hub's


def load_sae(
    source: str | Path,
    model: Any = None,
    *,
    stack: str | None = None,
    hook: str | None = None,
    layer: int | None = None,
    norm_scale: float | None = None,
    dtype: str | torch.dtype | None = None,
    check: bool = True,
    tokens: Int[Tensor, "n n_ctx"] | None = None,
) -> StackedSAE:
    """The SAEs that a source names, on the model's device where one is given, and checked against it: see `check_saes`.

    Args:
        source: a run directory of `sae_train` or one of `StackedSAE.save`; a SAELens folder, or a folder of them;
            RELEASE/ID of SAELens's registry; OWNER/REPO or OWNER/REPO/PATH of the hub, also with @REVISION; Gemma
            Scope's params.npz or its folder.
        model: what they are meant to read.
        stack: which of a run of several, as its folder in sae/ is called, such as z-relu-512.
        hook, layer: what they read, where neither files nor path say: blocks.20.hook_resid_post, or hook_resid_post
            and its layer.
        norm_scale: √d_in / E‖x‖, of a SAELens folder whose normalize_activations is expected_average_only_in without
            its factor.
        dtype: of the parameters; by default as the files say, float32 of Gemma Scope's.
        check: whether they are tried on the model.
        tokens: text for that, as the model is given it; by default held-out text of what the model was trained on, else
            embedded text.

    Raises:
        ValueError: no SAEs there; a form, architecture or setting that is not read here; a damaged file; a hook or
            layer that the files say otherwise; and as `check_saes`.
    """
    sae = open_saes(source, stack, hook=hook, layer=layer, norm_scale=norm_scale)
    if dtype is not None:
        sae = sae.to(parse_dtype(dtype))
    if model is None:
        return sae
    sae = sae.to(device_of(model))
    if check:
        check_saes(model, sae, tokens)
    return sae


def open_saes(
    source: str | Path,
    stack: str | None = None,
    *,
    hook: str | None = None,
    layer: int | None = None,
    norm_scale: float | None = None,
) -> StackedSAE:
    """The SAEs that a source names, on the CPU; arguments and errors as `load_sae`."""
    found = find_sae(source)
    path = found.path
    if (is_lens := bool(sae_lens_folders(path))) is False and norm_scale is not None:
        raise ValueError(f"norm_scale: got {norm_scale} for {path}; expected None, as for all but SAELens folders")
    if (path / STACK).is_dir() or (path / CONFIG_FILE).is_file():
        return _placed(find_stack(path, stack), path, hook, layer)
    if stack is not None:
        raise ValueError(f"stack: got {stack!r} for {path}; expected None, as for all but runs of sae-train")
    if find_params(path) is not None:
        return StackedSAE.from_gemma_scope(path, hook_name=hook, layer=layer)
    if not is_lens:
        raise ValueError(
            f"{path}: holds no {CONFIG_FILE} (as {STACK}/ of a run does), cfg.json or params.npz; expected SAEs"
        )
    return _placed(StackedSAE.from_sae_lens(path, norm_scale=norm_scale, overrides=found.overrides), path, hook, layer)


def _placed(sae: StackedSAE, path: Path, hook: str | None, layer: int | None) -> StackedSAE:
    """The stack, which reads what is given where it does not say."""
    if hook is None and layer is None:
        return sae
    sources = []
    for own in sae.info.sources or (SAESource(),) * sae.config.n_saes:
        name, where = hook, own.layer if layer is None else layer
        if name is not None and not name.startswith(("blocks.", "hook_embed")):
            name = None if where is None else f"blocks.{where}.{name}"
        elif name is not None and where is None and name.startswith("blocks."):
            number = name.split(".")[1]
            where = int(number) if number.isdecimal() else None
        name = own.hook_name if name is None else name
        if name is None or where is None or own.hook_name not in (None, name) or own.layer not in (None, where):
            said = f"{own.hook_name}, layer {own.layer}"
            raise ValueError(f"{path}: got hook {hook!r}, layer {layer} where it says {said}; expected what is missing")
        sources.append(own.model_copy(update={"hook_name": name, "layer": where}))
    sae.info = sae.info.model_copy(update={"sources": tuple(sources)})
    return sae


# --- against a model


def check_saes(model: Any, sae: StackedSAE, tokens: Int[Tensor, "n n_ctx"] | None = None) -> None:
    """Nothing if the SAEs can be this model's: by the hash of its weights, where they have it, else by hooks and widths
    and a trial, in which each must reconstruct what it reads better than its mean, fvu < 1.

    The trial is on 4,096 tokens at the positions that the SAEs were trained on, with BOS in front where they had it, in
    windows no longer than theirs. SAEs that name another model than this one pass it with a warning.

    Raises:
        ValueError: another model's by hash; a hook that the model lacks or of another width; fvu ≥ 1, or an input that
            does not vary; a model without tokenizer where no tokens are given.
    """
    if sae.info.model_sha256 is not None:
        check_model(sae, weights_sha256(model), model.cfg.model_name)
        return
    fvu = measure_fvu(model, sae, _trial_tokens(model, sae) if tokens is None else tokens)
    own, given = sae.info.model_name, model.cfg.model_name
    is_other = own is not None and bool(given) and _plain(own) != _plain(given)
    for slot, value in zip(stack_slots(sae), fvu.tolist(), strict=True):
        if not value < 1:
            made = f", made for {shorten(own)}," if own is not None and is_other else ""
            raise ValueError(
                f"SAEs: the one of {slot.hook_name}{made} reconstructs worse than the mean: fvu {value:.3g}; expected "
                "an SAE of this model and hook"
            )
    if is_other:
        warnings.warn(
            f"SAEs: made for {shorten(str(own))}, and the model is {given}; they reconstruct it with fvu "
            f"{float(fvu.max()):.2g} or less",
            stacklevel=2,
        )


@torch.no_grad()
def measure_fvu(model: Any, sae: StackedSAE, tokens: Int[Tensor, "n n_ctx"]) -> Float64[Tensor, " n_saes"]:
    """Share of the variance of what it reconstructs that each SAE leaves unexplained, over the tokens at the positions
    that it was trained on.

    Raises:
        ValueError: as `saes_by_hook`; tokens that do not fit, or none at these positions.
    """
    places = [place for own in _one_a_place(sae) for place in _with_index(model, sae, own)]
    tokens = checked_tokens("SAEs", model, tokens)
    positions = Positions(special_ids(model), bool(sae.info.include_special))
    if not bool(positions.of(tokens).any()):
        raise ValueError("SAEs: got no token but special ones and position 0; expected others")
    sums = [MetricSums(place.sae.config, place.sae.W_dec.device) for place, _ in places]
    names = list(dict.fromkeys(name for place, _ in places for name in (place.hook_name, place.hook_name_out)))
    last = max(place.layer for place, _ in places) + 1
    for batch in tokens.split(max(1, FORWARD_TOKENS // tokens.shape[1])):
        found = run_watched(model, batch.to(device_of(model)), names, last)
        counts = positions.of(batch).flatten()
        for (place, _), own in zip(places, sums, strict=True):
            x, y = place.read(found[place.hook_name]), place.reconstructed(found[place.hook_name_out])
            rows = counts.nonzero().squeeze(1).to(x.device)
            parts = (all_rows.index_select(1, rows).split(BLOCK_TOKENS, dim=1) for all_rows in (x, y))
            for block, wanted in zip(*parts, strict=True):
                own.update(wanted, *place.sae(block))
    fvu = torch.full((sae.config.n_saes,), torch.nan, dtype=torch.float64)
    for (_, index), own in zip(places, sums, strict=True):
        fvu[index] = own.result().fvu.cpu()
    return fvu


def _one_a_place(sae: StackedSAE) -> Iterator[list[int]]:
    """Indices of the stack's SAEs in groups that have at most one in each place."""
    seen: dict[Any, int] = {}
    groups: dict[int, list[int]] = {}
    for i, slot in enumerate(written_slots(sae)):
        seen[slot] = seen.get(slot, -1) + 1
        groups.setdefault(seen[slot], []).append(i)
    yield from groups.values()


def _with_index(model: Any, sae: StackedSAE, own: list[int]) -> Iterator[tuple[HookSAEs, list[int]]]:
    """The SAEs of these indices by hook, with their indices in the whole stack."""
    part = sae if len(own) == sae.config.n_saes else sae.select(own)
    for place in saes_by_hook(model, part):
        yield place, [own[i] for i in place.index]


def _trial_tokens(model: Any, sae: StackedSAE) -> Int[Tensor, "n n_ctx"]:
    """Text as the SAEs were trained on."""
    length = window_length(model, None, sae.info.context_size)
    bos = getattr(tokenizer_of(model), "bos_token_id", None) if sae.info.prepend_bos else None
    if bos is None or length < 3:
        return spread_windows(model, None, n_tokens=N_TOKENS, n_ctx=length)
    tokens = spread_windows(model, None, n_tokens=N_TOKENS, n_ctx=length - 1)
    return torch.cat([torch.full((len(tokens), 1), bos), tokens], dim=1)


def _plain(name: str) -> str:
    """A model's name without its owner, folder and spelling."""
    plain = name.rstrip("/").rsplit("/", 1)[-1].lower()
    return _SAME_NAME.get(plain, plain)
