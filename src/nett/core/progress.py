"""What is going on, on standard error: a bar on a terminal, a line every ten seconds in a log, JSON on request."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Literal, final

Style = Literal["auto", "quiet", "json"]


@final
class Reporter:
    """Where messages and progress go. One for the process: :data:`report`."""

    def __init__(self) -> None:
        self.style: Style = "auto"
        self._bar: Any = None
        self._last = 0.0
        self._stage = ""
        self._begun = 0.0

    def say(self, text: str, **figures: Any) -> None:
        """One line for the user."""
        if self.style == "json":
            self._emit({"event": "message", "text": text, **figures})
        elif self.style == "auto":
            self._pause_bar(text)

    def warn(self, text: str) -> None:
        """A line that is shown also with ``--quiet``."""
        if self.style == "json":
            self._emit({"event": "warning", "text": text})
        else:
            self._pause_bar(f"warning: {text}")

    def begin(self, stage: str, total: int, unit: str = "bytes") -> None:
        """A stage of ``total`` units starts; ends the one before it."""
        self.end()
        self._stage, self._last, self._begun = stage, time.monotonic(), time.monotonic()
        self._total, self._done, self._unit = max(1, total), 0, unit
        if self.style == "json":
            self._emit({"event": "begin", "stage": stage, "total": total, "unit": unit})
        elif self.style == "auto" and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(stage, total=self._total)
            self._bar.start()

    def step(self, amount: int) -> None:
        """``amount`` units more are done."""
        if not self._stage:
            return
        self._done += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
            return
        now = time.monotonic()
        wait = 1.0 if self.style == "json" else 10.0
        if self.style == "quiet" or now - self._last < wait:
            return
        self._last = now
        share = min(1.0, self._done / self._total)
        left = (now - self._begun) * (1 / share - 1) if share >= 0.05 else None  # before, it would be a guess
        if self.style == "json":
            self._emit({"event": "progress", "stage": self._stage, "done": self._done, "total": self._total})
        else:
            eta = f", about {left:.0f} s left" if left is not None else ""
            print(f"{self._stage}: {share:.0%}{eta}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The stage is over."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._stage and self.style == "json":
            self._emit({"event": "end", "stage": self._stage, "seconds": round(time.monotonic() - self._begun, 3)})
        self._stage = ""

    def _pause_bar(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _emit(self, event: dict[str, Any]) -> None:
        print(json.dumps(event, default=str), file=sys.stderr, flush=True)


report = Reporter()
