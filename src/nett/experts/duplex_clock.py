"""The clock of the loop over stages: the seconds of one stage from plain numbers, by tables.

:meth:`nett.experts.duplex_costs.Costs.of` computes the same for many stages at a time, with all that they are made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from nett.experts.duplex_costs import TIMES, Costs

Clock: TypeAlias = Callable[[int, int, int, int, int, float, int, int], float]
_TABLE = 1 << 13  # numbers of tokens whose costs are kept in a table


def clock(costs: Costs, batch: int, most: int) -> Clock:
    """``seconds(turn, decoding, contexts, prompts, tokens, pairs, keys, ended)`` of one stage, as :meth:`Costs.of` has it.

    ``batch``: requests at most; ``most``: tokens of a stage at most.
    """
    cap = min(most, _TABLE) + 1
    tokens = np.arange(cap)
    shared = sum((costs.fc(p, tokens, tokens)[:, 0] for p in costs.products), costs.link(tokens, tokens)[:, 0]).tolist()
    routed = [np.interp(tokens, costs.layers.tokens, costs.table[t, :, 0]).tolist() for t in range(TIMES)]
    counts = np.arange(batch + 2)
    head = sum((costs.fc(p, counts, counts)[:, 0] for p in costs.head), np.zeros(len(counts))).tolist()
    a, n, xpu, pim = costs.attention, costs.nodes, costs.device.xpu, costs.device.pim
    scheme, able = costs.scheme, "attention" in costs.device.layers
    beside = scheme in ("attention", "duplex") and able
    only = {"gpu": 0, "pim": 1}.get(scheme, 2 if able else 0)

    def common(count: float) -> float:
        if count < cap and count == int(count):
            return shared[int(count)]  # type: ignore[no-any-return]
        one = np.array(count)
        return float(sum((costs.fc(p, one, one)[..., 0] for p in costs.products), costs.link(one, one)[..., 0]))

    def seconds(
        turn: int, decoding: int, contexts: int, prompts: int, tokens: int, pairs: float, keys: int, ended: int
    ) -> float:
        total = decoding + tokens
        spent = routed[turn][total] if total < cap else float(costs.routed(np.array(total), turn)[0])
        share = math.ceil(prompts / n) / prompts if prompts else 0.0
        spent += common(math.ceil(decoding / n) + tokens * share) + head[math.ceil((decoding + ended) / n)]
        flops, moved = a.context_flops * contexts / n, (a.context_bytes * contexts + a.request_bytes * decoding) / n
        far, near = max(flops / xpu.flops, moved / xpu.bandwidth), max(flops / pim.flops, moved / pim.bandwidth)
        decode = (far, near, min(far, near))[only]
        if not prompts:
            return spent + decode
        flops, moved = a.pair_flops * pairs * share, (a.key_bytes * keys + a.token_bytes * tokens) * share
        wide, slow = max(flops / xpu.flops, moved / xpu.bandwidth), max(flops / pim.flops, moved / pim.bandwidth)
        after = decode + (wide, slow, min(wide, slow))[only]
        return spent + (min(after, max(wide, near)) if beside else after)

    return seconds
