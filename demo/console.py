"""What the user sees: lines at once, commands as in a shell, and a sign of life when nothing else was said."""

from __future__ import annotations

import os
import resource
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

QUIET_SECONDS = 4.0  # after so long without a line, say what is being waited for
MOST_LINES = 14  # shown of what a command prints; the report has more
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "passive",  # threads of torch that wait do not take the cores of those that work
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}  # no network, and of the libraries' voices only errors


class DemoFailed(Exception):
    """The demo did not show what it promises; the message says what and what was expected."""


@final
@dataclass(frozen=True)
class Ran:
    """One command that was run."""

    command: str
    code: int
    seconds: float
    lines: tuple[str, ...]


@final
class Console:
    """Prints on standard output and remembers the commands it ran, for the report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # where commands run, and what shown paths are relative to
        self.ran: list[Ran] = []
        self._steps = 0
        self._began = self._last = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    @property
    def taken(self) -> dict[str, float]:
        """Seconds since the start, CPU seconds of this process and its commands, largest memory of one of them."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return {
            "seconds": round(self.elapsed, 1),
            "cpu_seconds": round(sum(u.ru_utime + u.ru_stime for u in used), 1),
            "peak_memory_bytes": max(u.ru_maxrss for u in used) * 1024,
        }

    def say(self, text: str = "") -> None:
        """One line, at once."""
        self._last = time.monotonic()
        print(text, flush=True)

    def step(self, title: str) -> None:
        """The heading of a step, with the time since the start."""
        self._steps += 1
        head = f"== {self._steps}. {title} "
        self.say(f"\n{head:=<88} {self.elapsed:4.0f} s")

    def shown(self, path: Path) -> str:
        """A path as a user in the folder would type it."""
        full = path.absolute()
        return str(full.relative_to(self.folder)) if full.is_relative_to(self.folder) else str(full)

    @contextmanager
    def busy(self, doing: str) -> Iterator[Callable[[str], None]]:
        """While inside, a line at least every five seconds, also where the work itself says nothing. Gives a
        function that takes how far the work is, for the next such line."""
        over = threading.Event()
        began = time.monotonic()
        told = [doing]

        def watch() -> None:
            while not over.wait(0.5):
                if time.monotonic() - self._last >= QUIET_SECONDS:
                    self.say(f"  … {told[0]} ({time.monotonic() - began:.0f} s)")

        def note(far: str) -> None:
            told[0] = f"{doing}: {far}"

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield note
        finally:
            over.set()
            watcher.join()

    def nett(self, *words: str | Path, most: int = MOST_LINES) -> Ran:
        """Run the installed command line tool and show at most so many lines of what it prints, the last always.

        Raises DemoFailed unless it exits with 0.
        """
        told = [self.shown(w) if isinstance(w, Path) else w for w in words]
        ran = self._run([*nett_command(), *told], f"nett {shlex.join(told)}", most)
        self.ran.append(ran)
        if ran.code:
            raise DemoFailed(f"the command ended with exit code {ran.code}, 0 was expected: {ran.command}")
        return ran

    def _run(self, words: Sequence[str], shown: str, most: int) -> Ran:
        self.say(f"$ {shown}")
        began = time.monotonic()
        lines = []
        with (
            self.busy(" ".join(shown.split()[:2])),
            subprocess.Popen(
                words,
                cwd=self.folder,
                env=os.environ | QUIET,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            ) as child,
        ):
            assert child.stdout is not None
            for line in child.stdout:
                lines.append(line.rstrip("\n"))
                if len(lines) < most:
                    self.say(f"  {lines[-1]}")
            if len(lines) > most:
                self.say(f"  … {len(lines) - most:,} more lines")
            if len(lines) >= most:
                self.say(f"  {lines[-1]}")
        return Ran(shown, child.returncode, time.monotonic() - began, tuple(lines))


def nett_command() -> list[str]:
    """The ``nett`` that belongs to the running Python, wherever it was started from."""
    script = Path(sys.executable).parent / "nett"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "nett"]
