"""Differences whose base no model needs any more: coded anew, on the base that the planner chooses now or by
themselves, where that frees more than it takes.

An object keeps its name, the hash of its bytes, so the new one takes the old one's place whole by a rename, and what
rests on it reads the same bytes. Depths only fall, so that nothing comes to rest on itself, in whatever order a kill
cuts the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from nett.core.codec import Mode
from nett.core.dtypes import Array
from nett.core.errors import ProofFailed
from nett.core.progress import report
from nett.core.runner import Pool
from nett.store.coding import Content, own_mode, with_base
from nett.store.holdings import Held, closure
from nett.store.library import Library
from nett.store.objects import write_object
from nett.store.planning import choose_bases, in_order
from nett.store.records import Model, Part
from nett.store.stored import known
from nett.store.units import Unit, model_of, units_of

Recode = Literal["smaller", "always", "never"]
RATE = 100e6  # bytes coded anew in a second, on the safe side
OVERHEAD = 600  # bytes of an object's header and frames


@final
@dataclass(frozen=True)
class Move:
    """One object coded anew. ``base``: what it will be a difference to; ``will``: its bytes then, estimated."""

    digest: str
    nbytes: int
    mode: Mode
    base: str | None
    depth: int
    will: float


@final
@dataclass(frozen=True)
class Plan:
    """``moves`` in an order in which every base is written before what rests on it, by unit. ``freed``: bytes of the
    bases that nothing rests on afterwards; ``more``: estimated bytes that the moved objects take beyond those now;
    ``kept``: bytes of bases that stay because that is smaller."""

    moves: tuple[tuple[Move, ...], ...] = ()
    bases: Mapping[str, str] = field(default_factory=dict)  # unit -> unit, of those that were planned
    units: frozenset[str] = frozenset()
    freed: int = 0
    more: int = 0
    kept: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that are decoded and coded anew."""
        return sum(m.nbytes for batch in self.moves for m in batch)

    @property
    def models(self) -> list[str]:
        return sorted({model_of(u) for u in self.units})

    def say(self, would: bool) -> list[str]:
        lines = []
        if self.moves:
            count = sum(len(batch) for batch in self.moves)
            lines.append(
                f"{'would code' if would else 'coded'} anew: {count} object(s) of {', '.join(self.models)}, "
                f"{self.nbytes:,} bytes in about {self.nbytes / RATE:.1f} s; "
                f"about {abs(self.more):,} bytes {'more' if self.more >= 0 else 'less'} for them, "
                f"{self.freed:,} bytes of bases free"
            )
        if self.kept:
            lines.append(
                f"kept: {self.kept:,} bytes that only differences rest on; to code those anew would take more "
                "(--recode always does it)"
            )
        return lines


def plan_moves(
    library: Library, models: Sequence[Model], held: Mapping[str, Held], dying: set[str], recode: Recode
) -> Plan:
    """What to code anew so that ``dying``, on which only differences of ``models`` rest, can go."""
    live = set().union(*(m.objects for m in models)) if models else set()
    moving = {d for d in live if d in held and held[d].base in dying}
    if recode == "never" or not moving:
        return Plan(kept=sum(held[d].stored for d in dying))
    units = {u.name: (m, u) for m in models for u in units_of(m.name, m.files)}
    touched = {n for n, (_, u) in units.items() if any(p.object in moving for p in u.tensors.values())}
    bases = _choose(library, units, held, touched, moving | dying)
    moves: dict[str, Move] = {}
    batches: list[tuple[str, list[Move]]] = []
    stuck: set[str] = set()
    for name in in_order(sorted(touched), bases):
        ground = units[bases[name]][1].tensors if name in bases else {}
        batch = []
        for tensor, part in units[name][1].tensors.items():
            if part.object in moving and part.object not in moves:
                try:
                    move = _move(library, part, ground.get(tensor), held, moves, moving | dying)
                except ProofFailed:  # damaged; nett store check says so, and it stays as it is
                    stuck.add(str(held[part.object].base))
                    continue
                moves[part.object] = move
                batch.append(move)
        batches.append((name, batch))
    groups = _groups(held, moves, dying)
    taken: set[str] = set()
    freed = more = kept = 0
    for objects in groups:
        frees = sum(held[d].stored for d in objects if d in dying)
        takes = sum(moves[d].will - held[d].stored for d in objects if d in moves)
        if stuck.isdisjoint(objects) and (recode == "always" or takes < frees):
            taken |= objects
            freed, more = freed + frees, more + round(takes)
        else:
            kept += frees
    done = [(name, tuple(m for m in batch if m.digest in taken)) for name, batch in batches]
    changed = frozenset(name for name, batch in done if batch)
    chosen = {n: b for n, b in bases.items() if n in changed}
    return Plan(tuple(batch for _, batch in done if batch), chosen, changed, freed, more, kept)


