"""Tensors that are stored more than once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, final

from nett.core.dtypes import Array
from nett.core.edge import Edge
from nett.core.layers import is_head, is_vocabulary, natural
from nett.core.registry import method
from nett.core.sweep import Fold, Pass
from nett.scan.protocol import Asset, Finding, Findings, Probe, probe


@final
class Digest(Fold):
    """A hash of a tensor's bytes: xxh3 over the hashes of its units, which threads can take in any order."""

    def look(self, pieces: Sequence[Array]) -> bytes:
        from xxhash import xxh3_128_digest

        return xxh3_128_digest(pieces[0].data)

    def join(self, before: Any, unit: bytes) -> Any:
        from xxhash import xxh3_128

        joined = xxh3_128() if before is None else before
        joined.update(unit)
        return joined

    def settle(self, seen: Any) -> bytes:
        return b"" if seen is None else seen.digest()


@final
class Same(Fold):
    """Whether two tensors hold the same bytes; stops at the first difference."""

    def look(self, pieces: Sequence[Array]) -> bool:
        return pieces[0].tobytes() == pieces[1].tobytes()

    def join(self, before: Any, unit: bool) -> bool:
        return unit and before is not False

    def settle(self, seen: Any) -> bool:
        return seen is not False

    def enough(self, seen: Any) -> bool:
        return seen is False


@method(title="Duplicate tensors", kind="measure", guarantee="exact", grain="stream", command=True)
@probe
def duplicate_tensors(assets: Sequence[Asset]) -> Probe:
    """Find tensors with exactly the same bytes, within a checkpoint and across all that are given.

    Candidates have the same type, shape and hash; they are then compared byte by byte. Tied weights that are
    stored twice are among them; a file that is reached under two names is not.

    When to use: on any checkpoint; on many checkpoints of one family at once.
    When not: for tensors that are only nearly equal; see near_equal_layers and closeness.
    Guarantee: exact. Every finding was compared byte by byte.
    Cost: reads each tensor whose type and shape occur more than once, once; candidates twice.
    Source: no paper; hashing with xxh3.
    """
    alike: dict[Any, list[tuple[Asset, str]]] = defaultdict(list)
    lying: set[Any] = set()
    for asset in assets:
        for name in sorted(asset.checkpoint.tensors, key=natural):  # layer 0 is kept, whatever shard it is in
            info = asset.checkpoint.tensors[name]
            place = asset.place(name)
            if info.size == 0 or (place is not None and place in lying):
                continue
            lying.add(place)
            alike[info.dtype.name, info.shape].append((asset, name))
    repeated = [one for group in alike.values() if len(group) > 1 for one in group]
    hashes = [Pass((asset.source(name),), Digest()) for asset, name in repeated]
    yield hashes
    groups: dict[Any, list[tuple[Asset, str]]] = defaultdict(list)
    for (asset, name), one in zip(repeated, hashes, strict=True):
        info = asset.checkpoint.tensors[name]
        groups[info.dtype.name, info.shape, one.answer].append((asset, name))
    pairs = [(group[0], other) for group in groups.values() for other in group[1:]]
    checks = [Pass((a.source(n), b.source(m)), Same()) for (a, n), (b, m) in pairs]
    yield checks
    equal = [pair for pair, check in zip(pairs, checks, strict=True) if check.answer]
    found = tuple(Finding(_edge(first, other)) for first, other in equal)
    return Findings(
        found,
        {
            "duplicates": len(found),
            "tied_twice": sum(_tied(first, other) for first, other in equal),
            "bytes": sum(f.edge.bytes_freed for f in found),
        },
    )


def _edge(first: tuple[Asset, str], other: tuple[Asset, str]) -> Edge:
    asset, name = other
    nbytes = asset.checkpoint.tensors[name].nbytes
    source = first[0].label(first[1])
    return Edge("duplicate_tensor", asset.label(name), (source,), None, nbytes, 0.0, 0.0, "exact")


def _tied(first: tuple[Asset, str], other: tuple[Asset, str]) -> bool:
    """Whether these are one checkpoint's embedding and output head."""
    names = first[1], other[1]
    return first[0] is other[0] and all(map(is_vocabulary, names)) and is_head(names[0]) != is_head(names[1])
