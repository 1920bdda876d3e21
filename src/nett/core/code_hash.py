"""What a module does, as a hash that its wording does not change."""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from typing import Any


@lru_cache(64)
def hash_of_code(source: bytes) -> str:
    """sha256 of a module's syntax tree without docstrings.

    Empty fields are left out of the dump, because newer Pythons add fields that older ones do not have.
    """
    return hashlib.sha256(repr(_bare(ast.parse(source))).encode()).hexdigest()


def _bare(node: Any) -> Any:
    if isinstance(node, list):
        return [_bare(n) for n in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        fields["body"] = fields["body"][1:] if ast.get_docstring(node, clean=False) is not None else fields["body"]
    kept = [(name, _bare(v)) for name, v in fields.items() if v not in (None, []) or isinstance(node, ast.Constant)]
    return [type(node).__name__, *(pair for pair in kept if pair != ("kind", "None"))]
