"""P65, XQuant: is what keys and values are made of a better thing to round than they are, and differences between layers
better still?

Every policy has two sizes of group (32 and 64) and no residual beside the tokens of a group that is not yet full, so that
what is compared is codes. A prompt of 160 tokens of a story is run once, and 32 tokens follow one by one; each seed has
its own windows, and the model with as many key heads as query heads is trained anew for each. Bytes are all that a cache
holds; models, scales and lowest values are of float32 here, and ratios are to the same cache in 16 bits.

The rule of the verdict (written from the paper's abstract and the bar of its issue, before any number was known). "Less"
is by more than two standard errors, over paired windows and seeds.

1. The premise: var(X_l - X_(l-1)) < var(X_l) at every layer from the second on, at both models.
2. On the model whose key heads are as many as its query heads XQuant-CL at 3 bits has less KL to the full cache than KIVI
   at equal bytes: than the best KIVI, by these very windows, that holds no more bytes; where none holds so few, than the
   best of those that hold the fewest.
3. At 2 and at 3 bits XQuant-CL has less KL than XQuant, at equal groups, on that model.
4. There XQuant at 4 bits and XQuant-CL at 3 bits, in groups of 32, raise perplexity by less than 0.1. (The paper has them
   at 7.7 and at 10 times fewer bytes than 16 bits; a model of 128 channels with scales of float32 cannot come there, whose
   share of the bytes is measured and has no bar.)

stories260K, whose cache X does not halve, is measured and has no bar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import exp
from typing import Any

import numpy as np

import nett
from claims import stories
from claims.cache_beds import CONTEXT, CacheBed, grouped, trained
from claims.outcomes import Gap
from nett.cache.judging import Bed, Judged, bed_of, judge
from nett.core.claims import Check, Figure, Result
from nett.core.standing import Point

PAPER = "P65"
CLAIM = (
    "The inputs of a layer's projections, rounded to 3 bits as differences to the layer before, keep more of what a model "
    "says than keys and values rounded to as many bytes."
)
METHODS = ["cache/xquant", "cache/xquant_cl"]

Say = Callable[[str], None]
WINDOWS, BITS, GROUPS = 12, (8, 4, 3, 2), (32, 64)
MHA, GQA = "stories, MHA", "stories260K"
Setting = tuple[str, int, int]  # method, bits, group
WAYS = ("xquant", "xquant_cl", "xquant_cl of the stream", "kivi")
SETTINGS: list[Setting] = [(m, b, g) for m in WAYS for b in BITS for g in GROUPS]


def policy(setting: Setting) -> Any:
    method, bits, group = setting
    name, _, stream = method.partition(" of the ")
    more = {"stream": "residual"} if stream else {}
    return getattr(nett.cache, name)(bits=bits, group=group, residual=0, **more)


@dataclass
class Found:
    """Of each bed: its size, and seed by seed what came of each setting; variance ratios, layer by layer."""

    sizes: dict[str, str] = field(default_factory=dict)
    judged: dict[str, dict[int, dict[Setting, Judged]]] = field(default_factory=dict)
    ratios: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def share(self, bed: str, setting: Setting) -> float:
        """Bytes held, of the full cache in 16 bits."""
        rows = [by[setting] for by in self.judged[bed].values()]
        return float(np.mean([2 * j.bytes / j.full_bytes for j in rows]))

    def kl(self, bed: str, setting: Setting) -> float:
        return float(np.mean([by[setting].kl.mean() for by in self.judged[bed].values()]))

    def dearer(self, bed: str, setting: Setting) -> float:
        """By how much perplexity rises, the mean over the seeds."""
        rows = [by[setting] for by in self.judged[bed].values()]
        return float(np.mean([exp(j.policy.mean()) - exp(j.full.mean()) for j in rows]))

    def gap(self, bed: str, better: Setting, than: Setting) -> Gap:
        """Hundredths of a nat a token that ``than`` has more; above 0 is: ``better`` is."""
        pairs = [(by[better].kl, by[than].kl) for by in self.judged[bed].values()]
        return stories.gap([a for a, _ in pairs], [b for _, b in pairs])


def run(seeds: Sequence[int], progress: Say) -> Result:
    why = stories.lacking()
    if why is not None:
        return Result([], [], [], {MHA: why, GQA: why})
    return experiment((make(seed, WINDOWS) for seed in seeds for make in (trained, grouped)), seeds, progress)


def experiment(beds: Any, seeds: Sequence[int], progress: Say) -> Result:
    """Each bed's settings, all on prompts that were run once; ``beds`` come seed by seed."""
    found = Found()
    for number, bed in enumerate(beds):
        seed = seeds[number // 2]
        prompts = bed_of(bed.model, bed.windows, CONTEXT)
        found.sizes[bed.name] = bed.size
        found.ratios.setdefault(bed.name, []).append(ratios(bed, prompts))
        by = found.judged.setdefault(bed.name, {}).setdefault(seed, {})
        for setting in SETTINGS:
            by[setting] = judge(bed.model, prompts, policy(setting))
        told = ", ".join(f"{m} at {b} bits {by[m, b, g].kl.mean():.4f}" for m, b, g in SETTINGS if g == 32)
        progress(f"{bed.name}, seed {seed}: KL of {told}")
    checks = _checks(found)
    because = [] if all(c.holds for c in checks) else _because(found)
    return Result(checks, _figures(found), _points(found), {}, because)


def ratios(bed: CacheBed, prompts: Bed) -> np.ndarray:
    """var(X_l - X_(l-1)) / var(X_l) of each layer from the second on, over tokens and channels of all prompts."""
    by_layer = zip(*([layer[0].hidden for layer in one.layers] for one in prompts.recordings), strict=True)
    inputs = [np.concatenate([x[0].double().numpy() for x in layer]) for layer in by_layer]
    return np.array([(b - a).var() / b.var() for a, b in pairwise(inputs)])


def rival(found: Found, setting: Setting) -> Setting:
    """KIVI at equal bytes, chosen on the windows that are judged by, in its favour."""
    kivi = [s for s in SETTINGS if s[0] == "kivi"]
    within = [s for s in kivi if found.share(MHA, s) <= found.share(MHA, setting)]
    if not within:
        fewest = min(found.share(MHA, s) for s in kivi)
        within = [s for s in kivi if found.share(MHA, s) <= 1.01 * fewest]
    return min(within, key=lambda s: found.kl(MHA, s))


def say(found: Found, setting: Setting) -> str:
    method, bits, group = setting
    held = f"{found.share(MHA, setting):.1%} of the bytes of 16 bits, KL {found.kl(MHA, setting):.4f}"
    return f"{method} of {bits} bits, groups of {group} ({held})"


def _checks(found: Found) -> list[Check]:
    mean = {bed: np.mean(rows, axis=0) for bed, rows in found.ratios.items()}
    told = "; ".join(f"{bed}: {', '.join(f'{r:.2f}' for r in rows)}" for bed, rows in mean.items())
    premise = all(bool((r < 1).all()) for r in mean.values())
    pairs = [(s, rival(found, s)) for s in (("xquant_cl", 3, g) for g in GROUPS)]
    gaps = [found.gap(MHA, a, b) for a, b in pairs]
    over = {(b, g): found.gap(MHA, ("xquant_cl", b, g), ("xquant", b, g)) for b in (2, 3) for g in GROUPS}
    few = [("xquant", 4, 32), ("xquant_cl", 3, 32)]
    return [
        Check("inputs of neighbouring layers differ by less variance than they have", premise, told),
        Check(
            "XQuant-CL at 3 bits has less KL than KIVI at equal bytes, at both groups (hundredths of a nat a token)",
            all(g.above for g in gaps),
            "; ".join(f"{say(found, a)} over {say(found, b)}: {g}" for (a, b), g in zip(pairs, gaps, strict=True)),
        ),
        Check(
            "XQuant-CL has less KL than XQuant at 2 and 3 bits (hundredths of a nat a token)",
            all(g.above for g in over.values()),
            "; ".join(f"{b} bits, groups of {g}: {gap}" for (b, g), gap in over.items()),
        ),
        Check(
            "XQuant at 4 bits and XQuant-CL at 3 raise perplexity by less than 0.1",
            all(found.dearer(MHA, s) < 0.1 for s in few),
            "; ".join(f"{say(found, s)}: {found.dearer(MHA, s):+.3f}" for s in few),
        ),
    ]


def _because(found: Found) -> list[str]:
    """What is seen in these figures only."""
    mean = np.mean(found.ratios[MHA], axis=0)[2:]  # of the layers that hold differences
    return [
        f"The differences of layers 4 to {len(mean) + 3} have {mean.min():.2f} to {mean.max():.2f} of the inputs'"
        f" variance: a ratio of 1/4 saves one bit, and these save {-np.log2(mean.max()) / 2:.1f} to"
        f" {-np.log2(mean.min()) / 2:.1f}."
    ]


def _figures(found: Found) -> list[Figure]:
    figures = []
    for bed, by_seed in found.judged.items():
        size = found.sizes[bed]
        for (seed, by), rows in zip(by_seed.items(), found.ratios[bed], strict=True):
            for layer, value in enumerate(rows, 2):
                figures.append(Figure(bed, size, seed, f"variance of the difference, layer {layer}", float(value), ""))
            for (method, bits, group), j in by.items():
                what = f"{method}, {bits} bits, groups of {group}"
                figures += [
                    Figure(bed, size, seed, f"KL, {what}", float(j.kl.mean()), "nats"),
                    Figure(bed, size, seed, f"perplexity, {what}", exp(j.policy.mean()), ""),
                    Figure(bed, size, seed, f"bytes of 16 bits, {what}", 200 * j.bytes / j.full_bytes),
                ]
            figures.append(Figure(bed, size, seed, "perplexity, full cache", exp(j.full.mean()), ""))
    return figures


def _points(found: Found) -> list[Point]:
    points = []
    for bed, by_seed in found.judged.items():
        for setting in (s for s in SETTINGS if " of the " not in s[0] and s[2] == 32):
            rows = [by[setting] for by in by_seed.values()]
            quality = [-float(j.kl.mean()) for j in rows]
            points.append(
                Point(
                    f"cache/{setting[0]}", f"{bed}, {found.sizes[bed]}", float(np.mean([j.bytes for j in rows])),
                    float(np.mean(quality)), float(np.std(quality)), float(np.mean([j.seconds for j in rows])),
                )
            )  # fmt: skip
    return points
