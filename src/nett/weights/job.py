"""What a run on a model's linear layers will do, from headers alone: which layers, with which parameters, at what price."""

from __future__ import annotations

import fnmatch
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from nett.core import moments
from nett.core.blocks import Linear, Skeleton
from nett.core.errors import Refused, UsageError, did_you_mean
from nett.core.match import matching
from nett.core.registry import Card
from nett.weights.grid import GROUPS
from nett.weights.masks import parse_pattern
from nett.weights.sign_order import TOKENS, evaluations_of

_TORCH = 450_000_000  # bytes that torch and transformers take before any weight


@final
@dataclass(frozen=True)
class Task:
    """A linear layer and the parameters of its kernel."""

    linear: Linear
    parameters: Mapping[str, Any]


@final
@dataclass(frozen=True)
class Job:
    """blocks: the tasks of each block. kept: linear layers that stay, with the reason. other: parameters of the
    model that lie in no linear layer of a block."""

    card: Card
    parameters: Mapping[str, Any]
    blocks: Sequence[Sequence[Task]]
    kept: Sequence[tuple[Linear, str]]
    other: int
    notes: Sequence[str]

    @property
    def wanted(self) -> tuple[str, ...]:
        """The moments that the kernel asks for."""
        return tuple(o for o in self.card.operands if o in moments.NAMES)

    @property
    def calibrated(self) -> bool:
        return bool(self.wanted)

    @property
    def weights(self) -> int:
        """Numbers in the layers that are worked on."""
        return sum(t.linear.rows * t.linear.columns for block in self.blocks for t in block)


def plan_job(
    card: Card,
    skeleton: Skeleton,
    parameters: Mapping[str, Any],
    *,
    skip: Sequence[str],
    per_layer: Path | None,
    group: int = 0,
) -> Job:
    """Refused where a layer does not fit the parameters; UsageError where a pattern matches nothing. ``group``: what a
    parameter of that name is where it is left to nett, if not 0."""
    every = [skeleton.linears(i) for i in range(len(skeleton))]
    names = [layer.module for block in every for layer in block]
    if not names:
        raise Refused("has no linear layers in its blocks", where=skeleton.checkpoint.path)
    skipped = {n for pattern in skip for n in matching(pattern, names)}
    chosen = _per_layer(per_layer, card, names)
    kept = [(layer, "--skip") for block in every for layer in block if layer.module in skipped]
    left = [[layer for layer in block if layer.module not in skipped] for block in every]
    if not any(left):
        raise UsageError("--skip leaves no layer to work on", where=card.key)
    notes: list[str] = []
    asked = dict(parameters) | ({"group": group} if group and parameters.get("group") == 0 else {})
    resolved = with_group(asked, left, notes)
    blocks = []
    for block in left:
        tasks = []
        for layer in block:
            own = resolved | chosen.get(layer.module, {})
            _check_fit(card, layer, own, left)
            tasks.append(Task(layer, own))
        blocks.append(tasks)
    inside = sum(layer.rows * layer.columns for block in every for layer in block)
    other = skeleton.checkpoint.parameters - inside
    notes.append(
        f"{other:,} of {skeleton.checkpoint.parameters:,} parameters lie outside the blocks' linear layers and stay"
    )
    return Job(card, resolved, blocks, kept, other, notes)


def with_group(parameters: dict[str, Any], blocks: Sequence[Sequence[Linear]], notes: list[str]) -> dict[str, Any]:
    """``group`` 0 as the largest group that divides every row; one scale a row where none does."""
    if parameters.get("group") != 0:
        return parameters
    widths = {layer.columns for block in blocks for layer in block}
    group = next((g for g in GROUPS if all(w % g == 0 for w in widths)), -1)
    if group != GROUPS[0]:
        what = f"groups of {group} columns" if group > 0 else "one scale a row"
        notes.append(f"{what}: rows of {', '.join(map(str, sorted(widths)))} columns allow no larger ones")
    return parameters | {"group": group}


def _check_fit(card: Card, layer: Linear, parameters: Mapping[str, Any], blocks: Sequence[Sequence[Linear]]) -> None:
    sizes = {"group": parameters.get("group", -1)}
    if parameters.get("pattern") is not None:
        of = parse_pattern(str(parameters["pattern"]))
        sizes["pattern"] = of[1] if of else -1
    for name, size in sizes.items():
        if size > 0 and layer.columns % size:
            widths = Counter(one.columns for block in blocks for one in block)
            misfits = {w: n for w, n in widths.items() if w % size}
            said = ", ".join(f"{n} of {w} columns" for w, n in sorted(misfits.items()))
            fit = next((g for g in GROUPS if all(w % g == 0 for w in widths)), None)
            hint = f"--group {fit} fits all of them" if fit else "--group -1 (one scale a row) fits any"
            hint = hint if name == "group" else "--skip PATTERN leaves those out"
            raise Refused(
                f"{sum(misfits.values())} of {sum(widths.values())} layers cannot be cut into groups of {size}: {said}",
                where=card.key,
                hint=f"{hint}.",
            )


