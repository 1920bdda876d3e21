"""A planned merge carried out: survey, stream, write, look after, receipt."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nett
from nett.core import receipt as receipts
from nett.core.aftercare import check_config, speak
from nett.core.checkpoint import open_checkpoint
from nett.core.checkpoint.rows import HELD, RowsCheckpoint
from nett.core.checkpoint.writer import byte_size
from nett.core.errors import NettError, ProofFailed
from nett.core.progress import report
from nett.core.runner import Pool, thread_count
from nett.core.sink import Sink
from nett.core.staging import Staging, check_target, file_state, staged, work_key
from nett.merge.beside import side_files_of
from nett.merge.carrier import Carrier, carrier_of
from nett.merge.carrying import plan_carrying
from nett.merge.job import Job
from nett.merge.outputs import Figures, file_plan, finisher, outputs_of, pieces
from nett.merge.record import merge_receipt
from nett.merge.stream import SMALL, Stream

MARK_BYTES = 64 << 20  # how much may have to be done again after a kill
TOKEN_BYTES = 600  # of memory for a token of an input's tokenizer, measured with 450,000 of them


def execute(
    job: Job,
    *,
    out: Path,
    shard_size: str = "5GB",
    threads: int = 0,
    speak_check: bool = True,
    state: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    options: Mapping[str, Any] | None = None,
    reuse: bool = False,
    amend: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Carry a job out. ``options`` is what a rerun must be given beside the parameters; ``reuse``: take what lies at
    ``out`` if it is whole and the outcome of the same work; ``amend`` may add to the receipt before it is written.

    Raises ProofFailed, after writing, if the result fails a check.
    """
    files = file_plan(job, byte_size(shard_size))
    needed = sum(f.nbytes for f in files)
    if reuse and (whole := _finished(out, _key(job, shard_size, _states(job)))) is not None:
        return whole
    check_target(out, needed, overwrite=overwrite, inputs=[f for c in job.checkpoints for f in (c.path, *c.files)])
    carrying = plan_carrying(job, state, out, headers=dry_run) if job.card.carries else None
    if carrying is not None:
        job = carrying.job
        check_target(out, needed + carrying.scratch, overwrite=overwrite)
    key = _key(job, shard_size, carrying.identity if carrying else _states(job))
    figures = plan_figures(job, files_bytes=needed, threads=thread_count(threads))
    if dry_run:
        return {
            "plan": figures,
            "files": [{"path": f.name, "bytes": f.nbytes} for f in files],
            "notes": list(job.notes),
            **({"vocabulary": dict(job.vocabulary)} if job.vocabulary else {}),
        }
    for note in job.notes:
        report.say(note)
    began = time.monotonic()
    with staged(out, key) as staging:
        hashes = receipts.InputHashes([f for c in job.checkpoints for f in c.files])
        with carrier_of(carrying, staging) as carrier:
            outputs, found = _write(job, files, staging, thread_count(threads), carrier)
        outputs += _write_side_files(job, staging)
        report.end()
        receipt = merge_receipt(job, outputs, found, hashes.result(), began, out)
        if carrying and carrying.folder:
            receipt["state"] = carrying.as_record()
        receipt["options"] = dict(options) if options is not None else {"shard_size": shard_size}
        receipt["work"] = key
        _look_after(job, staging, receipt, speak_check)
        receipt["seconds"] = round(time.monotonic() - began, 3)
        if amend is not None:
            amend(receipt)
        staging.write_file(receipts.NAME, receipts.as_bytes(receipt))
        from nett.core.report import receipt_page

        staging.write_file(receipts.PAGE, receipt_page(receipt).render().encode())
        staging.commit()
    if receipt["proof"] == "failed":
        wrong = next(c for c in receipt["checks"] if not c["ok"])
        raise ProofFailed(
            f"was written, but the check '{wrong['name']}' failed: {wrong['detail']}",
            where=out,
            hint=f"See {out / receipts.PAGE}. Do not use this model before you know why.",
        )
    return receipt


def _key(job: Job, shard_size: str, inputs: Any) -> str:
    """A hash of everything that decides what the output will be."""
    return work_key(
        {
            "nett": nett.__version__,
            "method": job.card.key,
            "parameters": job.parameters,
            "recipe": job.recipe,
            "vocabulary": job.vocabulary,
            "shard_size": shard_size,
            "inputs": inputs,
            "tensors": [(t.name, t.dtype.name, t.parameters) for t in job.tasks],
        }
    )


def _states(job: Job) -> list[Any]:
    """What tells that the inputs are still the same files."""
    return [file_state(f) for c in job.checkpoints for f in c.files]


def _finished(out: Path, key: str) -> dict[str, Any] | None:
    """The receipt of what lies at ``out``, if it came of the same work and every file has its hash."""
    try:
        receipt = receipts.read_receipt(out)
    except NettError:
        return None
    kept = receipt.get("work") == key and receipt.get("proof") == "kept"
    return receipt if kept and all(c["ok"] for c in receipts.check_files(out, receipt)) else None


