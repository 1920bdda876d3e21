"""Findings as edges: what is redundant on the disk, what each would free, and the command for it.

Kinds overlap (a fine-tune has equal tensors and coded planes as well); what can be freed together is the account's.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from nett.core.dtypes import Array
from nett.core.edge import Edge
from nett.core.layers import is_head, is_vocabulary
from nett.core.shown import quoted
from nett.scan.disk import account
from nett.scan.disk.account import Amount, Coding, together, wilson
from nett.scan.disk.alike import Twin
from nett.scan.disk.evidence import Evidence
from nett.scan.disk.items import Leftover
from nett.scan.disk.links import Links, add_command

_RUN = re.compile(r"(?P<run>.+)/checkpoint-(?P<step>\d+)(/.*)?", re.DOTALL)
_PLAIN, _DELTA = 400e6, 250e6  # bytes that a store decodes a second: nett.store.planning


@final
@dataclass(frozen=True)
class Found:
    """An edge and how sure its bytes are. ``now``: freed by linking, where the files lie."""

    edge: Edge
    amount: Amount
    now: bool = False


def equal(known: Mapping[Evidence, Evidence], links: Links, *, exact: bool) -> Iterator[Found]:
    """Files with the same bytes."""
    for copy, first in known.items():
        if copy.item.pinned:
            continue
        able = links.kept.get(copy)
        kept = able or first
        command = links.command(copy) if able else add_command(first.item.unit, copy.item.unit)
        amount = equal_amount(copy, exact=exact)
        seconds = 0.0 if able else copy.item.size / _PLAIN
        method = "store/link" if able else "store/add"
        edge = Edge(
            "equal_file", copy.item.path, (kept.item.path,), method, amount.value, seconds, 0.0, "exact", command
        )
        yield Found(edge, amount, able is not None)


def equal_amount(copy: Evidence, *, exact: bool) -> Amount:
    """What a file frees whose equal is kept; sampled tensors that are all equal leave room for others that are not."""
    item = copy.item
    if exact or copy.layout.format == "opaque" or not copy.sampled:
        return Amount(item.allocated, item.allocated if exact else 0, item.allocated)
    found = wilson(copy.weights, np.ones(len(copy.weights)))
    low = found.low / max(1, found.value)
    return Amount(item.allocated, round(item.allocated * low), item.allocated)


def coded(all_: Sequence[Coding], *, exact: bool) -> Iterator[Found]:
    """Tensors that are kept elsewhere, differences to a base, planes that can be coded, float32 that is bfloat16."""
    for one in all_:
        e, item, base = one.file, one.file.item, one.unit.base if one.unit is not None else None
        yield from _twins(one, exact=exact)
        if one.delta is not None and one.unit is not None and base is not None and one.delta.any():
            got = _coded(one, np.minimum(one.delta, e.own), np.where(one.delta > 0, one.unit.error, 0.0))
            source = base.files[0].item.path if len(base.files) == 1 else base.path
            yield _found("delta", item.path, source, got, item.size / _DELTA, add_command(base.path, one.unit.path))
        got = _coded(one, e.own, e.error)
        if got.value > 0.005 * item.allocated:
            yield _found("byte_planes", item.path, None, got, item.size / _PLAIN, add_command(item.unit))
        if e.grid.any():
            got = _coded(one, 1.0 - e.grid, e.error)
            yield _found("quantisation_grid", item.path, None, got, item.size / _PLAIN, add_command(item.unit))
        if e.narrow.any():
            whole = wilson(one.weights, e.narrow, exact=exact)
            got = Amount(whole.value // 2, whole.low // 2, whole.high // 2)
            all_narrow = bool(e.narrow[e.layout.floats[e.tensors]].all())
            command = f"nett convert {quoted(item.unit)} OUT --dtype bfloat16" if all_narrow else add_command(item.unit)
            yield _found("narrower_dtype", item.path, None, got, 0.0, command)


def _coded(one: Coding, share: Array, error: Array) -> Amount:
    return account.coded(one.weights, 1.0 - share, error, np.zeros(len(share), np.int64))


def _twins(one: Coding, *, exact: bool) -> Iterator[Found]:
    e = one.file
    weights = e.weights * e.item.share
    across: dict[Evidence, list[Twin]] = defaultdict(list)
    for twin in one.twins:
        if twin.owner is not e:
            across[twin.owner].append(twin)
            continue
        names = e.layout.names[e.tensors[twin.row]], e.layout.names[e.tensors[twin.owner_row]]
        tied = all(map(is_vocabulary, names)) and is_head(names[0]) != is_head(names[1])
        got = wilson(weights[[twin.row]], np.ones(1), exact=exact)
        target, source = (f"{e.item.path}::{n}" for n in names)
        kind = "tied_twice" if tied else "equal_tensors"
        yield _found(kind, target, source, got, got.value / _PLAIN, add_command(e.item.unit))
    for owner, some in across.items():
        shares = np.zeros(len(weights))
        shares[[t.row for t in some]] = 1.0
        got = wilson(weights, shares, exact=exact)
        command = add_command(owner.item.unit, e.item.unit)
        yield _found("equal_tensors", e.item.path, owner.item.path, got, got.value / _PLAIN, command)


def reordered(found: Mapping[Evidence, Sequence[Twin]], *, exact: bool) -> Iterator[Found]:
    """Rotary tensors of a GGUF that another file holds with its rows in another order: no command shares them yet."""
    for e, some in found.items():
        for owner in dict.fromkeys(t.owner for t in some):
            shares = np.zeros(len(e.weights))
            shares[[t.row for t in some if t.owner is owner]] = 1.0
            got = wilson(e.weights * e.item.share, shares, exact=exact)
            edge = Edge("permuted_tensors", e.item.path, (owner.item.path,), None, got.value, None, 0.0, "exact", None)
            yield Found(edge, got)


def runs(all_: Sequence[Coding], *, exact: bool) -> Iterator[Found]:
    """Checkpoints of one training run: folders ``checkpoint-STEP`` of one trainer. Counted among the rest already."""
    steps: dict[str, dict[int, list[Coding]]] = defaultdict(lambda: defaultdict(list))
    for one in all_:
        if match := _RUN.fullmatch(one.file.item.path):
            steps[match["run"]][int(match["step"])].append(one)
    for run, by_step in steps.items():
        if len(by_step) < 2:
            continue
        earlier = [one for step in sorted(by_step)[:-1] for one in by_step[step]]
        got = together(earlier, exact=exact)
        folders = [os.path.join(run, f"checkpoint-{step}") for step in sorted(by_step)]
        seconds = max(o.file.item.size for o in earlier) / _DELTA
        yield _found("training_run", run, folders[-1], got, seconds, add_command(*folders))


def left(leftovers: Sequence[Leftover]) -> Iterator[Found]:
    """What no model needs. It does not come back but by downloading, so it is no part of what is free without loss."""
    for one in leftovers:
        edge = Edge(one.kind, one.path, (), None, one.allocated, None, None, "measured", one.command)
        yield Found(edge, Amount.exactly(one.allocated))


def _found(kind: str, target: str, source: str | None, got: Amount, seconds: float, command: str) -> Found:
    sources = () if source is None else (source,)
    method = "store/add" if command.startswith("nett store add") else None
    return Found(Edge(kind, target, sources, method, got.value, seconds, 0.0, "exact", command), got)
