"""A disk is told of the files that come next when a piece is not in the cache, and only then."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nett.scan.disk import ahead
from nett.scan.disk.ahead import FILES, Ahead
from nett.scan.disk.items import Item
from nett.scan.disk.places import given_places

COUNT = 3 * FILES


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    for number in range(COUNT):
        (tmp_path / f"{number:03}").write_bytes(bytes([number]) * 8192)
    place = given_places([tmp_path])[0]
    files = sorted(tmp_path.iterdir())
    return [Item(file.stat(), str(file), str(file), ".bin", place) for file in files]


def read_all(items: list[Item]) -> list[bytes]:
    reader = Ahead(items, lambda item: [(0, 16), (4096, 16)])
    found = []
    for number, item in enumerate(items):
        if not os.path.exists(item.path):
            continue
        fd = os.open(item.path, os.O_RDONLY)
        try:
            for offset in (0, 4096):
                held = memoryview(bytearray(16))
                assert reader.read(fd, held, offset, number) == 16
                found.append(bytes(held))
        finally:
            os.close(fd)
    return found


def test_what_is_cached_is_just_read(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: pytest.fail("the cache needs no telling"))
    monkeypatch.setattr(ahead, "_NOW", 0)
    assert read_all(items) == [bytes([n]) * 16 for n in range(COUNT) for _ in range(2)]


def test_the_disk_is_told_of_each_piece_once_and_early(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, told, events = os.preadv, Counter[tuple[int, int]](), []
    known = {os.stat(item.path).st_ino: number for number, item in enumerate(items)}

    def advise(fd: int, offset: int, count: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED and count == 16
        number = known[os.fstat(fd).st_ino]
        told[number, offset] += 1
        events.append(("told", number))

    def preadv(fd: int, views: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError("not in the cache")
        events.append(("read", known[os.fstat(fd).st_ino]))
        return plain(fd, views, offset)

    monkeypatch.setattr(ahead, "_NOW", 8)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(os, "preadv", preadv)
    assert read_all(items) == [bytes([n]) * 16 for n in range(COUNT) for _ in range(2)]
    assert told == {(n, offset): 1 for n in range(COUNT) for offset in (0, 4096)}
    furthest = -1
    for what, number in events:
        furthest = max(furthest, number)
        if what == "read":
            assert furthest >= min(COUNT - 1, number + FILES // 2)


def test_a_file_that_went_is_passed_over(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    os.unlink(items[3].path)
    plain = os.preadv

    def preadv(fd: int, views: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError("no such flag here")
        return plain(fd, views, offset)

    monkeypatch.setattr(ahead, "_NOW", 8)
    monkeypatch.setattr(os, "preadv", preadv)
    assert read_all(items) == [bytes([n]) * 16 for n in range(COUNT) if n != 3 for _ in range(2)]
