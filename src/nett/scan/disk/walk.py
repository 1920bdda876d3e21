"""From places to a survey: folders are walked, and those that a program keeps its models in are read as it does.

No symlink is followed but those of a hub cache that stay in it, so nothing outside is reached and no loop is walked.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from nett.core.caches import GIT, HUB, REPOSITORY, UNFINISHED, hub_cache, is_shared, left_alone
from nett.core.shown import quoted
from nett.scan.disk import hub, ollama
from nett.scan.disk.items import WEIGHTS, Item, Leftover, Survey
from nett.scan.disk.places import Place

_SHARD = re.compile(r"(.+?)[-.]?\d{5}-of-\d{5}$")
_SYSTEM = ("/proc", "/sys", "/dev", "/run")
_DOWNLOADERS = ("LM Studio", "torch hub")  # places where an unfinished file can only be a model's
_LOCAL = os.path.join(".cache", "huggingface", "download")  # beside files that the hub's client put into a folder


def survey(places: Sequence[Place]) -> Survey:
    """Look through the places, the more special ones first; a folder that lies in two belongs to the first."""
    found = Survey(list(places))
    seen: set[tuple[int, int]] = set()
    shared: list[tuple[str, Place]] = []
    for place in sorted(places, key=lambda p: p.kind in ("working folder", "given")):
        if place.kind == "Hugging Face chunks":
            _chunks(found, place)
        elif place.exists:
            _walk(found, place, seen, shared)
    for folder, place in shared:  # last: what a repository leads to is no orphan
        hub.read_shared(found, folder, place)
    return found


def _walk(found: Survey, place: Place, seen: set[tuple[int, int]], shared: list[tuple[str, Place]]) -> None:
    waiting = [place.path]
    users = hub_cache()
    held = "hub" if any(left_alone(str(p), users) == HUB for p in Path(place.path).parents) else ""
    while waiting:
        folder = waiting.pop()
        try:
            state = os.stat(folder, follow_symlinks=False)
            if (state.st_dev, state.st_ino) in seen or folder in _SYSTEM:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda e: e.name)
        except OSError as error:
            found.cannot(folder, error)
            continue
        names = {e.name for e in entries}
        why = None
        if names & {"HEAD", "nett.json", "blobs", "snapshots", "refs"} or os.path.basename(folder)[:1] == ".":
            why = left_alone(folder, "")
        elif os.path.basename(folder) == "blobs" and is_shared(folder):
            why = HUB
        if why == HUB and REPOSITORY.fullmatch(os.path.basename(folder)):
            hub.read_repository(found, folder, place)
        elif why == HUB:
            shared.append((folder, place))
        elif why is not None:
            if why != GIT:
                found.note(f"left alone, {why}")
        elif {"manifests", "blobs"} <= names:
            ollama.read_models(found, folder, place)
        else:
            waiting += reversed(_look(found, place, folder, entries, folder == users, held))


def _look(
    found: Survey, place: Place, folder: str, entries: Sequence[os.DirEntry[str]], hubs: bool, held: str
) -> list[str]:
    """The files of one folder; returns its folders."""
    folders: list[str] = []
    files: list[tuple[os.DirEntry[str], os.stat_result]] = []
    whole = False
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                if not (hubs and entry.name in (".locks", ".no_exist")):
                    folders.append(entry.path)
                continue
            name = entry.name.lower()
            whole |= name == "config.json" or name.endswith(".index.json")
            wanted = name.endswith(WEIGHTS) or UNFINISHED.fullmatch(name) is not None
            if wanted and entry.is_file(follow_symlinks=False):
                files.append((entry, entry.stat(follow_symlinks=False)))
        except FileNotFoundError:  # gone since it was listed
            continue
        except OSError as error:
            found.cannot(entry.path, error)
    for entry, state in files:
        stem, ending = os.path.splitext(entry.name)
        if UNFINISHED.fullmatch(entry.name):
            if place.kind in _DOWNLOADERS or folder.endswith(_LOCAL) or stem.lower().endswith(WEIGHTS):
                found.partial(entry.path, state)
            continue
        part = _SHARD.fullmatch(stem)
        together = (whole or part) and ending != ".gguf"
        unit = folder if together else entry.path
        found.add(Item(state, entry.path, unit, ending.lower(), place, held), hard=True)
    return folders


def _chunks(found: Survey, place: Place) -> None:
    """The chunk cache of Hugging Face's transfers, which can be dropped at any time."""
    total = 0
    for folder, _, files in os.walk(place.path):
        for name in files:
            try:
                state = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            total += state.st_blocks * 512 if stat.S_ISREG(state.st_mode) else 0
    if total:
        state = os.stat(place.path)
        command = f"rm -r -- {quoted(place.path)}"
        found.leftovers[state.st_dev, state.st_ino] = Leftover("chunk_cache", place.path, total, command)
