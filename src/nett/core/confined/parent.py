"""This side of the wall: starts the child, waits no longer than it said, and reads one short word of it."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from nett.core.errors import Refused

_CHILD = Path(__file__).with_name("child.py")
_NOBODY = 65534
_MOST = 1 << 14  # bytes of an answer; what is longer is none of ours


@final
@dataclass(frozen=True)
class Limits:
    """seconds: of processor time, and twice as many on the clock. memory: bytes of address space. processes: threads
    and children at a time, itself included. file: bytes of a file that it writes."""

    seconds: int = 5
    memory: int = 512 << 20
    processes: int = 4
    file: int = 1 << 20


@final
@dataclass(frozen=True)
class Outcome:
    """``passed``: it ran to its end. ``why``: passed, the exception's name, time, memory or stopped. ``barriers``: those
    that stood: of namespaces (network, files, processes), user (it ran as nobody), calls (the kernel refuses it new
    processes and sockets), limits, hooks."""

    passed: bool
    why: str
    detail: str
    seconds: float
    barriers: tuple[str, ...]


def run_program(program: str, *, limits: Limits = Limits(), without: Sequence[str] = ()) -> Outcome:
    """Run a Python program with the standard library alone. ``without``: barriers that are left out (hooks, calls,
    namespaces), for tests of the others. Refused where the system is none with limits, such as Windows."""
    if os.name != "posix":
        raise Refused("programs of others are run on POSIX systems only, where their memory and time can be limited")
    nonce = secrets.token_hex(16)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nett-run-") as name:
        given: dict[str, Any] = asdict(limits) | {
            "program": program,
            "folder": os.path.realpath(name),
            "nonce": nonce,
            "without": list(without),
            "nobody": None,
        }
        if os.geteuid() == 0 and _readable_by_all():
            os.chown(name, _NOBODY, _NOBODY)
            given["nobody"] = _NOBODY
        said, on_time = _talk(given, name, 2.0 * limits.seconds + 2.0)
    seconds = time.monotonic() - began
    lines = said.decode(errors="replace").split("\n")
    barriers = tuple(lines[0].split()) if lines[0] else ()
    if len(lines) > 1 and lines[1] == nonce:
        return Outcome(True, "passed", "", seconds, barriers)
    if len(lines) > 1 and lines[1].startswith("error "):
        why = lines[1].removeprefix("error ")[:80]
        return Outcome(
            False, "memory" if why == "MemoryError" else why, " ".join(lines[2:])[:300].strip(), seconds, barriers
        )
    if (not on_time and len(said) < _MOST) or (len(lines) > 1 and lines[1] == "time"):
        return Outcome(False, "time", f"not done after {limits.seconds} s of processor time", seconds, barriers)
    return Outcome(False, "stopped", "it ended without a word", seconds, barriers)


def _talk(given: dict[str, Any], folder: str, patience: float) -> tuple[bytes, bool]:
    """What the child says, and whether it was done in time; all its processes are gone afterwards."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={},
        close_fds=True,
        start_new_session=True,
    )
    assert child.stdin is not None and child.stdout is not None
    said, deadline, on_time = b"", time.monotonic() + patience, False
    try:
        try:
            child.stdin.write(json.dumps(given).encode())
            child.stdin.close()
        except BrokenPipeError:
            pass
        handle = child.stdout.fileno()
        while len(said) < _MOST and (left := deadline - time.monotonic()) > 0:
            if not select.select([handle], [], [], left)[0]:
                break
            piece = os.read(handle, _MOST)
            if not piece:
                on_time = True
                break
            said += piece
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            child.kill()
        child.wait()
        child.stdout.close()
    return said, on_time


def _readable_by_all() -> bool:
    """Whether a user without rights can read the interpreter, its library and the child's file."""
    paths = [sys.executable, sysconfig.get_path("stdlib"), str(_CHILD), os.__file__, tempfile.gettempdir()]
    for path in map(os.path.realpath, paths):
        for one in (Path(path), *Path(path).parents):
            mode = one.stat().st_mode
            if not mode & (stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH):
                return False
    return True
