"""``nett convert``: any checkpoint that nett reads as safetensors, in other files, another type, or both.

Nothing is lost where no value changes: other shards, another container, a wider type. Where a type is narrower, each
value is rounded to the nearest, the bound of that is known beforehand, and what it came to is measured on the way.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, final

import nett
from nett.core import receipt as receipts
from nett.core.aftercare import check_config
from nett.core.casting import Loss
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.checkpoint.writer import byte_size
from nett.core.conversion import CHUNK, Conversion, compare, plan, write
from nett.core.dtypes import dtype_named
from nett.core.edge import Edge, Guarantee
from nett.core.errors import NettError, ProofFailed, Refused, UsageError
from nett.core.progress import report
from nett.core.runner import thread_count
from nett.core.sidefiles import model_files, with_dtype
from nett.core.staging import Staging, check_target, file_state, staged, work_key

SHARD = "5GB"
Check = dict[str, Any]


@final
@dataclass(frozen=True)
class Verb:
    """Who signs the receipt."""

    guarantee: Guarantee
    room: str = receipts.HOUSE
    name: str = "convert"
    title: str = "Conversion of a checkpoint"
    papers: tuple[str, ...] = ()


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    shard_size: str | None = None,
    threads: int = 0,
    overwrite: bool = False,
    dry_run: bool = False,
    base: str | Path | None = None,
) -> dict[str, Any]:
    """Write the checkpoint ``source`` as safetensors to ``out``. Returns the receipt.

    Args:
        source: whatever :func:`open_checkpoint` opens, ``BASE+ADAPTER`` too.
        out: a folder in Hugging Face's layout, with config and tokenizer; or FILE.safetensors, weights only, with the
            receipt beside it as FILE.nett.json. Appears when it is whole.
        dtype: element type of all floats; each tensor's own by default (float32 for quantised GGUF tensors).
        shard_size: largest size of a file in a folder; 5GB by default.
        threads: how many threads work; 0 for all that this process may use. The result does not depend on it.
        overwrite: replace ``out`` if it exists.
        dry_run: say what would be done and what it would take, and do nothing.
        base: what an adapter is applied to.
    """
    out = Path(out)
    single = _is_file(out)
    if single and shard_size is not None:
        raise UsageError(f"{out} is one file, so there are no shards", hint="Leave out --shard-size, or name a folder.")
    kind, shard_bytes = dtype_named(dtype) if dtype is not None else None, byte_size(shard_size or SHARD)
    with open_checkpoint(source, base=base) as opened:
        job = plan(opened, kind, shard_bytes, out.name if single else None)
        needed = sum(f.nbytes for f in job.files)
        check_target(out, needed, overwrite=overwrite, inputs=[opened.path, *opened.files], file=single)
        if dry_run:
            return _said_beforehand(job, needed, thread_count(threads))
        options = {"dtype": dtype} if dtype is not None else {}
        options |= {} if single else {"shard_size": shard_size or SHARD}
        return _execute(job, out, single, options, thread_count(threads))


def _is_file(out: Path) -> bool:
    if out.suffix == ".safetensors":
        return True
    if out.suffix in (".gguf", ".bin", ".pt", ".pth", ".ckpt"):
        raise UsageError(
            f"nett writes safetensors, not {out.suffix} files", where=out, hint="Name a folder, or FILE.safetensors."
        )
    return False


def _said_beforehand(job: Conversion, needed: int, threads: int) -> dict[str, Any]:
    whole = job.source.nbytes if job.source.format == "pickle" else 0  # older torch files are read at once
    figures = {
        "tensors": len(job.casts),
        "parameters": sum(job.source.tensors[c.name].size for c in job.casts),
        "bytes_read": job.source.nbytes,
        "bytes_written": needed,
        "guarantee": "exact" if job.lossless else "bounded",
        "seconds_estimate": round(job.source.nbytes / 1e9 + needed / 3e8 + 1, 1),
        "peak_memory_bytes": 150_000_000 + threads * 3 * 24 * CHUNK + whole,
    }
    files = [{"path": f.name, "bytes": f.nbytes} for f in job.files]
    return {"plan": figures, "files": files, "notes": list(job.notes)}


def _execute(job: Conversion, out: Path, single: bool, options: Mapping[str, Any], threads: int) -> dict[str, Any]:
    source = job.source
    key = work_key(
        {
            "nett": nett.__version__,
            "method": "convert",
            "options": options,
            "inputs": [file_state(f) for f in source.files],
            "tensors": [(c.name, c.dtype.name) for c in job.casts],
        }
    )
    began = time.monotonic()
    with staged(out, key) as staging:
        hashes = receipts.InputHashes(source.files)
        outputs, losses = write(job, staging, threads)
        notes = list(job.notes)
        if single:
            if source.config() is not None:
                notes.append("one file holds weights only: no config.json and no tokenizer were written")
        else:
            records, more = _write_side_files(job, staging)
            outputs, notes = outputs + records, notes + more
        for note in notes:
            report.say(note)
        receipt = _receipt(job, outputs, losses, hashes.result(), options, began, out)
        checks, warnings = _look_after(job, losses, staging.path / out.name if single else staging.path)
        receipt |= {"notes": notes, "warnings": warnings}
        receipt["checks"] += checks
        receipt["proof"] = "kept" if all(c["ok"] for c in receipt["checks"]) else "failed"
        receipt["seconds"] = round(time.monotonic() - began, 3)
        for warning in warnings:
            report.warn(warning)
        _sign(receipt, staging, out, single)
    if receipt["proof"] == "failed":
        wrong = next(c for c in receipt["checks"] if not c["ok"])
        raise ProofFailed(f"was written, but the check '{wrong['name']}' failed: {wrong['detail']}", where=out)
    return receipt


def _write_side_files(job: Conversion, staging: Staging) -> tuple[list[dict[str, Any]], list[str]]:
    """Config and tokenizer. The config names the type of the weights where the source's does not or where it changed:
    transformers loads in that type, so it has to hold every tensor's values."""
    found, notes = model_files(job.source)
    if "config.json" in found and (job.retyped or job.source.format == "gguf"):
        found["config.json"] = with_dtype(found["config.json"], job.widest)
    return [staging.add_file(name, content) for name, content in found.items()], notes


