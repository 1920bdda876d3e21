"""From places to everything that one scan of a disk says."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import nett
from nett.core.edge import ranked
from nett.core.errors import Refused
from nett.core.jsonable import jsonable
from nett.core.progress import report
from nett.core.runner import Pool, thread_count
from nett.scan.disk import findings
from nett.scan.disk.account import Amount, codings, in_order, together
from nett.scan.disk.alike import equal_files, permuted, twins
from nett.scan.disk.evidence import Evidence, gather
from nett.scan.disk.exact import read_all, read_deltas
from nett.scan.disk.families import find_families
from nett.scan.disk.findings import Found
from nett.scan.disk.items import Item, Survey
from nett.scan.disk.layout import Layouts
from nett.scan.disk.links import Links, without_shared_blocks
from nett.scan.disk.models import units
from nett.scan.disk.places import Place, given_places, known_places
from nett.scan.disk.sample import Depth
from nett.scan.disk.walk import survey

_LARGE = 1_000_000  # bytes from which a file whose inside is not known is looked at
_TRAINING = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")


@final
@dataclass(frozen=True, eq=False)
class DiskScan:
    """``free``: bytes that can be freed without loss, all findings together, none counted twice; ``now``: of these, by
    linking files where they lie; ``left``: of downloads and blobs that no model needs, not among them."""

    survey: Survey
    items: Sequence[Item]
    models: int
    found: Sequence[Found]
    families: int
    exact: bool
    free: Amount
    now: Amount
    links: str
    left: int
    layers: float
    seconds: float

    @property
    def allocated(self) -> int:
        return sum(i.allocated for i in self.items)

    @property
    def nbytes(self) -> int:
        return sum(i.size for i in self.items)

    def as_json(self) -> dict[str, Any]:
        by_place: Mapping[Place, list[Item]] = _by_place(self.items)
        sums: dict[str, Any] = jsonable({
            "nett": nett.__version__,
            "exact": self.exact,
            "places": [
                {"kind": p.kind, "path": p.path, "named_by": p.why or None, "exists": p.exists,
                 "files": len(by_place[p]), "bytes_allocated": sum(i.allocated for i in by_place[p])}
                for p in self.survey.places
            ],
            "assets": [
                {"path": i.path, "format": i.layout.format if i.layout else None, "bytes": i.size,
                 "bytes_allocated": i.allocated, "names": len(i.names), "problem": i.problem or None}
                for i in self.items
            ],
            "models": self.models,
            "families": self.families,
            "edges": [f.edge.as_json() for f in self.found],
            "intervals": [[f.amount.low, f.amount.high] for f in self.found],
            "seconds": round(self.seconds, 4),
            "bytes": self.nbytes,
            "bytes_allocated": self.allocated,
            "bytes_freed": self.free.value,
            "bytes_freed_interval": [self.free.low, self.free.high],
            "bytes_freed_now": self.now.value,
            "command_now": self.links or None,
            "bytes_left_over": self.left,
            "layers_sampled": self.layers,
            "unreadable": [{"path": p, "why": why} for p, why in unreadable(self)],
            "left_alone": dict(self.survey.notes),
        })  # fmt: skip
        return sums


def unreadable(scan: DiskScan) -> list[tuple[str, str]]:
    """Folders that could not be read, and files: those whose header does not hold as well."""
    return [*scan.survey.unreadable, *((i.path, i.problem) for i in scan.items if i.problem)]


def run_disk(
    folders: Sequence[Any] = (), *, exact: bool = False, threads: int = 0, depth: Depth | None = None
) -> DiskScan:
    """Scan the known places, or the ``folders``. ``depth``: how much is sampled, if not as much as the budget allows.
    Refused where a folder is not there."""
    begun = time.perf_counter()
    places = given_places(folders) if folders else known_places()
    for place in places:
        if place.kind == "given" and not place.exists:
            raise Refused("there is no such folder", where=place.path, hint="nett scan --disk takes folders.")
    report.begin("looking", len(places), "places")
    seen = survey(places)
    layouts = Layouts()
    items = layouts.look(sorted((i for i in seen.items.values() if i.size), key=lambda i: i.path))
    items = [i for i in items if i.layout is not None or i.problem or i.size >= _LARGE]
    for item in items:
        item.layout = item.layout or layouts.opaque(item.size)
    readable = [i for i in items if not i.problem.startswith("cannot be read")]
    depth = depth or Depth.of(i.layout for i in readable if i.layout is not None)
    known = gather(readable, depth)
    pool = Pool(thread_count(threads))
    try:
        found = _found(seen, known, depth, pool, exact=exact)
    finally:
        pool.close()
        report.end()
    edges, free, now, links, families = found
    order = {id(e): n for n, e in enumerate(ranked(f.edge for f in edges))}
    return DiskScan(
        survey=seen,
        items=items,
        models=_models(items),
        found=sorted(edges, key=lambda f: order[id(f.edge)]),
        families=families,
        exact=exact,
        free=free,
        now=now,
        links=links,
        left=sum(one.allocated for one in seen.leftovers.values()),
        layers=depth.layers,
        seconds=time.perf_counter() - begun,
    )


def _found(
    seen: Survey, known: list[Evidence], depth: Depth, pool: Pool, *, exact: bool
) -> tuple[list[Found], Amount, Amount, str, int]:
    if exact:
        known = read_all(known, pool)
    same = equal_files(known)
    distinct = [e for e in known if e not in same]
    models = units(distinct)
    families = find_families(models, depth)
    if exact:
        read_deltas(models, pool)
    order = in_order(distinct, models)
    coded = codings(order, models, twins(order))
    apart = without_shared_blocks(same)
    links = Links(apart)
    found = list(findings.equal(apart, links, exact=exact))
    free = _sum(f.amount for f in found)
    now = _sum(f.amount for f in found if f.now)
    free += together(coded, exact=exact)
    found += findings.coded(coded, exact=exact)
    found += findings.reordered(permuted(order), exact=exact)
    found += findings.runs(coded, exact=exact)
    found += findings.left(list(seen.leftovers.values()))
    return found, free, now, links.commands if links.kept else "", len(families)


def _sum(amounts: Iterable[Amount]) -> Amount:
    total = Amount(0, 0, 0)
    for one in amounts:
        total += one
    return total


def _models(items: Sequence[Item]) -> int:
    """How many models the files are: those of one folder that says it is one, and others one by one."""
    return len({i.unit for i in items if not i.path.rpartition("/")[2].startswith(_TRAINING)})


def _by_place(items: Iterable[Item]) -> defaultdict[Place, list[Item]]:
    found: defaultdict[Place, list[Item]] = defaultdict(list)
    for item in items:
        found[item.place].append(item)
    return found
