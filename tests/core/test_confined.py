"""Hostile programs against each of the barriers; what a program may do goes on working."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from nett.core.confined import Limits, run_program

LIMITS = Limits(seconds=1, memory=256 << 20)
LINUX = sys.platform.startswith("linux")
WITHOUT = [(), ("hooks",), ("hooks", "namespaces"), ("calls", "namespaces")] if LINUX else [()]


@pytest.fixture(scope="module")
def barriers() -> tuple[str, ...]:
    outcome = run_program("assert 1 + 1 == 2", limits=LIMITS)
    assert outcome.passed and {"limits", "hooks"} <= set(outcome.barriers)
    return outcome.barriers


def test_what_passes_and_what_fails() -> None:
    code = "import collections, dataclasses, math, threading\nopen('x', 'w').write('1')\nassert open('x').read() == '1'"
    assert run_program(code, limits=LIMITS).passed
    thread = "import threading\nt = threading.Thread(target=int)\nt.start(); t.join()"
    assert run_program(thread, limits=LIMITS).passed
    failed = run_program("assert False, 'told'", limits=LIMITS)
    assert (failed.passed, failed.why, failed.detail) == (False, "AssertionError", "told")
    assert run_program("def f(:", limits=LIMITS).why == "SyntaxError"


@pytest.mark.parametrize("leaves", ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit", "exit(0)"])
def test_leaving_early_is_not_passing(leaves: str) -> None:
    assert not run_program(leaves, limits=LIMITS).passed


def test_an_endless_loop_ends() -> None:
    began = time.monotonic()
    assert run_program("while True: pass", limits=LIMITS).why == "time"
    assert time.monotonic() - began < 10


def test_sleep_and_deaf_programs_end() -> None:
    deaf = "import signal, time\nfor s in range(1, 65):\n  try: signal.signal(s, signal.SIG_IGN)\n  except Exception: pass\ntime.sleep(99)"
    assert run_program(deaf, limits=LIMITS).why == "time"


def test_a_memory_bomb_is_held() -> None:
    assert run_program("x = [0]\nwhile True: x += x", limits=LIMITS).why == "memory"
    assert run_program("x = bytearray(1 << 40)", limits=LIMITS).why == "memory"


@pytest.mark.parametrize("without", WITHOUT)
def test_a_fork_bomb_is_held(without: tuple[str, ...], barriers: tuple[str, ...]) -> None:
    """By the kernel's refusal, by hooks, or by the limit on processes where the user is none without limits."""
    if "hooks" in without and "calls" not in barriers:
        pytest.skip("neither barrier is there")
    bomb = "import os\nn = 0\ntry:\n  while n < 50:\n    if os.fork() == 0: os._exit(0)\n    n += 1\nexcept OSError: pass\nassert n < 4, n"
    assert run_program(bomb, limits=LIMITS, without=without).passed


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser has no limit on processes")
def test_a_fork_bomb_is_held_by_the_limit() -> None:
    bomb = "import os\nn = 0\ntry:\n  while n < 50:\n    if os.fork() == 0: os._exit(0)\n    n += 1\nexcept OSError: pass\nassert n < 8, n"
    assert run_program(bomb, limits=LIMITS, without=("hooks", "calls")).passed


@pytest.mark.parametrize("without", WITHOUT)
def test_no_network_and_no_other_programs(without: tuple[str, ...], barriers: tuple[str, ...]) -> None:
    if "hooks" in without and "calls" not in barriers:
        pytest.skip("neither barrier is there")
    for attempt in (
        "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    ):
        outcome = run_program(attempt, limits=LIMITS, without=without)
        assert not outcome.passed and outcome.why != "time", attempt


@pytest.mark.parametrize("without", [(), ("hooks",)])
def test_files_outside_stay_as_they_are(tmp_path: Path, without: tuple[str, ...], barriers: tuple[str, ...]) -> None:
    if "hooks" in without and "files" not in barriers:
        pytest.skip("mounts cannot be made read-only here")
    tmp_path.chmod(0o777)
    file = tmp_path / "precious"
    file.write_text("precious")
    file.chmod(0o666)
    for attempt in (
        f"open({str(file)!r}, 'w')",
        f"import os; os.remove({str(file)!r})",
        f"open({str(tmp_path / 'n')!r}, 'x')",
    ):
        assert not run_program(attempt, limits=LIMITS, without=without).passed
    assert file.read_text() == "precious" and list(tmp_path.iterdir()) == [file]


def test_files_of_its_own_are_limited() -> None:
    assert not run_program("open('x', 'wb').write(bytes(5 << 20))", limits=LIMITS).passed


def test_nothing_of_ours_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    with open(__file__, encoding="utf-8") as mine:
        os.set_inheritable(mine.fileno(), True)
        assert run_program("import os\nassert set(os.environ) <= {'LC_CTYPE'}, os.environ", limits=LIMITS).passed
        listed = "import os\nopened = []\nfor fd in range(256):\n  try: os.fstat(fd); opened.append(fd)\n  except OSError: pass\n"
        assert run_program(
            listed + "assert len(opened) == 4, opened", limits=LIMITS
        ).passed  # null thrice, and the answer


def test_noise_and_broken_answers() -> None:
    assert run_program("print('x' * 10**6)", limits=LIMITS).passed
    assert not run_program("import os\nwhile True: os.write(3, b'x' * 1000)", limits=LIMITS).passed
    assert not run_program("import os\nos.write(3, b'passed\\n'); os._exit(0)", limits=LIMITS).passed


def test_others_are_not_killed() -> None:
    assert run_program("import os\ntry: os.kill(os.getppid(), 9)\nexcept OSError: pass", limits=LIMITS).passed
