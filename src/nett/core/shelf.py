"""What a long training lays down now and then, so that a run that was killed goes on from there to the same bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, final

from nett.core.errors import NettError
from nett.core.parts import FOLDER, read_part, write_part
from nett.core.receipt import file_sha256
from nett.core.staging import Staging

State = tuple[Mapping[str, Any], Mapping[str, Any]]  # tensors, and what JSON holds


class Shelf(ABC):
    """Holds the last state of one training. Abstract: an engine's lies in its staging folder."""

    @abstractmethod
    def take(self) -> State | None:
        """What was laid down last: tensors by name, and numbers and words; None at the start."""

    @abstractmethod
    def lay(self, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Keep this in place of what was kept. On disk when this returns."""


@final
class NoShelf(Shelf):
    """Keeps nothing."""

    def take(self) -> State | None:
        return None

    def lay(self, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        pass


@final
class StagedShelf(Shelf):
    """In the staging folder of an output, two files at most."""

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        (staging.path / FOLDER).mkdir(exist_ok=True)
        self._entries = [e["shelf"] for e in staging.entries if "shelf" in e]

    def take(self) -> State | None:
        if not self._entries:
            return None
        last = self._entries[-1]
        path = self.staging.path / FOLDER / last["file"]
        if not path.is_file() or file_sha256(path) != last["sha256"]:
            raise NettError(
                "does not hold what its journal says",
                where=path,
                hint=f"Delete {self.staging.path} and run the same command again.",
            )
        return read_part(path), last["about"]

    def lay(self, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        path = self.staging.path / FOLDER / f"shelf-{len(self._entries)}.safetensors"
        entry = {"file": path.name, "sha256": write_part(path, tensors), "about": dict(about)}
        self.staging.record(shelf=entry)
        self._entries.append(entry)
        self.clear(but=path.name)

    def clear(self, but: str = "") -> None:
        """Delete the files, except one."""
        for file in (self.staging.path / FOLDER).glob("shelf-*.safetensors"):
            if file.name != but:
                file.unlink()
