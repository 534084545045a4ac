"""What env.json says of a run: versions, git revision, device, memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from workbench.runs.memory import peak_bytes

_PACKAGES = (
    "torch", "numpy", "scipy", "transformer-lens", "tokenizers", "safetensors", "pandas", "pydantic", "plotly",
    "sae-lens", "datasets", "transformers",
)  # fmt: skip


def describe_environment(device: str) -> dict[str, Any]:
    """Versions of Python and packages, the checkout's git revision, the machine, and the memory taken so far."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    env = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git_revision": _git_revision(),
        "device": device,
        "n_cpus": os.cpu_count(),
        "peak_memory_bytes": peak_bytes(),  # of the process so far, not of this job alone
    }
    torch = sys.modules.get("torch")  # only where the job has loaded it: this module must not
    if torch is not None:
        env["n_threads"] = torch.get_num_threads()
        if device.startswith("cuda") and torch.cuda.is_available():
            env["device_name"] = torch.cuda.get_device_name(device)
            env["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return env


def _git_revision() -> str | None:
    """The revision of the checkout that this code runs from, "-dirty" if altered; None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