def _sign(receipt: Mapping[str, Any], staging: Staging, out: Path, single: bool) -> None:
    from nett.core.report import receipt_page

    name = receipts.receipt_path(out).name if single else receipts.NAME
    page = out.with_suffix(".nett.html").name if single else receipts.PAGE
    staging.write_file(name, receipts.as_bytes(receipt))
    staging.write_file(page, receipt_page(receipt, out.name if single else ".").render().encode())
    if single:
        staging.commit_file()
    else:
        staging.commit()


def _look_after(job: Conversion, losses: Mapping[str, Loss], written: Path) -> tuple[list[Check], list[str]]:
    """Does the config fit the tensors? What does not in the source either is a warning: it came so."""
    warnings = [
        f"{name} holds {loss.nonfinite:,} NaN or infinite values, as in the source"
        for name, loss in losses.items()
        if loss.nonfinite
    ]
    with open_checkpoint(written) as result:
        checks = check_config(result)
    before = {c["name"] for c in check_config(job.source) if not c["ok"]}
    warnings += [f"{c['name']}: {c['detail']}, as in the source" for c in checks if not c["ok"] and c["name"] in before]
    return [c for c in checks if c["ok"] or c["name"] not in before], warnings


def _figures(loss: Loss) -> dict[str, Any]:
    """What a person asks after a change of type; nothing was lost where ``changed`` is 0."""
    return {
        "changed": loss.changed,
        "underflowed": loss.underflowed,
        "max_abs_error": loss.max_abs,
        "max_relative_error": loss.max_rel,
        "relative_l2": loss.relative_l2,
        "share_of_bound": loss.share,
    }


