"""P19, KVMerger: are neighbouring tokens whose keys are alike better put together than thrown away?

The rule of the verdict (written from the paper's abstract, before any number was known). "Less" is by more than two
standard errors, over paired prompts and seeds; every way is tuned over three settings on prompts of its own.

1. The observation: keys of neighbouring tokens are more alike (mean cosine) than their values, at both models.
2. Persistence: at the paper's threshold of 0.75 the share of slots that are left of a prompt varies over prompts by less
   than a tenth of its mean, the mean over layers and heads, at both models.
3. At 50 % and at 35 % of the bytes KVMerger has less KL to the full cache than H2O, at both models.

CaM, the paper's other rival, is no method of this project: `nett bench cache peers` sets it beside KVMerger. SnapKV, sinks
with a window, and the same merging with the paper's weights (a slot counts once, whatever it stands for) are measured and
have no bar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from claims import caching
from claims.caching import Found, Grid, settings
from nett.cache.judging import Bed
from nett.core.claims import Check, Figure, Result

PAPER = "P19"
CLAIM = (
    "Merging neighbouring tokens with similar keys into Gaussian-weighted entries loses less at 50 % and 35 % of a KV cache "
    "than dropping the tokens that got least attention."
)
METHODS = ["cache/kvmerger"]

Say = Callable[[str], None]
SHARES, EPSILON = (0.5, 0.35), 0.75
OURS, COUNTED_ONCE = "kvmerger", "kvmerger, a slot counts once"
SPLITS = ({"recent": 0.34, "heavy": 0.24}, {"recent": 0.17, "heavy": 0.12}, {"recent": 0.5, "heavy": 0.24})
GRID: Grid = {
    OURS: settings("kvmerger", *SPLITS, sizes=True),
    COUNTED_ONCE: settings("kvmerger", *({**s, "size_bias": False} for s in SPLITS)),
    "h2o": settings("h2o", *({"recent": r} for r in (0.25, 0.5, 0.75))),
    "snapkv": settings("snapkv", *({"kernel": k} for k in (1, 5, 9))),
    "window": settings("window", {"sinks": 4}),
}


def run(seeds: Sequence[int], progress: Say) -> Result:
    found, skipped = Found(), caching.lacking()
    for seed in seeds:
        for name, model, val, test in caching.prompts(seed):
            caching.try_all(found, name, seed, model, val, test, SHARES, GRID)
            found.measured.setdefault(name, {})[seed] = observed(test)
            told = "; ".join(f"{w} {found.kl(name, SHARES[0], w):.4f}" for w in GRID)
            progress(f"{name}, seed {seed}: KL at half of the bytes, so far: {told}")
    if not found.judged:
        return Result([], [], [], skipped)
    checks = _checks(found)
    because = [] if all(c.holds for c in checks) else _because(found)
    points = found.points({w: w for w in GRID if w != COUNTED_ONCE})
    return Result(checks, found.figures() + _figures(found), points, skipped, because)


def observed(bed: Bed) -> dict[str, float]:
    """Mean cosines of neighbours, and what is left of prompts at the threshold: mean share, and how it varies."""
    alike: dict[str, list[float]] = {"keys": [], "values": []}
    left = []  # [prompts, heads] of each layer
    for number in range(len(bed.recordings[0].layers)):
        parts = [one.layers[number][1:3] for one in bed.recordings]
        for which, name in enumerate(alike):
            numbers = torch.cat([p[which] for p in parts])
            unit = torch.nn.functional.normalize(numbers, dim=-1)
            cosine = (unit[:, :, 1:] * unit[:, :, :-1]).sum(-1)
            alike[name].append(float(cosine.mean()))
            if name == "keys":
                left.append(1 - (cosine >= EPSILON).double().sum(-1).numpy() / numbers.shape[2])
    rows = np.stack(left)  # [layers, prompts, heads]
    return {
        "cosine of neighbouring keys": float(np.mean(alike["keys"])),
        "cosine of neighbouring values": float(np.mean(alike["values"])),
        "share left at 0.75": float(rows.mean()),
        "variation of the share left": float((rows.std(axis=1, ddof=1) / rows.mean(axis=1)).mean()),
    }


def _mean(found: Found, bed: str, what: str) -> float:
    return float(np.mean([m[what] for m in found.measured[bed].values()]))


def _checks(found: Found) -> list[Check]:
    cosines = {b: [_mean(found, b, f"cosine of neighbouring {n}") for n in ("keys", "values")] for b in found.beds}
    varies = {b: _mean(found, b, "variation of the share left") for b in found.beds}
    gaps = {(b, s): found.gap(b, s, OURS, "h2o") for b in found.beds for s in SHARES}
    return [
        Check(
            "keys of neighbours are more alike than their values",
            all(k > v for k, v in cosines.values()),
            "; ".join(f"{b}: keys {k:.3f}, values {v:.3f}" for b, (k, v) in cosines.items()),
        ),
        Check(
            "the share of slots left at 0.75 varies over prompts by less than a tenth of its mean",
            all(v < 0.1 for v in varies.values()),
            "; ".join(
                f"{b}: {v:.1%}, mean share {_mean(found, b, 'share left at 0.75'):.1%}" for b, v in varies.items()
            ),
        ),
        Check(
            "KVMerger has less KL than H2O at equal bytes (hundredths of a nat a token)",
            all(g.above for g in gaps.values()),
            "; ".join(
                f"{b} at {s:.0%}: {g} (KL {found.kl(b, s, OURS):.4f} and {found.kl(b, s, 'h2o'):.4f})"
                for (b, s), g in gaps.items()
            ),
        ),
    ]


def _because(found: Found) -> list[str]:
    """What is seen in these figures only."""
    words = []
    for b in found.beds:
        each = ", ".join(f"{w} {found.kl(b, s, w):.4f}" for s in SHARES for w in GRID)
        words.append(
            f"{b}: {1 - _mean(found, b, 'share left at 0.75'):.0%} of a prompt's tokens are alike enough (0.75) to be merged"
            f" into the one before, and a budget of 35 % asks for 65 %: the others are merged or dropped all the same. KL at"
            f" {SHARES[0]:.0%} and {SHARES[1]:.0%}: {each}."
        )
    return words


def _figures(found: Found) -> list[Figure]:
    return [
        Figure(bed, caching.SIZES[bed], seed, what, value, "")
        for bed, by_seed in found.measured.items()
        for seed, measured in by_seed.items()
        for what, value in measured.items()
    ]
