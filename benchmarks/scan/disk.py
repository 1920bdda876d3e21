"""A bare scan of 10,000 checkpoints, 1.4 TB by their headers, and its estimate against reading everything."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.measure import make_cold, spend
from benchmarks.scan.make_disk import KINDS, SHAPES, Shape, write_disk

from nett.core.bench import Figure, Outcome, Series
from nett.scan.disk import sample
from nett.scan.disk.engine import run_disk
from nett.scan.disk.sample import Depth

TITLE = "a bare scan of ten thousand checkpoints"
EACH = sum(times for _, times in KINDS)
DENSE = (Shape("dense-bf16", "BF16", 12, 192, 512, 96, 8000), Shape("dense-f32", "F32", 12, 128, 384, 128, 8000))
Say = Callable[[str], None]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    count = EACH if pico else 10_000
    say(f"writing {count:,} checkpoints")
    depth = _made(work / "disk", count, say, shapes=SHAPES[4:5] if pico else SHAPES, dense=False)
    command = "nett scan --disk disk --quiet --json disk.json"
    words = shlex.split(command)
    spend(words, work)  # compiles what numba compiles once
    record = json.loads((work / "disk.json").read_text())
    warm, load = [], []
    for _ in range(1 if pico else 5):
        load.append(os.getloadavg()[0])
        warm.append(spend(words, work))
        say(f"{warm[-1].wall:.1f} s, {warm[-1].cpu:.1f} s of CPU, load {load[-1]:.1f}")
    files = [f for f in (work / "disk").rglob("*") if f.is_file()]
    cold = []
    for _ in range(1 if pico else 3):
        make_cold(files)
        cold.append(spend(words, work))
        say(f"out of the cache: {cold[-1].wall:.1f} s")
    said = (
        f"{record['models']:,} models in {len(record['assets']):,} files, {record['bytes'] / 1e12:.2f} TB nominal, sparse;"
        f" {100 * depth.layers:.0f} % of the layers sampled, {record['families']:,} families of fine-tunes found"
    )
    dense = _dense(work / "dense", say, pico, depth)
    return Outcome(
        [
            Figure("estimate, wall time", _series(command, "s", [s.wall for s in warm], load), bar=10.0, note=said),
            Figure("estimate, CPU time", _series(command, "s", [s.cpu for s in warm])),
            Figure(
                "estimate, wall time, pages out of the cache",
                _series(command, "s", [s.wall for s in cold]),
                note="posix_fadvise(DONTNEED) on every file; names and inodes stay cached",
            ),
            Figure(
                "estimate, anonymous memory",
                _series(command, "MB", [spend(words, work, memory=True).anonymous]),
                note="/proc/PID/status looked at every 2 ms",
            ),
            *dense,
        ]
    )


def _series(command: str, unit: str, runs: Sequence[float], load: Sequence[float] = ()) -> Series:
    return Series("nett scan", unit, runs, load, command)


def _made(folder: Path, count: int, say: Say, *, shapes: tuple[Shape, ...], dense: bool) -> Depth:
    """The bed, kept for the next run that looks at the same places."""
    done = folder.with_suffix(".depth")
    looks = [sample.BUDGET, sample.LEAST, sample.PAGE, *sample.places(1 << 24, 4)]
    if not done.exists() or (known := json.loads(done.read_text()))["looks"] != looks:
        shutil.rmtree(folder, ignore_errors=True)
        depth = write_disk(folder, count, say, shapes=shapes, dense=dense)
        known = {"looks": looks, "depth": [depth.layers, depth.pages]}
        done.write_text(json.dumps(known))
    return Depth(*known["depth"])


def _dense(folder: Path, say: Say, pico: bool, depth: Depth) -> list[Figure]:
    """Two families of the same making, every byte written: the estimate over what ``--exact`` says."""
    say("writing two families whole")
    _made(folder, EACH if pico else 2 * EACH, say, shapes=DENSE[:1] if pico else DENSE, dense=True)
    exact = run_disk([folder], exact=True)
    figures = []
    for what, how in (("as deep as for all 10,000", depth), ("as deep as it goes alone", None)):
        found = run_disk([folder], depth=how)
        ratio = found.free.value / exact.free.value
        say(f"{what}: {found.free.value:,} of {exact.free.value:,}")
        interval = f"{found.free.low / exact.free.value:.3f} to {found.free.high / exact.free.value:.3f}"
        figures.append(
            Figure(
                f"reclaimable bytes of a dense subset, error of the estimate, {what}",
                _series("nett scan --disk dense", "of --exact", [abs(ratio - 1)]),
                bar=0.05,
                note=f"{exact.allocated / 1e6:,.0f} MB in {exact.models} models, {exact.free.value / 1e6:,.0f} MB free;"
                f" the estimate is {ratio:.4f} of it, its interval {interval}",
            )
        )
    return figures
