"""One prompt served from a store: planned, computed, told, and what was new stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from nett.cache.chunk_plan import Part, planned
from nett.cache.chunk_prefill import Prefill
from nett.cache.chunk_store import WHERE, chunk_store
from nett.core.errors import Refused, UsageError


@final
@dataclass(frozen=True)
class Served:
    """``logits`` ``[v]`` behind the prompt; ``cache`` of the prompt; ``ids`` ``[1, n + 1]``: the prompt and the most likely
    next token; ``ledger``: see :func:`nett.cache.cache_craft`."""

    logits: Any
    cache: Any
    ids: Any
    ledger: dict[str, Any]


def serve(
    store: chunk_store,
    system: Any,
    chunks: Sequence[Any],
    question: Any,
    *,
    by: str,
    alpha: float,
    share: float,
    renew: float,
    sink: bool,
    keep: bool,
    room: int,
    seed: int,
) -> Served:
    """See :func:`nett.cache.cache_craft`."""
    import torch

    began = time.perf_counter()
    first = store.ids(system, first=True)
    texts = [store.ids(c, first=not first and k == 0) for k, c in enumerate(chunks)]
    asked = store.ids(question, first=not first and not texts)
    _check(store, first, texts, asked, room)
    parts = planned(store, first, texts, by=by, alpha=alpha, share=share, renew=renew, sink=sink, seed=seed)
    prefill = Prefill(store, parts, asked)
    looked = by == "cacheblend" and _blend(prefill)
    prefill.run()
    answer = int(prefill.logits.argmax())  # waits for the device, too
    seconds = time.perf_counter() - began
    ledger = _ledger(store, prefill, looked)
    if keep:
        _kept(store, prefill)
    ledger |= {"seconds": seconds, "storing_seconds": time.perf_counter() - began - seconds}
    ids = torch.tensor([[*prefill.ids, answer]], device=store.model.device)
    return Served(prefill.logits, prefill.cache(), ids, ledger)


def _kept(store: chunk_store, prefill: Prefill) -> None:
    """Note what was used, and store what was computed wholly."""
    busy = []
    for number, part in enumerate(prefill.parts):
        if part.variant is not None:
            store.use(part.variant, part.overhead, prefill.read.get(number))
            busy.append(part.variant)
    busy += [store.add(told, pairs) for told, pairs in prefill.computed()]
    store.settle(busy)


def _check(
    store: chunk_store, first: Sequence[int], texts: Sequence[Sequence[int]], asked: Sequence[int], room: int
) -> None:
    if not asked:
        raise UsageError("the question holds no token: the first token of an answer follows one", where=WHERE)
    for number, ids in enumerate(texts):
        if not ids:
            raise UsageError(f"chunk {number} holds no token", where=WHERE)
    vocabulary = int(store.model.get_input_embeddings().weight.shape[0])
    largest, least = (pick(i for ids in (first, *texts, asked) for i in ids) for pick in (max, min))
    if largest >= vocabulary or least < 0:
        wrong = largest if largest >= vocabulary else least
        raise Refused(f"there is a token {wrong}, and the model knows {vocabulary:,}", where=WHERE)
    most = int(getattr(store.model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 60)
    total = len(first) + sum(map(len, texts)) + len(asked)
    if total + room > most:
        raise Refused(
            f"the prompt of {total:,} tokens ({len(first)} of the system, {len(texts)} chunks, {len(asked)} of the question) and"
            f" {room} that follow are more than the model's {most:,} positions",
            where=WHERE,
            hint="Retrieve fewer or shorter chunks.",
        )


def _blend(prefill: Prefill) -> bool:
    """Choose anew, over all stored parts together, as many tokens as were chosen; whether the first layer was looked at."""
    partly = [p for p in prefill.parts if p.variant is not None and len(p.chosen)]
    count = sum(len(p.chosen) for p in partly)
    if not count:
        return False
    places = np.concatenate([np.arange(p.start, p.end) for p in partly])
    apart = prefill.apart()[places]
    taken = set(places[np.argsort(-apart, kind="stable")[:count]].tolist())
    for part in partly:
        part.chosen = np.array([k for k in range(len(part.ids)) if part.start + k in taken], np.int64)
    return True


def _ledger(store: chunk_store, prefill: Prefill, looked: bool) -> dict[str, Any]:
    parts = prefill.parts

    def tokens(some: Sequence[Part], what: str = "ids") -> int:
        return sum(len(getattr(p, what)) for p in some)

    stored = [p for p in parts if p.variant is not None]
    again = tokens(stored, "chosen")
    new = tokens(parts) - tokens(stored)
    computed = again + new + len(prefill.question)
    # A look at the first layer computes there what is not computed in all layers.
    work = computed * store.layers + (tokens(stored) - again if looked else 0)
    return {
        "tokens": len(prefill.ids),
        "reused": tokens(stored) - again,
        "recomputed": again,
        "new": new,
        "question": len(prefill.question),
        "token_layers": work,
        "full_token_layers": len(prefill.ids) * store.layers,
        "share": work / (len(prefill.ids) * store.layers),
        "parts": [p.as_json() for p in parts],
    }
