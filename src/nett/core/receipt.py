"""The receipt: what was done, from what, to what, and what it cost. ``nett.json`` in every output."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import resource
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import nett
from nett.core.checkpoint.base import Checkpoint
from nett.core.edge import Edge
from nett.core.errors import ProofFailed, Refused
from nett.core.registry import ROOMS

NAME = "nett.json"
PAGE = "nett.html"
SCHEMA = 1
HOUSE = "core"  # the "room" of what no room does: nett convert
VERBS = ("convert",)
_BLOCK = 1 << 22  # after each, hashing beside the work waits its turn with the interpreter


@runtime_checkable
class Maker(Protocol):
    """Who signs a receipt: a method's card, or a verb of the house."""

    @property
    def room(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def papers(self) -> Sequence[str]: ...
    @property
    def guarantee(self) -> str: ...


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in blocks."""
    with path.open("rb", buffering=0) as file:
        return open_sha256(file.fileno())


def open_sha256(fd: int, size: int | None = None) -> str:
    """sha256 of an open file from its start, of ``size`` bytes at most: a file that grows would not end."""
    digest, at = hashlib.sha256(), 0
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    block = memoryview(bytearray(max(1, min(_BLOCK, os.fstat(fd).st_size if size is None else size))))
    while got := os.preadv(fd, [block if size is None else block[: min(_BLOCK, size - at)]], at):
        digest.update(block[:got])
        at += got
    return digest.hexdigest()


@final
class InputHashes:
    """Hashes of the input files, computed beside the work: that thread's reading is the work's read-ahead."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = list(dict.fromkeys(files))
        self._found: dict[Path, str] = {}
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for file in self._files:
                self._found[file] = file_sha256(file)
        except BaseException as error:
            self._failed = error

    def result(self) -> dict[Path, str]:
        self._thread.join()
        if self._failed is not None:
            raise self._failed
        return self._found


def input_record(checkpoint: Checkpoint, role: str, hashes: Mapping[Path, str]) -> dict[str, Any]:
    """How a receipt speaks of one input. ``reference``, where it is not the path: what opens it from anywhere."""
    path = str(checkpoint.path.resolve())
    return {
        "name": checkpoint.name,
        "role": role,
        "path": path,
        **({"reference": checkpoint.reference} if checkpoint.reference != path else {}),
        "format": checkpoint.format,
        "bytes": checkpoint.nbytes,
        "files": [{"path": str(f.resolve()), "bytes": f.stat().st_size, "sha256": hashes[f]} for f in checkpoint.files],
    }


def peak_memory() -> int:
    """Most bytes of memory that this process has held since its program started.

    Not ``ru_maxrss`` where it can be had otherwise: there Linux counts also what the process that started this one
    held, so that the same command would seem to need more when a large program runs it.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def new_receipt(
    card: Maker,
    *,
    parameters: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    edges: Sequence[Edge],
    checks: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Any],
    seconds: float,
    **more: Any,
) -> dict[str, Any]:
    """A receipt as a plain dictionary, ready for JSON."""
    return {
        "nett": nett.__version__,
        "schema": SCHEMA,
        "room": card.room,
        "method": card.name,
        "title": card.title,
        "papers": list(card.papers),
        "guarantee": card.guarantee,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parameters": dict(parameters),
        "inputs": list(inputs),
        "outputs": list(outputs),
        "bytes_before": sum(i["bytes"] for i in inputs),
        "bytes_after": sum(o["bytes"] for o in outputs),
        "figures": dict(figures),
        "edges": [e.as_json() for e in edges],
        "checks": list(checks),
        "proof": "kept" if all(c["ok"] for c in checks) else "failed",
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory(),
        **more,
    }


def as_bytes(receipt: Mapping[str, Any]) -> bytes:
    # A name that is no UTF-8 comes as lone surrogates: escaped, they are still JSON.
    return (json.dumps(receipt, indent=2, ensure_ascii=False, default=str) + "\n").encode(errors="backslashreplace")


def receipt_path(out: Path) -> Path:
    """Where the receipt of an output lies: in its folder; beside it where it is one file."""
    return out.with_suffix(".nett.json") if out.suffix == ".safetensors" and not out.is_dir() else out / NAME


def module_of(receipt: Mapping[str, Any]) -> str:
    """The module that verifies and restores what this (checked) receipt describes."""
    if receipt["room"] == HOUSE:
        return f"nett.core.{receipt['method']}"
    return f"nett.{receipt['room']}.engine"


def locate(path: Path) -> tuple[Path, str]:
    """``STORE/model/name`` as the output that carries a receipt and the name of what lies in it; ``path`` itself and
    an empty name where it exists, or where no folder above it is an output."""
    if not path.exists():
        for parent in path.parents:
            if (parent / NAME).is_file():
                return parent, str(path.relative_to(parent))
    return path, ""


def read_receipt(out: Path) -> dict[str, Any]:
    """The receipt that an output carries; Refused where there is none or it is of a newer kind."""
    file = receipt_path(out)
    if not out.exists():
        raise Refused("there is no such file or folder", where=out)
    if not file.is_file():
        raise Refused(f"carries no receipt ({file.name}), so it was not written by nett", where=out)
    try:
        receipt = json.loads(file.read_text(encoding="utf-8"))
        schema, lists = receipt["schema"], [receipt[k] for k in ("inputs", "outputs", "edges", "checks")]
        room, method, paths = receipt["room"], receipt["method"], [str(o["path"]) for o in receipt["outputs"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProofFailed(f"is not a receipt: {type(error).__name__} {error}", where=file) from error
    if schema != SCHEMA:
        raise Refused(f"has receipt version {schema}; this nett reads version {SCHEMA}", where=file)
    known = method in VERBS if room == HOUSE else room in ROOMS and isinstance(method, str)
    if not known or not all(isinstance(one, list) for one in lists):
        raise ProofFailed(f"is not a receipt: room {room!r}, method {method!r}", where=file)
    if room != HOUSE and not (Path(nett.__file__).parent / room / "engine.py").is_file():
        raise Refused(f"comes from the room {room}, which this nett {nett.__version__} does not have", where=file)
    for path in paths:
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise ProofFailed(f"names the output {path!r}, which leaves the folder", where=file)
    return receipt  # type: ignore[no-any-return]


def check_files(out: Path, receipt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every output file still has the size and the hash of the receipt, and no weights were added to a folder."""
    folder = out if out.is_dir() else out.parent
    checks = []
    named = {o["path"] for o in receipt["outputs"]}
    for output in receipt["outputs"]:
        file = folder / output["path"]
        if not file.is_file():
            ok, detail = False, "is missing"
        elif file.stat().st_size != output["bytes"]:
            ok, detail = False, f"has {file.stat().st_size} bytes, the receipt says {output['bytes']}"
        else:
            ok = file_sha256(file) == output["sha256"]
            detail = "sha256 equal" if ok else "sha256 differs: the file was changed"
        checks.append({"name": f"file {output['path']}", "ok": ok, "detail": detail})
    for file in sorted(out.rglob("*.safetensors")) if out.is_dir() else []:
        name = str(file.relative_to(folder))
        if name not in named:
            checks.append({"name": f"file {name}", "ok": False, "detail": "is not in the receipt"})
    return checks


def check_inputs(receipt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Inputs may be gone by now; those that are there must be the same."""
    checks = []
    for given in receipt["inputs"]:
        files = [(Path(f["path"]), f) for f in given["files"]]
        name = f"input {given['name']}"
        if not all(path.is_file() for path, _ in files):
            checks.append({"name": name, "ok": True, "detail": "is not there any more, so it was not compared"})
            continue
        changed = [str(p) for p, f in files if p.stat().st_size != f["bytes"] or file_sha256(p) != f["sha256"]]
        detail = f"changed since: {changed[0]}" if changed else f"{len(files)} file(s), sha256 equal"
        checks.append({"name": name, "ok": not changed, "detail": detail})
    return checks
