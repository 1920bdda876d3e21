"""A run of a method on layers, from the plan to the receipt."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nett
from nett.core import receipt as receipts
from nett.core.blocks import open_skeleton
from nett.core.checkpoint import open_checkpoint
from nett.core.checkpoint.split import STEM
from nett.core.checkpoint.writer import byte_size
from nett.core.device import check_memory
from nett.core.errors import NettError
from nett.core.outcome import finish, put_files
from nett.core.parts import FOLDER, joined, write_part
from nett.core.progress import report
from nett.core.receipt import file_sha256
from nett.core.registry import Card
from nett.core.sidefiles import changed_files
from nett.core.staging import Staging, check_target, file_state, staged, work_key
from nett.core.texts import read_text
from nett.experts.choosing import uniform_counts
from nett.experts.chosen import Chosen
from nett.experts.engine import HINT
from nett.experts.gathering import PART, gathered
from nett.experts.layouts import FileLayer
from nett.experts.opening import Opened
from nett.experts.outcome import (
    Router,
    check,
    check_parts,
    check_rows,
    rows_of,
    said_of,
    stored_count,
    table_of,
    tensors_of,
)
from nett.experts.planning import figures
from nett.experts.protocol import STATISTICS, Answer, Kept, Merged
from nett.experts.settling import Done, config_of, found_of, unseen


def run_layers(
    card: Card,
    model: Opened,
    parameters: Mapping[str, Any],
    *,
    out: Path,
    text: Path | None,
    eval: Path | None,
    samples: int,
    length: int,
    router: Router,
    disk: bool,
    shard_size: str,
    overwrite: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """See :func:`nett.experts.engine.run`."""
    import torch

    layers, skeleton, checkpoint = model.layers, model.skeleton, model.skeleton.checkpoint
    wanted = [o for o in card.operands if o in STATISTICS]
    if "keep" in parameters:
        uniform_counts(layers, float(parameters["keep"]))  # refuses too few
    found = read_text(
        skeleton,
        calibration=text,
        eval=eval,
        samples=samples,
        length=length,
        needed=bool(wanted),
        where=card.key,
        hint=HINT,
    )
    tokens, judged = (w.tokens if w is not None else 0 for w in (found.calibration, found.judging))
    plan = figures(card, model, parameters, tokens, judged, router, disk)
    check_target(out, 2 * plan["bytes_written"], overwrite=overwrite, inputs=[checkpoint.path, *checkpoint.files])
    check_memory(plan["peak_memory_bytes"], skeleton.device, checkpoint.path)
    notes = list(found.notes)
    if dry_run:
        files = [{"path": "model.safetensors", "at_most_bytes": plan["bytes_written"]}]
        return {"plan": plan, "files": files, "notes": notes}
    began = time.monotonic()
    texts = [w.as_json() for w in (found.calibration, found.judging) if w is not None]
    work = {
        "nett": nett.__version__,
        "method": card.key,
        "parameters": dict(parameters),
        "router": router,
        "shard_size": shard_size,
        "texts": texts,
        "inputs": [file_state(f) for f in checkpoint.files],
    }
    with staged(out, work_key(work)) as staging:
        hashes = receipts.InputHashes(checkpoint.files)
        (staging.path / FOLDER).mkdir(exist_ok=True)
        known: list[dict[str, Any]] = [{} for _ in layers]
        if wanted:
            assert found.calibration is not None
            windows = torch.from_numpy(found.calibration.ids)
            known = gathered(model, windows, wanted, staging, disk=disk)
        lists = [[one[name] for one in known] for name in wanted]
        answers = card.kernel()(list(layers), *lists, **parameters)
        done = _work(layers, answers, known, staging, router)
        outputs, config_notes = _written(model, done, staging, shard_size)
        notes += [*unseen(layers, known), *config_notes]
        return finish(
            card,
            [skeleton],
            parameters,
            staging,
            outputs,
            hashes,
            began=began,
            judging=found.judging,
            calibration=found.calibration,
            figures=found_of(layers, done),
            notes=notes,
            tensors=[{"name": layer.name, **line} for layer, line in zip(layers, done.lines, strict=True)],
        )


def _work(
    layers: Sequence[FileLayer], answers: Iterator[Any], known: Sequence[Any], staging: Staging, router: Router
) -> Done:
    """Every layer's answer, into a part of its own where experts changed."""
    done, before = Done(), {e["layer"]: e for e in staging.entries if "layer" in e}
    report.begin("layers", len(layers), "layers")
    given = iter(answers)
    for at, layer in enumerate(layers):
        path = staging.path / FOLDER / f"layer-{at:05d}.safetensors"
        answer = next(given, None)
        if answer is None:
            raise NettError(f"the method gave {at} answers for {len(layers)} layers")
        entry: Mapping[str, Any] | None = before.get(at)
        if entry is None:
            made: Answer = answer() if callable(answer) else answer
            entry = _put(at, layer, made, known[at].get("counts"), staging, router, path)
            del made
        elif entry["sha256"] is not None and (not path.is_file() or file_sha256(path) != entry["sha256"]):
            raise NettError(
                "does not hold what its journal says",
                where=path,
                hint=f"Delete {staging.path} and run the same command again.",
            )
        del answer
        done.counts.append(entry["count"])
        done.rows.append(entry["rows"])
        done.tables.append(entry["table"])
        done.widths.append(entry["width"])
        done.split |= entry["split"]
        done.parts.append(path if entry["sha256"] is not None else None)
        done.lines.append(entry["line"])
        report.step(1)
    report.end()
    return done


def _put(
    at: int, layer: FileLayer, answer: Answer, seen: Any, staging: Staging, router: Router, path: Path
) -> Mapping[str, Any]:
    check(layer, answer)
    rows = rows_of(layer, answer, router)
    check_rows(layer, rows)
    check_parts(layer, answer)
    digest = None if isinstance(answer, Kept) else write_part(path, tensors_of(layer, answer, router))
    staging.record(
        layer=at,
        sha256=digest,
        count=stored_count(layer, answer, router),
        rows=rows,
        table=table_of(answer, router),
        split=isinstance(answer, Merged) and answer.parts is not None,
        width=layer.width if isinstance(answer, Kept) else answer.experts.width,
        line=said_of(layer, answer, seen),
    )
    return staging.entries[-1]


def _written(model: Opened, done: Done, staging: Staging, shard_size: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Weights and small files of the result; Refused where no loader would take it."""
    layers, checkpoint = model.layers, model.skeleton.checkpoint
    parts = [p for p in done.parts if p is not None]
    # What no part holds is read through the view on those that stay; of a merged layer it is only asked for the rest.
    seen = Chosen(checkpoint, done.rows, layers)
    replaced = {
        n for layer, part in zip(layers, done.parts, strict=True) if part is not None for n in layer.place.experts
    }
    order = [n for n in seen.tensors if n not in replaced]
    for part in parts:
        with open_checkpoint(part) as made:
            order += [n for n in made.tensors if n not in seen.tensors or n in replaced]
    config, notes = config_of(model, done)
    files, said = changed_files(checkpoint, None, lambda _: config)
    statistics = staging.path / FOLDER / PART
    statistics.unlink(missing_ok=True)
    outputs = joined(parts, staging, byte_size(shard_size), STEM if done.split else "model", order, seen)
    outputs += put_files(files, said, staging)
    with open_checkpoint(staging.path, dense=True) as written:
        open_skeleton(written)  # refuses what does not fit
    return outputs, [*notes, *said]
