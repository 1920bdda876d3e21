"""The walk of the calibration text through the original model, which takes the statistics; kept in a part, so that an
interrupted run need not walk again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nett.core.blocks import Walk
from nett.core.errors import NettError
from nett.core.parts import FOLDER, read_part, write_part
from nett.core.progress import report
from nett.core.receipt import file_sha256
from nett.core.staging import Staging
from nett.experts.opening import Opened
from nett.experts.protocol import Tensor
from nett.experts.statistics import Statistics, watched

PART = "statistics.safetensors"


def gather(model: Opened, windows: Any, wanted: Sequence[str], *, disk: bool = False) -> list[dict[str, Tensor]]:
    """The statistics of each mixture over token windows int64 ``[n, length]``, in one walk."""
    by_block = {layer.number: layer for layer in model.layers}
    walk = Walk(model.skeleton, windows, disk=disk)
    found: list[dict[str, Tensor]] = []
    last = max(by_block)
    report.begin("statistics", last + 1, "blocks")
    for number in range(last + 1):
        with model.skeleton.block(number) as module:
            layer = by_block.get(number)
            if layer is None:
                walk.run(module)
            else:
                into = Statistics(layer.count, layer.hidden, wanted, int(windows.numel()))
                with watched(model.mixture(number), into):
                    walk.run(module)
                found.append(into.result())
        report.step(1)
    report.end()
    return found


def gathered(
    model: Opened, windows: Any, wanted: Sequence[str], staging: Staging, *, disk: bool = False
) -> list[dict[str, Tensor]]:
    """:func:`gather`, or what an interrupted run gathered."""
    path = staging.path / FOLDER / PART
    entry = next((e for e in staging.entries if "statistics" in e), None)
    if entry is None:
        found = gather(model, windows, wanted, disk=disk)
        flat = {f"{i}.{name}": t.contiguous() for i, one in enumerate(found) for name, t in one.items()}
        staging.record(statistics=write_part(path, flat))
    elif not path.is_file() or file_sha256(path) != entry["statistics"]:
        raise NettError(
            "does not hold what its journal says",
            where=path,
            hint=f"Delete {staging.path} and run the same command again.",
        )
    part = read_part(path)
    made: list[dict[str, Tensor]] = [{} for _ in model.layers]
    for name, tensor in part.items():
        number, _, statistic = name.partition(".")
        made[int(number)][statistic] = tensor
    return made