def _per_layer(file: Path | None, card: Card, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Module -> its own parameters, checked, from a JSON file ``{pattern: {parameter: value}}``; later patterns win."""
    if file is None:
        return {}
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        layers = said.get("layers", said) if isinstance(said, dict) else None
        rules = {str(k): dict(v) for k, v in layers.items()}  # type: ignore[union-attr]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"is not a JSON object of layers and their parameters: {error}", where=file) from error
    found: dict[str, dict[str, Any]] = {}
    for pattern, given in rules.items():
        hits = fnmatch.filter(names, pattern)
        if not hits:
            raise UsageError(f"{pattern!r} matches no layer.{did_you_mean(pattern, names)}", where=file)
        resolved = card.resolve(given, where=f"{file} {pattern}")
        own = {n: resolved[n] for n in (key.replace("-", "_") for key in given)}
        for name in hits:
            found[name] = found.get(name, {}) | own
    return found


def figures(job: Job, skeleton: Skeleton, tokens: int, judged: int, *, disk: bool) -> dict[str, Any]:
    """What the run will take: bytes, memory, and seconds by the speed of this machine, measured for a moment."""
    checkpoint = skeleton.checkpoint
    block = max(sum(p.numel() for p in b.parameters()) for b in skeleton.blocks)
    ground = sum(skeleton.model.get_submodule(n.rpartition(".")[0])._parameters[n.rpartition(".")[2]].numel() for n in skeleton.ground_names)  # fmt: skip
    width = int(skeleton.model.get_input_embeddings().weight.shape[1])
    grams = {(t.linear.columns) for b in job.blocks for t in b}
    largest = max((t.linear.rows * t.linear.columns for b in job.blocks for t in b), default=0)
    memory = _TORCH + 4 * max(ground + block, 3 * block) + 24 * largest
    memory += 4 * width * max(0 if disk else tokens, 2 * judged)
    memory += 4 * sum(c * c for c in grams) * 2 if "gram" in job.wanted else 0
    parameters = checkpoint.parameters
    work = 2.0 * parameters * (2 * tokens * job.calibrated + 2 * judged)
    if "gram" in job.wanted:
        work += sum(2.0 * tokens * t.linear.columns**2 for b in job.blocks for t in b) / 2
        work += sum(3.0 * t.linear.columns**3 for b in job.blocks for t in b)
    if "blocks" in job.parameters:
        runs = evaluations_of(sum(map(len, job.blocks)), job.parameters)
        work += runs * TOKENS * parameters  # half the model each, from the raised layer on
        memory += 4 * parameters if runs else 0
    return {
        "method": job.card.key,
        "layers": sum(map(len, job.blocks)),
        "layers_kept": len(job.kept),
        "weights": job.weights,
        "parameters": parameters,
        "calibration_tokens": tokens if job.calibrated else 0,
        "judging_tokens": judged,
        "bytes_read": checkpoint.nbytes,
        "bytes_written": bytes_written(job, checkpoint.nbytes),
        "peak_memory_bytes": memory,
        "seconds": round(work / _speed() + 2.0, 1),
    }


def bytes_written(job: Job, before: int) -> int:
    """About how large the result will be: exact but for headers and for methods that say nothing of bits."""
    if "compressed" in job.card.operands:
        tasks = [task for block in job.blocks for task in block]
        return sum(2 * t.parameters["rank"] * (t.linear.rows + t.linear.columns) for t in tasks)
    blocks = int(job.parameters.get("blocks", 0))
    size = float(before) + max(0.0, job.weights * (1.25 * blocks / 8 - 2))
    for block in job.blocks:
        for task in block:
            bits, count = task.parameters.get("bits"), task.linear.rows * task.linear.columns
            if bits is not None:
                group = task.parameters.get("group", -1)
                size += count * (bits / 8 - 2) + (2.5 * count / (group if group > 0 else task.linear.columns))
    return max(0, int(size))


def _speed() -> float:
    """Floating-point operations a second of a matrix product in float32, measured for some hundredths of a second."""
    import torch

    a = torch.ones(512, 512)
    a @ a
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < 0.03:
        a @ a
        times += 1
    return 2 * 512**3 * times / (time.perf_counter() - began)
