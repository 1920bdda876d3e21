"""The run of LoRAPrune: plan, train with masks, cut, and see that what was cut out was what was hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from nett.core.cubic import changes, cubic
from nett.core.dtypes import Array
from nett.core.errors import NettError, Refused, UsageError
from nett.core.token_batches import batches, checked, next_token_loss, rate, sound
from nett.weights import lora
from nett.weights.lora import Updated
from nett.weights.lora_importance import By, Importance, least
from nett.weights.narrow import narrow_in_place, narrowed, prove_removable
from nett.weights.protocol import Shrunk
from nett.weights.stack import stack_of
from nett.weights.structures import Kind, Parts, Structure, input_masks, matrices, structures_of
from nett.weights.width_plan import equal_counts, global_counts

SCALING = 2.0  # alpha over rank
CLOSE = 1e-3  # logits of what is written and of what was trained


@final
@dataclass(frozen=True)
class Settings:
    """The parameters of :func:`nett.weights.loraprune.loraprune`."""

    ratio: float
    by: By
    parts: Parts
    steps: int
    every: int
    warm: float
    cool: float
    lr: float
    rank: int
    batch: int
    uniform: bool
    spare_first: int
    spare_last: int
    multiple: int
    seed: int


def pruned(model: Any, windows: Tensor, how: Settings) -> Shrunk:
    """See :func:`nett.weights.loraprune.loraprune`."""
    spared = _spared(len(stack_of(model)), how)
    structures = [s for s in structures_of(model, how.parts) if s.layer not in spared]
    counts = equal_counts(structures, how.ratio, how.multiple)
    before = sum(p.numel() for p in model.parameters())
    figures: dict[str, Any] = {"parameters before": before}
    if not any(counts.values()):
        note = f"ratio = {how.ratio} is less than half a unit of a block: nothing was cut"
        return Shrunk(model, figures | {"parameters after": before}, [note] if how.ratio else [])
    windows = checked(model, windows, how.batch)
    prove_removable(model, how.parts)
    model.eval()
    training = _Training(model, structures, counts, how)
    losses = training.run(windows)
    if training.importance.skipped:
        figures["steps without importance"] = training.importance.skipped
    probe = windows[:1]
    with torch.no_grad():
        hidden = model(input_ids=probe, use_cache=False).logits
    lora.detach(model, training.updates)
    notes = []
    if how.uniform:
        small = narrowed(model, structures, training.gone)
    else:
        small = model
        narrow_in_place(small, structures, training.gone)
        notes.append(
            "The blocks differ in width, which configs of transformers and vLLM cannot say: stock loaders refuse this model. "
            "nett.load(FOLDER, as_model=True) makes it. Use --uniform for one that they load."
        )
    with torch.no_grad():
        far = float((small(input_ids=probe, use_cache=False).logits - hidden).abs().max())
    if not far <= CLOSE * max(1.0, float(hidden.abs().max())):
        raise NettError(
            f"the model without the units answers otherwise than with them hidden: logits differ by {far:.2g}"
        )
    figures |= _told(structures, training.gone, losses) | {
        "parameters after": sum(p.numel() for p in small.parameters()),
        "weights of updates trained": training.trained,
        "largest difference of logits between hiding and cutting": far,
    }
    points = [[i, loss] for i, loss in enumerate(losses)]
    charts = [
        {
            "kind": "lines",
            "title": "Training while pruning",
            "xlabel": "step",
            "ylabel": "nats a token",
            "series": {"loss": points},
        },
        _kept_chart(structures, training.gone),
    ]
    return Shrunk(small, figures, notes, charts, ragged=not how.uniform)


def _spared(blocks: int, how: Settings) -> set[int]:
    """Numbers of the blocks that nothing is cut from."""
    if not how.spare_first and not how.spare_last:
        return set()
    if how.uniform:
        raise UsageError(
            "blocks that are spared are wider than the others, and a config tells one width for all",
            where="weights/loraprune",
            hint="Add --no-uniform for a model that stock loaders refuse, or leave out --spare-first and --spare-last.",
        )
    if how.spare_first + how.spare_last >= blocks:
        raise Refused(f"all {blocks} blocks are spared", hint="Lower --spare-first or --spare-last.")
    return {*range(how.spare_first), *range(blocks - how.spare_last, blocks)}


@final
class _Training:
    """Low-rank updates in training, and the units that are hidden so far."""

    def __init__(self, model: Any, structures: Sequence[Structure], counts: dict[str, int], how: Settings) -> None:
        self.model, self.structures, self.counts, self.how = model, structures, counts, how
        model.requires_grad_(False)
        self.updates: dict[str, Updated] = lora.attach(
            model, matrices(model, structures), rank=how.rank, scaling=SCALING, seed=how.seed
        )
        self.importance = Importance(structures, self.updates, how.by, how.seed)
        self.gone: dict[str, Array] = {s.name: np.zeros(0, np.int64) for s in structures}
        self.parts = lora.trainable(p for one in self.updates.values() for p in (one.a, one.b))
        self.trained = sum(p.numel() for p in self.parts)
        self._widths = {name: int(one.a.shape[1]) for name, one in self.updates.items()}

    @torch.enable_grad()
    def run(self, windows: Tensor) -> list[float]:
        """All steps; returns the loss of each."""
        how = self.how
        start, rise = round(how.warm * how.steps), 0
        rise = max(0, min(how.steps - 1 - start, round((1 - how.warm - how.cool) * how.steps)))
        start = min(start, how.steps - 1)
        optimizer = torch.optim.AdamW(self.parts, lr=how.lr, weight_decay=0.0)
        bases = [one.weight for one in self.updates.values()] if how.by == "taylor" else []
        for base in bases:
            base.requires_grad_(True)
        losses = []
        for step, ids in enumerate(batches(windows, how.batch, how.steps, how.seed)):
            for group in optimizer.param_groups:
                group["lr"] = how.lr * rate(step, how.steps)
            loss = next_token_loss(self.model(input_ids=ids, use_cache=False).logits, ids)
            losses.append(sound(loss, step, "training"))
            loss.backward()  # type: ignore[no-untyped-call]
            if step <= start + rise:
                self.importance.see()
            torch.nn.utils.clip_grad_norm_(self.parts, 1.0)
            optimizer.step()
            for parameter in (*self.parts, *bases):
                parameter.grad = None
            if changes(step, start=start, steps=rise, every=how.every):
                self._hide(cubic(step, start=start, steps=rise, final=1.0, every=how.every))
        for base in bases:
            base.requires_grad_(False)
        return losses

    def _hide(self, part: float) -> None:
        """Hide so much of what will be hidden in the end, chosen anew; what is hidden stays so."""
        scores = self.importance.scores
        if self.how.uniform:
            now = {name: int(count * part) for name, count in self.counts.items()}
        else:
            now = self._together(part)
        self.gone = {s.name: least(scores[s.name], self.gone[s.name], now[s.name]) for s in self.structures}
        for name, mask in input_masks(self.structures, self.gone, self._widths).items():
            one = self.updates[name]
            one.keep = torch.from_numpy(mask).to(one.weight)

    def _together(self, part: float) -> dict[str, int]:
        ranked = {}
        for s in self.structures:
            ranked[s.name] = self.importance.scores[s.name].copy()
            ranked[s.name][self.gone[s.name]] = -1.0
        kinds: dict[Kind, float] = {s.kind: part * self.counts[s.name] / s.size for s in self.structures}
        found = global_counts(self.structures, ranked, kinds)
        return {name: max(count, len(self.gone[name])) for name, count in found.items()}


def _told(structures: Sequence[Structure], gone: dict[str, Array], losses: Sequence[float]) -> dict[str, Any]:
    tenth = max(1, len(losses) // 10)
    kept = {
        kind: {str(s.layer): s.size - len(gone[s.name]) for s in structures if s.kind == kind}
        for kind in ("heads", "mlp")
    }
    return {
        "units kept": {kind: blocks for kind, blocks in kept.items() if blocks},
        "units before": {s.kind: s.size for s in structures},
        "loss of the first tenth": float(np.mean(losses[:tenth])),
        "loss of the last tenth": float(np.mean(losses[-tenth:])),
    }


def _kept_chart(structures: Sequence[Structure], gone: dict[str, Array]) -> dict[str, Any]:
    layers = sorted({s.layer for s in structures})
    words: dict[Literal["heads", "mlp"], str] = {"heads": "heads kept", "mlp": "channels kept"}
    series = {
        said: [
            next((100 * (1 - len(gone[s.name]) / s.size) for s in structures if (s.layer, s.kind) == (i, kind)), 100.0)
            for i in layers
        ]
        for kind, said in words.items()
    }
    return {
        "kind": "grouped_bars",
        "title": "What each block keeps",
        "unit": "%",
        "labels": [f"block {i}" for i in layers],
        "series": series,
    }
