"""Outputs whole or not at all: staging, journal, lock, targets. Deaths in a process are in tests/merge/test_crash.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nett.core.errors import NettError, ProofFailed, Refused
from nett.core.staging import JOURNAL, check_target, file_state, replaced_path, staged, staging_path, work_key


def test_appears_when_committed_and_not_before(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out, "key") as staging:
        staging.write_file("a/b.txt", b"data")
        assert not out.exists() and not staging.resumed
        assert (staging_path(out) / "a" / "b.txt").read_bytes() == b"data"
        staging.commit()
        assert (out / "a" / "b.txt").read_bytes() == b"data"
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and not (out / JOURNAL).exists()


def test_journal_survives_and_is_believed_only_by_the_same_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        with staged(out, "key") as staging:
            if staging.resumed:
                assert staging.entries == [{"task": 1, "files": {"x": [3, "ab"]}}, {"task": 2}]
                assert (staging.path / "x").read_bytes() == b"xyz"
            else:
                staging.write_file("x", b"xyz")
                (staging.path / "sub").mkdir()
                staging.record(task=1, files={"x": [3, "ab"]})
                staging.record(task=2)
    with staged(out, "another key") as staging:
        assert not staging.resumed and [p.name for p in staging.path.iterdir()] == [JOURNAL]


@pytest.mark.parametrize("tail", [b'{"task":3', b"\x00\x00\x00", b"[1]\n", b'{"task":3}\x00\n', b"\xff\n"])
def test_a_torn_tail_is_cut(tmp_path: Path, tail: bytes) -> None:
    """From a kill in the middle of a line; what stands before it counts, what comes later is written cleanly."""
    out = tmp_path / "out"
    with staged(out, "key") as staging:
        staging.record(task=1)
    with (staging_path(out) / JOURNAL).open("ab") as file:
        file.write(tail)
    with staged(out, "key") as staging:
        assert staging.entries == [{"task": 1}]
        staging.record(task=2)
    rows = (staging_path(out) / JOURNAL).read_bytes().splitlines()
    assert [json.loads(r) for r in rows] == [{"key": "key"}, {"task": 1}, {"task": 2}]


@pytest.mark.parametrize("content", [b"", b"{", b'{"other": 1}\n', b"[]\n", b'{"key":"old"}\n{"task":1}\n'])
def test_a_journal_without_its_key_is_no_journal(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    staging_path(out).mkdir()
    (staging_path(out) / JOURNAL).write_bytes(content)
    (staging_path(out) / "left").write_text("over")
    with staged(out, "key") as staging:
        assert not staging.resumed and not (staging.path / "left").exists()


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out, "key") as first:
        first.write_file("x", b"1")
        with pytest.raises(Refused, match="another nett is writing"), staged(out, "key"):
            raise AssertionError("not reached")
        assert (first.path / "x").exists()
        first.commit()


def test_a_writer_that_finished_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal is opened, another commits and lets go of the lock: the work is not started on what is no more."""
    import fcntl

    out = tmp_path / "out"
    real = fcntl.flock

    def late(fd: int, how: int) -> None:
        if not out.exists():
            (staging_path(out) / JOURNAL).unlink()
            os.rename(staging_path(out), out)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(Refused, match="another nett has just written"), staged(out, "key"):
        raise AssertionError("not reached")


@pytest.mark.parametrize("error", [Refused("no"), ProofFailed("no")])
def test_refusals_leave_nothing(tmp_path: Path, error: NettError) -> None:
    with pytest.raises(type(error)), staged(tmp_path / "out", "key") as staging:
        staging.write_file("deep/er", b"1")
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [NettError("no"), KeyboardInterrupt(), OSError(5, "broken", "disk")])
def test_other_failures_leave_what_a_rerun_resumes_from(tmp_path: Path, error: BaseException) -> None:
    expected = NettError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught, staged(tmp_path / "out", "key") as staging:
        staging.record(task=1)
        raise error
    if isinstance(error, OSError):
        assert "disk: broken" in str(caught.value) and "resume" in str(caught.value)
    with staged(tmp_path / "out", "key") as staging:
        assert staging.entries == [{"task": 1}]


def test_replacing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with staged(out, "key") as staging:
        staging.write_file("new", b"2")
        staging.commit()
    assert [p.name for p in out.iterdir()] == ["new"] and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_replacement_cut_in_two_is_healed(tmp_path: Path) -> None:
    """Old output moved away, new one not there yet: it comes back, and counts as there for --overwrite."""
    out = tmp_path / "out"
    old = replaced_path(out)
    old.mkdir()
    (old / "mine").write_text("1")
    with pytest.raises(Refused, match="exists and is not empty"):
        check_target(out, 1, overwrite=False)
    check_target(out, 1, overwrite=True)
    with staged(out, "key"):
        assert (out / "mine").read_text() == "1" and not old.exists()
    old.mkdir()
    (old / "older").write_text("0")
    with staged(out, "key"):
        assert (out / "mine").exists() and not old.exists()


def test_targets(tmp_path: Path) -> None:
    check_target(tmp_path / "deep" / "er" / "out", 1, overwrite=False)
    assert not (tmp_path / "deep").exists()
    (tmp_path / "file").write_text("x")
    for out, what in ((tmp_path / "file", "not a folder"), (tmp_path / "file" / "x", "not a folder")):
        with pytest.raises(Refused, match=what):
            check_target(out, 1, overwrite=True)
    with pytest.raises(Refused, match="bytes of disk, but only"):
        check_target(tmp_path / "out", 1 << 62, overwrite=False)


def test_room_that_a_resumed_run_already_holds_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    with pytest.raises(Refused):
        check_target(tmp_path / "out", 600, overwrite=False)
    staging_path(tmp_path / "out").mkdir()
    (staging_path(tmp_path / "out") / "model").write_bytes(bytes(500))
    check_target(tmp_path / "out", 600, overwrite=False)


def test_inputs_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "model"
    file.write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in (tmp_path / "in", tmp_path):
        with pytest.raises(Refused, match="holds an input"):
            check_target(out, 1, overwrite=True, inputs=[tmp_path / "link" / "model"])
    check_target(tmp_path / "in-other", 1, overwrite=True, inputs=[file])


def test_key_of_the_work(tmp_path: Path) -> None:
    one = work_key({"a": 1, "b": [1, 2]})
    assert one == work_key({"b": [1, 2], "a": 1}) != work_key({"a": 1, "b": [2, 1]})
    file = tmp_path / "f"
    file.write_text("x")
    before = file_state(file)
    os.utime(file, ns=(1, before[2] + 1))
    assert file_state(file) != before
