"""What a walk finds: files as inodes with all their names, and what was noticed on the way."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from nett.core.shown import quoted
from nett.scan.disk.places import Place

if TYPE_CHECKING:
    from nett.scan.disk.layout import Layout

WEIGHTS = (
    ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".keras", ".npz", ".msgpack", ".tflite",
    ".ggml", ".pkl", ".pickle",
)  # fmt: skip
Key = tuple[int, int]
_YOUNG = 3600  # seconds: a download this young may be going on


@final
@dataclass(eq=False, slots=True)
class Item:
    """A regular file that holds weights, once, whatever names lead to it.

    ``held``: who keeps it by its hash (``hub``, ``ollama``) or empty; ``unit``: the model that it is part of, as
    ``nett store add`` takes it; ``ending``: how it is read, whatever its name.
    """

    stat: os.stat_result
    path: str
    unit: str
    ending: str
    place: Place
    held: str = ""
    names: set[str] = field(default_factory=set)  # hardlinks seen; no symlinks
    layout: Layout | None = None
    start: int = 0  # of the data
    head: int = 0  # a hash of the first bytes
    problem: str = ""

    @property
    def size(self) -> int:
        return self.stat.st_size

    @property
    def allocated(self) -> int:
        return self.stat.st_blocks * 512

    @property
    def share(self) -> float:
        """Allocated bytes a byte: less than 1 where the file is sparse."""
        return min(1.0, self.allocated / self.size) if self.size else 0.0

    @property
    def key(self) -> Key:
        return self.stat.st_dev, self.stat.st_ino

    @property
    def pinned(self) -> bool:
        """Whether it has names outside of what was walked, so that nothing is freed when those inside go."""
        return self.stat.st_nlink > max(1, len(self.names))

    def is_state(self, found: os.stat_result) -> bool:
        """Whether ``found`` is this file, unchanged."""
        fields = ("st_dev", "st_ino", "st_size", "st_mtime_ns")
        return all(getattr(found, f) == getattr(self.stat, f) for f in fields)


@final
@dataclass(frozen=True)
class Leftover:
    """Bytes that no model needs: ``orphaned_blob``, ``partial_download`` or ``chunk_cache``."""

    kind: str
    path: str
    allocated: int
    command: str | None


@final
@dataclass(eq=False)
class Survey:
    """Everything that a walk of the places tells; ``notes`` count things that were left alone, by what was said."""

    places: list[Place]
    items: dict[Key, Item] = field(default_factory=dict)
    leftovers: dict[Key, Leftover] = field(default_factory=dict)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    other: int = 0  # allocated bytes of what is no model in the caches: data sets, spaces
    reached: set[Key] = field(default_factory=set)  # by the snapshots of any repository
    complete: bool = True  # whether all snapshots could be read, so that what is not reached is an orphan

    def note(self, text: str, times: int = 1) -> None:
        self.notes[text] = self.notes.get(text, 0) + times

    def cannot(self, path: str, error: OSError) -> None:
        self.unreadable.append((path, error.strerror or str(error)))

    def add(self, item: Item, *, hard: bool) -> None:
        """``hard``: whether ``item.path`` is a name of the inode and no symlink to it."""
        held = self.items.setdefault(item.key, item)
        if hard:
            held.names.add(item.path)
        if item.held and not held.held:  # a name in a cache counts more than one outside
            held.held, held.path, held.unit, held.place = item.held, item.path, item.unit, item.place
        self.leftovers.pop(item.key, None)

    def partial(self, path: str, state: os.stat_result) -> None:
        """A download that was not finished, unless it may be going on."""
        if time.time() - state.st_mtime < _YOUNG:
            self.note("left alone: downloads that may be going on")
            return
        self._left("partial_download", path, state, f"rm -i -- {quoted(path)}")

    def orphan(self, path: str, state: os.stat_result, command: str | None = None) -> None:
        """A blob that no model leads to."""
        self._left("orphaned_blob", path, state, command or f"rm -i -- {quoted(path)}")

    def _left(self, kind: str, path: str, state: os.stat_result, command: str) -> None:
        self.leftovers[state.st_dev, state.st_ino] = Leftover(kind, path, state.st_blocks * 512, command)