def _choose(
    library: Library,
    units: Mapping[str, tuple[Model, Unit]],
    held: Mapping[str, Held],
    touched: set[str],
    off: set[str],
) -> dict[str, str]:
    """Unit -> unit, for the ``touched``: among each other, and units that rest on nothing of ``off``."""
    onto: dict[str, bool] = {}

    def rests(digest: str) -> bool:
        path: list[str] = []
        at: str | None = digest
        while at is not None and at not in onto and at not in off and at in held:
            path.append(at)
            at = held[at].base
        found = at is not None and (at in off or onto.get(at, False))
        onto.update(dict.fromkeys(path, found))
        return found

    free = [
        known(library, model, unit, _depth(held, unit))
        for name, (model, unit) in units.items()
        if name not in touched and not any(rests(p.object) for p in unit.tensors.values())
    ]
    limits = [m.seconds for m, u in units.values() if u.name in touched and m.seconds is not None]
    drafts = [known(library, *units[n]) for n in sorted(touched)]
    try:
        return choose_bases(drafts, free, min(limits, default=None))[0]
    except ProofFailed:  # something is damaged: each by itself
        return {}


def _depth(held: Mapping[str, Held], unit: Unit) -> int:
    return max((held[p.object].depth for p in unit.tensors.values() if p.object in held), default=0)


def _move(
    library: Library, part: Part, base: Part | None, held: Mapping[str, Held], moves: Mapping[str, Move], off: set[str]
) -> Move:
    """How one object is coded anew: on ``base`` if that lies less deep than the object does now, else by itself."""

    def read(at: int, count: int) -> Array:
        return library.objects.read(part.object, at, count)

    content = Content(read, part.nbytes, part.width, True)
    mode, bits = own_mode(content)
    on: str | None = None
    depth = 0
    if base is not None and base.nbytes == part.nbytes and base.object in held:
        planned = moves.get(base.object)
        under = planned.depth if planned else held[base.object].depth
        falls = under < held[part.object].depth and part.object not in closure(held, [base.object])
        if falls and (planned is not None or base.object not in off):
            better = with_base(library, content, base.object, bits)
            if better is not None:
                (mode, bits), on, depth = better, base.object, under + 1
    return Move(part.object, part.nbytes, mode, on, depth, OVERHEAD + part.nbytes * bits / 8)


def _groups(held: Mapping[str, Held], moves: Mapping[str, Move], dying: set[str]) -> list[set[str]]:
    """Dying objects with what rests on them: each group is coded anew as a whole, or stays as it is."""
    parent: dict[str, str] = {}

    def root(one: str) -> str:
        while parent.setdefault(one, one) != one:
            one = parent[one]
        return one

    for digest in (*moves, *dying):
        root(digest)
        base = held[digest].base
        if base in dying and base is not None:
            parent[root(digest)] = root(base)
        if digest in moves and moves[digest].base in moves:
            parent[root(digest)] = root(str(moves[digest].base))
    groups: dict[str, set[str]] = {}
    for one in parent:
        groups.setdefault(root(one), set()).add(one)
    return list(groups.values())


def carry_out(library: Library, models: Sequence[Model], plan: Plan, pool: Pool) -> dict[str, Held]:
    """Do what was planned; returns how the moved objects lie now. Killed in between, every model is whole."""
    found: dict[str, Held] = {}

    def one(move: Move) -> Held:
        base = library.objects.opened(move.base) if move.base is not None else None
        written = write_object(
            library.root, move.digest, move.nbytes, move.mode,
            lambda at, count: library.objects.read(move.digest, at, count), base,
            (lambda at, count: library.objects.read(str(move.base), at, count)) if base is not None else None,
        )  # fmt: skip
        library.objects.forget(move.digest)
        return Held(move.base, base.depth + 1 if base is not None else 0, written.stored)

    report.begin("coding anew", plan.nbytes)
    for batch in plan.moves:
        for move, now in zip(batch, pool.ordered(one, batch), strict=True):
            found[move.digest] = now
            report.step(move.nbytes)
    report.end()
    for model in models:
        mine = {u.name for u in units_of(model.name, model.files)} & plan.units
        if mine:
            library.write(_renamed(model, mine, plan.bases))
    return found


def _renamed(model: Model, units: set[str], bases: Mapping[str, str]) -> Model:
    """The model's record with the bases that its ``units`` have now."""
    before: dict[str, Any] = dict(model.bases) or ({model.name: model.base} if model.base is not None else {})
    now = {u: b for u, b in before.items() if u not in units} | {u: bases[u] for u in sorted(units) if u in bases}
    base = next((model_of(b) for b in now.values() if model_of(b) != model.name), None)
    return replace(model, base=base, bases=now)


def dying_of(held: Mapping[str, Held], gone: set[str], needed: set[str], pinned: set[str]) -> set[str]:
    """Of the objects that could go, those that only differences among ``needed`` keep; not what ``pinned`` rests on."""
    return (closure(held, needed) & gone) - closure(held, pinned)
