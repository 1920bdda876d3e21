"""Where the model lies that a recipe's reference names: a path, or a revision of a repository in the local cache."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping
from pathlib import Path

from nett.core.caches import hub_cache
from nett.core.checkpoint.opening import split_reference
from nett.core.errors import Refused
from nett.core.receipt import locate

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_MAIN = "main"


def located(reference: str) -> str:
    """The reference with an absolute path for each of its parts (BASE+ADAPTER), as far as they are found here."""
    if os.path.exists(reference):
        return os.path.abspath(reference)
    return "+".join(_place(part) for part in reference.split("+"))


def opens_as(reference: str) -> str:
    """What :func:`nett.core.checkpoint.open_checkpoint` is given for a reference: unchanged where it is a path."""
    parts = [reference] if os.path.exists(reference) else reference.split("+")
    places = [(part, _place(part)) for part in parts]
    return "+".join(place if place != os.path.abspath(part) else part for part, place in places)


def place_of(reference: str, steps: Container[str]) -> str:
    """Where a reference lies, for a receipt, which is read in other folders; what is a step of the same file stays."""
    first, plus, adapter = reference.partition("+")
    if first in steps:
        return f"{first}{plus}{located(adapter)}" if plus else first
    return located(reference)


def places_now(known: Mapping[str, str]) -> dict[str, str]:
    """Of recorded places (reference -> :func:`place_of`) those that still hold something.

    What moved away is left out if the reference leads to something from the working folder, as when all of a project
    was moved. Refused where it does not either.
    """
    there = {}
    for reference, place in known.items():
        of_step = not os.path.isabs(place)
        if _is_there(place, of_step):
            there[reference] = place
        elif not _is_there(reference, of_step):
            raise Refused(
                f"{reference!r} of the recipe lay at {place}, which is not there any more",
                hint="Put it back, or verify in a folder from which the recipe's paths lead to its models.",
            )
    return there


def _is_there(reference: str, of_step: bool) -> bool:
    if of_step:
        reference = reference.partition("+")[2]
    return os.path.exists(reference) or split_reference(reference) is not None or bool(locate(Path(reference))[1])


def called(reference: str) -> str | None:
    """How a model from the cache is called: ``name`` of ``org/name@revision``; None for plain paths."""
    first = reference if os.path.exists(reference) else reference.split("+")[0]
    path = Path(first)
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        first = path.parents[1].name
    elif _place(first) == os.path.abspath(first):
        return None
    name = first.partition("@")[0].rpartition("/")[2]
    return name.rpartition("--")[2] or None


def why_missing(reference: str) -> str | None:
    """For a part with a revision that is not here: what is known of it. None where no part has one."""
    for part in reference.split("+"):
        path, at, revision = part.rpartition("@")
        if not at or os.path.exists(part):
            continue
        if os.path.isdir(path) and _repository(path) is None:
            has = _checked_out(Path(path))
            state = f"has {' = '.join(has)} checked out" if has else "is no git checkout and no cache of the hub"
            return f"the revision {revision!r} of {path!r} is asked for, but that folder {state}"
        folder = _repository(path)
        if folder is not None:
            known = sorted({*_files(folder / "refs"), *(n[:12] for n in _names(folder / "snapshots"))})
            return f"the local cache holds {path!r}, but not its revision {revision!r}; it has: {', '.join(known)}"
    return None


def _place(part: str) -> str:
    """An absolute path; of a name in the hub's cache, that of the snapshot."""
    if os.path.exists(part):
        folder = Path(part)
        if folder.name.startswith("models--") and (folder / "snapshots").is_dir():
            return _snapshot(folder, _MAIN) or os.path.abspath(part)
        return os.path.abspath(part)
    path, at, revision = part.rpartition("@")
    path = path if at else part
    if at and os.path.isdir(path) and _repository(path) is None:
        return os.path.abspath(path if revision in _checked_out(Path(path)) else part)
    folder_of = _repository(path)
    found = _snapshot(folder_of, revision if at else _MAIN) if folder_of is not None else None
    return found or os.path.abspath(part)


def _repository(name: str) -> Path | None:
    """The cache's folder of a repository: ``models--org--name``, named by its path or as ``org/name``."""
    if os.path.isdir(name):
        return Path(name) if os.path.isdir(os.path.join(name, "snapshots")) else None
    if not _REPOSITORY.fullmatch(name):
        return None
    folder = Path(hub_cache(), "models--" + name.replace("/", "--"))
    return folder if folder.is_dir() else None


def _snapshot(folder: Path, revision: str) -> str | None:
    """The snapshot of a branch, a tag, or a commit (seven of its characters are enough if no other begins so)."""
    if not revision or ".." in revision.split("/") or os.path.isabs(revision):
        return None
    try:
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        commit = revision
    begun = [n for n in _names(folder / "snapshots") if n == commit or (len(commit) >= 7 and n.startswith(commit))]
    return os.path.abspath(folder / "snapshots" / begun[0]) if len(begun) == 1 else None


def _names(folder: Path) -> list[str]:
    """What lies directly in a folder; nothing where it is none."""
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _files(folder: Path) -> list[str]:
    """The files in a folder and below, as branches and tags are called (``feature/one``)."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _checked_out(folder: Path) -> list[str]:
    """Branch and commit of a git checkout, tags of that commit, and its short form; empty where it is none."""
    git = folder / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
    except OSError:
        return []
    branch = head.removeprefix("ref: ")
    refs = _refs(git)
    commit = refs.get(branch, "") if branch != head else head
    if not commit:
        return [branch.removeprefix("refs/heads/")]
    here = [
        name.removeprefix("refs/tags/") for name, at in refs.items() if at == commit and name.startswith("refs/tags/")
    ]
    named = [branch.removeprefix("refs/heads/")] if branch != head else []
    return [*named, *here, commit, commit[:7]]


def _refs(git: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        for line in (git / "packed-refs").read_text(encoding="utf-8").splitlines():
            commit, _, name = line.partition(" ")
            if name and not line.startswith(("#", "^")):
                found[name] = commit
    except OSError:
        pass
    for name in _files(git / "refs"):
        found[f"refs/{name}"] = (git / "refs" / name).read_text(encoding="utf-8", errors="replace").strip()
    return found
