"""JSON that strangers wrote: an object without duplicate keys, or Refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nett.core.errors import Refused

_SURROGATE = b"\\ud"


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice")
        found[key] = value
    return found


def json_object(blob: bytes, where: Path, what: str = "") -> dict[str, Any]:
    """The object that the bytes are, nested as deep as Python's stack allows and no deeper. ``what``: of the file."""
    subject = f"{what} is" if what else "is"
    try:
        found = json.loads(blob.decode("utf-8"), object_pairs_hook=_unique_pairs)
        if _SURROGATE in blob.lower():  # half a character, escaped: no text that could be written again
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused(f"{subject} not valid JSON: {error}", where=where) from error
    if not isinstance(found, dict):
        raise Refused(f"{subject} not a JSON object", where=where)
    return found


def read_json_object(file: Path, what: str = "") -> dict[str, Any]:
    """:func:`json_object` of a whole file."""
    try:
        return json_object(file.read_bytes(), file, what)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=file) from error


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the language model: models of several kinds of input keep that in ``text_config``."""
    inner = config.get("text_config")
    return dict(inner) if isinstance(inner, dict) else dict(config)
