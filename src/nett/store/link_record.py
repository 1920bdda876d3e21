"""The receipt of linking: a journal of every pair, written before the act, and ``nett.json`` made from it.

A line of the journal is one of: ``pair``, what is about to be done; ``done``; ``not`` with the reason; ``restored``.
After a kill, a pair without an end is looked at: it was done if the files share their bytes.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

from nett.core import receipt as receipts
from nett.core.cards import find_card
from nett.core.edge import Edge
from nett.core.errors import Refused
from nett.core.staging import append_lines, put_file, whole_lines
from nett.store import sharing
from nett.store.handle import NotLinked, held
from nett.store.tree import File, Name

JOURNAL = "pairs.jsonl"


@final
class LinkRecord:
    """The folder of the receipt, locked; one nett at a time writes to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.pairs: dict[int, dict[str, Any]] = {}  # number -> what the journal says of it, its end under "end"
        self._journal = -1

    def __enter__(self) -> LinkRecord:
        check_place(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._journal = os.open(self.folder / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Refused(
                f"cannot be written: {error.strerror}",
                where=self.folder,
                hint="Choose another folder for the receipt with --receipt DIR.",
            ) from error
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._journal)
            raise Refused("another nett is linking or restoring with this receipt now", where=self.folder) from error
        for left in self.folder.glob(".nett.*"):  # of a receipt that a kill cut short
            left.unlink()
        self.pairs = read_pairs(whole_lines(self._journal))
        self._settle()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        os.close(self._journal)

    @property
    def standing(self) -> dict[int, dict[str, Any]]:
        """Pairs that were done and not restored."""
        return {n: p for n, p in self.pairs.items() if p["end"] == "done"}

    @property
    def stale(self) -> bool:
        """Whether the receipt speaks of another journal: a kill came between."""
        try:
            told = json.loads((self.folder / receipts.NAME).read_bytes())["outputs"][0]["sha256"]
        except (OSError, ValueError, LookupError, TypeError):
            return True
        return bool(told != receipts.open_sha256(self._journal))

    def intend(self, pairs: Sequence[tuple[File, File, str]]) -> list[int]:
        """Write down what is about to be done: (kept, copy, how). Returns the pairs' numbers."""
        first = len(self.pairs)
        time = now()
        entries: list[dict[str, Any]] = [
            {
                "pair": first + i,
                "how": how,
                "sha256": kept.sha256,
                "bytes": kept.stat.st_size,
                "freed": copy.allocated,
                "kept": kept.path,
                "kept_inode": list(kept.key),
                "copies": sharing.named(copy.names),
                "copy_inode": list(copy.key),
                "mode": copy.stat.st_mode & 0o7777,
                "owner": [copy.stat.st_uid, copy.stat.st_gid],
                "mtime_ns": copy.stat.st_mtime_ns,
                "time": time,
            }
            for i, (kept, copy, how) in enumerate(pairs)
        ]
        append_lines(self._journal, *entries)
        self.pairs |= {e["pair"]: e | {"end": None} for e in entries}
        return [e["pair"] for e in entries]

    def end(self, ends: Sequence[tuple[int, str, str | None]]) -> None:
        """How pairs ended: (number, done, not or restored; why not)."""
        time = now()
        append_lines(self._journal, *({end: n, "time": time} | ({"why": why} if why else {}) for n, end, why in ends))
        for number, end, _ in ends:
            self.pairs[number]["end"] = end

    def _settle(self) -> None:
        """End what a kill left open."""
        opened = [(n, p) for n, p in self.pairs.items() if p["end"] is None]
        if not opened:
            return
        sharing.clear({os.path.dirname(c) for _, p in opened for c in p["copies"]})
        self.end([(n, "done" if was_done(p) else "not", None) for n, p in opened])

    def sign(self, parameters: Mapping[str, Any], command: str | None, *, seconds: float, page: bool = True) -> None:
        """Write the receipt, and its page, from the journal as it stands."""
        digest, size = receipts.open_sha256(self._journal), os.fstat(self._journal).st_size
        output = {"path": JOURNAL, "bytes": size, "sha256": digest}
        receipt = receipt_of(self.pairs, output, parameters, command, seconds)
        put_file(self.folder / receipts.NAME, receipts.as_bytes(receipt))
        if page:
            from nett.core.report import receipt_page

            text = receipt_page(receipt).render()
            put_file(self.folder / receipts.PAGE, text.encode(errors="backslashreplace"))


def check_place(folder: Path) -> None:
    """Refuse a folder for the receipt that holds something else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise Refused("is not a folder, so no receipt can lie in it", where=folder)
    inside = set(os.listdir(folder))
    if inside and JOURNAL not in inside:
        raise Refused(
            "holds other things than a receipt of nett store link", where=folder, hint="Name a new folder with --receipt."
        )  # fmt: skip


def read_pairs(lines: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Number -> pair, from the lines of a journal."""
    pairs: dict[int, dict[str, Any]] = {}
    for line in lines:
        if "pair" in line:
            pairs[line["pair"]] = {**line, "end": None}
        for end in ("done", "not", "restored"):
            if line.get(end) in pairs:
                pairs[line[end]]["end"] = end
    return pairs


def receipt_of(
    pairs: Mapping[int, Mapping[str, Any]],
    journal: Mapping[str, Any],
    parameters: Mapping[str, Any],
    command: str | None,
    seconds: float,
) -> dict[str, Any]:
    """The receipt of all pairs that stand."""
    standing = [p for p in pairs.values() if p["end"] == "done"]
    kept = {tuple(p["kept_inode"]): p["bytes"] for p in standing}
    freed = sum(p["freed"] for p in standing)
    edges = [
        Edge("equal_file", p["copies"][0], (p["kept"],), "store/link", p["freed"], 0.0, 0.0, "exact", command)
        for p in standing
    ]
    count = len(standing)
    said = f"{count:,} {'file' if count == 1 else 'files'} compared byte for byte before the act"
    return receipts.new_receipt(
        find_card("store/link"),
        parameters=parameters,
        inputs=[],
        outputs=[journal],
        edges=edges,
        checks=[{"name": "bytes", "ok": True, "detail": said}],
        figures={
            "files_linked": count,
            "hardlinks": sum(p["how"] == "hardlink" for p in standing),
            "reflinks": sum(p["how"] == "reflink" for p in standing),
            "bytes_freed": freed,
            "restored": sum(p["end"] == "restored" for p in pairs.values()),
        },
        seconds=seconds,
        bytes_before=sum(kept.values()) + freed,
        bytes_after=sum(kept.values()),
        restore=True,
    )


def was_done(pair: Mapping[str, Any]) -> bool:
    """Whether a name of the copy shares the bytes of the kept file now."""
    try:
        kept = os.stat(pair["kept"], follow_symlinks=False)
        copies = [os.stat(c, follow_symlinks=False) for c in pair["copies"]]
        if pair["how"] == "hardlink":
            return any(os.path.samestat(kept, c) for c in copies)
        names = [name_of(path) for path in (pair["kept"], pair["copies"][0])]
        with held(names[0]) as one, held(names[1]) as other:
            return sharing.share_blocks(one.fd, other.fd)
    except (OSError, NotLinked):
        return False


def name_of(path: str) -> Name:
    """A path of a journal as it stands now."""
    folder, name = os.path.split(path)
    found = os.stat(folder, follow_symlinks=False)
    return Name(folder, name, (found.st_dev, found.st_ino))


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def journal_of(folder: Path) -> dict[int, dict[str, Any]]:
    """The pairs of a journal that is only looked at."""
    lines = []
    for line in (folder / JOURNAL).read_bytes().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # what a kill left of a last line
            break
    return read_pairs(lines)
