"""How fast the store codes, decodes and loads: against zipnn, against the bars, against plain safetensors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import in_turn, make_cold, spend
from benchmarks.store import peers
from benchmarks.store.bed import build, build_pico

from nett.core.bench import Figure, Outcome, Series
from nett.core.errors import NettError
from nett.store.library import Library
from nett.store.objects import object_path

TITLE = "speed of the store's codec, of restoring into memory and of loading"
WORKER = Path(__file__).resolve().parent / "worker.py"
# Of ordinary weights, and of weights on a quantisation grid (this bed's base was dequantised), each in its own store:
# model -> what it is there, and GB/s at least.
ORDINARY = {
    "code-60": ("plain bfloat16", 1.0), "prose-96": ("difference, bfloat16", 0.6),
    "code-60-fp32": ("plain float32", 1.0), "lora-fp32": ("difference, float32", 0.6),
}  # fmt: skip
ON_GRID = {
    "bf16": ("bfloat16 on a grid", 1.0), "code-60": ("difference to one on a grid, bfloat16", 0.6),
    "fp32": ("float32 on a grid", 1.0), "code-60-fp32": ("difference to one on a grid, float32", 0.6),
}  # fmt: skip
Say = Callable[[str], None]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    interpreter = None if pico else peers.python(say)
    assets = os.environ.get("NETT_ASSETS")
    if interpreter is not None:
        bed = build(work / "bed", peers.packages_folder(interpreter), Path(assets) if assets else None, say)
    else:
        bed = build_pico(work / "bed")
    times = 1 if pico else 9
    figures = []
    if interpreter is not None:
        figures += _against_zipnn(bed["code-60"] / "model.safetensors", interpreter, times, say)
    stores = {}
    for name, models in (("ordinary", ORDINARY), ("on-grid", ON_GRID)):
        store = stores[name] = work / f"{name}-store"
        shutil.rmtree(store, ignore_errors=True)
        say(f"adding to a store, {name}")
        for model in models:  # one after the other: the first is the base
            if model in bed:
                spend(["nett", "store", "add", str(bed[model]), "--into", str(store), "--quiet"], work)
        for model in models:
            if model in bed:
                figures += _restored(store, model, *models[model], times, say)
    for name, models in (("ordinary", ORDINARY), ("on-grid", ON_GRID)):
        for model in models:
            if model in bed:
                figures += _loaded(stores[name], bed[model], models[model][0], 1 if pico else 5, say)
    skipped = {} if interpreter else {"zipnn": "pico"}
    return Outcome(figures, peers.versions_of(interpreter) if interpreter else {}, skipped)


def ask(*words: str | Path) -> dict[str, float]:
    """What our worker says, as JSON."""
    done = subprocess.run([sys.executable, WORKER, *words], capture_output=True, text=True)
    if done.returncode:
        raise NettError(f"{' '.join(map(str, words))} failed: {done.stderr[-600:]}", where=WORKER)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _against_zipnn(file: Path, interpreter: Path, times: int, say: Say) -> list[Figure]:
    """Each run is a process that codes the file and decodes it again, from memory to memory, on one thread."""
    found: dict[str, list[dict[str, float]]] = {"nett": [], "zipnn": []}

    def one(name: str, ask_it: Callable[[], dict[str, float]]) -> float:
        found[name].append(ask_it())
        return found[name][-1]["in"]

    series = in_turn(
        {
            "zipnn": (times, lambda: one("zipnn", lambda: peers.ask(interpreter, ["speed", file]))),
            "nett": (times, lambda: one("nett", lambda: ask("codec", file))),
        },
        "MB/s in",
        say,
    )
    commands = {"nett": "encode_block and decode_block, 1 thread", "zipnn": "ZipNN(threads=1)"}

    def of(name: str, key: str, unit: str) -> Series:
        return Series(name, unit, [one[key] for one in found[name]], series[name].load, commands[name])

    note = "from memory to memory, the second time in a process; sums, choice of coders and allocation included"
    figures = [
        Figure("ordinary bfloat16 file, size", of("nett", "bytes", "bytes"), of("zipnn", "bytes", "bytes"), bar=1.01)
    ]
    for key, unit, kind in (("in", "MB/s", "wall"), ("out", "MB/s", "wall"), ("in_cpu", "MB/s", "CPU"),
                            ("out_cpu", "MB/s", "CPU")):  # fmt: skip
        what = f"ordinary bfloat16 file, {key.removesuffix('_cpu')}, one thread, {kind} time"
        bar = 1.0 if kind == "wall" else None
        figures.append(Figure(what, of("nett", key, unit), of("zipnn", key, unit), bar, sense="at least", note=note))
    return figures


def _restored(store: Path, model: str, words: str, bar: float, times: int, say: Say) -> list[Figure]:
    """Every tensor decoded into memory from a warm page cache, on all cores."""
    found: list[dict[str, float]] = []

    def one() -> float:
        found.append(ask("restore", store, model))
        return found[-1]["GB/s"]

    series = in_turn({model: (times, one)}, "GB/s", say)[model]
    command = "every tensor of open_checkpoint('store/MODEL'), files in the page cache"
    wall = Series("nett", "GB/s", series.runs, series.load, command)
    each = Series("nett", "GB/s a core", [f["GB/s a core"] for f in found], series.load, command)
    what = f"restored into memory, {words}"
    return [
        Figure(f"{what}, {os.cpu_count()} cores", wall, bar=bar, sense="at least",
               note="after a first reading in the same process, which compiles and warms"),
        Figure(f"{what}, by CPU time", each, sense="at least"),
    ]  # fmt: skip


def _loaded(store: Path, plain: Path, words: str, times: int, say: Say) -> list[Figure]:
    """Both cold. Libraries are imported and compiled on another model before the clock starts."""
    model = plain.name
    with Library.open(store) as library:
        needed = set(library.model(model).objects)
        for digest in list(needed):
            needed |= {held.digest for held in library.objects.chain(digest)}
    stored = [object_path(store, d) for d in needed]
    files = sorted(plain.glob("*.safetensors"))

    def ours(what: str) -> Callable[[], float]:
        def measure() -> float:
            make_cold([*stored, store / "models" / f"{model}.json"])
            return ask(what, store, model)["s"]

        return measure

    def theirs(what: str) -> Callable[[], float]:
        def measure() -> float:
            make_cold(files)
            return ask(what, plain)["s"]

        return measure

    command = {
        "nett": "every tensor of open_checkpoint('store/MODEL')",
        "safetensors": "safetensors.torch.load_file, every tensor cloned, so that every byte was read",
        "nett.load, store": "nett.load('store/MODEL')", "nett.load, file": "nett.load('MODEL')",
    }  # fmt: skip
    measures = {"safetensors": (times, theirs("plain")), "nett": (times, ours("stored"))}
    if words in ("plain bfloat16", "difference, bfloat16"):
        measures |= {
            "nett.load, file": (times, theirs("load_plain")),
            "nett.load, store": (times, ours("load_stored")),
        }
    found = in_turn(measures, "s", say)

    def of(name: str) -> Series:
        return Series(name, "s", found[name].runs, found[name].load, command[name])

    size = sum(f.stat().st_size for f in files)
    less = sum(f.stat().st_size for f in stored)
    note = f"both cold by posix_fadvise DONTNEED; {size:,} bytes as a file, {less:,} in the store with its bases"
    figures = [Figure(f"loaded from the store, cold, {words}", of("nett"), of("safetensors"), bar=1.5, note=note)]
    if "nett.load, store" in found:
        what = f"nett.load in float32, cold, {words}"
        figures.append(Figure(what, of("nett.load, store"), of("nett.load, file"), note=note))
    return figures
