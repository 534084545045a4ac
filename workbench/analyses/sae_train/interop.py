"""SAEs out to SAELens and back, verified before they are put in place."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from sae.stack import StackedSAE
from workbench import runs
from workbench.analyses.sae_train.head_saes import STACK, find_stack
from workbench.analyses.sae_train.loading import open_saes

N_TOKENS = 64  # random inputs that both libraries are compared on
FOLDER = "sae_lens"  # a moment's place within the run


def export_saes(source: str | Path, out: str | Path) -> Path:
    """Write the SAEs of a run of `sae_train`, or of a saved stack, as one SAELens folder a SAE (sae_000 …), and return
    the directory. SAELens opens each and must give the same bits before the directory gets its name.

    Raises:
        ValueError: no stack there, or an altered one; an existing `out`; or bits that differ.
    """
    stack = find_stack(source)
    with runs.open_run(out, {"verb": "export", "to": "sae-lens", "source": str(source)}) as run:
        for folder in stack.to_sae_lens(run.path / FOLDER):
            folder.rename(run.path / folder.name)
        shutil.rmtree(run.path / FOLDER)
        _verify(stack, run.path)
    return Path(out)


def import_saes(
    source: str | Path,
    out: str | Path,
    *,
    hook: str | None = None,
    layer: int | None = None,
    norm_scale: float | None = None,
) -> Path:
    """Write SAEs from elsewhere as a stack of ours, and return its directory; arguments as `load_sae`.

    Raises:
        ValueError: as `load_sae`; an existing `out`.
    """
    stack = open_saes(source, hook=hook, layer=layer, norm_scale=norm_scale)
    with runs.open_run(out, {"verb": "import", "source": str(source)}) as run:
        stack.save(run.path / STACK)
    return Path(out)


@torch.no_grad()
def _verify(stack: StackedSAE, directory: Path) -> None:
    """Raise ValueError unless SAELens encodes and decodes random inputs to our bits."""
    from sae_lens import SAE

    x = torch.randn(N_TOKENS, stack.config.d_in, generator=torch.Generator().manual_seed(0)).to(stack.dtype)
    for k in range(stack.config.n_saes):
        own, folder = stack.select([k]), directory / f"sae_{k:03d}"
        theirs = SAE.load_from_disk(str(folder))
        theirs.turn_off_forward_pass_hook_z_reshaping()  # x has the heads side by side
        acts = own.encode(x)
        if not (torch.equal(theirs.encode(x), acts) and torch.equal(theirs.decode(acts), own.decode(acts, x))):
            raise ValueError(f"export to sae-lens: {folder.name} encodes or decodes to other bits; expected the same")
