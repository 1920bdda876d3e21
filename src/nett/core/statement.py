"""What is signed: the receipt as an in-toto statement about all files of an output, and an output held against one.

Source: in-toto Attestation Framework, Statement v1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nett.core.errors import Refused
from nett.core.jsonable import jsonable
from nett.core.model_sig import NAME as MODEL_SIG
from nett.core.receipt import PAGE, SCHEMA, file_sha256, receipt_path

NAME = "receipt.intoto.jsonl"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = f"https://nett/receipt/v{SCHEMA}"
NOT_SIGNED = (".git", ".gitattributes", ".github", ".gitignore")  # those that model-signing leaves out, too

Check = dict[str, Any]


def statement(out: Path, receipt: Mapping[str, Any]) -> bytes:
    """The payload; the same for the same output."""
    known = {o["path"]: o["sha256"] for o in receipt["outputs"]}
    subjects = []
    for name, path in sorted(_files(out, known).items()):
        if not path.is_file() or not name.isprintable():
            raise Refused(f"holds {name!a}, which cannot be signed: no plain file, or no plain name", where=out)
        subjects.append({"name": name, "digest": {"sha256": known.get(name) or file_sha256(path)}})
    content = {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": _predicate(json.loads(receipt_path(out).read_bytes())),
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def _predicate(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """The receipt, and the digests of the inputs where tools for in-toto look for them."""
    materials = [
        {"name": file["path"], "digest": {"sha256": file["sha256"]}}
        for given in receipt["inputs"]
        for file in given.get("files", ())
    ]
    return {**jsonable(receipt), "materials": materials}


def _files(out: Path, named: Iterable[str]) -> dict[str, Path]:
    """Everything that a signature is to cover, by its name: all in a folder; of a single file what belongs to it."""
    if not out.is_dir():
        own = {*named, receipt_path(out).name, out.with_suffix(f".{PAGE}").name}
        return {name: out.parent / name for name in own if (out.parent / name).exists()}
    apart = {*NOT_SIGNED, NAME, MODEL_SIG}
    found: dict[str, Path] = {}
    for folder, folders, files in os.walk(out, onerror=_unreadable):
        here = Path(folder)
        top = here == out
        folders[:] = [f for f in folders if not (top and f in apart)]
        links = [f for f in folders if (here / f).is_symlink()]  # not walked, so never passed over
        for name in (*files, *links):
            if not (top and name in apart):
                found[(here / name).relative_to(out).as_posix()] = here / name
    return found


def _unreadable(error: OSError) -> None:
    raise Refused(f"cannot be read: {error.strerror}", where=error.filename)


def against(out: Path, payload: bytes) -> list[Check]:
    """The output against a payload whose signature is good."""
    try:
        content = json.loads(payload)
        kinds = (content["_type"], content["predicateType"])
        if kinds != (STATEMENT, PREDICATE):
            raise ValueError(f"of the types {kinds[0]} and {kinds[1]}; expected {STATEMENT} and {PREDICATE}")
        subjects = {str(s["name"]): str(s["digest"]["sha256"]) for s in content["subject"]}
        predicate = content["predicate"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        detail = f"is signed, but no statement that this nett reads: {error or type(error).__name__}"
        return [{"name": "statement", "ok": False, "detail": detail}]
    place = receipt_path(out)
    checks = [_signed_file(place.name, place, subjects.get(place.name))]
    apart, outputs = {place.name}, set[str]()
    if checks[0]["ok"]:
        check, outputs = _same_receipt(place, predicate, subjects)
        checks.append(check)
    found = _files(out, subjects)
    for name, digest in subjects.items():
        if name not in apart | outputs:
            checks.append(_signed_file(name, found.get(name), digest))
    beside = f"{NAME}, {MODEL_SIG} and git's own files"
    for name in sorted(found.keys() - subjects.keys() - apart):
        detail = f"is not signed: added after the signing of {len(subjects)} files; unsigned may only be {beside}"
        checks.append({"name": f"file {_shown(name)}", "ok": False, "detail": detail})
    if all(c["ok"] for c in checks):
        detail = f"{len(subjects)} are signed; beside them nothing but {beside}" if out.is_dir() else "all are signed"
        checks.append({"name": "files", "ok": True, "detail": detail})
    return checks


def _same_receipt(place: Path, predicate: Any, subjects: Mapping[str, str]) -> tuple[Check, set[str]]:
    """Whether a genuine receipt is what the statement says; and the outputs whose signed hash is the receipt's."""
    try:
        receipt = json.loads(place.read_bytes())
        outputs = {str(o["path"]): o["sha256"] for o in receipt["outputs"]}
        equal = json.dumps(_predicate(receipt), sort_keys=True) == json.dumps(predicate, sort_keys=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return {
            "name": "statement",
            "ok": False,
            "detail": f"is about no receipt: {type(error).__name__} {error}",
        }, set()
    agreed = {name for name, digest in outputs.items() if subjects.get(name) == digest}
    other = sorted(outputs.keys() - agreed)
    if other:
        detail = f"the receipt's output {_shown(other[0])} is not signed with the receipt's sha256"
    else:
        detail = f"says what the receipt says, and its {len(outputs)} outputs are the signed ones"
        detail = detail if equal else "says something else than the receipt"
    return {"name": "statement", "ok": equal and not other, "detail": detail}, agreed


def _signed_file(name: str, path: Path | None, digest: str | None) -> Check:
    if path is None or not path.is_file():
        ok, detail = False, "is missing, but was signed"
    elif digest is None:
        ok, detail = False, "is not among the signed files"
    else:
        ok = file_sha256(path) == digest
        detail = "is the signed one" if ok else "differs from the signed one: it was changed after the signing"
    return {"name": f"signed {_shown(name)}", "ok": ok, "detail": detail}


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)
