"""The tests run with nett's annotations checked: functions, methods, dataclasses, what is made within a function."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from beartype.roar import BeartypeCallHintViolation

from nett.core.dtypes import dtype_named
from nett.core.edge import Edge
from nett.core.runner import Pool
from support import typechecker

TOY = """
from __future__ import annotations
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
if TYPE_CHECKING:
    from numpy import ndarray

LINE = 11  # of the function below

@functools.cache
def half(x: float) -> float:
    return x / 2

def wrong() -> int:
    return "1"

def anything(values: list[ndarray]) -> int:
    return 1

def numbers(count: int) -> list:
    def one(i: int) -> int:
        return i
    return [one(i if count < 9 else str(i)) for i in range(count)]

@dataclass(frozen=True)
class Point:
    x: float
    def moved(self, by: float) -> Point:
        return Point(self.x + by)
    @classmethod
    def at(cls, x: float) -> Point:
        return cls(x)
    @property
    def name(self) -> str:
        return 1

class Pair(NamedTuple):
    a: int
    def twice(self) -> Pair:
        return self.a
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "checked_toy.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    typechecker.check_types_of("checked_toy")
    import checked_toy  # type: ignore[import-not-found]

    yield checked_toy
    del sys.modules["checked_toy"]


def test_what_is_given_and_what_comes_out(toy: ModuleType) -> None:
    assert toy.half(3) == 1.5  # an int is a float
    assert toy.anything(3) == 1 and toy.anything.__annotations__ == {"values": "list[ndarray]", "return": "int"}
    assert toy.half.__wrapped__.__wrapped__.__code__.co_firstlineno == toy.LINE  # numba's cache goes by it
    for call in (lambda: toy.half("1"), toy.wrong, lambda: toy.Point("1"), lambda: toy.Point(1).moved("1"),
                 lambda: toy.Point.at("1"), lambda: toy.Point(1).name, lambda: toy.Pair(1).twice()):  # fmt: skip
        with pytest.raises(BeartypeCallHintViolation):
            call()
    assert toy.Point(1).moved(1) == toy.Point.at(2)


def test_within_a_function_the_first_that_is_made(toy: ModuleType) -> None:
    with pytest.raises(BeartypeCallHintViolation):
        toy.numbers(9)
    assert toy.numbers(9) == [str(i) for i in range(9)]


def test_nett_is_checked() -> None:
    with pytest.raises(BeartypeCallHintViolation):
        dtype_named(3)  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintViolation):
        next(Pool(1).ordered(3, []))  # type: ignore[arg-type]
    with pytest.raises(BeartypeCallHintViolation):
        Edge(**dict.fromkeys(Edge.__dataclass_fields__))  # type: ignore[arg-type]


def test_what_was_imported_before_cannot_be_checked() -> None:
    with pytest.raises(RuntimeError, match="json was imported before"):
        typechecker.check_types_of("json")
    before = list(sys.meta_path)
    typechecker.check_types_of("nett")
    assert sys.meta_path == before  # once is enough
