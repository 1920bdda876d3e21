"""Scanning a checkpoint of 1 GB from a cold cache, against reading the file and doing nothing with it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmarks.measure import in_turn, make_cold, read_through, spend
from benchmarks.merge.make_models import USUAL, Size, write_base

from nett.core.bench import Figure, Outcome, Series
from nett.core.checkpoint import OutputFile, TensorSpec, open_checkpoint, shard_plan
from nett.core.dtypes import DTYPES

TITLE = "scanning a checkpoint of 1 GB from a cold cache"
PICO = Size(layers=2, hidden=64, inter=128, heads=4, vocab=512)
PROBES = "header,duplicate_tensors,narrower_dtype"
READ = "read() of the whole file in blocks of 8 MiB"
Say = Callable[[str], None]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    say("making the checkpoints")
    base = write_base(work / "base", PICO if pico else USUAL)
    kinds = {
        "bfloat16": _checkpoint(base, work / "bf16", "BF16", copies=4),
        "float32 whose values fit bfloat16": _checkpoint(base, work / "f32", "F32", copies=2),
    }
    figures = []
    for kind, folder in kinds.items():
        (file,) = folder.glob("*.safetensors")
        size = file.stat().st_size / 1e9
        command = f"nett scan {folder.name} --quiet --only {PROBES}"
        spend(shlex.split(command), work)

        def read(file: Path = file, size: float = size) -> float:
            make_cold([file])
            return size / read_through(file)

        def scanned(file: Path = file, size: float = size, command: str = command) -> float:
            make_cold([file])
            return size / spend(shlex.split(command), work).wall

        times = 1 if pico else 15
        found = in_turn({"read": (times, read), "nett scan": (times, scanned)}, "GB/s", say)
        figures.append(
            Figure(
                f"header, hash and dtype probes, {kind}",
                Series("nett scan", "GB/s", found["nett scan"].runs, found["nett scan"].load, command),
                Series("read bandwidth", "GB/s", found["read"].runs, found["read"].load, READ),
                bar=0.6,
                sense="at least",
                note=f"{size:.2f} GB; every tensor has a twin in type and shape, so every byte is hashed",
            )
        )
    command = f"nett scan {folder.name} --quiet"
    spent = spend(shlex.split(command), work)
    figures += [
        Figure(f"all probes, {kind}, {what}", Series("nett scan", "s", [seconds], command=command))
        for what, seconds in (("wall time", spent.wall), ("CPU time", spent.cpu))
    ]
    return Outcome(figures)


def _checkpoint(base: Path, folder: Path, dtype: str, copies: int) -> Path:
    """Models like ``base`` one after the other in one file, no two tensors of which are equal."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(base) as start:
        tensors = sorted(start.tensors.values(), key=lambda t: t.offset)
        specs = [TensorSpec(f"copy{i}.{t.name}", DTYPES[dtype], t.shape) for i in range(copies) for t in tensors]
        (spec,) = shard_plan(specs, 1 << 62)
        out = OutputFile(folder / spec.name, spec.nbytes)
        out.write(spec.header())
        for i in range(copies):
            for tensor in tensors:
                raw = start.read(tensor.name) ^ np.uint16(i)  # the last bits of the fraction
                out.write(raw if dtype == "BF16" else raw.astype(np.uint32) << np.uint32(16))
        out.sync()
        out.close()
    (folder / "done").touch()
    return folder
