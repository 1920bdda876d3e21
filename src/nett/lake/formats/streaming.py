"""Rows by Arrow for an engine whose SQL cannot name their source: as often as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final


@final
class Streamed:
    """Record batches of one schema (columns named p0, p1, … by their place), made anew by ``make`` for each reading;
    speaks Arrow's stream protocol (PyCapsule), which DuckDB, pyarrow and others take."""

    def __init__(self, schema: Any, make: Callable[[], Iterator[Any]]) -> None:
        self.schema, self._make = schema, make

    def __arrow_c_schema__(self) -> Any:
        return self.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self.schema, self._make()).__arrow_c_stream__(requested_schema)


def plain(type: Any) -> Any:
    """The type that engines read in place of one that they may not."""
    import pyarrow as pa

    t = pa.types
    if isinstance(type, pa.BaseExtensionType):
        return plain(type.storage_type)
    if t.is_dictionary(type) or t.is_run_end_encoded(type):
        return plain(type.value_type)
    if t.is_float16(type):
        return pa.float32()
    return pa.string() if t.is_decimal256(type) or t.is_null(type) else type


def made_plain(array: Any, type: Any) -> Any:
    """An array as ``plain`` has its type, or wider."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array if array.type.equals(type) else array.cast(type)
