"""Checking what ``--state`` keeps: is the tensor file what was written, and are the models still those that are in it?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nett.core.checkpoint import open_checkpoint
from nett.core.checkpoint.safetensors import SafetensorsCheckpoint
from nett.core.errors import NettError
from nett.core.finite import count_non_finite
from nett.core.receipt import file_sha256
from nett.merge.job import CHUNK
from nett.merge.state import STATE, TENSORS, Known, State, content_sha256, read_state

Check = dict[str, Any]


def verify_state(folder: Path, *, rerun: bool = False) -> list[Check] | None:
    """The checks of a state; None where the folder is none. Refused where its ``state.json`` cannot be read."""
    if not all((folder / name).is_file() for name in (STATE, TENSORS)):
        return None
    state = read_state(folder)
    if state is None:
        return None
    same = file_sha256(folder / TENSORS) == state.sha256
    detail = "sha256 equal" if same else f"sha256 differs from that in {STATE}: the file was changed"
    checks: list[Check] = [{"name": f"file {TENSORS}", "ok": same, "detail": detail}]
    if same:
        checks.append(_numbers(folder, state))
    checks.append(_input("base", state.base, None))
    checks += [_input(f"model {model.name}", model, state.base.path) for model in state.models]
    if rerun:
        said = f"a state is brought up to date by {state.method}; verify the output that was written with it"
        checks.append({"name": "rerun", "ok": True, "detail": said})
    return checks


def _numbers(folder: Path, state: State) -> Check:
    """Every tensor is finite, and has a number for each model beside it."""
    name = "numbers"
    with SafetensorsCheckpoint(folder, [folder / TENSORS]) as found:
        for info in found.tensors.values():
            numbers = state.numbers.get(info.name, [])
            if info.size and len(numbers) != len(state.models):
                detail = f"{info.name} has {len(numbers)} numbers in {STATE}, for {len(state.models)} models"
                return {"name": name, "ok": False, "detail": detail}
            if not np.isfinite(numbers).all() or any(
                count_non_finite(found.values(info.name, at, min(info.size, at + 8 * CHUNK)))
                for at in range(0, info.size, 8 * CHUNK)
            ):
                return {"name": name, "ok": False, "detail": f"{info.name} holds NaN or infinity"}
        detail = f"{len(found.tensors)} tensors and their numbers for {len(state.models)} models, all finite"
    return {"name": name, "ok": True, "detail": detail}


def _input(name: str, known: Known, base: str | None) -> Check:
    """Inputs may be gone by now, and need not be there to go on; those that are there must be the same."""
    try:
        with open_checkpoint(known.path, base=base, dense=True) as found:
            same = content_sha256(found) == known.sha256
    except NettError:
        return {"name": name, "ok": True, "detail": f"{known.path} is not there any more, so it was not compared"}
    said = f"{known.path}: the same tensors" if same else f"{known.path} holds other tensors than were merged"
    return {"name": name, "ok": same, "detail": said}
