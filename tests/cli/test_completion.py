"""Shell completion: the script is printed, and words are completed from the cards."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.cli import nett_process


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_printed(shell: str) -> None:
    said = nett_process(env={"_NETT_COMPLETE": f"{shell}_source"})
    assert said.code == 0 and "_NETT_COMPLETE" in said.out and said.err == ""
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=said.out, text=True, check=True)


def completed(line: str, number: int) -> set[str]:
    """What bash would offer for word ``number`` of a line."""
    environment = {"_NETT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(number)}
    said = nett_process(env=environment)
    assert said.code == 0 and "Traceback" not in said.err, said.err
    return {row.split(",", 1)[-1] for row in said.out.splitlines()}


def test_words() -> None:
    assert {"merge", "list", "scan", "verify"} <= completed("nett ", 1)
    assert completed("nett mer", 1) == {"merge"}
    assert {"ties", "tall-masks"} <= completed("nett merge t", 2)
    assert {"--density", "--tie-policy", "--out"} <= completed("nett merge ties --", 3)
    assert completed("nett merge ties --dens", 3) == {"--density"}
    assert "--dry-run" in completed("nett --d", 1)


def test_installed_command_completes(tmp_path: Path) -> None:
    """The script that pip installs, not only ``python -m nett``."""
    import os
    import sys

    command = Path(sys.executable).parent / "nett"
    if not command.exists():
        pytest.skip("nett is not installed as a command in this environment")
    done = subprocess.run(
        [command], env=os.environ | {"_NETT_COMPLETE": "bash_source"}, capture_output=True, text=True, check=True
    )
    assert "complete" in done.stdout and "nett" in done.stdout
