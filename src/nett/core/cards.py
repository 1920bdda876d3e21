"""Cards from source text: what ``ast`` can tell of a method's file, and an index so that it is asked once.

The index (``_cards.json``) is written when the package is built and again when a source changes; it is keyed by
the content of the files, so clocks and copying cannot make it stale or wrong.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nett.core import jit
from nett.core.code_hash import hash_of_code
from nett.core.errors import NettError, UsageError, did_you_mean
from nett.core.registry import ROOMS, Between, Card, Parameter, Tunable

PACKAGE = Path(__file__).resolve().parent.parent
INDEX = PACKAGE / "_cards.json"
_VERSION = 10
_FURNITURE = {"__init__.py", "protocol.py", "engine.py"}


def _sources(package: Path) -> Iterator[tuple[str, Path]]:
    """(room, file) of every file that may hold a method, rooms in their order."""
    for room in ROOMS:
        folder = package / room
        if folder.is_dir():
            for root, folders, files in os.walk(folder):
                folders[:] = sorted(f for f in folders if f[0] not in "_.")
                for file in sorted(files):
                    if file.endswith(".py") and (file not in _FURNITURE or file == "engine.py"):
                        yield room, Path(root) / file


def all_cards(package: Path = PACKAGE) -> list[Card]:
    """Every card of the package; from the index where the sources are unchanged."""
    return list(_own_cards()) if package == PACKAGE else [*_cards_of(_index(package))]


@cache
def _own_index() -> dict[str, Any]:
    """That of this package, looked at once in a process: what was imported of it does not change either."""
    return _index(PACKAGE)


@cache
def _own_cards() -> tuple[Card, ...]:
    return tuple(_cards_of(_own_index()))


def _cards_of(index: Mapping[str, Any]) -> Iterator[Card]:
    return (Card.from_json(r) for entry in index.values() for r in entry["cards"])


def code_of(card: Card) -> str | None:
    """The hash of the code of the card's file (:func:`hash_of_code`), as the index has it; None where it has none."""
    code = _own_index().get("/".join(card.module.split(".")[1:]) + ".py", {}).get("code")
    return None if code is None else str(code)


def engine_options(room: str, function: str, package: Path = PACKAGE) -> tuple[Parameter, ...]:
    """The keyword-only parameters of ``engine.run`` (options of each method of the room), ``engine.make`` (of those that
    make something) or ``engine.recipe``."""
    for entry in (_own_index() if package == PACKAGE else _index(package)).values():
        if entry["room"] == room and function in entry["options"]:
            return Card.from_json(entry["options"][function]).parameters
    return ()


def find_card(name: str, room: str | None = None) -> Card:
    """The card called ``name`` or ``room/name`` (``_`` or ``-``); UsageError with the nearest names otherwise."""
    wanted = name.replace("-", "_")
    if "/" in wanted:
        room, _, wanted = wanted.partition("/")
    cards = [c for c in all_cards() if room is None or c.room == room]
    found = [c for c in cards if c.name == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} names {len(found)} methods: {', '.join(c.key for c in found)}")
    raise UsageError(
        f"no method is called {name!r}.{did_you_mean(wanted, {c.name for c in cards})}", hint="See: nett list"
    )


_asked: dict[Path, dict[str, Any]] = {}  # of one command line, which asks several times


def _index(package: Path) -> dict[str, Any]:
    """File -> what its source tells; from the package's index or, where that cannot be written, the user's."""
    if not jit.OWN_PROCESS:
        return _made_index(package)
    if package not in _asked:
        _asked[package] = _made_index(package)
    return _asked[package]


def _made_index(package: Path) -> dict[str, Any]:
    stored = package / "_cards.json"
    known = _read_index(stored)
    sources = []
    for room, file in _sources(package):
        blob = file.read_bytes()
        name, digest = str(file.relative_to(package)), hashlib.blake2b(blob, digest_size=16).hexdigest()
        sources.append((room, file, name, blob, digest))
    if len(known) == len(sources) and all(name in known and known[name]["hash"] == d for *_, name, _, d in sources):
        return {name: known[name] for *_, name, _, _ in sources}
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    fallback = cache / "nett" / (hashlib.sha256(str(package).encode()).hexdigest()[:16] + ".json")
    of_user = _read_index(fallback)
    fresh: dict[str, Any] = {}
    for room, file, name, blob, digest in sources:
        entries = [e for e in (known.get(name), of_user.get(name)) if e is not None and e["hash"] == digest]
        fresh[name] = entries[0] if entries else _read_entry(room, file, package, blob, digest)
    if fresh != of_user:
        content = json.dumps({"version": _VERSION, "files": fresh}).encode()
        for place in (stored, fallback):
            if _write_atomically(place, content):
                break
    return fresh


def _read_index(place: Path) -> dict[str, Any]:
    """The entries of an index; none where it is missing, broken or of another version."""
    try:
        content = json.loads(place.read_bytes())
        files = content["files"] if content["version"] == _VERSION else {}
        return {name: e for name, e in files.items() if {"hash", "room", "cards", "options"} <= e.keys()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _write_atomically(place: Path, blob: bytes) -> bool:
    import tempfile

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=place.parent, prefix=place.name)
        with os.fdopen(fd, "wb") as file:
            file.write(blob)
        os.chmod(name, 0o644)
        os.replace(name, place)
    except OSError:
        return False
    return True


