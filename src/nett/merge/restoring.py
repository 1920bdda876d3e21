"""Rebuilding one task of an output that holds several: base, stored arrays and the task's own bits, streamed."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

import nett
from nett.core import receipt as receipts
from nett.core.cards import find_card
from nett.core.checkpoint import Checkpoint, TensorSpec, open_checkpoint, shard_plan
from nett.core.checkpoint.safetensors import SafetensorsCheckpoint
from nett.core.checkpoint.writer import byte_size
from nett.core.dtypes import Array, Dtype, encode
from nett.core.edge import Edge
from nett.core.errors import ProofFailed, Refused, UsageError, did_you_mean
from nett.core.progress import report
from nett.core.registry import Card
from nett.core.runner import Pool, thread_count
from nett.core.sidefiles import model_files, side_files
from nett.core.sink import Sink, stem_of
from nett.core.staging import check_target, file_state, staged, work_key
from nett.merge.job import CHUNK
from nett.merge.outputs import Output, outputs_of


@final
class Parts:
    """The arrays of one task, opened: base, and the outputs that the card's ``restore`` function takes."""

    def __init__(self, folder: Path, receipt: Mapping[str, Any], task: str, base: Path | None) -> None:
        self.card: Card = find_card(f"{receipt['room']}/{receipt['method']}")
        if self.card.restore is None:
            sources = ", ".join(i["path"] for i in receipt["inputs"])
            raise Refused(
                f"was made by {self.card.key}, which cannot be undone",
                where=folder,
                hint=f"Its inputs were: {sources}",
            )
        self.rebuild: Callable[..., Any] = getattr(importlib.import_module(self.card.module), self.card.restore)
        self.base = open_base(receipt, base)
        self._stored: dict[str, tuple[Output, SafetensorsCheckpoint]] = {}
        for output in outputs_of(self.card):
            stem = output.stem(task)
            files = [
                folder / o["path"]
                for o in receipt["outputs"]
                if o["path"].endswith(".safetensors") and stem_of(o["path"]) == stem
            ]
            if not files:
                raise ProofFailed(f"names no file for {stem!r}", where=folder / receipts.NAME)
            self._stored[output.name] = (output, SafetensorsCheckpoint(folder, files))
        used = {f for _, stored in self._stored.values() for f in stored.files}
        own = f"tasks/{task}/"
        self.expected: dict[Path, str] = {
            folder / o["path"]: o["sha256"]
            for o in receipt["outputs"]
            if folder / o["path"] in used or o["path"].startswith(own)
        }

    def check_base(self) -> None:
        """ProofFailed where the base's tensors are not those that the stored arrays were made for."""
        for info in self.base.tensors.values():
            for output, stored in self._stored.values():
                size = -(-info.size // 8) if output.bits else info.size
                held = stored.tensors.get(info.name)
                if info.dtype.is_float and (held is None or held.size != size):
                    raise ProofFailed(
                        f"is not the base that the receipt was made with: {info.name!r} does not fit",
                        where=self.base.path,
                    )

    def dtype(self, name: str) -> Dtype:
        """The element type in which a tensor is rebuilt: that of the stored vector."""
        for output, stored in self._stored.values():
            if not output.bits and name in stored.tensors:
                return stored.tensors[name].dtype
        return self.base.tensors[name].dtype

    def raw(self, name: str, start: int, stop: int) -> Array:
        """Elements ``start:stop`` of a rebuilt tensor, encoded. ``start`` is a multiple of eight."""
        if not any(name in stored.tensors for _, stored in self._stored.values()):
            return self.base.read(name, start, stop)
        given: dict[str, Array] = {}
        for key, (output, stored) in self._stored.items():
            if output.bits:
                packed = stored.read(name, start // 8, -(-stop // 8))
                given[key] = np.unpackbits(packed, count=stop - start, bitorder="little").astype(bool)
            else:
                given[key] = stored.values(name, start, stop)
        return encode(np.asarray(self.rebuild(self.base.values(name, start, stop), **given)), self.dtype(name))

    def close(self) -> None:
        for checkpoint in (self.base, *(stored for _, stored in self._stored.values())):
            checkpoint.close()


def open_base(receipt: Mapping[str, Any], base: Path | None) -> Checkpoint:
    """The base that the receipt names, or the one given instead; its hash is checked by the caller."""
    recorded = next((i for i in receipt["inputs"] if i["role"] == "base"), None)
    if recorded is None:
        raise Refused("names no base, so nothing can be rebuilt from it", where=receipts.NAME)
    path = base if base is not None else Path(recorded["path"])
    if not path.exists():
        raise Refused("the base lies there no more", where=path, hint="Say where it is now: --base PATH")
    return open_checkpoint(path, dense=True)


def task_names(receipt: Mapping[str, Any]) -> list[str]:
    return [t["name"] for t in receipt.get("tasks") or []]


def restore_task(
    folder: Path,
    receipt: Mapping[str, Any],
    *,
    task: str | None = None,
    out: Path | None = None,
    base: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int = 0,
) -> dict[str, Any]:
    """Write the checkpoint of one task to ``out``. Approximate: what is said states the distance."""
    names = task_names(receipt)
    card = find_card(f"{receipt['room']}/{receipt['method']}")
    if card.restore is not None and task not in names:
        what = f"holds no task {task!r}.{did_you_mean(task, names)}" if task else "holds several tasks; name one"
        raise UsageError(what, where=folder, hint=f"--task {' | '.join(names)}")
    parts = Parts(folder, receipt, task or "", base)
    try:
        return _write(parts, folder, receipt, str(task), out, overwrite, dry_run, thread_count(threads))
    finally:
        parts.close()


def _write(
    parts: Parts,
    folder: Path,
    receipt: Mapping[str, Any],
    task: str,
    out: Path | None,
    overwrite: bool,
    dry_run: bool,
    threads: int,
) -> dict[str, Any]:
    began = time.monotonic()
    out = out if out is not None else folder.parent / f"{folder.name}-{task}"
    parts.check_base()
    infos = sorted(parts.base.tensors.values(), key=lambda t: t.name)
    specs = [TensorSpec(t.name, parts.dtype(t.name), t.shape) for t in infos]
    files = shard_plan(specs, byte_size("5GB"))
    check_target(out, sum(f.nbytes for f in files), overwrite=overwrite, inputs=[folder, *parts.base.files])
    row = next(t for t in receipt["tasks"] if t["name"] == task)
    error = f"relative L2 distance to the original fine-tune {row['relative_l2']:.4g}"
    if dry_run:
        return {"say": [f"would write {sum(f.nbytes for f in files):,} bytes to {out}; {error}"]}
    key = work_key({"nett": nett.__version__, "restore": task, "receipt": file_state(folder / receipts.NAME)})
    hashes = receipts.InputHashes([*parts.base.files, *parts.expected])
    pool = Pool(threads)
    ranges: Iterator[tuple[TensorSpec, int, int]] = (
        (spec, start, min(info.size, start + 4 * CHUNK))
        for spec, info in zip(specs, infos, strict=True)
        for start in range(0, info.size, 4 * CHUNK)
    )
    with staged(out, key) as staging:
        sink = Sink(staging.path, files)
        try:
            report.begin("rebuilding", sum(f.nbytes for f in files))
            for data in pool.ordered(lambda r: parts.raw(r[0].name, r[1], r[2]), ranges):
                sink.write("model", data)
                report.step(data.nbytes)
            outputs = sink.finish()
        finally:
            sink.close()
            pool.close()
            report.end()
        found = hashes.result()
        recorded = next(i for i in receipt["inputs"] if i["role"] == "base")
        if [f["sha256"] for f in recorded["files"]] != [found[f] for f in parts.base.files]:
            raise ProofFailed("is not the base that the receipt was made with: its hash differs", where=parts.base.path)
        for path, digest in parts.expected.items():
            if found[path] != digest:
                raise ProofFailed("does not hold what the receipt says: it was changed since", where=path)
        for name, content in _side_files(folder, parts.base, task).items():
            staging.write_file(name, content)
            outputs.append(_record(staging.path / name, name))
        for name, content in sink.indexes().items():
            staging.write_file(name, content)
            outputs.append(_record(staging.path / name, name))
        inputs = [receipts.input_record(parts.base, "base", found)]
        inputs.append(_input(folder, receipt, found, parts.expected))
        seconds = time.monotonic() - began
        sources = tuple(i["path"] for i in inputs)
        edge = Edge("restored_task", str(out.absolute()), sources, parts.card.key, 0, round(seconds, 3),
                    row["relative_l2"], "measured")  # fmt: skip
        made = receipts.new_receipt(
            parts.card, parameters=receipt["parameters"], inputs=inputs, outputs=outputs, edges=[edge],
            checks=[{"name": "base", "ok": True, "detail": "sha256 equal to the receipt's"}],
            figures={"relative_l2": row["relative_l2"]}, seconds=seconds, restored_task=task,
        )  # fmt: skip
        from nett.core.report import receipt_page

        staging.write_file(receipts.NAME, receipts.as_bytes(made))
        staging.write_file(receipts.PAGE, receipt_page(made).render().encode())
        staging.commit()
    return {
        "say": [
            f"{out}: the task {task}, {made['bytes_after']:,} bytes",
            f"This is an approximate reconstruction: {error}.",
        ],
        "out": str(out),
        "receipt": made,
    }


def _input(
    folder: Path, receipt: Mapping[str, Any], hashes: Mapping[Path, str], used: Iterable[Path]
) -> dict[str, Any]:
    """How the receipt of a rebuilt task speaks of the output that it came from: the files that were read of it."""
    files = [{"path": str(f.resolve()), "bytes": f.stat().st_size, "sha256": hashes[f]} for f in used]
    return {
        "name": folder.name,
        "role": "multi_task",
        "path": str(folder.resolve()),
        "format": "nett",
        "bytes": receipt["bytes_after"],
        "files": files,
    }


def _side_files(folder: Path, base: Checkpoint, task: str) -> dict[str, bytes]:
    """The base's config and tokenizer, over them what the task had of its own."""
    found = model_files(base)[0]
    own = folder / "tasks" / task
    return found | (side_files(own) if own.is_dir() else {})


def _record(file: Path, name: str) -> dict[str, Any]:
    return {"path": name, "bytes": file.stat().st_size, "sha256": receipts.file_sha256(file)}
