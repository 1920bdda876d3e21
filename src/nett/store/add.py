"""Adding models to a store: each tensor once, fine-tunes as lossless differences to the base that the planner chose."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

from nett.core.errors import Refused, UsageError
from nett.core.registry import Between, method

if TYPE_CHECKING:
    from nett.core.runner import Pool
    from nett.store.draft import Draft
    from nett.store.library import Library
    from nett.store.planning import Known


@method(title="Add models to a store", grain="stream", guarantee="exact", extra="store", command=True)
def add(
    assets: Sequence[str],
    *,
    into: str,
    name: str | None = None,
    max_restore_seconds: Annotated[float | None, Between(0)] = None,
    deltas: bool = True,
    threads: Annotated[int, Between(0, 64)] = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Keep models in a store: every tensor once, and fine-tunes as lossless differences to their base.

    A model is a folder with all its files, or one file; the checkpoints of a run in one folder, or several weight
    files in it, may rest on each other. Bases are found by the tensors' names, sizes and sampled
    bytes among the models of the store and those that are added together; the planner chooses among them.
    What comes back is the same, byte for byte: nett restore STORE/MODEL, nett.load("STORE/MODEL").

    Args:
        into: the store, a folder; made if it is not there.
        name: what the model is called in the store, if not as its folder or file.
        max_restore_seconds: keep only such differences that no model takes longer than this to restore.
        deltas: keep fine-tunes as differences; otherwise every tensor is coded by itself.
        threads: how many threads work; 0 for all that this process may use. What is stored does not depend on it.
        dry_run: say what would be added and what it would take, and write nothing.
    When to use: many models of few families: fine-tunes, checkpoints of one run, the same model in several formats.
    When not: for files that other programs must find where they are; nett store link keeps those in place.
    Guarantee: exact. Every block is decoded again before it is kept, and checked by its crc at every reading; what
        is in the store already is decoded and compared before it is relied on, and written anew if it is damaged.
    Cost: reads every file twice; a difference reads its base from the store.
    Source: Wang et al. 2026, ZipLLM (NSDI 26): equal tensors once, differences to a base found by its bits; here
        the difference is of ordered integers, not XOR, of any type. Bases: Bhattacherjee et al. 2015, Principles of
        dataset versioning (PVLDB 8(12)), problem 6: least storage under a limit on the longest recreation.
    """
    from nett.core.progress import report
    from nett.core.runner import Pool, thread_count
    from nett.store.draft import SKIPPED, Draft
    from nett.store.library import Library
    from nett.store.planning import choose_bases, in_order
    from nett.store.records import checked_name
    from nett.store.stored import stored_units
    from nett.store.units import model_of
    from nett.store.writing import write_lacking

    if not assets:
        raise UsageError("name at least one model", where="store/add", hint="nett store add MODEL --into STORE")
    if name is not None and len(assets) != 1:
        raise UsageError(f"--name names one model, but {len(assets)} were given", where="store/add")
    sources = [Path(a) for a in assets]
    for source in sources:
        if not source.exists():
            raise Refused("there is no such file or folder", where=source)
        if source.resolve().is_relative_to(Path(into).resolve()) or Path(into).resolve().is_relative_to(
            source.resolve()
        ):
            raise Refused("and the store lie one within the other", where=source)
    names = _names(sources, name)
    for one in names:
        checked_name(one)
    root = Path(into)
    exists = (root / "nett.json").is_file()
    library = Library.open(root) if exists else None if dry_run else Library.create(root)
    pool = Pool(thread_count(threads))
    try:
        drafts = [Draft(one, source, source.is_file()) for one, source in zip(names, sources, strict=True)]
        _read(drafts, pool)
        told = [f"{d.name}: {name} is left out" for d in drafts for name in SKIPPED if (d.source / name).exists()]
        added = []
        # What is chosen to rest on must still be there when it is written, so one lock holds for both.
        with library.writing() if library is not None and not dry_run else nullcontext():
            fresh = [d for d in drafts if not _is_there(library, d, told)]
            known = [k for d in fresh for k in _known(d)]
            stored = list(stored_units(library, hops=max_restore_seconds is not None)) if library and deltas else []
            bases, plan = choose_bases(known, stored, max_restore_seconds) if deltas else ({}, None)
            if library is None or dry_run:
                lines = [_would(d, bases) for d in fresh]
                return {"say": [*told, *lines, "Nothing was written (--dry-run)."], "bases": bases}
            report.begin("storing", sum(d.nbytes for d in fresh))
            grounds = {k.name: k.tensors for k in (*stored, *known)}
            waiting = {d.name: Waiting(d, {k.name for k in known if model_of(k.name) == d.name}) for d in fresh}
            for unit in in_order([k.name for k in known], bases):
                at = waiting[model_of(unit)]
                at.written += write_lacking(
                    library, at.draft, grounds[unit], grounds.get(bases.get(unit, ""), {}), pool
                )
                at.units.discard(unit)
                if not at.units:
                    added.append(_finish(library, at, bases, max_restore_seconds, pool))
            added += [_finish(library, w, bases, max_restore_seconds, pool) for w in waiting.values() if not w.done]
        report.end()
        lines = [f"{a['name']}: {a['bytes']:,} bytes, {a['stored']:,} more in the store" + a["why"] for a in added]
        before, after = sum(a["bytes"] for a in added), sum(a["stored"] for a in added)
        if before:
            lines.append(f"{root}: {after:,} bytes for {before:,} ({100 * after / before:.1f} %)")
        if plan is not None and plan.gap > 0:
            lines.append(f"The choice of bases frees at least {100 * (1 - plan.gap):.1f} % of what the best one could.")
        return {"say": told + lines, "models": added, "bound": plan.bound if plan is not None else None}
    finally:
        report.end()
        pool.close()
        if library is not None:
            library.close()


