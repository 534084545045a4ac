"""How much memory this process takes and the machine has; like `runs`, this module does not load torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_STATUS, _MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")
# what a container may take at all, version 2 and 1 of Linux's control groups; "max" or a huge number: no limit
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def peak_bytes() -> int:
    """The most that this process has had in memory at once, since it began."""
    import resource

    if _STATUS.is_file():  # ru_maxrss would begin at the peak of the process that started this one
        return _kilobytes(_STATUS)["VmHWM"] * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but there


def free_bytes(device: Any = "cpu") -> int:
    """Bytes that can still be allocated on a device. On the CPU: what the kernel can provide without killing a process,
    swap and caches included, at most the container's limit; on systems other than Linux all that the machine has."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    if not _MEMINFO.is_file():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = _kilobytes(_MEMINFO)
    limits = [path.read_text(encoding="utf-8").strip() for path in _LIMITS if path.is_file()]
    free = (found["MemAvailable"] + found.get("SwapFree", 0)) * 1024
    return min([free, *(int(limit) for limit in limits if limit.isdigit())])


def planned_bytes(device: Any, *, on_host: int = 0, on_device: int = 0) -> dict[str, int]:
    """A plan's entries for memory. `bytes_in_memory`: this process's peak so far plus what will be added, on a GPU
    `on_host` alone; `bytes_on_device`: the same for the GPU, as its allocator counts."""
    if not str(device).startswith("cuda"):
        return {"bytes_in_memory": peak_bytes() + on_host + on_device}
    import torch

    peak = torch.cuda.max_memory_allocated(device)
    return {"bytes_in_memory": peak_bytes() + on_host, "bytes_on_device": peak + on_device}


def check_memory(what: str, n_bytes: int, device: Any = "cpu") -> None:
    """Raise ValueError where `what` needs more bytes than are free.

    Call it before anything is allocated: Linux grants more memory than there is and kills the process when the pages
    are written.
    """
    if n_bytes > (free := free_bytes(device)):
        raise ValueError(
            f"memory: {what} needs {_gib(n_bytes)} and {_gib(free)} are free on {device}; expected less at once"
        )


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):,.1f} GiB"


def _kilobytes(file: Path) -> dict[str, int]:
    """The lines `name: n kB` of a file of the kernel's."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            found[name] = int(value.split()[0])
    return found
