"""Runs probes: opens what the user named, answers their wants together, ranks what they find."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, final

import numpy as np

import nett
from nett.core.edge import Edge, ranked
from nett.core.errors import UsageError, did_you_mean
from nett.core.jsonable import jsonable
from nett.core.progress import report
from nett.core.registry import Card
from nett.core.retention import Limits, plan_retention
from nett.core.runner import Pool, thread_count
from nett.core.sweep import Pass, sweep
from nett.scan.assets import close_assets, open_assets, side_file
from nett.scan.protocol import Asset, Finding, Findings, Kernel, SideFile, Study, Want

_HOPS = 3  # a tensor from its twin, which is from its narrower form, which is from the base


@final
@dataclass(frozen=True)
class ProbeRun:
    """One probe: what it found, the seconds of its work on all threads, the bytes that it was shown."""

    name: str
    seconds: float
    bytes_read: int
    findings: Findings

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seconds": round(self.seconds, 4),
            "bytes_read": self.bytes_read,
            "figures": dict(self.findings.figures),
        }


@final
@dataclass(frozen=True)
class Scan:
    """Everything that one scan says. ``lossless`` bytes and ``most`` bytes: what a plan would free without any
    error, and at the errors of the findings it takes, the largest being ``error``; nothing is counted twice."""

    assets: tuple[Mapping[str, Any], ...]
    edges: tuple[Edge, ...]
    probes: tuple[ProbeRun, ...]
    seconds: float
    nbytes: int
    lossless: int
    most: int
    error: float

    def as_json(self) -> dict[str, Any]:
        return {
            "nett": nett.__version__,
            "assets": [dict(a) for a in self.assets],
            "edges": [e.as_json() for e in self.edges],
            "probes": [jsonable(p.as_json()) for p in self.probes],
            "seconds": round(self.seconds, 4),
            "bytes": self.nbytes,
            "bytes_freed": self.lossless,
        }


def run(paths: Sequence[Any], *, base: str | None = None, threads: int = 0, only: Sequence[str] = ()) -> Scan:
    """Scan checkpoints, or folders of them, with every probe or the ``only`` named ones; ``base`` comes first."""
    return run_probes({card.name: {} for card in chosen(only)}, paths, base=base, threads=threads)


def run_probes(
    probes: Mapping[str, Mapping[str, Any]], paths: Sequence[Any], *, base: str | None = None, threads: int = 0
) -> Scan:
    """As :func:`run`, with the ``probes``: name -> parameters that are not the defaults."""
    begun = time.perf_counter()
    cards = chosen(list(probes))
    kernels = {c.name: (c.kernel(), c.resolve(probes[c.name])) for c in cards}
    if not paths:
        raise UsageError("nothing to scan: name one or more checkpoints or folders")
    assets = open_assets(([base] if base is not None else []) + list(paths))
    opened = time.perf_counter() - begun
    try:
        runs = _run_all(kernels, assets, threads)
    finally:
        close_assets(assets)
    runs = [_with_headers(r, assets, opened) if r.name == "header" else r for r in runs]
    found = [f for r in runs for f in r.findings.found]
    sizes = {a.label(n): t.nbytes for a in assets for n, t in a.checkpoint.tensors.items()}
    lossless, _ = planned(sizes, found, exact=True)
    most, error = planned(sizes, found, exact=False)
    return Scan(
        assets=tuple(_record(a) for a in assets),
        edges=tuple(ranked(f.edge for f in found)),
        probes=tuple(runs),
        seconds=time.perf_counter() - begun,
        nbytes=sum(a.checkpoint.nbytes for a in assets),
        lossless=lossless,
        most=max(most, lossless),
        error=error if most > lossless else 0.0,
    )


def chosen(only: Sequence[str]) -> list[Card]:
    """The cards of the probes named (``_`` or ``-``), or of all; UsageError for a name that is none."""
    from nett.core.cards import all_cards

    cards = {c.name: c for c in all_cards() if c.room == "scan" and c.kind == "measure"}
    for name in only:
        if name.replace("-", "_") not in cards:
            raise UsageError(f"no probe is called {name!r}.{did_you_mean(name.replace('-', '_'), cards)}")
    wanted = {name.replace("-", "_") for name in only} or set(cards)
    return [card for name, card in cards.items() if name in wanted]


def alone(kernel: Kernel, given: Sequence[Any], parameters: Mapping[str, Any]) -> Findings:
    """One probe over paths, checkpoints or mappings of arrays; checkpoints that the caller opened stay open."""
    assets = open_assets(given)
    mine = [a for a in assets if not any(a.checkpoint is one for one in given)]
    try:
        return _run_all({kernel.__name__: (kernel, parameters)}, assets, 0)[0].findings
    finally:
        close_assets(mine)


def planned(sizes: Mapping[str, int], found: Sequence[Finding], *, exact: bool) -> tuple[int, float]:
    """Bytes that the planner would free tensor by tensor, none counted twice, and the largest error it takes.

    ``exact``: by what is guaranteed to come back bit for bit; a measured error of zero may have been rounded to it.
    """
    edges = [e for f in found for e in f.per_tensor if e.error is not None and e.target in sizes]
    edges = [e for e in edges if e.guarantee == "exact" or not exact]
    plan = plan_retention(sizes, edges, Limits(hops=_HOPS, error=0.0 if exact else inf), solver="greedy")
    return round(plan.freed), max((e.error or 0.0 for e in plan.taken), default=0.0)


def _run_all(
    probes: Mapping[str, tuple[Kernel, Mapping[str, Any]]], assets: Sequence[Asset], threads: int
) -> list[ProbeRun]:
    """Drive all generators together, round by round, each round answering what all of them want."""
    pool = Pool(thread_count(threads))
    running = {name: kernel(list(assets), **parameters) for name, (kernel, parameters) in probes.items()}
    seconds, read = dict.fromkeys(probes, 0.0), dict.fromkeys(probes, 0)
    findings: dict[str, Findings] = {}
    try:
        while running:
            wants: dict[str, Sequence[Want]] = {}
            for name, generator in list(running.items()):
                begun = time.perf_counter()
                try:
                    wants[name] = next(generator)
                except StopIteration as end:
                    findings[name] = end.value
                    del running[name]
                seconds[name] += time.perf_counter() - begun
            _answer([w for some in wants.values() for w in some], pool)
            for name, some in wants.items():
                seconds[name] += sum(w.seconds for w in some)
                read[name] += sum(w.bytes_read for w in some)
    finally:
        pool.close()
        report.end()
    return [ProbeRun(name, seconds[name], read[name], findings[name]) for name in probes]


def _answer(wants: Sequence[Want], pool: Pool) -> None:
    for want in wants:
        if isinstance(want, SideFile):
            want.answer = _timed(want, side_file, want.asset, want.name)
    passes = [w for w in wants if isinstance(w, Pass)]
    if passes:
        tensors = {s.key: s.info.size * s.info.dtype.bytes for p in passes for s in p.sources}
        report.begin("reading", sum(tensors.values()))
        sweep(passes, pool, report.step)
    studies = [w for w in wants if isinstance(w, Study)]
    if studies:
        report.begin("studying", len(studies), "tensors")
        for study, answer in zip(studies, pool.ordered(_study, studies), strict=True):
            study.answer = answer
            report.step(1)


def _study(study: Study) -> Any:
    return _timed(study, study.function, *(_Counted(study, s) for s in study.sources))


def _timed(want: Study | SideFile, function: Callable[..., Any], *arguments: Any) -> Any:
    begun = time.perf_counter()
    try:
        with np.errstate(all="ignore"):
            return function(*arguments)
    finally:
        want.seconds += time.perf_counter() - begun


@final
class _Counted:
    """A source that notes how many bytes a study reads of it."""

    def __init__(self, study: Study, source: Any) -> None:
        self._study, self._source = study, source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def values(self, start: int, stop: int) -> Any:
        found = self._source.values(start, stop)
        self._study.bytes_read += found.nbytes
        return found


def _with_headers(run: ProbeRun, assets: Sequence[Asset], seconds: float) -> ProbeRun:
    """The headers were read when the assets were opened: their bytes and seconds belong to the probe of that name."""
    files = {f for a in assets for f in a.checkpoint.files}
    tensors = sum(t.nbytes for a in assets for t in a.checkpoint.tensors.values() if t.file is not None)
    nbytes = sum(f.stat().st_size for f in files if f.suffix == ".safetensors") - tensors
    return ProbeRun(run.name, run.seconds + seconds, max(0, nbytes), run.findings)


def _record(asset: Asset) -> dict[str, Any]:
    checkpoint = asset.checkpoint
    return {
        "path": asset.path,
        "format": checkpoint.format,
        "tensors": len(checkpoint.tensors),
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.nbytes,
    }
