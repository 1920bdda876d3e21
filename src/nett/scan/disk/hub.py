"""A Hugging Face hub cache as its client lays it out.

``models--ORG--NAME`` holds ``blobs/<hash>``, ``refs/<branch>`` and ``snapshots/<commit>/…``, whose files are symlinks to
blobs, or real copies where links were impossible. A blob may itself be a symlink into the ``blobs`` that all repositories
of a cache share. A link is no copy: what counts is the inode that it leads to.
"""

from __future__ import annotations

import os
import stat

from nett.core.caches import UNFINISHED
from nett.scan.disk.items import WEIGHTS, Item, Survey
from nett.scan.disk.places import Place

_PRUNE = "hf cache prune"


def read_repository(found: Survey, folder: str, place: Place) -> None:
    """One repository of a cache."""
    cache = os.path.dirname(os.path.realpath(folder))
    model = os.path.basename(folder).startswith("models--")
    whole = _snapshots(found, folder, cache, place, model)
    blobs = os.path.join(folder, "blobs")
    try:
        with os.scandir(blobs) as listing:
            entries = sorted(listing, key=lambda e: e.name)
    except FileNotFoundError:
        return
    except OSError as error:
        found.cannot(blobs, error)
        return
    for entry in entries:
        try:
            state = entry.stat(follow_symlinks=False)
        except OSError as error:
            found.cannot(entry.path, error)
            continue
        if not stat.S_ISREG(state.st_mode):
            continue
        if UNFINISHED.fullmatch(entry.name):
            found.partial(entry.path, state)
        elif (state.st_dev, state.st_ino) in found.items:
            found.items[state.st_dev, state.st_ino].names.add(entry.path)
        elif (state.st_dev, state.st_ino) not in found.reached and whole:
            found.orphan(entry.path, state)


def _snapshots(found: Survey, folder: str, cache: str, place: Place, model: bool) -> bool:
    """The files of all snapshots; whether all could be read."""
    failures: list[OSError] = []

    top = os.path.join(folder, "snapshots")
    if not os.path.isdir(top):
        return True
    for here, folders, names in os.walk(top, onerror=failures.append):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(here, name)
            try:
                link = os.path.islink(path)
                target = os.path.realpath(path) if link else path
                if link and not target.startswith((cache + os.sep, os.path.realpath(folder) + os.sep)):
                    found.note("left alone: links of a hub cache that lead out of it")
                    continue
                state = os.lstat(target)
            except FileNotFoundError:
                found.note("broken links in a hub cache (an interrupted download, or a blob that was deleted)")
                continue
            except OSError as error:
                failures.append(error)
                continue
            key = state.st_dev, state.st_ino
            if not stat.S_ISREG(state.st_mode):
                found.note("broken links in a hub cache (an interrupted download, or a blob that was deleted)")
                continue
            new = key not in found.reached
            found.reached.add(key)
            found.leftovers.pop(key, None)
            if model and name.lower().endswith(WEIGHTS):
                ending = os.path.splitext(name)[1].lower()
                unit = path if ending == ".gguf" else here
                item = Item(state, path, unit, ending, place, "hub")
                found.add(item, hard=not link)
                if link:
                    found.items[key].names.add(target)
            elif new and not model:
                found.other += state.st_blocks * 512
    for one in failures:
        found.cannot(one.filename or folder, one)
    found.complete &= not failures
    return not failures


def read_shared(found: Survey, folder: str, place: Place) -> None:
    """The payloads that repositories share: those that no snapshot leads to are the hub's own garbage."""
    for here, folders, names in os.walk(folder, onerror=lambda e: found.cannot(e.filename or folder, e)):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(here, name)
            try:
                state = os.lstat(path)
            except OSError:
                continue
            if not stat.S_ISREG(state.st_mode) or name.endswith((".refs", ".lock")):
                continue
            if UNFINISHED.fullmatch(name):
                found.partial(path, state)
            elif (state.st_dev, state.st_ino) in found.items:
                found.items[state.st_dev, state.st_ino].names.add(path)
            elif (state.st_dev, state.st_ino) not in found.reached and found.complete:
                found.orphan(path, state, _PRUNE)
