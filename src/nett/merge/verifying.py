"""Walking a merge's edges again: are inputs and outputs what the receipt says, and do its figures come out again?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nett.core import receipt as receipts
from nett.core.aftercare import check_config
from nett.core.cards import find_card
from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.dtypes import decode
from nett.core.errors import NettError
from nett.core.finite import count_non_finite
from nett.core.sums import dot, squared_distance
from nett.merge.job import CHUNK
from nett.merge.restoring import Parts

Check = dict[str, Any]
TOLERANCE = 1e-6  # of figures that are recomputed: sums of the same numbers in another order


def verify_merge(folder: Path, receipt: Mapping[str, Any], *, rerun: bool = False) -> list[Check]:
    """Checks beyond the hashes of the output files, which the caller has done."""
    checks = receipts.check_inputs(receipt)
    if receipt.get("lora"):
        from nett.merge.lora_verifying import check_adapter

        return [*checks, check_adapter(folder, receipt), *([_rerun(folder, receipt)] if rerun else [])]
    card = find_card(f"{receipt['room']}/{receipt['method']}")
    if card.restore is not None and not receipt.get("restored_task"):
        checks += [_task(folder, receipt, row) for row in receipt["tasks"]]
    else:
        with open_checkpoint(folder) as written:
            checks.append(_finite(written))
            checks += check_config(written)
    for check in receipt["checks"]:
        if check["name"] in ("loads", "speaks") and not check["ok"]:
            checks.append(dict(check))
    if rerun:
        checks.append(_rerun(folder, receipt))
    return checks


def _finite(written: Checkpoint) -> Check:
    for info in written.tensors.values():
        for start in range(0, info.size if info.dtype.is_float else 0, 8 * CHUNK):
            if count_non_finite(written.values(info.name, start, min(info.size, start + 8 * CHUNK))):
                return {"name": "finite", "ok": False, "detail": f"{info.name} holds NaN or infinity"}
    return {"name": "finite", "ok": True, "detail": "no NaN or infinity"}


def _task(folder: Path, receipt: Mapping[str, Any], row: Mapping[str, Any]) -> Check:
    """Rebuild a task in memory, chunk by chunk, and measure its distance to the fine-tune again."""
    name = f"task {row['name']}"
    origin = next(i for i in receipt["inputs"] if i["role"] == "model" and i["name"] == row["name"])
    ground = next(i for i in receipt["inputs"] if i["role"] == "base")
    for needed in (origin, ground):
        if not Path(needed["path"]).exists():
            return {
                "name": name,
                "ok": True,
                "detail": f"{needed['path']} is not there any more, so it was not measured",
            }
    parts = Parts(folder, receipt, row["name"], None)
    original = open_checkpoint(origin["path"], base=ground["path"], dense=True)
    try:
        distance = size = 0.0
        for info in parts.base.tensors.values():
            if not info.dtype.is_float:
                continue
            for start in range(0, info.size, CHUNK):
                stop = min(info.size, start + CHUNK)
                rebuilt = decode(parts.raw(info.name, start, stop), parts.dtype(info.name))
                values = original.values(info.name, start, stop)
                distance += squared_distance(rebuilt, values)
                size += dot(values, values)
    finally:
        parts.close()
        original.close()
    measured = (distance / size) ** 0.5 if size else 0.0
    ok = abs(measured - row["relative_l2"]) <= TOLERANCE * max(measured, row["relative_l2"]) + 1e-12
    return {
        "name": name,
        "ok": ok,
        "detail": f"relative L2 {measured:.6g}, the receipt says {row['relative_l2']:.6g}",
    }


def _there(model: Mapping[str, Any], base: Path | None) -> bool:
    """Whether a model of a state still lies where it lay, with the same tensors."""
    from nett.merge.state import content_sha256

    try:
        with open_checkpoint(model["path"], base=base, dense=True) as found:
            return bool(content_sha256(found) == model["sha256"])
    except NettError:
        return False


def _rerun(folder: Path, receipt: Mapping[str, Any]) -> Check:
    """Do the work again beside the output and compare the hashes of all weights."""
    from nett.merge import engine
    from nett.merge.recipe_run import run_recipe
    from nett.merge.references import places_now

    if receipt.get("restored_task"):
        return {
            "name": "rerun",
            "ok": True,
            "detail": "a restored task is rebuilt with nett restore; not rerun",
        }
    scratch = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=".nett-verify-"))
    try:
        out = scratch / folder.name
        options: dict[str, Any] = dict(receipt.get("options") or {})
        if "data" in options:
            options["data"] = Path(options["data"])
        if receipt.get("recipe"):
            file = scratch / "recipe.yml"
            file.write_text(receipt["recipe"], encoding="utf-8")
            made = run_recipe(file, out=out, speak=False, known=places_now(receipt.get("references", {})), **options)
        else:
            card = find_card(f"{receipt['room']}/{receipt['method']}")
            opened_by = [(i["role"], i.get("reference", i["path"])) for i in receipt["inputs"]]
            base = next((Path(reference) for role, reference in opened_by if role == "base"), None)
            models = [reference for role, reference in opened_by if role == "model"]
            if "state" in receipt:  # gone on from a state that this run replaced: all its models again, in one go
                models = [m["path"] for m in receipt["state"]["models"]]
                gone = [m for m in receipt["state"]["models"] if not _there(m, base)]
                if gone:
                    detail = f"{gone[0]['path']} is not there any more, so it was not done again"
                    return {"name": "rerun", "ok": True, "detail": detail}
            made = engine.run(card, models, receipt["parameters"], base=base, out=out, speak=False, **options)
    except NettError as error:
        return {"name": "rerun", "ok": False, "detail": f"could not be done: {error}"}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    before = {o["path"]: o["sha256"] for o in receipt["outputs"] if o["path"].endswith(".safetensors")}
    after = {o["path"]: o["sha256"] for o in made["outputs"] if o["path"].endswith(".safetensors")}
    wrong = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    detail = f"{wrong[0]} came out differently" if wrong else f"{len(after)} file(s) came out with the same bytes"
    return {"name": "rerun", "ok": not wrong, "detail": detail}
