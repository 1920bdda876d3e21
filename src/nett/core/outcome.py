"""The end of every run that makes a model smaller: the result is loaded as others load it, judged on text, and gets its receipt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nett.core import receipt as receipts
from nett.core.aftercare import check_config
from nett.core.blocks import Skeleton, open_skeleton
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.edge import Edge
from nett.core.errors import NettError, ProofFailed
from nett.core.progress import report
from nett.core.quality import Quality, compare, qualities
from nett.core.registry import Card
from nett.core.staging import Staging
from nett.core.standing import beyond_measured
from nett.core.windows import Windows

WINDOWS = "nett-eval.npy"  # the token ids that the result was judged by, so that it can be done again
_AGAIN = 0.02  # relative difference of a mean that another machine's rounding may make


def put_files(found: Mapping[str, bytes], notes: Sequence[str], staging: Staging) -> list[dict[str, Any]]:
    """Small files beside the weights, as :func:`nett.core.sidefiles.changed_files` gives them; their output records."""
    for note in notes:
        report.say(note)
    return [staging.add_file(name, content) for name, content in found.items()]


def finish(
    card: Card,
    models: Sequence[Skeleton],
    parameters: Mapping[str, Any],
    staging: Staging,
    outputs: list[dict[str, Any]],
    hashes: receipts.InputHashes,
    *,
    began: float,
    judging: Windows | None,
    calibration: Windows | None,
    figures: Mapping[str, Any],
    notes: Sequence[str],
    tensors: Sequence[Mapping[str, Any]] = (),
    charts: Sequence[Mapping[str, Any]] = (),
    opened: Callable[[Path], Checkpoint] | None = None,
) -> dict[str, Any]:
    """Judge what lies in the staging folder, write the receipt and its page, and make the output appear.

    Of two models, the second is what the output belongs to: it is judged as well, and its bytes are counted too.
    """
    original, quality, before = models[0], None, None
    with opened(staging.path) if opened is not None else open_checkpoint(staging.path, dense=True) as written:
        checks = check_config(written)
        if judging is not None:
            report.begin("judging", len(models), "models")
            results = [open_skeleton(written, str(original.device)), *models[1:]]
            quality, *others = qualities(original, results, judging)
            before = others[0] if others else None
            report.end()
            outputs.append(staging.add_file(WINDOWS, _npy(judging)))
    if quality is not None:
        checks.append(_finite(quality))
    known = hashes.result()
    roles = ["original", "compressed"]
    inputs = [receipts.input_record(m.checkpoint, r, known) for m, r in zip(models, roles, strict=False)]
    size = sum(o["bytes"] for o in outputs)
    whole = size + sum(i["bytes"] for i in inputs[1:])
    seconds = time.monotonic() - began
    sources = tuple(i["path"] for i in inputs)
    freed, exact = max(0, inputs[0]["bytes"] - whole), card.guarantee == "exact"
    kept: tuple[float | None, Literal["exact", "measured"]] = (0.0, "exact") if exact else (None, "measured")
    edge = Edge(card.room, str(staging.out), sources, card.key, freed, round(seconds, 3), *kept)
    receipt = receipts.new_receipt(
        card,
        parameters=parameters,
        inputs=inputs,
        outputs=outputs,
        edges=[edge],
        checks=checks,
        figures={
            **figures,
            **({"judged": quality.as_json()} if quality is not None else {}),
            **({"judged_compressed": before.as_json()} if before is not None else {}),
        },
        seconds=seconds,
        quality=_rows(quality, before),
        calibration=calibration.as_json() if calibration is not None else None,
        tensors=list(tensors),
        charts=list(charts),
        notes=[*dict.fromkeys(n for m in models for n in m.checkpoint.notes), *notes, *beyond_measured(card, whole)],
    )
    staging.write_file(receipts.NAME, receipts.as_bytes(receipt))
    from nett.core.report import receipt_page

    staging.write_file(receipts.PAGE, receipt_page(receipt).render().encode())
    staging.commit()
    if receipt["proof"] == "failed":
        wrong = next(c for c in receipt["checks"] if not c["ok"])
        raise ProofFailed(f"was written, but the check '{wrong['name']}' failed: {wrong['detail']}", where=staging.out)
    return receipt


def _rows(quality: Quality | None, compressed: Quality | None) -> list[dict[str, Any]]:
    """The receipt's table: the original, what it was compressed to before (if it was), and the result, on one text."""
    if quality is None:
        return []
    text = Path(quality.windows.source).name
    rows = [{"model": "original", "text": text, "perplexity": quality.as_json()["perplexity_original"]}]
    for name, one in (("compressed", compressed), ("result", quality)):
        if one is not None:
            found = one.as_json()
            rows.append(
                {
                    "model": name,
                    "text": text,
                    "perplexity": found["perplexity"],
                    "kl": found["kl"]["mean"],
                    "kl_interval": [found["kl"]["low"], found["kl"]["high"]],
                    "flips": found["flips"]["mean"],
                    "flips_interval": [found["flips"]["low"], found["flips"]["high"]],
                    "log_likelihood_change": found["change"]["mean"],
                    "log_likelihood_change_interval": [found["change"]["low"], found["change"]["high"]],
                }
            )
    return rows


def _finite(quality: Quality) -> dict[str, Any]:
    ok = bool(np.isfinite(quality.result).all() and np.isfinite(quality.kl).all())
    return {"name": "finite", "ok": ok, "detail": "logits of the result are finite" if ok else "logits are not finite"}


def _npy(windows: Windows) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, windows.ids.astype(np.int32))
    return buffer.getvalue()


def verify_output(
    folder: Path,
    receipt: Mapping[str, Any],
    same: Callable[[Checkpoint, Mapping[str, Any]], dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Files and inputs by their hashes, and the quality measured again on the same tokens. ``same``: one check more, of
    the tensors, where the guarantee is exact."""
    checks = [*receipts.check_files(folder, receipt), *receipts.check_inputs(receipt)]
    if receipt["guarantee"] == "exact" and same is not None and all(c["ok"] for c in checks):
        with open_checkpoint(folder, dense=True) as written:
            checks.append(same(written, receipt))
    judged = receipt["figures"].get("judged")
    if judged is None or not all(c["ok"] for c in checks):
        return checks
    origin = receipt["inputs"][0]
    if not Path(origin["path"]).exists():
        detail = "the original is not there any more, so it was not measured again"
        return [*checks, {"name": "quality", "ok": True, "detail": detail}]
    try:
        ids = np.load(folder / WINDOWS, allow_pickle=False).astype(np.int64)
        windows = Windows(ids, str(judged["text"]), str(judged["sha256"]))
        reference = origin.get("reference", origin["path"])
        with open_checkpoint(reference, dense=True) as a, open_checkpoint(folder, dense=True) as b:
            again = compare(open_skeleton(a), open_skeleton(b), windows).as_json()
    except (OSError, ValueError, KeyError, NettError) as error:
        return [*checks, {"name": "quality", "ok": False, "detail": f"could not be measured again: {error}"}]
    for name, was, now in (
        ("perplexity", judged["perplexity"], again["perplexity"]),
        ("kl", judged["kl"]["mean"], again["kl"]["mean"]),
    ):
        ok = abs(now - was) <= _AGAIN * max(abs(was), 1e-3)
        checks.append({"name": name, "ok": ok, "detail": f"{now:.6g} measured again, the receipt says {was:.6g}"})
    return checks
