"""The memory that a receipt names is that of the command, not of the program that ran it."""

from __future__ import annotations

import subprocess
import sys

from nett.core.receipt import peak_memory

LARGE = 1 << 28
CHILD = "from nett.core.receipt import peak_memory; print(peak_memory())"
PARENT = f"""
import subprocess, sys
from nett.core.receipt import peak_memory
held = bytearray({LARGE})
held[::4096] = b"x" * len(held[::4096])
print(peak_memory(), subprocess.run([sys.executable, "-c", {CHILD!r}], capture_output=True, text=True).stdout)
"""


def test_what_the_parent_holds_is_not_counted() -> None:
    said = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True).stdout
    parent, child = map(int, said.split())
    assert parent > LARGE > child > 1 << 22


def test_what_is_held_is_counted_also_when_it_is_given_back() -> None:
    before = peak_memory()
    held = bytearray(before)
    held[::4096] = b"x" * len(held[::4096])
    del held
    assert peak_memory() >= before + before // 2
