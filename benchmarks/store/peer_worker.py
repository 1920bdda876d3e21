"""One peer on one file, in the peers' environment; prints one line of JSON. Needs nothing of nett."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PART = 4 << 20  # bytes that zstd -19 is given; it takes 3 MB/s
PIECES = 16


def zipnn(file: Path) -> dict[str, float]:
    """The smaller of what it makes of the file as bfloat16 and as float32."""
    raw = file.read_bytes()
    return {"zipnn": min(_zipnn(raw, kind)["bytes"] for kind in ("bfloat16", "float32"))}


def _zipnn(raw: bytes, kind: str) -> dict[str, float]:
    from zipnn import ZipNN

    given = bytes(bytearray(raw))  # it changes what it is given
    coder = ZipNN(input_format="byte", bytearray_dtype=kind, threads=1)
    began, cpu = time.perf_counter(), time.process_time()
    coded = coder.compress(given)
    middle, middle_cpu = time.perf_counter(), time.process_time()
    back = coder.decompress(coded)
    ended, ended_cpu = time.perf_counter(), time.process_time()
    if bytes(back) != raw:
        raise SystemExit("zipnn does not give back what it was given")
    size = len(raw) / 1e6
    return {
        "bytes": len(coded), "in": size / (middle - began), "out": size / (ended - middle),
        "in_cpu": size / (middle_cpu - cpu), "out_cpu": size / (ended_cpu - middle_cpu),
    }  # fmt: skip


def zstd(file: Path) -> dict[str, float]:
    """Levels 1 and 3 on the file; 19 on pieces spread over it, scaled up where they are not all of it."""
    raw = file.read_bytes()
    found = {f"zstd -{level}": float(_zstd(raw, level)) for level in (1, 3)}
    step = max(PART // PIECES, len(raw) // PIECES)
    part = raw if len(raw) <= PART else b"".join(raw[i * step :][: PART // PIECES] for i in range(PIECES))
    return found | {"zstd -19": _zstd(part, 19) * len(raw) / max(1, len(part))}


def _zstd(raw: bytes, level: int) -> int:
    import zstandard

    coded = zstandard.ZstdCompressor(level=level).compress(raw)
    if zstandard.ZstdDecompressor().decompress(coded) != raw:
        raise SystemExit("zstd does not give back what it was given")
    return len(coded)


def bigsmall(file: Path) -> dict[str, float]:
    """Its command line; it takes safetensors only."""
    program = Path(sys.executable).parent / "bigsmall"
    with tempfile.TemporaryDirectory(dir=file.parent.parent) as folder:
        made, back = Path(folder) / "made.bs", Path(folder) / "back.safetensors"
        subprocess.run([program, "compress", file, "-o", made, "--storage", "--no-progress"], check=True, stdout=2)
        subprocess.run([program, "decompress", made, "-o", back], check=True, stdout=2)
        return {"bigsmall": made.stat().st_size}


def xet(store: Path, files: list[Path]) -> dict[str, float]:
    """Bytes of a local chunk store, beginning empty, that holds all the files."""
    import hf_xet

    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    session = hf_xet.XetSession()
    with session.new_upload_commit(endpoint=f"local://{store}") as commit:
        for file in files:
            commit.start_upload_file(str(file)).result()
    kept = sum(f.stat().st_size for f in store.rglob("*") if f.is_file())
    shutil.rmtree(store)
    return {"hf-xet": kept}


def theta(folder: Path, files: list[Path]) -> dict[str, float]:
    """Bytes of a repository in which the files are successive commits of one torch file."""
    import torch
    from safetensors.torch import load_file

    shutil.rmtree(folder, ignore_errors=True)
    repository = folder / "repository"
    repository.mkdir(parents=True)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def git(*words: str) -> None:
        named = {"HOME": str(folder), "PATH": path, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c",
                 "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.c"}  # fmt: skip
        done = subprocess.run(["git", *words], cwd=repository, env=os.environ | named, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"git {' '.join(words)}: {done.stderr[-400:]}")

    for words in (["init"], ["lfs", "install"], ["theta", "install"], ["theta", "track", "model.bin"]):
        git(*words)
    for file in files:
        torch.save(load_file(file), repository / "model.bin")
        git("theta", "add", "model.bin")
        git("commit", "-m", "next")
    kept = sum(f.stat().st_size for f in (repository / ".git").rglob("*") if f.is_file())
    shutil.rmtree(folder)
    return {"git-theta": kept}


def speed(file: Path) -> dict[str, float]:
    """zipnn on one thread: bytes, MB/s in and out, from memory to memory, at the second time."""
    raw = file.read_bytes()
    _zipnn(raw, "bfloat16")
    return _zipnn(raw, "bfloat16")


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    paths = [Path(g) for g in given]
    work = globals()[what]
    found = work(paths[0], paths[1:]) if what in ("xet", "theta") else work(paths[0])
    print(json.dumps(found))
