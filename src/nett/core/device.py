"""Where torch computes, and with how many threads: said once for all commands that run models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nett.core.errors import Refused, UsageError, missing_extra
from nett.core.runner import thread_count


def use_device(device: str, threads: int, purpose: str) -> int:
    """See that ``device`` can be used and set torch's threads, which are returned. 0: as many as ``OMP_NUM_THREADS`` says,
    else all that this process may use.

    UsageError where the device cannot be used, or torch is not installed for ``purpose``.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", "models", purpose) from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(
            f"device = {device!r} cannot be used: {said}", hint="--device cpu works everywhere."
        ) from error
    said = os.environ.get("OMP_NUM_THREADS", "")
    count = thread_count(threads or (int(said) if said.isdecimal() else 0))
    torch.set_num_threads(count)
    return count


def check_memory(needed: int, device: Any, where: Path) -> None:
    """Refuse what would be killed at the end: less free memory than the plan needs (torch ``device`` cpu only)."""
    if device.type != "cpu":
        return
    free = free_memory()
    if needed > free:
        raise Refused(
            f"needs about {needed:,} bytes of memory, and {free:,} are free",
            where=where,
            hint="Fewer --samples, a smaller --length, or --disk, which keeps the text's hidden states in a file.",
        )


def free_memory() -> int:
    """Bytes that this machine could give a process now."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    return free
