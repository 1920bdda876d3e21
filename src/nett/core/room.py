"""What every room's ``__init__`` does: its methods are reached as attributes, imported on first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, final


@final
class Room(ModuleType):
    """A package whose ``nett.merge.ties`` is the method, not the file of the same name.

    Importing a file makes it an attribute of its package, whoever imports it; here the method takes its place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType):
            inside = getattr(value, name, None)
            if callable(inside) and getattr(inside, "__module__", None) == value.__name__:
                value = inside
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        full = f"{self.__name__}.{name}"
        try:
            importlib.import_module(full)
        except ModuleNotFoundError as error:
            if error.name != full:  # the file is there, but something that it needs is not
                raise
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from error
        return self.__dict__[name]


def furnish(name: str) -> Callable[[str], Any]:
    """Make the package ``name`` a :class:`Room`. Returns its ``__getattr__``, by which type checkers know that it has
    attributes which they do not see."""
    room = sys.modules[name]
    room.__class__ = Room
    found: Callable[[str], Any] = room.__getattr__
    return found
