"""What can rest on what: a model, or of a folder of several (a run's checkpoints, several weight files) each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import final

from nett.store.records import Part, StoredFile


@final
@dataclass(frozen=True)
class Unit:
    """Tensors by name that belong together: of files of one folder, none of which has a name of another.

    ``name`` is the model's, followed by a colon and a folder or file where the model has several units.
    """

    name: str
    tensors: Mapping[str, Part]

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.tensors.values())


def model_of(unit: str) -> str:
    """The model that a unit's name speaks of; names of models hold no colon."""
    return unit.partition(":")[0]


def units_of(model: str, files: Iterable[StoredFile]) -> list[Unit]:
    """The units of a model, in the order of its files. Shards are one unit; files with the same names are several."""
    groups: list[tuple[str, str, dict[str, Part]]] = []  # folder, first file, tensors
    for file in files:
        tensors: dict[str, Part] = {}
        for part in file.parts:
            if part.name is not None:
                tensors.setdefault(part.name, part)
        if not tensors:
            continue
        folder = str(PurePosixPath(file.path).parent)
        beside = next((t for where, _, t in groups if where == folder and t.keys().isdisjoint(tensors)), None)
        if beside is not None:
            beside.update(tensors)
        else:
            groups.append((folder, file.path, tensors))
    if len(groups) == 1:
        return [Unit(model, groups[0][2])]
    folders = [folder for folder, _, _ in groups]
    return [
        Unit(f"{model}:{folder if folders.count(folder) == 1 else first}", tensors) for folder, first, tensors in groups
    ]
