"""Continuous batching: requests go through a queue into stages, stage by stage.

A stage gives every decoding request its next token, and reads the prompts of requests that were let in (all of a prompt, or a
chunk); a prompt's last token gives the first token of the answer. Requests are let in first come, first served, while the
batch has room and the memory holds the keys and values of all that they will ever need, so that none is evicted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.experts.duplex_clock import Clock
from nett.experts.duplex_costs import TIMES, Stage
from nett.experts.duplex_requests import Trace

Array = Any
_FIELDS = ("decoding", "contexts", "prompts", "tokens", "pairs", "keys", "ended")


@final
@dataclass(frozen=True)
class Served:
    """What happened. Of each stage: its beginning, its seconds, what was in it, the turn of its routing. Of each request:
    seconds when it was let in, had its first and its last token."""

    begin: Array
    seconds: Array
    stages: Stage
    turn: Array
    admitted: Array
    first: Array
    last: Array

    @property
    def span(self) -> float:
        """Seconds from the first stage's beginning to the last one's end."""
        return float(self.begin[-1] + self.seconds[-1] - self.begin[0])


def serve(trace: Trace, clock: Clock, *, batch: int, room: int, chunk: int = 0) -> Served:
    """Run a trace. ``room``: tokens whose keys and values fit at a time; each request must fit alone."""
    arrivals, inputs, outputs = trace.arrival.tolist(), trace.input.tolist(), trace.output.tolist()
    count = len(inputs)
    admitted, first, last = ([0.0] * count for _ in range(3))
    waiting: deque[int] = deque()  # let in, and not all of the prompt read
    done: dict[int, int] = {}  # of those: tokens that are read
    ending: dict[int, list[int]] = {}  # stage -> requests that get their last token in it
    rows: list[tuple[float, ...]] = []
    now, stage, come, running, used, decoding, contexts = 0.0, 0, 0, 0, 0, 0, 0
    while come < count or running:
        while come < count and running < batch and arrivals[come] <= now:
            if used + inputs[come] + outputs[come] > room:
                break
            used += inputs[come] + outputs[come]
            admitted[come] = now
            waiting.append(come)
            done[come] = 0
            running, come = running + 1, come + 1
        if not running:
            now = arrivals[come]
            continue
        left = chunk or 1 << 60
        prompts = tokens = pairs = keys = 0
        ended: list[int] = []
        while waiting and left:
            request = waiting[0]
            before = done[request]
            taken = min(left, inputs[request] - before)
            prompts, tokens, left = prompts + 1, tokens + taken, left - taken
            pairs += taken * before + taken * (taken + 1) // 2
            keys += before + taken
            done[request] = before + taken
            if before + taken < inputs[request]:
                break
            ended.append(waiting.popleft())
        turn = stage % TIMES
        spent = clock(turn, decoding, contexts, prompts, tokens, pairs, keys, len(ended))
        rows.append((now, spent, decoding, contexts, prompts, tokens, pairs, keys, len(ended)))
        now += spent
        contexts += decoding
        leaving = ending.pop(stage, [])
        for request in leaving:
            decoding -= 1
            contexts -= inputs[request] + outputs[request]
        for request in ended:
            first[request] = now
            del done[request]
            if outputs[request] == 1:
                leaving.append(request)
                continue
            decoding += 1
            contexts += inputs[request] + 1
            ending.setdefault(stage + outputs[request] - 1, []).append(request)
        for request in leaving:
            last[request] = now
            used -= inputs[request] + outputs[request]
            running -= 1
        stage += 1
    table = np.array(rows, np.float64).T
    held = Stage(**dict(zip(_FIELDS, table[2:], strict=True)))
    return Served(table[0], table[1], held, np.arange(stage) % TIMES, *(np.array(t) for t in (admitted, first, last)))
