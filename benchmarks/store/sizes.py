"""The bytes of a store against those of the best peer applied to every file, and its differences against entropy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from benchmarks.measure import spend
from benchmarks.store import peers
from benchmarks.store.bed import build, build_pico, kind
from benchmarks.store.entropy import of_differences

from nett.core.bench import Figure, Outcome, Series
from nett.core.errors import NettError
from nett.store.library import Library
from nett.store.objects import object_path

TITLE = "bytes of the store on a bed of real models"
ADD = "nett store add MODEL... --into store"
EACH = ("zipnn", "zstd", "bigsmall")  # the workers that take a file
COMMANDS = {
    "zipnn": "ZipNN(input_format='byte', bytearray_dtype=...), the better of bfloat16 and float32",
    "bigsmall": "bigsmall compress FILE --storage",
    "best peer per file": "the smallest of zipnn, bigsmall, zstd -1, -3, -19 and the file itself",
    "hf-xet": "XetSession().new_upload_commit(endpoint='local://DIR'), all files",
    "git-theta": "git theta add model.bin && git commit, once a model; bytes of .git",
    "entropy of their planes": "benchmarks/store/entropy.py: plain NumPy from the formula",
}
Say = Callable[[str], None]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    skipped = {}
    interpreter = None if pico else peers.python(say)
    assets = os.environ.get("NETT_ASSETS")
    if pico:
        bed = build_pico(work / "bed")
    else:
        assert interpreter is not None
        bed = build(work / "bed", peers.packages_folder(interpreter), Path(assets) if assets else None, say)
        if assets is None:
            skipped["stories260K and merge8"] = "NETT_ASSETS is not set"
    files = {name: sorted(f for f in folder.rglob("*") if f.is_file()) for name, folder in bed.items()}
    plain = {f: f.stat().st_size for many in files.values() for f in many}
    found = measured(plain, interpreter, work, say) if interpreter is not None else {"zstd -3": {}}
    store = work / "store"
    shutil.rmtree(store, ignore_errors=True)
    say("adding to the store")
    taken = spend(["nett", "store", "add", *(str(p) for p in bed.values()), "--into", str(store), "--quiet"], work)
    held, differences = bytes_of(store, list(bed))
    total = sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
    held[next(iter(held))] += total - sum(held.values())  # records, the log: the first model's
    best = {f: min([size, *(one[f] for one in found.values() if f in one)]) for f, size in plain.items()}

    figures = [
        _figure("all of the bed, the best peer of each file", total, sum(best.values()), "best peer per file", bar=1.0,
                note=f"{len(bed)} models, {len(plain)} files, {sum(plain.values()):,} bytes; zstd -19 from parts of large files"),
        *(_figure(f"all of the bed, {peer} on every file", total, whole(plain, sizes), peer)
          for peer, sizes in found.items()),
    ]  # fmt: skip
    if interpreter is not None:
        say("hf-xet")
        kept = peers.ask(interpreter, ["xet", work / "xet", *plain])
        figures.append(_figure("all of the bed, hf-xet's chunk store", total, kept["hf-xet"], "hf-xet"))
        if shutil.which("git-lfs"):
            figures.append(_against_theta(work, bed, interpreter, say))
        else:
            skipped["git-theta"] = "git-lfs, which it stores with, is not installed"
    for one in dict.fromkeys(kind(n) for n in bed):
        of_kind = [n for n in bed if kind(n) == one]
        theirs = sum(best[f] for n in of_kind for f in files[n])
        before = sum(plain[f] for n in of_kind for f in files[n])
        note = f"{before:,} bytes as they are; {', '.join(of_kind)}"
        figures.append(_figure(f"kind: {one}", sum(held[n] for n in of_kind), theirs, "best peer per file", note=note))
    say("entropy of the differences")
    if differences:
        bits = of_differences(store, differences)
        stored = sum(object_path(store, d).stat().st_size for d in differences)
        figures.append(
            _figure(f"{len(differences)} differences, whole objects", stored, bits / 8, "entropy of their planes",
                    bar=1.03, note="order 0, of the byte planes of the integer differences, tensor by tensor")
        )  # fmt: skip
    speed = sum(plain.values()) / 1e6 / taken.wall
    figures.append(Figure("adding, wall", Series("nett", "MB/s", [speed], command=ADD), sense="at least"))
    return Outcome(figures, peers.versions_of(interpreter) if interpreter else {}, skipped)


def _against_theta(work: Path, bed: Mapping[str, Path], interpreter: Path, say: Say) -> Figure:
    """A base and two fine-tunes in float32 (it does not take bfloat16), in a store of their own."""
    say("git-theta")
    names = [n for n in ("fp32", "code-60-fp32", "lora-fp32") if n in bed]
    kept = peers.ask(interpreter, ["theta", work / "theta", *(bed[n] / "model.safetensors" for n in names)])
    store = work / "theta-store"
    shutil.rmtree(store, ignore_errors=True)
    spend(["nett", "store", "add", *(str(bed[n]) for n in names), "--into", str(store), "--quiet"], work)
    total = sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
    shutil.rmtree(store)
    what = "a base and two fine-tunes in float32, git-theta"
    return _figure(what, total, kept["git-theta"], "git-theta", note=f"one commit a model; {', '.join(names)}")


def measured(plain: Mapping[Path, int], interpreter: Path, work: Path, say: Say) -> dict[str, dict[Path, float]]:
    """Peer -> file -> bytes. What was measured before, of the same file, is kept in ``work``."""
    kept = work / "peers.json"
    known: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.is_file() else {}
    found: dict[str, dict[Path, float]] = {}
    for file, size in sorted(plain.items(), key=lambda f: f[1]):
        for worker in EACH:
            if size < 1 << 16 or (worker == "bigsmall" and file.suffix != ".safetensors"):
                continue
            key = f"{worker} {file.relative_to(work)} {size} {file.stat().st_mtime_ns}"
            if key not in known:
                say(f"{worker}: {file.relative_to(work)}, {size:,} bytes")
                try:
                    known[key] = peers.ask(interpreter, [worker, file])
                except NettError as error:  # zipnn 0.5.4 dies in malloc on some torch files
                    say(f"{worker} fails: {error}")
                    known[key] = {}
                kept.write_text(json.dumps(known, indent=1))
            for peer, made in known[key].items():
                found.setdefault(peer, {})[file] = made
    return found


def whole(plain: Mapping[Path, int], sizes: Mapping[Path, float]) -> float:
    """A peer on every file; where it makes nothing smaller, the file stays."""
    return sum(min(size, sizes.get(f, size)) for f, size in plain.items())


def bytes_of(store: Path, names: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """Model -> bytes of the objects that no earlier one has; and the objects that are differences."""
    seen: set[str] = set()
    held: dict[str, int] = {}
    differences = []
    with Library.open(store) as library:
        for name in names:
            fresh = sorted(library.model(name).objects - seen)
            seen.update(fresh)
            held[name] = sum(object_path(store, d).stat().st_size for d in fresh)
            differences += [d for d in fresh if library.objects.opened(d).mode.needs_base]
    return held, differences


def _figure(what: str, ours: float, theirs: float, peer: str, bar: float | None = None, note: str = "") -> Figure:
    other = Series(peer, "bytes", [theirs], command=COMMANDS.get(peer, f"{peer} on every file by itself"))
    return Figure(what, Series("nett", "bytes", [ours], command=ADD), other, bar, note=note)
