"""P22, EMS: tokens ranked by attention over all queries and over the last ones, evicted and then merged, head by head.

The rule of the verdict (written from the paper's abstract, before any number was known). "Less" is by more than two
standard errors, over paired prompts and seeds; every way is tuned over three settings on prompts of its own.

1. The observation: heads differ in how many tokens they look at. Of the shares of a prompt that hold 90 % of a head's
   attention, the 90th percentile over layers and heads is at least twice the 10th, at both models.
2. At an eighth and at a quarter of the bytes EMS has less KL to the full cache than the better of SnapKV and H2O, at both
   models.
3. The score of both, global and local, has less KL than the better of either alone, the mean over both models and shares.
4. Merging after eviction has less KL than eviction alone by the same score, the mean over both models and shares.

KVMerger and EMS with slots that count as often as they stand for are measured and have no bar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from claims import caching
from claims.caching import Found, Grid, settings
from claims.outcomes import Gap
from nett.cache.attention import weights
from nett.cache.judging import Bed
from nett.core.claims import Check, Figure, Result

PAPER = "P22"
CLAIM = (
    "Ranking cached tokens by global and local attention, evicting the least and merging those that just miss head by head, "
    "loses less at small budgets than evicting by either score."
)
METHODS = ["cache/ems"]

Say = Callable[[str], None]
SHARES, MOST = (0.25, 0.125), 0.9
OURS, EVICTING, COUNTED = "ems", "ems, evicting only", "ems, slots counted"
THRESHOLDS = ({"threshold": 0.4}, {"threshold": 0.6}, {"threshold": 0.8})
KERNELS = tuple({"kernel": k, "pool": 0.0} for k in (1, 5, 9))
GRID: Grid = {
    OURS: settings("ems", *THRESHOLDS),
    COUNTED: settings("ems", *({**t, "size_bias": True} for t in THRESHOLDS), sizes=True),
    EVICTING: settings("ems", *KERNELS),
    "global": settings("ems", *({**k, "combine": "global"} for k in KERNELS)),
    "local": settings("ems", *({**k, "combine": "local"} for k in KERNELS)),
    "snapkv": settings("snapkv", *({"kernel": k} for k in (1, 5, 9))),
    "h2o": settings("h2o", *({"recent": r} for r in (0.25, 0.5, 0.75))),
    "kvmerger": settings("kvmerger", {}, sizes=True),
}


def run(seeds: Sequence[int], progress: Say) -> Result:
    found, skipped = Found(), caching.lacking()
    for seed in seeds:
        for name, model, val, test in caching.prompts(seed):
            caching.try_all(found, name, seed, model, val, test, SHARES, GRID)
            found.measured.setdefault(name, {})[seed] = spread_of_heads(test)
            told = "; ".join(f"{w} {found.kl(name, SHARES[0], w):.4f}" for w in GRID)
            progress(f"{name}, seed {seed}: KL at a quarter of the bytes, so far: {told}")
    if not found.judged:
        return Result([], [], [], skipped)
    checks = _checks(found)
    because = [] if all(c.holds for c in checks) else _because(found)
    points = found.points({w: w for w in (OURS, "snapkv", "h2o", "kvmerger")})
    return Result(checks, found.figures() + _figures(found), points, skipped, because)


def spread_of_heads(bed: Bed) -> dict[str, float]:
    """Shares of a prompt that hold most of what a head's last 32 queries look at: 10th and 90th percentile over layers
    and heads of the mean over prompts."""
    shares = []
    for number in range(len(bed.recordings[0].layers)):
        rows = []
        for one in bed.recordings:
            _, keys, _, query, _, scaling = one.layers[number]
            count, last = keys.shape[2], query[:, :, -32:]
            hidden = torch.ones(last.shape[2], count, dtype=torch.bool).tril(count - last.shape[2]).logical_not()
            bias = torch.zeros(1, 1, *hidden.shape).masked_fill_(hidden, torch.finfo(torch.float32).min)
            mass = weights(last, keys, bias, scaling).mean(2).sort(-1, descending=True).values
            needed = (mass.cumsum(-1) < MOST * mass.sum(-1, keepdim=True)).sum(-1) + 1
            rows.append(needed.double() / count)
        shares.append(torch.cat(rows).mean(0))
    low, high = np.quantile(torch.cat(shares).numpy(), (0.1, 0.9))
    return {"share of tokens, 10th percentile of heads": float(low), "share of tokens, 90th percentile": float(high)}


def better_of(found: Found, bed: str, share: float, ways: Sequence[str]) -> str:
    return min(ways, key=lambda w: found.kl(bed, share, w))


def mean_gap(found: Found, better: str, ways: Sequence[str]) -> Gap:
    """Over models and shares, whose errors are added: they share prompts."""
    gaps = [found.gap(b, s, better, better_of(found, b, s, ways)) for b in found.beds for s in SHARES]
    return Gap(float(np.mean([g.mean for g in gaps])), float(np.mean([g.error for g in gaps])))


def _checks(found: Found) -> list[Check]:
    spread = {b: np.mean([list(m.values()) for m in by.values()], axis=0) for b, by in found.measured.items()}
    rivals = {(b, s): better_of(found, b, s, ("snapkv", "h2o")) for b in found.beds for s in SHARES}
    gaps = {key: found.gap(*key, OURS, rival) for key, rival in rivals.items()}
    both, merging = mean_gap(found, EVICTING, ("global", "local")), mean_gap(found, OURS, (EVICTING,))
    return [
        Check(
            "the shares that hold 90 % of attention differ between heads by a factor of two or more",
            all(high >= 2 * low for low, high in spread.values()),
            "; ".join(f"{b}: {low:.1%} and {high:.1%}" for b, (low, high) in spread.items()),
        ),
        Check(
            "EMS has less KL than the better of SnapKV and H2O at equal bytes (hundredths of a nat a token)",
            all(g.above for g in gaps.values()),
            "; ".join(
                f"{b} at {s:.4g}: {g} over {rivals[b, s]} (KL {found.kl(b, s, OURS):.4f} and"
                f" {found.kl(b, s, rivals[b, s]):.4f})"
                for (b, s), g in gaps.items()
            ),
        ),
        Check(
            "both scores together have less KL than the better of either alone (hundredths of a nat a token)",
            both.above,
            f"{both}",
        ),
        Check("merging has less KL than evicting alone (hundredths of a nat a token)", merging.above, f"{merging}"),
    ]


def _because(found: Found) -> list[str]:
    """What is seen in these figures only."""
    return [
        f"{b} at {s:.4g} of the bytes: KL " + ", ".join(f"{w} {found.kl(b, s, w):.4f}" for w in GRID) + "."
        for b in found.beds
        for s in SHARES
    ]


def _figures(found: Found) -> list[Figure]:
    return [
        Figure(bed, caching.SIZES[bed], seed, what, value, "")
        for bed, by_seed in found.measured.items()
        for seed, measured in by_seed.items()
        for what, value in measured.items()
    ]