def plan_figures(job: Job, *, files_bytes: int, threads: int) -> dict[str, Any]:
    """What the work will take: bytes read and written, peak memory, from headers alone."""
    largest = max(t.step for t in job.tasks)
    models = len(job.tuned) + 1
    per_thread = largest * 4 * (3 * models + 4)
    decomposing = 0.0
    if job.card.carries:  # one model at a time, and float64 matrices of the shorter side
        per_thread = max(t.step * 4 * 6 + 8 * 8 * min(t.shape, default=1) ** 2 for t in job.tasks)
        sides = [sorted(t.shape) for t in job.tasks if len(t.shape) == 2]
        decomposing = len(job.tuned) * sum(6 * b * a**2 + 20 * a**3 for a, b in sides) / 3e10 / threads
    waiting = SMALL * 4 * 2 * threads
    return {
        "method": job.card.key,
        "models": len(job.tuned),
        "tensors": len(job.tasks),
        "parameters": sum(t.size for t in job.tasks),
        "bytes_read": sum(c.nbytes for c in job.checkpoints),
        "bytes_written": files_bytes,
        # Rough: three readings at memory-cache speed, one writing at that of a slow disk.
        "seconds_estimate": round(
            decomposing + 3 * sum(c.nbytes for c in job.checkpoints) / 1.5e9 + files_bytes / 3e8 + 1, 1
        ),
        "peak_memory_bytes": 150_000_000 + threads * per_thread + waiting + _vocabulary_memory(job),
    }


def _vocabulary_memory(job: Job) -> int:
    """Of a merge of vocabularies: tokenizers while they are brought to one, then tables whose rows are looked up."""
    if job.vocabulary is None:
        return 0
    tables = sum(c.source.tensors[n].nbytes for c in job.checkpoints if isinstance(c, RowsCheckpoint) for n in c.mapped)
    tokens: int = sum(m["tokens"] for m in job.vocabulary["models"])
    return min(HELD, tables) + TOKEN_BYTES * tokens


def _write(
    job: Job, files: Sequence[Any], staging: Staging, threads: int, carrier: Carrier | None
) -> tuple[list[dict[str, Any]], Figures]:
    """Survey and write all tensors, going on from the journal. Returns the output records and the figures."""
    pool = Pool(threads)
    stream = Stream(job, pool, report.step, carrier)
    figures, first, marks = Figures(), 0, None
    for entry in staging.entries:
        if "known" in entry and (carrier is None or carrier.whole):
            stream.model_known = {(level, i): (known, done) for level, i, known, done in entry["known"]}
        if "task" in entry:
            first, marks = entry["task"], entry["files"]
            figures = Figures(**entry["figures"])
    if staging.resumed:
        report.say(f"resuming at tensor {first} of {len(job.tasks)}")
    restore = getattr(importlib.import_module(job.card.module), job.card.restore) if job.card.restore else None

    def journal_known() -> None:
        if carrier is not None:
            carrier.complete()
        staging.record(known=[[level, i, known, done] for (level, i), (known, done) in stream.model_known.items()])
        report.begin("reading again", sum(c.nbytes for c in job.checkpoints))

    sink = Sink(staging.path, files, marks)
    try:
        report.begin("reading", sum(c.nbytes for c in job.checkpoints))
        tensors = stream.survey_model(journal_known)
        if carrier is not None:
            carrier.complete()
        report.begin("merging", sum(f.nbytes for f in files))
        unsynced = 0
        position = first
        for task, index, made in stream.results(tensors, first, finisher(job, restore)):
            figures.add(task.name, made.of_tensor, made.of_models)
            for stem, data in pieces(job, task, made):
                sink.write(stem, data)
                unsynced += data.nbytes
                report.step(data.nbytes)
            if index == task.chunks - 1:
                position += 1
                tensors.pop(task.name, None)
                if unsynced >= MARK_BYTES:
                    staging.record(task=position, files=sink.sync(), figures=vars(figures))
                    unsynced = 0
        written = sink.finish()
        staging.record(task=position, files=sink.sync(), figures=vars(figures))
        for name, content in sink.indexes().items():
            written.append(staging.add_file(name, content))
        return written, figures
    finally:
        sink.close()
        pool.close()


def _write_side_files(job: Job, staging: Staging) -> list[dict[str, Any]]:
    """Config, tokenizer and so on, next to the weights."""
    found, notes = side_files_of(job)
    for note in notes:
        report.say(note)
    return [staging.add_file(name, content) for name, content in found.items()]


def _look_after(job: Job, staging: Staging, receipt: dict[str, Any], speak_check: bool) -> None:
    """Check the written model in its staging folder; the findings go into the receipt."""
    if not any(o.name == "model" for o in outputs_of(job.card)):
        return
    with open_checkpoint(staging.path) as written:
        receipt["checks"] += check_config(written)
    if speak_check:
        report.say("loading the result and its inputs to hear them speak (--no-speak leaves this out)")
        inputs = [c.path for c in job.checkpoints if c.path.is_dir() and c.format == "safetensors"]
        checks, rows = speak(staging.path, inputs)
        receipt["checks"] += checks
        names = ["merged", *(c.name for c in job.checkpoints if c.path in inputs)]
        receipt["quality"] = [
            {"model": n, "text": "built-in", "perplexity": r.get("perplexity"), "says": r.get("says")}
            for n, r in zip(names, rows, strict=False)
        ]
        for check in checks:
            report.say(f"{check['name']}: {check['detail']}")
    receipt["proof"] = "kept" if all(c["ok"] for c in receipt["checks"]) else "failed"
