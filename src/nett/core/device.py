"""Where torch computes, and with how many threads: said once for all commands that run models."""

from __future__ import annotations

from nett.core.errors import UsageError, missing_extra
from nett.core.runner import thread_count


def use_device(device: str, threads: int, purpose: str) -> int:
    """See that ``device`` can be used and set torch's threads (0: all that this process may use), which are returned.

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
    count = thread_count(threads)
    torch.set_num_threads(count)
    return count