def _receipt(
    job: Conversion,
    outputs: Sequence[Mapping[str, Any]],
    losses: Mapping[str, Loss],
    hashes: Mapping[Path, str],
    options: Mapping[str, Any],
    began: float,
    out: Path,
) -> dict[str, Any]:
    loss = reduce(add, losses.values(), Loss())
    guarantee: Guarantee = "bounded" if loss.changed else "exact"
    inputs = [receipts.input_record(job.source, "model", hashes)]
    ground: Checkpoint | None = getattr(job.source, "base", None)
    if ground is not None:
        inputs[0] |= {"base": ground.reference}
    size, seconds = sum(o["bytes"] for o in outputs), round(time.monotonic() - began, 3)
    sources = tuple(str(i[k]) for i in inputs for k in ("base", "path") if k in i)
    command = f"nett convert {shlex.quote('+'.join(sources))} {shlex.quote(str(out))}"
    command += "".join(f" --{k.replace('_', '-')} {v}" for k, v in options.items() if v != SHARD)
    freed = max(0, inputs[0]["bytes"] - size)
    edge = Edge(
        "converted", str(out.absolute()), sources, "convert", freed, seconds, loss.relative_l2, guarantee, command
    )
    detail = (
        f"{loss.changed:,} of {loss.elements:,} values rounded, by {loss.share:.3g} of the bound at most"
        if loss.changed
        else f"all {loss.elements:,} values are those of the source, bit for bit"
    )
    return receipts.new_receipt(
        Verb(guarantee),
        parameters={},
        inputs=inputs,
        outputs=outputs,
        edges=[edge],
        checks=[{"name": "values", "ok": loss.share <= 1.0, "detail": detail}],
        figures=_figures(loss) | {"tensors": len(job.casts), "parameters": loss.elements},
        seconds=seconds,
        tensors=[
            {"name": n, "relative_l2": x.relative_l2, "max_abs_error": x.max_abs}
            for n, x in losses.items()
            if x.changed
        ],
        options=dict(options),
        restore=False,
    )


def verify(out: Path, receipt: Mapping[str, Any], *, rerun: bool = False) -> list[Check]:
    """Walk the edge again: every value of the output against what its source gives, bit for bit, and the figures."""
    checks = receipts.check_inputs(receipt)
    given = receipt["inputs"][0]
    options = receipt["options"]
    there = all(Path(f["path"]).is_file() for f in given["files"])
    with open_checkpoint(out) as written:
        checks += [c for c in check_config(written) if c["name"] in {x["name"] for x in receipt["checks"]}]
        if there and all(c["ok"] for c in checks):
            kind = dtype_named(options["dtype"]) if "dtype" in options else None
            with open_checkpoint(given["path"], base=given.get("base")) as source:
                job = plan(source, kind, byte_size(options.get("shard_size", SHARD)))
                wrong, loss = compare(job, written, thread_count(0))
            checks += _compared(wrong, loss, receipt)
    if rerun and there:
        checks.append(_rerun(out, receipt))
    return checks


def _compared(wrong: Sequence[str], loss: Loss, receipt: Mapping[str, Any]) -> list[Check]:
    if wrong:
        return [{"name": "values", "ok": False, "detail": f"{wrong[0]} is not what the source gives"}]
    detail = f"{loss.elements:,} values are bit for bit what the source gives"
    checks = [{"name": "values", "ok": True, "detail": detail}]
    told, found = receipt["figures"], _figures(loss)
    differing = [k for k, v in found.items() if told.get(k) != v]
    detail = (
        f"{differing[0]} is {found[differing[0]]}, the receipt says {told.get(differing[0])}"
        if differing
        else f"largest absolute error {loss.max_abs:.4g}, relative {loss.max_rel:.4g}, L2 {loss.relative_l2:.4g}"
    )
    held = loss.share <= 1.0 and (receipt["guarantee"] != "exact" or not loss.changed)
    return [*checks, {"name": receipt["guarantee"], "ok": held and not differing, "detail": detail}]


def _rerun(out: Path, receipt: Mapping[str, Any]) -> Check:
    """Do the work again beside the output and compare the hashes of all weights."""
    given = receipt["inputs"][0]
    scratch = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=".nett-verify-"))
    try:
        made = convert(given["path"], scratch / out.name, base=given.get("base"), **receipt["options"])
    except NettError as error:
        return {"name": "rerun", "ok": False, "detail": f"could not be done: {error}"}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    before, after = ({o["path"]: o["sha256"] for o in r["outputs"]} for r in (receipt, made))
    wrong = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    detail = f"{wrong[0]} came out differently" if wrong else f"{len(after)} file(s) came out with the same bytes"
    return {"name": "rerun", "ok": not wrong, "detail": detail}


def restore(output: Path, receipt: Mapping[str, Any], **_: Any) -> dict[str, Any]:
    """Always Refused: a conversion removes nothing, and its source was left where it is."""
    given = receipt["inputs"][0]
    raise Refused(
        f"is a conversion of {given['path']}, which was not changed, so there is nothing to restore",
        where=output,
        hint="nett convert makes other files or another type of it; a rounded value cannot be had back from it.",
    )
