"""Equal files share their bytes where they lie, so that every loader goes on working."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nett.core.errors import Refused, UsageError
from nett.core.progress import report
from nett.core.registry import method

if TYPE_CHECKING:
    from nett.store.link_plan import Pair, Plan
    from nett.store.link_record import LinkRecord

BATCH = 128  # pairs that are put on disk together


@method(title="Equal files share their bytes", guarantee="exact", grain="stream", command=True)
def link(
    assets: Sequence[str],
    *,
    apply: bool = False,
    reflink: bool = True,
    hardlink: bool = False,
    min_size: str = "1MB",
    receipt: Path | None = None,
    json: bool = False,
) -> dict[str, Any]:
    """Let equal files in folders share their bytes: as reflinks, or where you allow it as hardlinks.

    Args:
        apply: do it; without, only say what would be done.
        reflink: share blocks where the file system can (btrfs, xfs, bcachefs), which no program can tell from a copy.
        hardlink: allow a hardlink where blocks cannot be shared; a hardlinked file edited in place changes under all
            of its names.
        min_size: smallest file that is looked at.
        receipt: folder for the receipt, which nett restore takes; .nett-link in the first folder by default.
        json: the findings as JSON instead of text.
    When to use: downloads of one model by several programs, checkpoints with the same tokenizer and shards, copies.
    When not: inside a Hugging Face hub cache (left alone; it shares files itself); for files that are edited in place.
    Guarantee: exact. Both files are read again and compared byte for byte straight before the act, while the kernel
        watches for writers; at each moment every name leads to all of its bytes.
    Cost: reads the samples of files of equal size, and files whose samples agree once; with --apply both once more.
    Source: no paper; Linux's FIDEDUPERANGE, FICLONE, link and rename.
    """
    from nett.core.checkpoint.writer import byte_size
    from nett.store.link_plan import plan_links
    from nett.store.link_words import as_json, as_lines

    if not assets:
        raise UsageError("name at least one folder", where="store/link", hint="nett store link DIR")
    roots = [Path(a) for a in assets]
    for root in roots:
        if not root.is_dir():
            state = "is not a folder" if root.exists() else "there is no such folder"
            raise Refused(state, where=root, hint="nett store link takes folders.")
    began = time.monotonic()
    place = (roots[0].resolve() / ".nett-link" if receipt is None else Path(receipt)).absolute()
    plan = plan_links(roots, least=byte_size(min_size), reflink=reflink, hardlink=hardlink, but=place, clear=apply)
    command = _command(roots, plan, reflink=reflink, min_size=min_size, receipt=receipt)
    done: list[Pair] = []
    if apply:
        given = {"reflink": reflink, "hardlink": hardlink, "min_size": min_size}
        done = _apply(plan, place, given, command, began)
    told = as_json(plan, done if apply else None, place, command)
    return told if json else told | {"say": as_lines(plan, done if apply else None, place, command)}


def _command(roots: Sequence[Path], plan: Plan, *, reflink: bool, min_size: str, receipt: Path | None) -> str:
    """The command that takes the plan."""
    words = ["nett", "store", "link", *(shlex.quote(os.path.realpath(r)) for r in roots), "--apply"]
    words += ["--no-reflink"] if not reflink else []
    words += ["--hardlink"] if any(p.how == "hardlink" for p in plan.pairs) else []
    words += ["--min-size", min_size] if min_size != "1MB" else []
    words += ["--receipt", shlex.quote(str(receipt.absolute()))] if receipt is not None else []
    return " ".join(words)


def _apply(plan: Plan, place: Path, given: Mapping[str, Any], command: str, began: float) -> list[Pair]:
    """Do what was asked for, a batch at a time: each pair on disk in the journal before its act. Returns what was
    done; what was not is among the plan's refusals.

    Raises Refused if there was something to do and nothing could be done.
    """
    from nett.store.link_plan import NEEDS, SHARED
    from nett.store.link_record import JOURNAL, LinkRecord

    asked = [p for p in plan.pairs if p.asked]
    plan.refused += [(p.copy.path, NEEDS) for p in plan.pairs if not p.asked]
    if not asked:
        if (place / JOURNAL).exists():  # a kill may have come between the last act and the receipt
            with LinkRecord(place) as record:
                if record.stale:
                    record.sign(given, command, seconds=time.monotonic() - began)
        if plan.pairs:
            raise Refused(
                f"{len(plan.pairs):,} of the files {NEEDS}",
                where=plan.pairs[0].copy.path,
                hint=f"Know beforehand: {SHARED}.\n  {command}",
            )
        return []
    if any(p.how == "hardlink" for p in asked):
        report.warn(SHARED)
    done: list[Pair] = []
    on_disk: set[tuple[int, int]] = set()
    with LinkRecord(place) as record:
        record.sign(given, command, seconds=0.0, page=False)  # from now on, what a kill leaves can be restored
        report.begin("linking", sum(p.copy.stat.st_size for p in asked))
        try:
            for at in range(0, len(asked), BATCH):
                done += _batch(asked[at : at + BATCH], plan, record, on_disk)
        finally:
            report.end()
            record.sign(given, command, seconds=time.monotonic() - began)
    if not done:
        path, why = plan.refused[-1]
        raise Refused(f"{why}; nothing was linked", where=path)
    return done


def _batch(batch: Sequence[Pair], plan: Plan, record: LinkRecord, on_disk: set[tuple[int, int]]) -> list[Pair]:
    from nett.core.staging import sync_folder
    from nett.store.acting import act
    from nett.store.handle import NotLinked
    from nett.store.link_record import was_done

    done: list[Pair] = []
    ends: list[tuple[int, str, str | None]] = []
    numbers = record.intend([(p.kept, p.copy, p.how) for p in batch])
    try:
        for number, pair in zip(numbers, batch, strict=True):
            try:
                act(pair, on_disk)
            except NotLinked as why:
                plan.refused.append((pair.copy.path, str(why)))
                some = len(pair.copy.names) > 1 and was_done(record.pairs[number])  # of its names
                ends.append((number, "done" if some else "not", str(why)))
            else:
                done.append(pair)
                ends.append((number, "done", None))
            report.step(pair.copy.stat.st_size)
    finally:
        for folder in sorted({n.folder for p in done for n in p.copy.names}):
            sync_folder(Path(folder))
        record.end(ends)
    return done


def restore(folder: Path, receipt: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Make separate files again of those that share their bytes."""
    from nett.store.separating import separate

    return separate(folder, receipt, **options)


def verify(folder: Path, receipt: Mapping[str, Any], *, rerun: bool = False) -> list[dict[str, Any]]:
    """Whether every file that was linked still has its bytes."""
    from nett.store.link_checks import check_pairs

    return check_pairs(folder)
