"""What every benchmark measures with: processes, memory, cold files, repetitions in turn."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nett.core.bench import Series
from nett.core.errors import NettError

SAMPLE = 0.002  # seconds between two looks at a process's memory
BLOCK = 8 << 20


@dataclass(frozen=True)
class Spent:
    """One process from start to end: seconds of wall and of CPU (user + system), anonymous memory in MB."""

    wall: float
    cpu: float
    anonymous: float


def spend(command: Sequence[str], folder: Path, *, memory: bool = False, below: bool = False) -> Spent:
    """Run a command in ``folder``. ``nett`` is this nett. ``memory`` also samples its RssAnon: the kernel keeps no
    high-water mark of it, and that of all resident pages counts pages of files that were read. ``below``: with the
    processes that it starts, such as Java. NettError if it fails."""
    words = [sys.executable, "-m", "nett", *command[1:]] if command[0] == "nett" else list(command)
    said = folder / "said.txt"
    with said.open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=_environment())
        sampler = _Sampler(process.pid, below=below) if memory else None
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = said.read_text(encoding="utf-8", errors="replace")[-600:]
        raise NettError(f"{' '.join(command)} ended with exit code {process.returncode}: {last}", where=folder)
    peak = sampler.peak() if sampler else 0.0
    return Spent(wall, used.ru_utime + used.ru_stime + (sampler.others if sampler else 0.0), peak)


def _environment() -> Mapping[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


class _Sampler:
    """``others``: CPU seconds of processes below, as they were last seen."""

    def __init__(self, pid: int, *, below: bool = False) -> None:
        self._pid, self._below, self._peak, self._over = pid, below, 0.0, threading.Event()
        self._spent: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def others(self) -> float:
        return sum(self._spent.values())

    def _run(self) -> None:
        while not self._over.wait(SAMPLE * (10 if self._below else 1)):
            if not (now := self._anonymous(self._pid)):
                return
            for pid in _below(self._pid) if self._below else ():
                now += self._anonymous(pid)
                self._spent[pid] = _cpu(pid) or self._spent.get(pid, 0.0)
            self._peak = max(self._peak, now)

    def _anonymous(self, pid: int) -> float:
        """MB; 0 where the process is over."""
        try:
            found = re.search(r"RssAnon:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        return int(found[1]) * 1024 / 1e6 if found else 1e-9

    def peak(self) -> float:
        self._over.set()
        self._thread.join()
        return self._peak


def _below(pid: int) -> list[int]:
    """The processes that one has started, and those that they have."""
    try:
        own = [int(p) for t in Path(f"/proc/{pid}/task").iterdir() for p in (t / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return own + [p for one in own for p in _below(one)]


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_cold(files: Sequence[Path]) -> None:
    """Put the files out of the page cache, so that the next reader reads the disk."""
    os.sync()  # only clean pages can be dropped
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def read_through(file: Path) -> float:
    """Seconds to read a file from start to end, in blocks, and do nothing with it."""
    block = bytearray(BLOCK)
    began = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while stream.readinto(block):
            pass
    return time.perf_counter() - began


def in_turn(
    measures: Mapping[str, tuple[int, Callable[[], float]]], unit: str, say: Callable[[str], None]
) -> dict[str, Series]:
    """Name -> (how often, measurement), repeated in turn, so that a busy moment of the machine hits all alike."""
    runs: dict[str, list[float]] = {name: [] for name in measures}
    load: dict[str, list[float]] = {name: [] for name in measures}
    for round_ in range(max(times for times, _ in measures.values())):
        for name, (times, measure) in list(measures.items())[:: 1 if round_ % 2 else -1]:  # nobody is always second
            if round_ < times:
                load[name].append(os.getloadavg()[0])
                runs[name].append(measure())
                say(f"{name}: {runs[name][-1]:.3f} {unit}")
    return {name: Series(name, unit, runs[name], load[name]) for name in measures}
