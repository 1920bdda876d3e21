"""The work of ``nett experts premoe``: texts read, tasks scored in one walk, each judged by its own experts, all stored."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nett
from nett.core import receipt as receipts
from nett.core.blocks import open_skeleton
from nett.core.cards import find_card
from nett.core.errors import UsageError
from nett.core.progress import report
from nett.core.quality import Quality, compare
from nett.core.report.words import size
from nett.core.staging import Staging, check_target, file_state, staged, work_key
from nett.core.texts import Text, read_text
from nett.experts.choosing import uniform_counts
from nett.experts.chosen import Chosen
from nett.experts.opening import Opened, opened
from nett.experts.patterns import NAME, Patterns, patterns_of
from nett.experts.task_scores import Measure, task_scores

_WHERE = "experts/premoe"


def make_patterns(
    asset: str,
    *,
    task: Sequence[str],
    keep: float,
    top: int,
    score: Any,
    threshold: float,
    samples: int,
    length: int,
    out: Path | None,
    device: str,
    threads: int,
    overwrite: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """See :func:`nett.experts.premoe`."""
    files, measure, began = tasks_of(task), Measure(top, score, threshold), time.monotonic()
    with opened(asset, device, threads) as model:
        uniform_counts(model.layers, keep)  # refuses too few
        checkpoint = model.skeleton.checkpoint
        if out is not None:
            check_target(out, 1 << 20, overwrite=overwrite, inputs=[checkpoint.path, *checkpoint.files])
        texts = {
            name: read_text(
                model.skeleton, calibration=file, eval=None, samples=samples, length=length, needed=True, where=_WHERE
            )
            for name, file in files.items()
        }
        lengths = {t.calibration.ids.shape[1] for t in texts.values() if t.calibration is not None}
        plan = {"tasks": {n: t.calibration.tokens for n, t in texts.items() if t.calibration is not None}}
        if dry_run:
            return {"plan": plan, "say": [f"would score {n}: {k:,} tokens" for n, k in plan["tasks"].items()]}
        assert len(lengths) == 1  # one --length, cut to the model's positions
        windows = [t.calibration.ids for t in texts.values() if t.calibration is not None]
        scores = task_scores(model, windows, measure)
        patterns = patterns_of(list(files), scores, measure, keep, checkpoint.reference)
        if out is None:
            return _told(patterns, model, _judged(model, patterns, texts))
        work = {
            "nett": nett.__version__,
            "method": _WHERE,
            "patterns": patterns.as_json(),
            "inputs": [file_state(f) for f in checkpoint.files],
        }
        with staged(out, work_key(work)) as staging:
            return _kept(staging, patterns, model, texts, began)


def tasks_of(given: Sequence[str]) -> dict[str, Path]:
    """``NAME=FILE`` of each task; UsageError for what is none, and for a name that comes twice."""
    found: dict[str, Path] = {}
    for one in given:
        name, _, file = one.partition("=")
        hint = "--task code=code.txt --task prose=prose.txt"
        if not file or not re.fullmatch(r"[\w-]+", name):
            raise UsageError(
                f"{one!r} is not NAME=FILE with a name of letters, digits, _ and -", where=_WHERE, hint=hint
            )
        if name in found:
            raise UsageError(f"the task {name!r} is given twice", where=_WHERE, hint="One file for each task.")
        found[name] = Path(file)
    if not found:
        raise UsageError("needs a task", where=_WHERE, hint="--task NAME=FILE")
    return found


def _judged(model: Opened, patterns: Patterns, texts: Mapping[str, Text]) -> dict[str, Quality]:
    """Each task's held-out windows by the experts of the task alone, against all experts."""
    found = {}
    report.begin("judging", len(texts), "tasks")
    for name, text in texts.items():
        assert text.judging is not None
        few = Chosen(model.skeleton.checkpoint, patterns.kept(name, model.layers), model.layers)
        found[name] = compare(model.skeleton, open_skeleton(few, str(model.skeleton.device)), text.judging)
        report.step(1)
    report.end()
    return found


