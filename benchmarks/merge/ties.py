"""TIES on a base and two fine-tunes of 134 M bfloat16 parameters: against mergekit, against ``cp``."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measure import Spent, in_turn, make_cold, spend
from benchmarks.merge.make_models import LARGE, USUAL, Size, make
from benchmarks.merge.mergekit import RECIPE, executable, versions_of
from benchmarks.merge.reference import errors

from nett.core.bench import Figure, Outcome, Series

TITLE = "TIES-Merging of two fine-tunes, 134 M bfloat16 parameters each"
PICO = Size(layers=2, hidden=64, inter=128, heads=4, vocab=512)
OURS = "nett merge ties --base base tuned1 tuned2 --density 0.2 --no-speak --overwrite --quiet --out merged"
SCOPES = {"scope model": OURS, "scope tensor": OURS + " --scope tensor --tie-policy lowest-index"}
RECIPE_RUN = "nett merge ties.yml --no-speak --overwrite --quiet --out merged"
THEIRS = "mergekit-yaml ties.yml mergekit-out --no-copy-tokenizer"
COPY = "cp base/* tuned1/* tuned2/* copied, then fsync of each file"
ERROR = "error against a float64 reference, away from ties, "
Say = Callable[[str], None]


def run(work: Path, say: Say, pico: bool) -> Outcome:
    bed = work / "usual"
    say("making the models")
    make(bed, PICO if pico else USUAL)
    for scope in SCOPES.values():
        spend(shlex.split(scope), bed)  # so that numba's cache is warm
    mergekit = executable(say, make=not pico)
    figures = [*_against_mergekit(bed, mergekit, say, pico)] if mergekit else []
    figures += _against_copying(bed, say, 1 if pico else 7)
    figures += _memory(work, say, pico)
    missing = {} if mergekit else {"CPU and error against mergekit": "mergekit is not installed (NETT_MERGEKIT)"}
    return Outcome(figures, versions_of(mergekit) if mergekit else {}, missing)


def _against_mergekit(bed: Path, mergekit: Path, say: Say, pico: bool) -> list[Figure]:
    ours, theirs = (1, 1) if pico else (5, 3)

    def cpu(command: str) -> float:
        return spend(shlex.split(command), bed).cpu

    def merged_by_mergekit(dtype: str) -> Spent:
        (bed / "ties.yml").write_text(RECIPE + f"dtype: {dtype}\n", encoding="utf-8")
        shutil.rmtree(bed / "mergekit-out", ignore_errors=True)
        return spend([str(mergekit), *shlex.split(THEIRS)[1:]], bed)

    found = in_turn(
        {
            **{name: (ours, partial(cpu, scope)) for name, scope in SCOPES.items()},
            "mergekit": (theirs, lambda: merged_by_mergekit("bfloat16").cpu),
        },
        "CPU s",
        say,
    )
    other = _as(found["mergekit"], "mergekit", THEIRS)
    figures = [
        Figure(f"CPU time, {name}", _as(found[name], "nett", scope), other, bar=1 / 6, aim=1 / 8)
        for name, scope in SCOPES.items()
    ]
    for dtype in ("bfloat16", "float32"):
        merged_by_mergekit(dtype)
        spend(shlex.split(RECIPE_RUN), bed)
        (mine, its), share = errors(
            bed / "base", [bed / "tuned1", bed / "tuned2"], 0.2, [bed / "merged", bed / "mergekit-out"]
        )
        say(f"{ERROR}{dtype}: {mine:.4g}, mergekit {its:.4g}")
        figures.append(
            Figure(
                f"{ERROR}dtype {dtype}",
                Series("nett", "rms", [mine], command=RECIPE_RUN),
                Series("mergekit", "rms", [its], command=THEIRS),
                bar=1.0,
                note=f"{share:.1%} of the elements are away from ties",
            )
        )
    return figures


def _against_copying(bed: Path, say: Say, times: int) -> list[Figure]:
    inputs = [f for name in ("base", "tuned1", "tuned2") for f in sorted((bed / name).iterdir())]

    def copied() -> float:
        shutil.rmtree(bed / "copied", ignore_errors=True)
        make_cold(inputs)
        parts = [f"mkdir copied/{n} && cp {n}/* copied/{n}" for n in ("base", "tuned1", "tuned2")]
        script = " && ".join(["mkdir copied", *parts, "find copied -type f -exec sync {} +"])
        return spend(["sh", "-c", script], bed).wall

    def merged(scope: str) -> float:
        shutil.rmtree(bed / "merged", ignore_errors=True)
        make_cold(inputs)
        return spend(shlex.split(scope), bed).wall

    found = in_turn({"cp": (times, copied), **{n: (times, partial(merged, s)) for n, s in SCOPES.items()}}, "s", say)
    shutil.rmtree(bed / "copied")
    return [
        Figure(
            f"wall time from a cold cache, {name}",
            _as(found[name], "nett", scope),
            _as(found["cp"], "cp", COPY),
            bar=3.0,
            aim=2.0,
            note="cp copies the three input folders; nett reads them, hashes them and writes one model. Both fsync",
        )
        for name, scope in SCOPES.items()
    ]


def _memory(work: Path, say: Say, pico: bool) -> list[Figure]:
    beds = {"134 M": (work / "usual", USUAL)} if not pico else {"pico": (work / "usual", PICO)}
    if not pico:
        beds["551 M"] = (work / "large", LARGE)
    figures = []
    for size, (bed, shape) in beds.items():
        make(bed, shape)
        for name, scope in SCOPES.items():
            peaks = [spend(shlex.split(scope), bed, memory=True).anonymous for _ in range(1 if pico else 3)]
            say(f"anonymous memory, {size}, {name}: {max(peaks):.0f} MB")
            figures.append(
                Figure(
                    f"anonymous memory, {size} parameters, {name}",
                    Series("nett", "MB", [max(peaks)], command=scope),
                    bar=400.0,
                    note=f"highest of {len(peaks)} runs, /proc/PID/status looked at every 2 ms",
                )
            )
        shutil.rmtree(bed / "merged")
    return figures


def _as(series: Series, name: str, command: str) -> Series:
    return Series(name, series.unit, series.runs, series.load, command)