def _names(sources: Sequence[Path], name: str | None) -> list[str]:
    names = [name] if name is not None else [s.resolve().name if s.is_dir() else s.name for s in sources]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two of the models are called {twice!r}", where="store/add", hint="Add them apart, with --name."
        )
    return names


def _read(drafts: Sequence[Draft], pool: Pool) -> None:
    """Every file of every draft, once."""
    from nett.core.progress import report
    from nett.store.draft import files_of, read_file

    todo = [(d, p) for d in drafts for p in files_of(d.source)]
    report.begin("reading", sum(p.stat().st_size for _, p in todo))

    def one(item: tuple[Draft, Path]) -> Any:
        draft, path = item
        return read_file(path, path.name if draft.single else str(path.relative_to(draft.source)))

    for (draft, _), (file, pieces) in zip(todo, pool.ordered(one, todo), strict=True):
        draft.files.append(file)
        draft.pieces = {**pieces, **draft.pieces}
        report.step(file.nbytes)
    for draft in drafts:
        if not draft.files:
            raise Refused("holds no file", where=draft.source)


def _is_there(library: Library | None, draft: Draft, told: list[str]) -> bool:
    """Whether the store has this very model by this name; Refused if it has another by it."""
    if library is None or draft.name not in library.names():
        return False
    held = library.model(draft.name)
    if {(f.path, f.sha256) for f in held.files} == {(f.path, f.sha256) for f in draft.files}:
        if not all(library.objects.is_whole(digest) for digest in held.objects):
            return False  # written again, where it is not whole
        told.append(f"{draft.name}: is in the store already")
        return True
    raise Refused(
        f"holds another model by the name {draft.name!r}",
        where=library.root,
        hint="Add it under another: --name NAME; or take the old one out: nett store remove",
    )


def _known(draft: Draft) -> list[Known]:
    """The units of a draft, as the planner sees them."""
    from nett.store.planning import Known, sampled

    def sample(part: Any) -> Any:
        return sampled(draft.pieces[part.object].read, part.nbytes)

    return [Known(unit.name, unit.tensors, draft.nbytes, sample) for unit in draft.units]


def _would(draft: Draft, bases: Mapping[str, str]) -> str:
    rests = {u.name: bases[u.name] for u in draft.units if u.name in bases}
    how = f"as a difference to {rests[draft.name]}" if draft.name in rests else "by itself"
    if draft.name not in rests and rests:
        how = "; ".join(f"{unit} as a difference to {base}" for unit, base in rests.items())
    return f"would add {draft.name}: {draft.nbytes:,} bytes in {len(draft.files)} file(s), {how}"


@final
@dataclass
class Waiting:
    """A draft of which some units are not written yet."""

    draft: Draft
    units: set[str]
    written: int = 0
    done: bool = False


def _finish(
    library: Library, one: Waiting, bases: Mapping[str, str], seconds: float | None, pool: Pool
) -> dict[str, Any]:
    """Write what is no unit's tensor, then the model."""
    from nett.store.records import Model, Part
    from nett.store.units import model_of
    from nett.store.writing import write_lacking

    draft = one.draft
    done = {part.object for unit in draft.units for part in unit.tensors.values()}
    rest = {d: Part(d, piece.nbytes) for d, piece in draft.pieces.items() if d not in done}
    one.written += write_lacking(library, draft, rest, {}, pool)
    one.done = True
    mine = {u.name: bases[u.name] for u in draft.units if u.name in bases}
    base = next((model_of(b) for b in mine.values() if model_of(b) != draft.name), None)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    source = str(draft.source.resolve())
    library.put(Model(draft.name, now, source, draft.single, base, tuple(draft.files), mine, seconds))
    inside = sum(model_of(b) == draft.name for b in mine.values())
    why = f", as a difference to {base}" if base is not None else ""
    why += f", {inside} of its {len(draft.units)} units as differences to others of them" if inside else ""
    why = why or ("" if one.written else ", nothing in it is new")
    return {"name": draft.name, "bytes": draft.nbytes, "stored": one.written, "base": base, "bases": mine, "why": why}
