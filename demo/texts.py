"""Two real texts that every machine with Python has: the sources of its standard library, and its language reference.

Documents are held out whole. A held-out passage thus never stands next to one that was trained on.
"""

from __future__ import annotations

import hashlib
import random
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from demo.console import DemoFailed

HELD_OUT = 0.2  # share of the documents
LONGEST = 100_000  # characters of a document that are looked at

Encode = Callable[[str], list[int]]  # a text as token ids


@final
@dataclass(frozen=True)
class Text:
    """Documents of one kind, those to train on and those held out, by name."""

    name: str
    about: str
    train: Mapping[str, str]
    held_out: Mapping[str, str]

    @property
    def told(self) -> str:
        """What it is and how large."""
        size = sum(map(len, self.train.values())) + sum(map(len, self.held_out.values()))
        return (
            f"{self.name}: {self.about}; {size:,} characters, {len(self.train)} documents to train on, "
            f"{len(self.held_out)} held out"
        )


def split(documents: Mapping[str, str], share: float = HELD_OUT) -> tuple[dict[str, str], dict[str, str]]:
    """Documents to train on and documents held out: about ``share`` of them, by a hash of the name, so that the
    same document falls on the same side on every machine. Documents of equal content are kept once."""
    seen: set[str] = set()
    parts: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for name in sorted(documents):
        content = " ".join(documents[name].split())
        if not content or content in seen:
            continue
        seen.add(content)
        draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        parts[draw < share][name] = documents[name]
    return parts


def python_sources() -> Text:
    """The modules at the top of the standard library, as they lie on the disk."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    documents = {}
    for file in sorted(folder.glob("*.py")):
        try:
            documents[file.name] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # one unreadable module is no reason to stop
    return Text("code", f"the Python sources of the standard library, {folder}/*.py", *split(documents))


def language_reference() -> Text:
    """The chapters of the Python language reference that ``help()`` prints: English prose."""
    try:
        from pydoc_data import topics
    except ImportError as error:
        raise DemoFailed(
            "this Python lacks the module pydoc_data.topics, the demo's second text; a whole standard library is "
            "expected (Debian: apt install libpython3-stdlib)"
        ) from error
    documents: dict[str, str] = dict(topics.topics)
    return Text("prose", "the Python language reference, module pydoc_data.topics", *split(documents))


def passages(
    documents: Mapping[str, str], encode: Encode, *, count: int, length: int, each: int, seed: int
) -> list[list[int]]:
    """``count`` passages of ``length`` tokens, at most ``each`` of a document, places drawn with ``seed``.

    Raises DemoFailed where the documents do not hold so many.
    """
    draw = random.Random(seed)
    names = sorted(documents)
    draw.shuffle(names)
    found: list[list[int]] = []
    for name in names:
        if len(found) >= count:
            break
        ids = encode(documents[name][:LONGEST])
        starts = list(range(0, len(ids) - length + 1, length))
        draw.shuffle(starts)
        found += [ids[s : s + length] for s in starts[:each]]
    if len(found) < count:
        raise DemoFailed(f"the texts hold {len(found)} passages of {length} tokens, {count} are needed")
    found = found[:count]
    draw.shuffle(found)
    return found