def _kept(
    staging: Staging, patterns: Patterns, model: Opened, texts: Mapping[str, Text], began: float
) -> dict[str, Any]:
    checkpoint = model.skeleton.checkpoint
    hashes = receipts.InputHashes(checkpoint.files)
    judged = _judged(model, patterns, texts)
    told = _told(patterns, model, judged)
    said = json.dumps(patterns.as_json(), separators=(",", ":")) + "\n"
    measure = vars(patterns.measure)
    receipt = receipts.new_receipt(
        find_card(_WHERE),
        parameters={"keep": patterns.keep, **measure},
        inputs=[receipts.input_record(checkpoint, "original", hashes.result())],
        outputs=[staging.add_file(NAME, said.encode())],
        edges=[],
        checks=[{"name": "finite", "ok": True, "detail": "scores of all tasks are finite"}],
        figures={k: v for k, v in told.items() if k not in ("say", "model")},
        seconds=time.monotonic() - began,
        quality=[row for name, q in judged.items() for row in _rows(name, q)],
        calibration=[t.calibration.as_json() for t in texts.values() if t.calibration is not None],
        notes=[*dict.fromkeys(n for t in texts.values() for n in t.notes)],
    )
    staging.write_file(receipts.NAME, receipts.as_bytes(receipt))
    from nett.core.report import receipt_page

    staging.write_file(receipts.PAGE, receipt_page(receipt).render().encode())
    staging.commit()
    load = f'nett.load("{staging.out}/{patterns.tasks[0]}", as_model=True)'
    return receipt | {"say": [*told["say"], f"Load a task: {load}", f"Find one: nett experts retrieve {staging.out}"]}


def _rows(name: str, quality: Quality) -> list[dict[str, Any]]:
    """The receipt's table: a task's text by all experts, and by its own."""
    found = quality.as_json()
    own = {
        "perplexity": found["perplexity"],
        "kl": found["kl"]["mean"],
        "kl_interval": [found["kl"]["low"], found["kl"]["high"]],
        "flips": found["flips"]["mean"],
    }
    text = Path(quality.windows.source).name
    return [
        {"model": "original", "text": text, "perplexity": found["perplexity_original"]},
        {"model": name, "text": text, **own},
    ]


def _told(patterns: Patterns, model: Opened, judged: Mapping[str, Quality]) -> dict[str, Any]:
    """What a reader wants to know of the tasks, and the lines that say it."""
    layers, checkpoint = model.layers, model.skeleton.checkpoint
    kept = {name: patterns.kept(name, layers) for name in patterns.tasks}
    counts = uniform_counts(layers, patterns.keep)
    one = sum(layer.nbytes // layer.count * count for layer, count in zip(layers, counts, strict=True))
    dense = checkpoint.nbytes - sum(layer.nbytes for layer in layers)
    common = [[shared_share(kept[a], kept[b]) for b in patterns.tasks] for a in patterns.tasks]
    keys = patterns.keys
    apart = np.linalg.norm(keys[:, None] - keys[None], axis=-1)
    figures: dict[str, Any] = {
        "model": checkpoint.reference,
        "tasks": {name: judged[name].as_json() for name in patterns.tasks},
        "experts": {"in_model": sum(layer.count for layer in layers), "of_a_task": sum(counts)},
        "bytes": {"model": checkpoint.nbytes, "dense": dense, "experts_of_a_task": one},
        "shared": common,
        "distances": apart.tolist(),
    }
    lines = [
        f"{sum(counts)} of {figures['experts']['in_model']} experts a task: {size(dense + one)} of "
        f"{size(checkpoint.nbytes)} are loaded, {size(one)} of them experts",
        f"{'task':<16}{'all experts':>12}{'its own':>10}{'KL':>10}   shared with",
    ]
    for i, name in enumerate(patterns.tasks):
        said = figures["tasks"][name]
        others = ", ".join(f"{o} {common[i][j]:.0%}" for j, o in enumerate(patterns.tasks) if j != i) or "-"
        lines.append(
            f"{name[:15]:<16}{said['perplexity_original']:>12.4g}{said['perplexity']:>10.4g}"
            f"{said['kl']['mean']:>10.4f}   {others}"
        )
    return figures | {"say": lines}


def shared_share(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """Of the experts kept for one task, the share that is kept for the other too, over all layers."""
    same = sum(len(set(a) & set(b)) for a, b in zip(one, other, strict=True))
    return same / max(1, sum(len(a) for a in one))