def _read_entry(room: str, file: Path, package: Path, blob: bytes, digest: str) -> dict[str, Any]:
    module = ".".join([package.name, *file.relative_to(package).with_suffix("").parts])
    cards, options = [], {}
    tree = ast.parse(blob)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "method":
                cards.append(_card(room, module, file, node, decorator).as_json())
        if file.name == "engine.py" and node.name in ("run", "recipe", "make"):
            parameters = _parameters(node, file)
            options[node.name] = Card(
                room, node.name, module, "", (), "reduce", "stream", "measured", "", parameters, ()
            ).as_json()
    entry = {"hash": digest, "room": room, "cards": cards, "options": options}
    return entry | ({"code": hash_of_code(blob)} if cards else {})


def _card(room: str, module: str, file: Path, node: ast.FunctionDef, decorator: ast.Call) -> Card:
    try:
        arguments = {k.arg: ast.literal_eval(k.value) for k in decorator.keywords if k.arg}
    except ValueError as error:
        raise NettError(
            f"the arguments of @method on {node.name!r} must be literals", where=f"{file}:{node.lineno}"
        ) from error
    if node.name != file.stem:
        raise NettError(f"the method {node.name!r} must stand in a file of its name", where=f"{file}:{node.lineno}")
    doc = ast.get_docstring(node) or ""
    sections = doc_sections(doc)
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    if not node.args.kwonlyargs and arguments.get("command") is None and not (node.args.args or node.args.posonlyargs):
        raise NettError(f"the method {node.name!r} takes nothing", where=f"{file}:{node.lineno}")
    return Card(
        room=room,
        name=node.name,
        module=module,
        summary=re.sub(r"\s+", " ", doc.split("\n\n")[0]).strip(),
        parameters=_parameters(node, file),
        operands=tuple(a.arg for a in node.args.posonlyargs + node.args.args),
        sections=sections,
        **{
            "papers": (),
            "kind": "reduce",
            "grain": "stream",
            "guarantee": "measured",
            **arguments,
        },
    )


def doc_sections(doc: str) -> dict[str, str]:
    """``Args``, ``Formula``, ``When to use``, … -> their text; what stands before the first is ``about``."""
    sections: dict[str, str] = {}
    title, lines = "about", list[str]()
    for line in doc.splitlines():
        head = re.fullmatch(r"([A-Z][A-Za-z ]+):\s*(.*)", line)
        if head and (
            head[1]
            in (
                "Args",
                "Returns",
                "Raises",
                "Formula",
                "Source",
                "Cost",
                "Guarantee",
                "When to use",
                "When not",
                "Example",
                "Place",
            )
        ):
            sections[title] = "\n".join(lines).strip()
            title, lines = head[1], [head[2]] if head[2] else []
        else:
            lines.append(line.removeprefix("    ") if title != "about" else line)
    sections[title] = "\n".join(lines).strip()
    return {k: v for k, v in sections.items() if v}


def _described(sections: dict[str, str]) -> dict[str, str]:
    described: dict[str, str] = {}
    name = ""
    for line in sections.get("Args", "").splitlines():
        found = re.fullmatch(r"(\w+(?:, \w+)*): (.*)", line)
        if found:
            name = found[1]
            for one in name.split(", "):
                described[one] = found[2].strip()
        elif name:
            for one in name.split(", "):
                described[one] += " " + line.strip()
    return described


def _parameters(node: ast.FunctionDef, file: Path) -> tuple[Parameter, ...]:
    described = _described(doc_sections(ast.get_docstring(node) or ""))
    found = []
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        where = f"{file}:{argument.lineno}"
        if argument.annotation is None:
            raise NettError(f"the parameter {argument.arg!r} has no type", where=where)
        shape = _annotation(argument.annotation, where)
        value = None if default is None else ast.literal_eval(default)
        found.append(
            Parameter(
                argument.arg,
                default=value,
                required=default is None,
                description=described.get(argument.arg, ""),
                **shape,
            )
        )
    return tuple(found)


def _annotation(node: ast.expr, where: str) -> dict[str, Any]:
    """An annotation as the fields of a :class:`Parameter`: int, float, bool, str, Path, Literal, Annotated, | None."""
    if isinstance(node, ast.Name):
        simple = {
            "int": "int",
            "float": "float",
            "bool": "bool",
            "str": "str",
            "Path": "path",
            "TiePolicy": "choice",
        }
        if node.id in simple:
            return {"type": simple[node.id]}
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = node.left, node.right
        if isinstance(right, ast.Constant) and right.value is None:
            return _annotation(left, where) | {"optional": True}
        one, many = _annotation(left, where), _annotation(right, where)
        if many.get("many") and one["type"] == many["type"]:
            return one | {"many": True}
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice
        if node.value.id == "Literal":
            values = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return {"type": "choice", "choices": tuple(str(ast.literal_eval(v)) for v in values)}
        if node.value.id == "Sequence":
            return _annotation(inner, where) | {"many": True}
        if node.value.id == "Annotated" and isinstance(inner, ast.Tuple):
            shape = _annotation(inner.elts[0], where)
            for extra in inner.elts[1:]:
                shape |= _constraint(extra, where)
            return shape
    raise NettError(f"the type {ast.unparse(node)} is not one that options can have", where=where)


def _constraint(node: ast.expr, where: str) -> dict[str, Any]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        positional = [ast.literal_eval(a) for a in node.args]
        named = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
        if node.func.id == "Between":
            bounds = Between(*positional, **named)
            return {
                "low": bounds.low,
                "high": bounds.high,
                "open_low": bounds.open_low,
                "open_high": bounds.open_high,
            }
        if node.func.id == "With":
            return {"operands": tuple(positional)}
        if node.func.id == "Tunable":
            return {"grid": Tunable(*positional, **named).grid}
    raise NettError(f"{ast.unparse(node)} is not a constraint on an option", where=where)
