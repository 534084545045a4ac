"""What names an SAE from elsewhere: a folder or file here, an entry of SAELens's registry, a place on the hub."""

from __future__ import annotations

import difflib
import glob
import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae.gemma_scope import FILES, find_params
from sae.sae_lens_format import CONFIG_FILE, SCALER_FILE, WEIGHTS_FILE, sae_lens_folders
from workbench.models.checkpoint import at_revision
from workbench.runs import shorten

REGISTRY = "pretrained_saes.yaml"
# SAELens's names of the forms that are read here; None: its own
_FORMS = {None: "SAELens's", "sae_lens": "SAELens's"} | dict.fromkeys(
    ("gemma_2", "gemma_2_transcoder", "gemma_3"), "Gemma Scope's"
)
_WANTED = (CONFIG_FILE, WEIGHTS_FILE, SCALER_FILE, *FILES)
EXPECTED = (
    "a directory of sae-train, a SAELens folder, Gemma Scope's params.npz, RELEASE/ID of SAELens's registry, or "
    "OWNER/REPO/PATH of the hub"
)


@dataclass(frozen=True)
class FoundSAE:
    """Where an SAE lies."""

    path: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    """fields of its cfg.json that the registry knows better"""


def find_sae(source: str | Path) -> FoundSAE:
    """The local file or folder that a source names; a hub's files are fetched, or taken from its cache.

    Args:
        source: a path; RELEASE/ID of SAELens's registry, where that library is installed; OWNER/REPO or OWNER/REPO/PATH
            of the hub, also with @REVISION.

    Raises:
        ValueError: none of these; an id that a release lacks (the nearest are named), or a form that is not read here;
            files that the hub did not give.
    """
    text = str(source)
    if text and Path(text).exists():
        return FoundSAE(Path(text))
    if (entry := _registered(text)) is not None:
        return entry
    name, revision = at_revision(text)
    parts = name.split("/")
    if len(parts) < 2 or name.startswith((".", "/", "~")) or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"SAEs: got {shorten(repr(text))}, which is not there; expected {EXPECTED}")
    return FoundSAE(_fetch("/".join(parts[:2]), "/".join(parts[2:]), revision))


def names_saes(source: str | Path) -> bool:
    """Whether a source is one of SAEs from elsewhere, by its files or name, and not of a model."""
    path = Path(source)
    if path.exists():
        return find_params(path) is not None or any((own / WEIGHTS_FILE).is_file() for own in sae_lens_folders(path))
    name = str(source)
    return not name.startswith((".", "/", "~")) and (name.count("/") > 1 or name.split("/")[0] in _releases())


# --- SAELens's registry


def _registered(text: str) -> FoundSAE | None:
    """What SAELens's registry means by RELEASE/ID; None where it has no such release."""
    release, _, sae_id = text.partition("/")
    block = _releases().get(release)
    if block is None:
        return None
    import yaml

    own = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(block).get_single_data()[release]
    entries = {str(entry["id"]): entry for entry in own["saes"]}
    if sae_id not in entries:
        near = difflib.get_close_matches(sae_id, entries, n=3, cutoff=0) or list(entries)[:3]
        raise ValueError(f"SAEs: {release} has no {shorten(repr(sae_id))}; nearest: {', '.join(near)}")
    form = own.get("conversion_func")
    if form not in _FORMS:
        raise ValueError(
            f"SAEs: {release} is in the form {form!r} of SAELens's registry; expected a release in "
            f"{' or '.join(sorted(set(_FORMS.values())))} form"
        )
    entry = entries[sae_id]
    overrides = dict(own.get("config_overrides") or {})
    if (scale := entry.get("norm_scaling_factor")) is not None:
        overrides["norm_scaling_factor"] = scale
    return FoundSAE(_fetch(own["repo_id"], str(entry["path"]), None), overrides)


def _releases() -> dict[str, str]:
    """Release -> its part of the registry as text; none where SAELens is not installed. Only what is asked for is
    parsed, and nothing of that library is imported: either takes a second or more."""
    spec = importlib.util.find_spec("sae_lens")
    places = [] if spec is None else [Path(place) / REGISTRY for place in spec.submodule_search_locations or ()]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return {}
    blocks = re.split(r"(?m)^(?=[^\s#-])", file.read_text(encoding="utf-8"))
    return {block.partition(":")[0].strip("'\""): block for block in blocks if ":" in block}


# --- the hub


def _fetch(repo: str, path: str, revision: str | None) -> Path:
    """The local folder of one SAE of a hub's repository, of which nothing else is fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    path = path.removesuffix("params.npz").rstrip("/")
    wanted = [glob.escape(f"{path}/{name}" if path else name) for name in _WANTED]
    shown = shorten(f"{repo}/{path}".rstrip("/") + ("" if revision is None else f"@{revision}"))
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted)) / path
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(
            f"SAEs: {shown} is not there, and the hub did not give it ({type(error).__name__}); expected {EXPECTED}"
        ) from error
    if find_params(folder) is None and not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"SAEs: {shown} holds neither {CONFIG_FILE} nor {' nor '.join(FILES)}; expected the path of one SAE in its "
            "repository, which where the hub is out of reach must be in the cache"
        )
    return folder
