"""``nett`` as a user types it: in this process where that is enough, in one of its own where it is not."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final


@final
@dataclass(frozen=True)
class Said:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    def succeeded(self) -> Said:
        assert self.code == 0, self.err or self.out
        return self

    def failed(self, code: int, *parts: str) -> Said:
        """Ended with ``code`` and one message for people that says all of ``parts``."""
        assert self.code == code, (self.code, self.err, self.out)
        message = self.err[self.err.index("nett: ") :] if "nett: " in self.err else self.err
        for part in parts:
            assert part in message, (part, message)
        assert self.err.count("nett: ") == 1 and "Traceback" not in self.err + self.out, self.err
        assert 20 < len(message) < 1500
        return self


def nett(*words: str) -> Said:
    """Run a command line in this process."""
    from nett.cli.app import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(list(words))
    return Said(code, out.getvalue(), err.getvalue())


def nett_process(*words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Said:
    """Run a command line in a process of its own."""
    command = [sys.executable, "-m", "nett", *words]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | dict(env or {}), capture_output=True, text=True, check=False, timeout=120
    )
    return Said(done.returncode, done.stdout, done.stderr)
