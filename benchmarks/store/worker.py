"""One measurement of ours in a fresh process; prints one line of JSON. What is imported and compiled is so before."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import nett
from nett.core.checkpoint import open_checkpoint
from nett.core.checkpoint.whole import read_whole
from nett.core.codec import BLOCK, choose_mode, decode_block, encode_block
from nett.core.tiny import fine_tune_of, write_llama


def codec(file: Path) -> dict[str, float]:
    """Bytes, MB/s in and out of all bytes of a bfloat16 file, from memory to memory, at the second time: the first
    compiles, and memory that a process touches first is slow to come on a virtual machine."""
    raw = np.fromfile(file, np.uint8)
    _codec(raw)
    return _codec(raw)


def _codec(raw: np.ndarray) -> dict[str, float]:
    places = [(at, min(at + BLOCK, raw.size)) for at in range(0, raw.size // 2 * 2, BLOCK)]
    began, cpu = time.perf_counter(), time.process_time()
    mode, _ = choose_mode(raw[raw.size // 4 * 2 :][: 1 << 16], 2)
    coded = [encode_block(raw[first:last], mode) for first, last in places]
    middle, middle_cpu = time.perf_counter(), time.process_time()
    back = np.empty_like(raw)
    for one, (first, last) in zip(coded, places, strict=True):
        decode_block(one, mode, back[first:last])
    ended, ended_cpu = time.perf_counter(), time.process_time()
    if back.tobytes() != raw.tobytes():
        raise SystemExit("the codec does not give back what it was given")
    size = raw.size / 1e6
    return {
        "bytes": sum(c.nbytes for c in coded), "in": size / (middle - began), "out": size / (ended - middle),
        "in_cpu": size / (middle_cpu - cpu), "out_cpu": size / (ended_cpu - middle_cpu),
    }  # fmt: skip


def restore(store: Path, model: str) -> dict[str, float]:
    """GB/s of tensors, wall and CPU, at the second reading."""
    for _ in range(2):
        began, cpu = time.perf_counter(), time.process_time()
        with open_checkpoint(store / model) as checkpoint:
            found = read_whole(checkpoint, decoded=False)
        wall, spent = time.perf_counter() - began, time.process_time() - cpu
        size = sum(a.nbytes for a in found.values()) / 1e9
        del found
    return {"GB/s": size / wall, "GB/s a core": size / spent}


def warm() -> None:
    """Import and compile everything, on models of a few thousand parameters."""
    from nett.store.add import add

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = []
        for dtype in ("BF16", "F32"):
            base = write_llama(root / dtype, hidden=128, inter=512, vocab=512, dtype=dtype)
            names += [str(base), str(fine_tune_of(base, root / f"{dtype}-tuned", seed=1))]
        add(names, into=str(root / "store"))
        for name in names:
            nett.load(root / "store" / Path(name).name)
            nett.load(name)


def stored(store: Path, model: str) -> dict[str, float]:
    warm()
    began = time.perf_counter()
    with open_checkpoint(store / model) as checkpoint:
        found = read_whole(checkpoint, decoded=False)
    return {"s": time.perf_counter() - began, "tensors": len(found)}


def plain(folder: Path) -> dict[str, float]:
    from safetensors.torch import load_file

    began = time.perf_counter()
    found = {n: t.clone() for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
    return {"s": time.perf_counter() - began, "tensors": len(found)}


def load_stored(store: Path, model: str) -> dict[str, float]:
    return load_plain(store / model)


def load_plain(folder: Path) -> dict[str, float]:
    warm()
    began = time.perf_counter()
    found = nett.load(folder)
    return {"s": time.perf_counter() - began, "tensors": len(found)}


if __name__ == "__main__":
    what, path, *rest = sys.argv[1:]
    print(json.dumps(globals()[what](Path(path), *rest)))
