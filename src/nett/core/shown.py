"""Paths as a line of text: control characters and bytes that are no UTF-8 would break the line or the terminal."""

from __future__ import annotations

import os
import shlex


def shown(path: str | os.PathLike[str]) -> str:
    """``path`` itself where it is printable, else as the shell's ``$'...'``, which can be pasted back."""
    text = os.fspath(path)
    if text.isprintable():
        return text
    raw = "".join(c if c.isprintable() and c not in "\\'" else _escaped(c) for c in text)
    return f"$'{raw}'"


def quoted(path: str | os.PathLike[str]) -> str:
    """``path`` as one word of a shell's command, printable whatever is in it."""
    text = os.fspath(path)
    return shlex.quote(text) if text.isprintable() else shown(text)


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
