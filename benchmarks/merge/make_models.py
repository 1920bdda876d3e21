"""A base model and fine-tunes of it, of any size, for the benchmarks of the merge room.

    python benchmarks/merge/make_models.py FOLDER [--large] [--tuned N]

Llama folders in bfloat16 that transformers and mergekit load: 12 layers x 768, vocabulary 32 000, untied (134.1 M
parameters, 268 MB a file); ``--large`` 16 layers x 1536 (551 M, 4.1 times as many). A fine-tune moves every weight
by normal noise whose deviation differs from row to row (log-normal), as training moves some neurons far and most
hardly, and is then rounded to bfloat16: a good part of the moves is rounded away, and the rest lies on a coarse grid
with many equal magnitudes, as in published fine-tunes.
"""

from __future__ import annotations

import argparse
import math
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nett.core.checkpoint import OutputFile, TensorSpec, open_checkpoint, shard_plan
from nett.core.dtypes import encode
from nett.core.tiny import write_llama

CHUNK_ROWS = 512
STEP = 1e-3  # median deviation of a move, some hundredths of a weight
SPREAD = 0.5  # deviation of the logarithm of the rows' deviations


@dataclass(frozen=True)
class Size:
    """The shape of a Llama."""

    layers: int
    hidden: int
    inter: int
    heads: int
    vocab: int = 32_000


USUAL = Size(layers=12, hidden=768, inter=2048, heads=12)
LARGE = Size(layers=16, hidden=1536, inter=4096, heads=24)


def write_base(folder: Path, size: Size) -> Path:
    """The base model, if it is not there yet."""
    if not (folder / "done").exists():
        write_llama(
            folder,
            layers=size.layers,
            hidden=size.hidden,
            vocab=size.vocab,
            heads=size.heads,
            kv_heads=size.heads,
            inter=size.inter,
            tied=False,
        )
        (folder / "done").touch()
    return folder


def write_fine_tune(base: Path, folder: Path, seed: int) -> Path:
    """A fine-tune of ``base``, if it is not there yet."""
    if (folder / "done").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(base) as start:
        tensors = sorted(start.tensors.values(), key=lambda t: t.offset)
        (file,) = shard_plan([TensorSpec(t.name, t.dtype, t.shape) for t in tensors], 1 << 62)
        out = OutputFile(folder / file.name, file.nbytes)
        out.write(file.header())
        for tensor in tensors:
            rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(tensor.name.encode())]))
            width = tensor.shape[-1]
            rows = math.prod(tensor.shape) // width
            for first in range(0, rows, CHUNK_ROWS):
                last = min(rows, first + CHUNK_ROWS)
                values = start.values(tensor.name, first * width, last * width)
                deviation = STEP * np.exp(SPREAD * rng.standard_normal((last - first, 1), np.float32))
                moves = rng.standard_normal((last - first, width), np.float32) * deviation.astype(np.float32)
                out.write(encode(values + moves.ravel(), tensor.dtype))
        out.close()
        for other in base.iterdir():
            if other.suffix == ".json":
                shutil.copyfile(other, folder / other.name)
    (folder / "done").touch()
    return folder


def make(folder: Path, size: Size = USUAL, tuned: int = 2) -> tuple[Path, list[Path]]:
    """Base and fine-tunes in ``folder``; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    base = write_base(folder / "base", size)
    return base, [write_fine_tune(base, folder / f"tuned{i}", seed=i) for i in range(1, tuned + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a base model and fine-tunes of it.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--tuned", type=int, default=2)
    given = parser.parse_args()
    base, others = make(given.folder, LARGE if given.large else USUAL, given.tuned)
    for path in (base, *others):
        print(path)


if __name__ == "__main__":
    main()
