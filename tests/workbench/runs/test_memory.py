"""Memory that is free, and that a model and SAEs would need: compared before anything is allocated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from models_for_tests import small_model

from workbench.models import HookedLM
from workbench.models.config import least_bytes
from workbench.runs import memory

KINDS = ("janus-v3", "kotodama", "recurrent")


def test_free_bytes_are_what_the_kernel_and_the_container_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal: 900 kB\nMemAvailable: 300 kB\nSwapFree: 50 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_LIMITS", (limit, tmp_path / "nowhere"))
    assert memory.free_bytes() == 350 * 1024
    limit.write_text("max\n")
    assert memory.free_bytes() == 350 * 1024
    limit.write_text("1000\n")
    assert memory.free_bytes() == 1000
    memory.check_memory("this", 1000)
    with pytest.raises(ValueError, match=r"memory: this needs 0\.0 GiB and 0\.0 GiB are free on cpu"):
        memory.check_memory("this", 1001)


def test_peak_bytes_are_of_this_process_and_cover_what_it_held() -> None:
    code = "import sys; from workbench.runs import memory; x = b'1' * (300 << 20); print(memory.peak_bytes())"
    code += "; print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, is_loaded = said.stdout.split()
    assert 300 << 20 < int(peak) < 400 << 20
    assert is_loaded == "False"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_memory_cannot_hold_is_refused_by_its_sizes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = small_model(kind).cfg
    held = sum(p.numel() * p.element_size() for p in HookedLM(cfg, seed=0).parameters())
    assert held / 4 < least_bytes(cfg) <= held
    monkeypatch.setattr(memory, "free_bytes", lambda device: least_bytes(cfg) - 1)
    with pytest.raises(ValueError, match="a model of d_model"):
        HookedLM(cfg)
