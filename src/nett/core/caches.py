"""Where others keep their files, told from how a folder looks: Hugging Face hub caches, git, stores of nett."""

from __future__ import annotations

import os
import re

UNFINISHED = re.compile(r".*(\.(incomplete|part|partial|crdownload|download|aria2)|-partial(-\d+)?)", re.DOTALL)
REPOSITORY = re.compile(r"(models|datasets|spaces)--.+", re.DOTALL)
HUB = "of a Hugging Face hub cache, which shares files itself and names them by their hash: nothing in it is relinked"
GIT = "of git, which keeps its files by their hash"


def left_alone(folder: str, hub: str) -> str | None:
    """Why nothing under this folder is touched, or None where it may be; ``hub`` is the user's hub cache."""

    def has(*names: str) -> bool:
        return all(os.path.lexists(os.path.join(folder, n)) for n in names)

    name = os.path.basename(folder)
    if name == ".git" or has("HEAD", "objects", "refs"):
        return GIT
    if name.startswith(".nett-") or (
        name[:1] == "." and name.endswith((".nett-partial", ".nett-replaced", ".nett-steps"))
    ):
        return "of nett's own, in which something is being written"
    if has("nett.json", "objects", "models"):
        return "of a store of nett"
    if REPOSITORY.fullmatch(name) and (has("blobs") or has("snapshots") or has("refs")):
        return HUB
    if name == "blobs" and is_shared(folder):
        return HUB
    return HUB if folder == hub else None


def hub_home() -> str:
    """Where Hugging Face's libraries keep all that is theirs."""
    given = os.environ.get
    home = given("HF_HOME") or os.path.join(given("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return os.path.expanduser(home)


def hub_cache() -> str:
    """Where huggingface_hub keeps its files for this user."""
    given = os.environ.get
    hub = given("HF_HUB_CACHE") or given("HUGGINGFACE_HUB_CACHE") or os.path.join(hub_home(), "hub")
    return os.path.realpath(os.path.expanduser(hub))


def is_shared(folder: str) -> bool:
    """Whether ``blobs`` holds the payloads that the repositories of a hub cache share: two hex digits, then a hash."""
    try:
        beside = os.listdir(os.path.dirname(folder))
        inside = [n for n in os.listdir(folder) if re.fullmatch("[0-9a-f]{2}", n)]
        if any(REPOSITORY.fullmatch(n) for n in beside):
            return True
        return any(n.endswith(".refs") for i in inside for n in os.listdir(os.path.join(folder, i)))
    except OSError:
        return False
