"""Tiny caches of every layout, as the programs that keep them write them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nett.core.tiny import fine_tune_of, write_llama
from nett.scan.disk.engine import DiskScan

OLD = time.time() - 7 * 86400
SHAPE = {"layers": 3, "hidden": 128, "vocab": 512, "inter": 256}


def llama(folder: Path, **more: object) -> Path:
    """A Llama whose tensors are large enough for the store to keep apart: 1 MB in bfloat16."""
    return write_llama(folder, **{**SHAPE, **more})  # type: ignore[arg-type]


def tuned(base: Path, folder: Path, seed: int, **more: object) -> Path:
    """All weights moved a little: few signs change, and the difference takes about half of the bytes."""
    return llama(folder, noise_from=base, delta=1e-4, seed=seed, **more)


def sparse_tuned(base: Path, folder: Path, seed: int) -> Path:
    return fine_tune_of(base, folder, seed=seed, density=0.01, size=1e-3)


def aged(path: Path) -> Path:
    os.utime(path, (OLD, OLD))
    return path


def hub_repository(
    cache: Path, name: str, files: Mapping[str, bytes], *, links: bool = True, commit: str = "c0"
) -> Path:
    """``files`` as a download of ``models--NAME``: blobs by their hash, snapshots as symlinks (or copies)."""
    repository = cache / f"models--{name}"
    snapshot = repository / "snapshots" / commit
    for path, data in files.items():
        blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
        there = snapshot / path
        there.parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not links:
            there.write_bytes(data)
            continue
        blob.write_bytes(data)
        there.symlink_to(os.path.relpath(blob, there.parent))
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return repository


def shared_repository(cache: Path, name: str, files: Mapping[str, bytes], commit: str = "c0") -> Path:
    """The newer layout: blobs of a repository are symlinks into the ``blobs`` of the whole cache."""
    repository = hub_repository(cache, name, files, commit=commit)
    for path, data in files.items():
        digest = hashlib.sha256(data).hexdigest()
        payload = cache / "blobs" / digest[:2] / digest
        payload.parent.mkdir(parents=True, exist_ok=True)
        payload.write_bytes(data)
        (payload.parent / f"{digest}.refs").write_text(json.dumps([f"models--{name}/{path}"]))
        blob = repository / "blobs" / digest
        blob.unlink()
        blob.symlink_to(os.path.relpath(payload, blob.parent))
    return repository


def ollama_model(models: Path, name: str, data: bytes, tag: str = "latest") -> Path:
    """A model as Ollama pulls it; returns the blob of its weights."""
    digest = hashlib.sha256(data).hexdigest()
    config = b'{"model_format": "gguf"}'
    blobs = models / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / f"sha256-{digest}").write_bytes(data)
    (blobs / f"sha256-{hashlib.sha256(config).hexdigest()}").write_bytes(config)
    manifest = models / "manifests" / "registry.ollama.ai" / "library" / name / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(data)}
    about = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": len(config),
             "digest": f"sha256:{hashlib.sha256(config).hexdigest()}"}  # fmt: skip
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": about, "layers": [layer]}))
    return blobs / f"sha256-{digest}"


def weights(seed: int = 0) -> bytes:
    """The bytes of a safetensors file of 1.1 MB, unlike those of any other seed."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return (llama(Path(folder), seed=seed) / "model.safetensors").read_bytes()


def gguf(seed: int = 0, size: int = 1 << 20) -> bytes:
    """A GGUF of one tensor of half precision."""
    import tempfile

    from support.scanning import write_gguf

    values = np.random.default_rng(seed).standard_normal(size // 2).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(write_gguf(Path(folder) / "m.gguf", {"w": values}))
        return path.read_bytes()


def of_kind(scan: DiskScan, kind: str) -> dict[str, object]:
    """Target -> edge."""
    return {f.edge.target: f.edge for f in scan.found if f.edge.kind == kind}


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
