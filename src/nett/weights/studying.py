"""The work of ``nett weights study``: every arm once, each on file as soon as it is done."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from nett.core import moments
from nett.core.blocks import Skeleton
from nett.core.cards import find_card
from nett.core.confined import Limits, run_program
from nett.core.errors import Refused, UsageError
from nett.core.progress import report
from nett.core.staging import file_state, put_file
from nett.core.texts import tokenizer_of
from nett.weights.job import with_group
from nett.weights.opening import opened
from nett.weights.sensing import widths_of
from nett.weights.study_arm import Asked, bools, fitting, quantise
from nett.weights.study_compare import compared, summary
from nett.weights.study_tasks import Task, read_tasks
from nett.weights.study_texts import digest, read_judging, read_sources

WHERE = "weights/study"


@final
@dataclass(frozen=True)
class Arm:
    """``bits`` 0: the original. ``source`` "": the method needs no text."""

    bits: int
    source: str
    draw: int

    @property
    def name(self) -> str:
        return f"{self.bits}bit-{self.source or 'no-text'}-{self.draw}" if self.bits else "original"


def study_of(
    asset: str,
    *,
    calibration: str,
    eval: str,
    by: str,
    bits: str,
    group: int,
    symmetric: bool,
    draws: int,
    seed: int,
    every: int,
    samples: int,
    judged: int,
    length: int,
    tasks: Path | None,
    most: int,
    new: int,
    run_code: bool,
    seconds: int,
    memory: int,
    out: Path | None,
    device: str,
    threads: int,
) -> dict[str, Any]:
    """All arms and their comparisons; see :func:`nett.weights.study`."""
    import torch

    began, card, notes = time.monotonic(), find_card(by, "weights"), list[str]()
    if card.parameter("bits") is None or card.command:
        raise UsageError(f"by = {by!r} is no method that takes bits", where=WHERE, hint="gptq or rtn, for example.")
    if {"source", "compressed", "model"} & set(card.operands):
        raise UsageError(f"by = {by!r} changes more than single layers", where=WHERE, hint="gptq or rtn, for example.")
    widths = widths_of(bits, WHERE)
    if run_code and tasks is None:
        raise UsageError(
            "--run-code runs what a model writes for tasks, and none are named", where=WHERE, hint="--tasks FILE"
        )
    wanted = tuple(o for o in card.operands if o in moments.NAMES)
    if wanted and not calibration:
        raise UsageError(f"{by} is calibrated", where=WHERE, hint="--calibration code=FILE,prose=FILE,mixed,random")
    with opened(asset, device, threads) as skeleton:
        tokenizer, how = tokenizer_of(skeleton.checkpoint), {"length": length, "vocabulary": skeleton.vocabulary}
        texts = read_judging(eval, tokenizer, samples=judged, **how)
        sources, said = read_sources(calibration, tokenizer, samples=samples, judging=texts, **how)
        notes += said
        asked = Asked(texts, every, _tasks(skeleton, tokenizer, tasks, most, new, run_code, notes), tokenizer, new)
        blocks = [skeleton.linears(i) for i in range(len(skeleton))]
        given = {k: v for k, v in {"group": group, "symmetric": symmetric}.items() if card.parameter(k)}
        common = with_group(card.resolve(given), blocks, notes)
        names = list(sources.names) if wanted else [""]
        arms = [Arm(0, "", 0), *(Arm(b, n, d) for b in widths[::-1] for n in names for d in range(draws if n else 1))]
        base = {
            "model": [file_state(f) for f in skeleton.checkpoint.files],
            "texts": {n: w.as_json() | {"text": ""} for n, w in texts.items()},  # wherever they lie now
            "every": every,
            "tasks": [digest(asdict(t)) for t in asked.tasks],
            "new": new,
        }
        found: dict[Arm, dict[str, Any]] = {}
        report.begin("arms", len(arms), "arms")
        for arm in arms:
            own = {
                "by": [card.key, common] if arm.bits else None,
                "windows": [sources.identity(arm.source), samples, length, seed + arm.draw] if arm.source else None,
                "bits": arm.bits,
            }
            file = out / f"arm-{arm.name}-{digest(base, own)}.json" if out is not None else None
            record = _known(file)
            if record is None:
                with skeleton.held():
                    record = {"arm": asdict(arm), "nbytes": 0, "weights": 0, "seconds": 0.0}
                    if arm.bits:
                        start = time.monotonic()
                        windows = torch.from_numpy(sources.draw(arm.source, seed + arm.draw)) if arm.source else None
                        size = quantise(card, skeleton, common | {"bits": arm.bits}, wanted, windows)
                        record |= dict(zip(("nbytes", "weights"), size, strict=True))
                        record["seconds"] = round(time.monotonic() - start, 2)
                    record |= asked.answers(skeleton)
                _keep(file, record)
            if run_code and record.get("limits") != [seconds, memory]:
                record |= _run(asked.tasks, record["said"], Limits(seconds=seconds, memory=memory))
                record["limits"] = [seconds, memory]
                _keep(file, record)
            found[arm] = record
            report.step(1)
        report.end()
    return {
        "model": asset,
        "by": card.key,
        "parameters": {k: v for k, v in common.items() if k != "bits"},
        "texts": {n: w.as_json() for n, w in texts.items()},
        "calibration": {
            "windows": samples,
            "length": length,
            "sources": dict(sources.hashes),
            "draws": draws,
            "seed": seed,
        },
        "questions": {n: len(found[arms[0]]["hits"][n]) for n in texts},
        "tasks": len(asked.tasks),
        "ran_code": run_code,
        "barriers": found[arms[0]].get("barriers", []),
        "arms": [_row(arm, record) for arm, record in found.items()],
        "summary": summary(found),
        "comparisons": compared(found),
        "notes": notes,
        "seconds": round(time.monotonic() - began, 1),
    }


def _tasks(
    skeleton: Skeleton, tokenizer: Any, file: Path | None, most: int, new: int, run_code: bool, notes: list[str]
) -> list[Task]:
    if file is None:
        return []
    every = read_tasks(file, most)
    positions = int(getattr(skeleton.model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)
    kept = fitting(every, tokenizer, positions - new, skeleton.vocabulary)
    if not kept:
        raise Refused(f"no prompt leaves room for {new} tokens within the model's {positions} positions", where=file)
    if len(kept) < len(every):
        notes.append(f"{len(every) - len(kept)} of {len(every)} tasks are too long for the model and left out")
    if run_code and not any(t.tests for t in kept):
        raise UsageError("has no tests to run", where=file, hint="HumanEval or MBPP have; or leave --run-code out.")
    return kept


def _run(tasks: Sequence[Task], said: Sequence[str], limits: Limits) -> dict[str, Any]:
    """Whether each task's program runs through its tests, and why not."""
    bits, why, barriers = "", dict[str, int](), set[str]()
    for task, answer in zip(tasks, said, strict=True):
        outcome = run_program(task.program(answer), limits=limits)
        bits += "01"[outcome.passed]
        why[outcome.why] = why.get(outcome.why, 0) + 1
        barriers |= set(outcome.barriers)
    return {"passes": bits, "ends": dict(sorted(why.items())), "barriers": sorted(barriers)}


def _known(file: Path | None) -> dict[str, Any] | None:
    if file is None or not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None  # cut off in the writing: the arm is done again


def _keep(file: Path | None, record: Mapping[str, Any]) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        put_file(file, (json.dumps(record) + "\n").encode())


def _row(arm: Arm, record: Mapping[str, Any]) -> dict[str, Any]:
    """An arm for the report: rates instead of answers."""
    rates = {f"{kind} {n}": float(bools(b).mean()) for kind in ("hits",) for n, b in record["hits"].items()}
    rates |= {kind: float(bools(record[kind]).mean()) for kind in ("parses", "passes") if kind in record}
    bits = 8 * record["nbytes"] / record["weights"] if record["weights"] else None
    return {
        **asdict(arm),
        "bits_a_weight": bits,
        "nll": {n: sum(v) / len(v) for n, v in record["nll"].items()},
        "windows": record["nll"],
        **rates,
        **({"ends": record["ends"]} if "ends" in record else {}),
        "seconds": record["seconds"],
    }
