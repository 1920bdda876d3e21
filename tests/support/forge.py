"""A warm process that forks a fresh child for each piece of work: no import is paid twice, every child can be killed.

In a test: ``forge.run("support.work:merge", method="ties", …)`` or ``forge.start(…)``, ``os.kill(pid, …)``,
``forge.wait()``. The functions that run in children stand in :mod:`support.work`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, final

_TESTS = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How a child ended: exit code (or minus the signal), what it returned, the error that it raised."""

    code: int
    value: Any
    error: str


@final
class Forge:
    """The parent's side."""

    def __init__(self, warm: str = "support.work:warm") -> None:
        code = f"import sys; sys.path.insert(0, {str(_TESTS)!r}); from support.forge import serve; serve({warm!r})"
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()
        self._out = False  # whether a child was started and not yet waited for

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the forge ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def start(self, function: str, **arguments: Any) -> int:
        """Fork a child that calls ``module:name``; returns its process id at once."""
        if self._out:  # a test that failed in between
            self.wait()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"call": function, "with": arguments}, default=str) + "\n")
        self._process.stdin.flush()
        self._out = True
        return int(self._answer()["pid"])

    def wait(self) -> Ended:
        """Wait for the child that was started last. Until then its number is its own, even if it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        self._out = False
        return Ended(answer["code"], answer.get("value"), answer.get("error", ""))

    def run(self, function: str, **arguments: Any) -> Any:
        """What ``function`` returns in a child of its own."""
        self.start(function, **arguments)
        ended = self.wait()
        if ended.code != 0:
            raise AssertionError(f"{function} ended with {ended.code}: {ended.error}")
        return ended.value


@cache
def forge() -> Forge:
    """The forge of this test process; it ends with it, when its standard input closes."""
    return Forge()


def serve(warm: str) -> None:
    """The warm process: answers on what was its standard output, which children may not touch. ``warm``:
    ``module:function`` that is called once."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    importlib.import_module("support.unsynced").do_not_wait_for_the_disk()
    importlib.import_module("support.compiling").one_at_a_time()
    module, _, name = warm.partition(":")
    getattr(importlib.import_module(module), name)()

    def say(**answer: Any) -> None:
        channel.write(json.dumps(answer, default=str) + "\n")
        channel.flush()

    say(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        inner, outer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(inner)
            _child(asked, outer)
        os.close(outer)
        say(pid=pid)
        with os.fdopen(inner, "rb") as pipe:
            blob = pipe.read()
        sys.stdin.readline()  # the parent asks how it ended
        _, status = os.waitpid(pid, 0)
        answer = json.loads(blob) if blob else {}
        say(code=os.waitstatus_to_exitcode(status), **answer)


def _child(asked: dict[str, Any], pipe: int) -> None:
    answer: dict[str, Any] = {}
    code = 1
    try:
        module, _, name = asked["call"].partition(":")
        answer["value"] = getattr(importlib.import_module(module), name)(**asked["with"])
        code = 0
    except BaseException:
        answer["error"] = traceback.format_exc()
    finally:
        with os.fdopen(pipe, "wb") as file:  # not os.write, which the work may have patched
            file.write(json.dumps(answer, default=str).encode())
        os._exit(code)
