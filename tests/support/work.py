"""What the forge's children do: merges with small chunks, dying at a chosen step, watched for memory."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STEPS = (
    "pwrite",
    "write",
    "fdatasync",
    "fsync",
    "rename",
    "link",
    "replace",
    "ftruncate",
    "posix_fallocate",
    "unlink",
    "mkdir",
)
SUFFIXES = (".json", ".jsonl", ".safetensors", ".html", ".jinja")


def warm() -> None:
    """Import and compile once what children call: merges of a few numbers in memory, every verb on pico models."""
    import numpy as np

    from nett.core.cards import all_cards
    from nett.core.progress import report
    from nett.core.tiny import fine_tune_of, write_llama
    from nett.merge import engine, restoring  # noqa: F401
    from support.memory import ArraysCheckpoint, merged_in_memory
    from support.tensors import write_tensors

    report.style = "quiet"
    rng = np.random.default_rng(0)
    for dtype in ("F32", "BF16"):
        models = [
            ArraysCheckpoint({"a": rng.normal(size=40).astype(np.float32)}, dtype, name=f"m{i}") for i in range(3)
        ]
        for card in all_cards():
            if card.room == "merge" and card.kind == "reduce" and not card.command and "symmetry" not in card.operands:
                base = models[0] if "base" in card.operands else None
                merged_in_memory(card, base, models[1 : 1 + card.mergekit.get("models", 2)], card.resolve({}))
    with tempfile.TemporaryDirectory() as folder:  # and once through files, receipt and report
        paths = [str(Path(folder) / name) for name in ("base", "m1")]
        for path in paths:
            write_tensors(Path(path) / "model.safetensors", {"a": rng.normal(size=40)})
        merge(method="tall_masks", models=paths[1:], base=paths[0], out=str(Path(folder) / "out"), threads=2)
        restore(folder=str(Path(folder) / "out"), task="m1", out=str(Path(folder) / "back"))
        convert(source=paths[0], out=str(Path(folder) / "converted"), dtype="bf16", threads=2)
        base = write_llama(Path(folder) / "llama", layers=1, hidden=32, vocab=80, inter=48, heads=2, kv_heads=1)
        models = [str(base), str(fine_tune_of(base, Path(folder) / "tuned", seed=1))]
        store = str(Path(folder) / "store")
        store_add(models=models, store=store)
        spoken(words=["restore", f"{store}/tuned", "--out", str(Path(folder) / "restored"), "--quiet"])
        store_remove(model=f"{store}/llama")
        store_gc(store=store, recode="always")
        link(folders=[folder])
        unlink(folder=str(Path(folder) / ".nett-link"))


def small_pieces(chunk: int, small: int, mark: int) -> None:
    """Make the engine cut even tiny models into many chunks, and journal often."""
    from nett.merge import carrier, execution, job, restoring, stream, verifying

    for module in (job, restoring, stream, verifying):
        module.CHUNK = chunk  # type: ignore[attr-defined]
    stream.SMALL = small
    execution.SMALL = small
    execution.MARK_BYTES = carrier.MARK_BYTES = mark


def merge(
    *,
    method: str,
    models: Sequence[str],
    out: str,
    base: str | None = None,
    parameters: dict[str, Any] | None = None,
    state: str | None = None,
    chunk: int = 1 << 17,
    small: int = 16 << 17,
    mark: int = 64 << 20,
    **options: Any,
) -> dict[str, Any]:
    """``nett merge METHOD`` without the speak check."""
    from nett.core.cards import find_card
    from nett.merge import engine

    small_pieces(chunk, small, mark)
    ground = Path(base) if base is not None else None
    card = find_card(f"merge/{method}")
    if state is not None:
        options["state"] = Path(state)
    return engine.run(card, models, parameters or {}, out=Path(out), base=ground, speak=False, **options)


def convert(*, source: str, out: str, chunk: int = 1 << 19, mark: int = 64 << 20, **options: Any) -> dict[str, Any]:
    """``nett convert SOURCE OUT``."""
    import importlib

    from nett.core import conversion

    conversion.CHUNK, conversion.MARK_BYTES = chunk, mark
    done: dict[str, Any] = importlib.import_module("nett.core.convert").convert(source, out, **options)
    return done


def restore(*, folder: str, task: str, out: str, **options: Any) -> dict[str, Any]:
    """``nett restore FOLDER --task TASK``."""
    from nett.core.receipt import read_receipt
    from nett.merge.restoring import restore_task

    return restore_task(Path(folder), read_receipt(Path(folder)), task=task, out=Path(out), **options)


def link(*, folders: Sequence[str], reflinks: bool = False, **options: Any) -> dict[str, Any]:
    """``nett store link FOLDER… --apply``, a few pairs at a time; ``reflinks``: on a file system that plays to have
    them."""
    import importlib

    from nett.core.progress import report
    from nett.store import sharing
    from support.reflinks import FakeReflinks

    report.style = "quiet"
    if reflinks:
        FakeReflinks().install(sharing)
    module = importlib.import_module("nett.store.link")
    module.BATCH = 2  # type: ignore[attr-defined]
    done: dict[str, Any] = module.link(folders, apply=True, hardlink=not reflinks, min_size="1", **options)
    return done


def unlink(*, folder: str) -> dict[str, Any]:
    """``nett restore FOLDER`` of linked files."""
    from nett.core.receipt import read_receipt
    from nett.store import engine

    return engine.restore(Path(folder), read_receipt(Path(folder)))


def store_add(*, models: Sequence[str], store: str) -> None:
    """``nett store add``, on one thread so that its steps come in one order."""
    from nett.store.add import add

    add(models, into=store, threads=1)


def store_gc(*, store: str, recode: str = "smaller") -> None:
    """``nett store gc`` without grace, on one thread."""
    from nett.store.gc import gc

    gc([store], grace=0.0, recode=recode, threads=1)  # type: ignore[arg-type]


def store_remove(*, model: str) -> None:
    """``nett store remove STORE/MODEL``."""
    from nett.store.remove import remove

    remove([model])


def counted(*, call: str, die_at: int = -1, torn: bool = False, **arguments: Any) -> int:
    """Do the work and return how many write steps it took; at step ``die_at`` die like a machine without power.

    ``torn``: a step that writes bytes gets half of them down before the end.
    """
    taken = 0

    def watched(name: str, real: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            if _for_numba():
                return real(*args, **kwargs)
            if taken == die_at:
                if torn and name in ("pwrite", "write"):
                    data = bytes(args[1])
                    real(args[0], data[: len(data) // 2], *args[2:])
                os._exit(77)
            taken += 1
            return real(*args, **kwargs)

        return step

    for name in STEPS:
        setattr(os, name, watched(name, getattr(os, name)))
    globals()[call](**arguments)
    return taken


def kinds(*, call: str, **arguments: Any) -> list[str]:
    """Do the work and return of each of its write steps what it does to what: ``fdatasync .jsonl``, ``fsync folder``."""
    taken: list[str] = []

    def watched(name: str, real: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            if not _for_numba():
                taken.append(f"{name} {_kind_of(args[0])}")
            return real(*args, **kwargs)

        return step

    for name in STEPS:
        setattr(os, name, watched(name, getattr(os, name)))
    globals()[call](**arguments)
    return taken


def _kind_of(first: Any) -> str:
    path = Path(os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first)
    return "folder" if path.is_dir() else path.suffix if path.suffix in SUFFIXES else "file"


def _for_numba() -> bool:
    """Whether numba is saving what it compiled, which it does the first time only."""
    frame = sys._getframe(2)
    while frame is not None:
        if f"{os.sep}numba{os.sep}" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def many_merges(*, jobs: Sequence[dict[str, Any]], done: str) -> None:
    """One merge after the other; the count of finished ones is in the file ``done``."""
    for number, job in enumerate(jobs, start=1):
        merge(**job)
        Path(done).write_text(str(number))


def peak_memory(*, call: str = "merge", **arguments: Any) -> int:
    """Bytes by which the work raised this process's resident set above what it was at the start."""
    import gc

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = _resident("VmRSS")
    globals()[call](**arguments)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def gated_merge(*, gate: str, **arguments: Any) -> None:
    """A merge that stops at its first ``pwrite`` until the file ``gate`` is there."""
    import time

    real = os.pwrite

    def waiting(*given: Any) -> int:
        while not os.path.exists(gate):
            time.sleep(0.002)
        return real(*given)

    os.pwrite = waiting
    merge(**arguments)


