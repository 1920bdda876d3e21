"""YAML with line numbers: plain data only, no tag but the core ones, no key twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from nett.core.errors import UsageError

Place = tuple[str | int, ...]  # keys and indexes from the top of the document

MAX_BYTES = 1 << 20
MAX_NODES = 100_000  # aliases are expanded, and a few lines of them can stand for more than memory holds
MAX_DEPTH = 40
_CORE = "tag:yaml.org,2002:"
_PLAIN = {f"{_CORE}{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}


@final
@dataclass(frozen=True)
class Document:
    """One YAML document, and the line (from 1) of its file on which each part of it stands; ``text``: of the file.
    ``holders``: keys at its top in which something is defined (``&name``) that stands elsewhere (``*name``)."""

    file: Path
    text: str
    data: Mapping[str, Any]
    lines: Mapping[Place, int]
    holders: frozenset[str] = frozenset()

    def line(self, place: Place) -> int:
        """The line of ``place``, or of the nearest part around it that the file has."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def at(self, place: Place) -> str:
        """``recipe.yml:7``."""
        return f"{self.file}:{self.line(place)}"


def read_documents(file: Path, example: str) -> list[Document]:
    """Read a file of YAML documents that are mappings. UsageError, with the line, where it is anything else.

    ``example``: keys as they should be, for the error: ``merge_method: …, models: …``.
    """
    try:
        blob = file.read_bytes() if file.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=file) from error
    if blob is None:
        raise UsageError(f"is larger than {MAX_BYTES:,} bytes, which no file of settings is", where=file)
    try:
        text = blob.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"is not UTF-8 text (byte {error.start})", where=file) from error
    try:
        return list(_Reader(file, example).read(text))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"is not valid YAML: {error.problem or error.context}", where=f"{file}:{line}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"is not valid YAML: {error}", where=file) from error


@final
class _Reader:
    def __init__(self, file: Path, example: str) -> None:
        self.file, self.example = file, example
        self.lines: dict[Place, int] = {}
        self._nodes = 0
        self._flat: set[int] = set()  # mappings whose merge keys are resolved already (aliases come by again)

    def read(self, text: str) -> Iterator[Document]:
        self._loader = yaml.SafeLoader(text)
        try:
            if not self._loader.check_node():
                raise UsageError("is empty", where=self.file)
            count = 0
            while self._loader.check_node():
                node: Any = self._loader.get_node()
                count += 1
                self.lines = {}
                holders = _holders(node)
                data = self._plain(node, (), 0)
                if not isinstance(data, dict):
                    what = f"is not a mapping of keys to values ({self.example})"
                    raise UsageError(
                        f"document {count} is empty" if data is None else what,
                        where=f"{self.file}:{node.start_mark.line + 1}",
                        hint="Remove the line '---' above it." if data is None else None,
                    )
                yield Document(self.file, text, data, self.lines, holders)
        finally:
            self._loader.dispose()

    def _wrong(self, what: str, node: yaml.Node, hint: str | None = None) -> UsageError:
        return UsageError(what, where=f"{self.file}:{node.start_mark.line + 1}", hint=hint)

    def _plain(self, node: yaml.Node, place: Place, depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise self._wrong("is nested too deeply, or its aliases stand for too much", node)
        self.lines.setdefault(place, node.start_mark.line + 1)
        if node.tag not in _PLAIN:
            word = node.tag.replace(_CORE, "!!")
            raise self._wrong(
                f"holds a value of type {word}; taken is plain data (text, numbers, lists, mappings)",
                node,
                "Put the value in quotes if it is meant as text." if isinstance(node, yaml.ScalarNode) else None,
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, (*place, i), depth + 1) for i, item in enumerate(node.value)]
        try:
            return self._loader.construct_object(node)
        except ValueError as error:
            raise self._wrong(f"{node.value!r} is not of the type that it claims: {error}", node) from error

    def _mapping(self, node: yaml.MappingNode, place: Place, depth: int) -> dict[str, Any]:
        if id(node) not in self._flat:
            self._flat.add(id(node))
            seen: set[str] = set()
            for key, _ in node.value:
                if key.tag == f"{_CORE}merge":
                    continue
                if key.tag != f"{_CORE}str":
                    name = key.value if isinstance(key, yaml.ScalarNode) else "[…]"
                    raise self._wrong(f"has the key {name}, which YAML does not read as text", key, "Put it in quotes.")
                if key.value in seen:
                    raise self._wrong(f"has the key {key.value!r} twice", key)
                seen.add(key.value)
            self._loader.flatten_mapping(node)
        # What is merged in comes first, so that the mapping's own keys win.
        own = {key.value: (key, value) for key, value in node.value}
        found: dict[str, Any] = {}
        for name, (key, value) in own.items():
            self.lines[(*place, name)] = key.start_mark.line + 1
            found[name] = self._plain(value, (*place, name), depth + 1)
        return found


def _holders(node: yaml.Node) -> frozenset[str]:
    """The keys of a mapping, as it was composed, that hold the definition of a part that another key's value has too."""
    if not isinstance(node, yaml.MappingNode):
        return frozenset()
    inside = {key.value: _parts(value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    uses = Counter(part for parts in inside.values() for part in parts)
    return frozenset(
        key.value
        for key, value in node.value
        if key.value in inside
        and any(
            uses[part] > 1 and key.start_mark.index < at <= value.end_mark.index
            for part, at in inside[key.value].items()
        )
    )


def _parts(node: yaml.Node) -> dict[int, int]:
    """Every node in and under this one: its identity, which aliases share -> where in the text it is defined."""
    found: dict[int, int] = {}
    left = [node]
    while left:
        one = left.pop()
        if id(one) in found:
            continue
        found[id(one)] = one.start_mark.index
        if isinstance(one, yaml.MappingNode):
            left += [part for pair in one.value for part in pair]
        elif isinstance(one, yaml.SequenceNode):
            left += one.value
    return found
