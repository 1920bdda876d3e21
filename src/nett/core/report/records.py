"""Reading a receipt that may lack any key: lists of records, text, tables of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nett.core.report.page import Page


def record_table(page: Page, rows: Sequence[Mapping[str, Any]]) -> None:
    """Records with the union of their keys as columns."""
    keys = list(dict.fromkeys(k for row in rows for k in row))
    page.table([str(k).replace("_", " ") for k in keys], [[row.get(k) for k in keys] for row in rows])


def list_of(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    return list(value) if isinstance(value, list | tuple) else []


def records(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [v for v in list_of(record, key) if isinstance(v, Mapping)]


def text_of(value: object) -> str:
    return "" if value is None else str(value)
