"""The one shape of this room's methods, and its laws.

A probe is a pure generator over assets that are known from their headers. It yields a list of wants, each round
the engine answers all of them, and what it returns is its :class:`Findings`:

- :class:`~nett.core.sweep.Pass`: every element of some tensors goes by once. Passes of all probes over the same
  tensors share one read; a hash and a count of types cost one reading of the file.
- :class:`Study`: a function that reads what it needs of some tensors, in bounded pieces: rows, samples.
- :class:`SideFile`: a JSON file beside the weights, parsed; None where there is none.

A probe opens and writes nothing. Each asset is called by its path, each tensor ``path::name``. The first asset is
the base where one is asked for. Findings are edges; ``parts`` says which tensors an edge about many of them is
made of, so that overlapping findings are counted once. Called as a function, a probe takes a list of paths, open
checkpoints or mappings from names to arrays, and gives its findings.

Laws: the same answer for any number of threads; inputs untouched; no finding is about an asset that is not given;
bytes freed never exceed the target's bytes; ``exact`` findings have error 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

from nett.core.checkpoint import Checkpoint
from nett.core.edge import Edge
from nett.core.sweep import Pass, Source

Place = tuple[int, int, int]  # device, inode, offset


@final
@dataclass(frozen=True, eq=False)
class Asset:
    """An open checkpoint under the name that edges give it."""

    path: str
    checkpoint: Checkpoint
    places: Mapping[Path, tuple[int, int]] = field(default_factory=dict)  # file -> device, inode

    def label(self, tensor: str) -> str:
        return f"{self.path}::{tensor}"

    def source(self, tensor: str) -> Source:
        return Source(self.checkpoint, self.checkpoint.tensors[tensor])

    def place(self, tensor: str) -> Place | None:
        """Where the tensor's bytes lie, whatever names the file has; None where that is not known."""
        info = self.checkpoint.tensors[tensor]
        found = self.places.get(info.file) if info.file is not None else None
        return (*found, info.offset) if found else None


@final
@dataclass(eq=False)
class Study:
    """``function(*sources)``, run on a thread; it reads through ``Source.values`` and keeps pieces small."""

    sources: tuple[Any, ...]  # Source, or what reads like one
    function: Callable[..., Any]
    answer: Any = None
    seconds: float = 0.0
    bytes_read: int = 0


@final
@dataclass(eq=False)
class SideFile:
    """A JSON file in the folder of an asset."""

    asset: Asset
    name: str
    answer: Any = None
    seconds: float = 0.0
    bytes_read: int = 0


Want = Pass | Study | SideFile


@final
@dataclass(frozen=True)
class Finding:
    """An edge, and the same for each tensor that it speaks of (itself where it speaks of one)."""

    edge: Edge
    parts: tuple[Edge, ...] = ()

    @property
    def per_tensor(self) -> tuple[Edge, ...]:
        return self.parts or (self.edge,)


@final
@dataclass(frozen=True)
class Findings:
    """What a probe found, and its figures (plain JSON)."""

    found: tuple[Finding, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"edges": [f.edge.as_json() for f in self.found], "figures": dict(self.figures)}


Probe = Generator[Sequence[Want], None, Findings]
Kernel = Callable[..., Probe]


def probe(kernel: Kernel) -> Callable[..., Findings]:
    """The kernel as a plain function over paths, checkpoints or mappings of arrays; ``.kernel`` is itself."""

    @functools.wraps(kernel)
    def plain(assets: Sequence[Any], **parameters: Any) -> Findings:
        from nett.scan.engine import alone

        return alone(kernel, assets, parameters)

    plain.kernel = kernel  # type: ignore[attr-defined]
    return cast(Callable[..., Findings], plain)
