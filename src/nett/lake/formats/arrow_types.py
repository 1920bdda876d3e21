"""Columns of an Arrow schema: structs flattened with dots, types by kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from nett.lake.comparing import FINE, TIMES
from nett.lake.formats import Unreadable
from nett.lake.table import Column


@final
@dataclass(frozen=True)
class Leaf:
    """A flattened column, and which primitive columns of the file it takes. ``plain``: it is one of them itself, below
    no struct that may be NULL."""

    column: Column
    first: int
    width: int
    plain: bool


def leaves(schema: Any) -> Iterator[Leaf]:
    """The flattened columns of an Arrow schema, in order. Of two with one name the first counts."""
    seen: set[str] = set()
    at = 0
    for place, field in enumerate(schema):
        for path, type, first, width, below in _flat(field, (), at):
            name = ".".join((field.name, *path))
            if name not in seen:
                seen.add(name)
                yield Leaf(
                    Column(name, kind_of(type), place, path, at=_numbers(field.type, path)),
                    first,
                    width,
                    width == 1 and not below,
                )
        at += _width(field.type)


_WIDENED = frozenset(
    {"integer", "float", "text", "boolean", "date", "binary", *(k + f for k in TIMES for f in ("", FINE))}
)


def unite(schemas: Sequence[Any], widest: Any) -> Any:
    """The schema of all rows, where columns of one name are of one type or kind. Unreadable where they are not."""
    import pyarrow as pa

    types = dict(zip(widest.names, widest.types, strict=True))
    for schema in {str(s.types) + str(s.names): s for s in schemas}.values():
        if schema.equals(widest):
            continue
        for name, type in zip(schema.names, schema.types, strict=True):
            wide = types[name]
            if type.equals(wide) or pa.types.is_null(type):
                continue
            if pa.types.is_null(wide):
                types[name] = type
                continue
            one, other = kind_of(type), kind_of(wide)
            if one.removesuffix(FINE) != other.removesuffix(FINE) or one not in _WIDENED:
                raise Unreadable(f"its files do not agree on the type of {name}: {wide} and {type}", "mixed-schema")
            if one.endswith(FINE):  # what all of the rows are read as
                types[name] = type
    if len(set(widest.names)) < len(widest.names):
        return widest
    return pa.schema([field.with_type(types[field.name]) for field in widest])


def _flat(field: Any, path: tuple[str, ...], at: int) -> Iterator[tuple[tuple[str, ...], Any, int, int, bool]]:
    import pyarrow as pa

    if not pa.types.is_struct(field.type) or field.type.num_fields == 0:
        yield path, field.type, at, _width(field.type), bool(path)
        return
    for inner in field.type:
        yield from _flat(inner, (*path, inner.name), at)
        at += _width(inner.type)


def _numbers(type: Any, path: tuple[str, ...]) -> tuple[int, ...]:
    """The numbers of the fields on a path, if its names alone are not sure to lead there."""
    numbers, clash = [], False
    for name in path:
        names = [type.field(i).name for i in range(type.num_fields)]
        clash |= len({n.casefold() for n in names}) < len(names)
        numbers.append(names.index(name) + 1)
        type = type.field(names.index(name)).type
    return tuple(numbers) if clash else ()


def _width(type: Any) -> int:
    """Primitive columns of a type."""
    if type.num_fields == 0:
        return 1
    return sum(_width(type.field(i).type) for i in range(type.num_fields))


def kind_of(type: Any) -> str:
    """The kind of an Arrow type (:class:`nett.lake.table.Column`)."""
    import pyarrow as pa

    t = pa.types
    if type == pa.uint64():
        return "decimal"  # beyond what 64 bits with a sign hold
    if t.is_dictionary(type):
        return kind_of(type.value_type)
    tests = {
        "decimal": lambda t_: t.is_decimal(t_) or t.is_uint64(t_),  # which 64 signed bits do not hold
        "boolean": t.is_boolean, "integer": t.is_integer, "float": t.is_floating,
        "date": t.is_date, "null": t.is_null,
    }  # fmt: skip
    for kind, test in tests.items():
        if test(type):
            return "text" if kind == "null" else kind
    if t.is_time(type):
        return "time" + (FINE if type.unit == "ns" else "")
    if t.is_timestamp(type):
        return ("timestamp" if type.tz is None else "instant") + (FINE if type.unit == "ns" else "")
    if t.is_string(type) or t.is_large_string(type) or t.is_string_view(type):
        return "text"
    if t.is_binary(type) or t.is_large_binary(type) or t.is_fixed_size_binary(type):
        return "binary"
    return str(type)
