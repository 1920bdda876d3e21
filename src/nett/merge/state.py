"""What a merge that goes model by model leaves for the next model: a folder with one tensor file and ``state.json``.

The tensor file holds what the kernel carries, one array a tensor; ``state.json`` the numbers beside each (of opcm the
squared norms of the task vectors), which models are in it, over which base and with which parameters, by the hashes of
their tensors, so that paths and files may change. Its size does not depend on how many models are in it, but for their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import nett
from nett.core.checkpoint import Checkpoint
from nett.core.checkpoint.safetensors import read_header
from nett.core.checkpoint.writer import FileSpec
from nett.core.errors import Refused
from nett.core.receipt import file_sha256
from nett.core.registry import Card
from nett.core.staging import replaced_path

STATE, TENSORS = "state.json", "carried.safetensors"
SCHEMA = 1
_BLOCK = 1 << 20  # elements that are hashed at a time


@final
@dataclass(frozen=True)
class Known:
    """A model by the hash of its tensors; what it was called and where it lay, for people."""

    name: str
    path: str
    sha256: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Known:
        return cls(str(record["name"]), str(record["path"]), str(record["sha256"]))


def content_sha256(checkpoint: Checkpoint) -> str:
    """sha256 over names, types, shapes and elements of all tensors: the same in any container and any shards."""
    digest = hashlib.sha256()
    for name, info in sorted(checkpoint.tensors.items()):
        digest.update(json.dumps([name, info.dtype.name, list(info.shape)]).encode() + b"\n")
        for start in range(0, info.size, _BLOCK):
            digest.update(checkpoint.read(name, start, min(info.size, start + _BLOCK)).data)
    return digest.hexdigest()


@final
@dataclass(frozen=True)
class State:
    """A state as it lies on disk."""

    place: Path  # the folder that holds it right now
    nett: str
    method: str
    parameters: Mapping[str, Any]
    base: Known
    models: tuple[Known, ...]
    numbers: Mapping[str, list[float]]  # tensor -> numbers
    sha256: str  # of the tensor file

    @property
    def hashes(self) -> list[str]:
        return [m.sha256 for m in self.models]

    def as_bytes(self) -> bytes:
        """``state.json``."""
        record = {"schema": SCHEMA, **asdict(self)}
        del record["place"]
        return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def read_state(folder: Path) -> State | None:
    """The state in a folder; None where there is nothing yet. Refused where something else is there."""
    place = folder if folder.exists() else replaced_path(folder)  # a kill while it was being replaced
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return None
    file = place / STATE
    if not file.is_file():
        raise Refused(
            f"is not a state: it has no {STATE}",
            where=folder,
            hint="Name a folder that does not exist yet to begin one.",
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise Refused(
                f"is a state of version {record['schema']}, written by nett {record.get('nett')}; "
                f"this nett {nett.__version__} reads version {SCHEMA}",
                where=file,
                hint="Begin a new state from all models, or use the nett that wrote it.",
            )
        return State(
            place,
            str(record["nett"]),
            str(record["method"]),
            dict(record["parameters"]),
            Known.of(record["base"]),
            tuple(Known.of(m) for m in record["models"]),
            {str(name): [float(v) for v in values] for name, values in record["numbers"].items()},
            str(record["sha256"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"is not a state: {type(error).__name__} {error}", where=file, hint=_AGAIN) from error


_AGAIN = "Begin a new state from all models: name another folder."


def check_state(
    state: State,
    folder: Path,
    card: Card,
    parameters: Mapping[str, Any],
    base: Known,
    layout: Sequence[FileSpec],
    *,
    hashed: bool = True,
) -> FileSpec:
    """The one of ``layout`` (the same tensors in other types) that the state has; Refused, by name, at what does not fit.

    ``hashed``: compare hashes too, of the base and of the tensor file.
    """

    def other(what: str, hint: str = _AGAIN) -> Refused:
        return Refused(what, where=folder, hint=hint)

    if state.method != card.key:
        raise other(f"is a state of {state.method}, not of {card.key}")
    names = [*state.parameters, *(n for n in parameters if n not in state.parameters)]
    for name in names:
        if state.parameters.get(name) != parameters.get(name):
            raise other(
                f"was merged with {name} = {state.parameters.get(name)}, not {parameters.get(name)}",
                f"Go on with --{name.replace('_', '-')} {state.parameters.get(name)}, or begin a new state: name another"
                " folder.",
            )
    if hashed and state.base.sha256 != base.sha256:
        raise other(
            f"was merged over the base {state.base.name!r} ({state.base.path}, sha256 {state.base.sha256[:12]}…), which"
            f" is another than {base.path} (sha256 {base.sha256[:12]}…)"
        )
    found, _ = read_header(state.place / TENSORS)
    shapes = {spec.name: spec.shape for spec in layout[0].tensors}
    for name in sorted(shapes.keys() | found.keys()):
        held = list(found[name].shape) if name in found else None
        if name not in shapes or held != list(shapes[name]):
            wanted = list(shapes[name]) if name in shapes else None
            raise other(f"holds {name!r} with shape {held}, but the models have {wanted}")
    for spec in layout:
        if all(found[t.name].dtype == t.dtype for t in spec.tensors):
            break
    else:
        raise other("holds tensors of another type than it was begun with")
    if hashed and file_sha256(state.place / TENSORS) != state.sha256:
        raise Refused(
            f"was changed since nett wrote it: its sha256 is not that of {STATE}", where=folder / TENSORS, hint=_AGAIN
        )
    lacking = [
        n for n, shape in shapes.items() if 0 not in shape and len(state.numbers.get(n, ())) != len(state.models)
    ]
    if lacking:
        raise other(f"lacks numbers of {lacking[0]!r} in {STATE}")
    return spec