def _spoken(words: Sequence[str]) -> tuple[int, str, str]:
    from support.cli import nett

    said = nett(*words)
    return said.code, said.out, said.err


def limited(*, words: Sequence[str], limit: int) -> tuple[int, str, str]:
    """A command line in a process whose files may not grow beyond ``limit`` bytes."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return _spoken(words)


def load_model(*, path: str, warm: str) -> int:
    """Bytes by which loading a model raised the resident set, after a first one that imports everything."""
    import gc

    import nett

    nett.load(warm, as_model=True)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    model = nett.load(path, as_model=True)
    peak = _resident("VmHWM") - before
    assert sum(p.numel() for p in model.parameters())
    return peak


def spoken(*, words: Sequence[str]) -> tuple[int, str, str]:
    """A command line in a process of its own."""
    return _spoken(words)


def few_handles(*, words: Sequence[str], limit: int) -> tuple[int, str, str]:
    """A command line in a process that may hold only so many files open beside those that it has."""
    import resource

    there = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + limit, there + limit))
    return _spoken(words)


def unprivileged(*, words: Sequence[str], modules: Sequence[str] = ()) -> tuple[int, str, str]:
    """A command line as the user ``nobody``, who may not read where these modules are."""
    for module in modules:
        importlib.import_module(module)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    os.chdir("/")
    return _spoken(words)


def cards_as_nobody(*, package: str, cache: str) -> list[str]:
    """The cards of a package, read by a user who may not write there."""
    from nett.core.cards import all_cards

    os.environ["XDG_CACHE_HOME"] = cache
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    return [card.key for card in all_cards(Path(package))]


def scan_memory(*, paths: Sequence[str], threads: int) -> int:
    """Bytes by which a scan with all probes raised this process's resident set above what it was at the start."""
    import gc

    from nett.scan import engine

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    engine.run(list(paths), threads=threads)
    return _resident("VmHWM") - before
