"""The run-time type checker of the test run: beartype around every function of a package, as it is imported.

An import hook puts :func:`checked` beneath all other decorators, which may hand on something else than a function (a
kernel that numba compiles). The check of a function is made when it is first called: most are never called in a
process. A function within a function is checked the first time that it is made: it is made anew with every call
around it, and making its check takes longer than most of them run.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any, final

from beartype import BeartypeConf, beartype

_CONF = BeartypeConf(is_pep484_tower=True)  # int is allowed for float, as PEP 484 says
_NAME = "_nett_checks"  # of this module, in those that are checked
_CACHE = "-checked-1"  # behind the names of their compiled files; another number where the hook does otherwise
_made: set[CodeType] = set()


def check_types_of(package: str) -> None:
    """Check arguments and results of the functions and fields of the dataclasses of a package not imported yet."""
    if any(isinstance(finder, _Finder) and finder.package == package for finder in sys.meta_path):
        return
    if package in sys.modules:
        raise RuntimeError(f"{package} was imported before its types could be checked")
    sys.meta_path.insert(0, _Finder(package))


def checked(function: Any) -> Any:
    """The function with a check of its arguments and its result, made when it is first called."""
    made: list[Any] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(_with_check(function))
        return made[0](*args, **kwargs)

    return call


def _with_check(function: Any) -> Any:
    """Names that only a type checker imports stand for anything."""
    written = function.__annotations__
    function.__annotations__ = {name: _resolved(hint, function) for name, hint in written.items()}
    try:
        return beartype(function, conf=_CONF)
    finally:
        function.__annotations__ = written


def _resolved(hint: Any, function: Any) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, function.__globals__)
    except (NameError, AttributeError):
        return Any


def checked_once(function: Any) -> Any:
    """:func:`checked` for what is made again and again: the first one of these."""
    if function.__code__ in _made:
        return function
    _made.add(function.__code__)
    return checked(function)


def fields_checked(kind: Any) -> Any:
    """A class; of a dataclass, one whose fields are checked."""
    if dataclasses.is_dataclass(kind) and "__init__" in kind.__dict__:
        kind.__init__ = checked(kind.__init__)  # type: ignore[misc]
    return kind


@final
class _Decorating(ast.NodeTransformer):
    def __init__(self) -> None:
        self._within = 0

    def _named(self, name: str, node: ast.stmt) -> ast.expr:
        found = ast.Attribute(ast.Name(_NAME, ast.Load()), name, ast.Load())
        return ast.fix_missing_locations(ast.copy_location(found, node))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list.append(self._named("checked_once" if self._within else "checked", node))
        self._within += 1
        self.generic_visit(node)
        self._within -= 1
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        node.decorator_list.insert(0, self._named("fields_checked", node))
        self.generic_visit(node)
        return node


@final
class _Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, **more: Any) -> CodeType:  # type: ignore[override]
        tree = _Decorating().visit(ast.parse(data, path))
        return compile(tree, path, "exec", dont_inherit=True)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, _NAME, sys.modules[__name__])
        super().exec_module(module)

    def get_data(self, path: Any) -> bytes:
        return super().get_data(f"{path}{_CACHE}" if str(path).endswith(".pyc") else path)

    def set_data(self, path: Any, data: Any, **more: Any) -> None:
        super().set_data(f"{path}{_CACHE}", data, **more)


@final
class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        if name.partition(".")[0] != self.package:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        if found is not None and type(found.loader) is importlib.machinery.SourceFileLoader:
            found.loader = _Loader(found.loader.name, found.loader.path)
        return found
