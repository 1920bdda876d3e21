"""Files that are not forced to the disk: a test cannot cut the power, and each of thousands of syncs would wait for it.

What is synced, and in which order, :mod:`support.faults` and :mod:`support.work` see as before: they watch the calls.
"""

from __future__ import annotations

import os


def do_not_wait_for_the_disk() -> None:
    """From now on, in this process and those that it forks."""
    os.fsync = os.fdatasync = _nothing


def _nothing(fd: int) -> None:
    os.fstat(fd)  # what is not open is an error here too
