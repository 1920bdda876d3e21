"""The benchmarks run, what they stored is whole, and the page is what the stored results make."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import jsonschema
import pytest

from nett.core.bench import Bench, Figure, Series, benches_of, find_benches, run_bench, stored
from nett.core.bench_page import bench_page
from nett.core.claims import checkout
from nett.core.errors import Refused, UsageError
from support.cli import nett

ROOT = checkout("benchmarks")
BENCHES = {f"{b.room}/{b.name}": b for b in benches_of(ROOT)}
RECORDS = stored(ROOT)

NUMBER: dict[str, Any] = {"type": "number"}
SERIES: dict[str, Any] = {
    "type": "object",
    "required": ["name", "unit", "min", "median", "max", "runs", "load", "command"],
    "properties": {
        "min": NUMBER, "median": NUMBER, "command": {"type": "string", "minLength": 1},
        "runs": {"type": "array", "items": NUMBER, "minItems": 1}, "load": {"type": "array", "items": NUMBER},
    },
}  # fmt: skip
RECORD: dict[str, Any] = {
    "type": "object",
    "required": ["room", "name", "title", "command", "date", "machine", "versions", "figures"],
    "properties": {
        "date": {"pattern": r"^\d{4}-\d\d-\d\d$"},
        "pico": {"const": False},
        "machine": {"required": ["cpu", "cores", "memory_gb", "system"], "additionalProperties": {"not": {"type": "string", "pattern": "/"}}},
        "versions": {"required": ["python", "nett", "numpy", "numba"]},
        "figures": {
            "minItems": 1,
            "items": {
                "required": ["what", "value", "unit", "sense", "bar", "met", "ours", "other"],
                "properties": {"value": NUMBER, "sense": {"enum": ["at most", "at least"]}, "ours": SERIES,
                               "other": {"anyOf": [{"type": "null"}, SERIES]}},
            },
        },
    },
}  # fmt: skip


def test_there_are_benchmarks_of_the_rooms() -> None:
    assert {"merge/ties", "scan/checkpoint", "store/sizes", "store/speed"} <= set(BENCHES)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_a_stored_result_is_whole(name: str) -> None:
    record = RECORDS[name]
    jsonschema.validate(record, RECORD)
    assert name in BENCHES and record["title"] == BENCHES[name].title
    for figure in record["figures"]:
        other = figure["other"]["median"] if figure["other"] else 1.0
        assert figure["value"] == pytest.approx(figure["ours"]["median"] / other, rel=2e-3)
        for series in (figure["ours"], *([figure["other"]] if figure["other"] else [])):
            assert series["median"] == pytest.approx(median(series["runs"]), rel=1e-3)
        if figure["bar"] is not None:
            below = figure["value"] <= figure["bar"]
            assert figure["met"] == (below if figure["sense"] == "at most" else figure["value"] >= figure["bar"])
    assert not re.search(r"/(home|root|tmp|usr|work|opt|mnt|var)/", json.dumps(record)), "a path of the machine"


def test_the_page_is_generated() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert page == bench_page(list(BENCHES.values()), RECORDS), "run: nett bench ROOM, or python docs/generate.py"


def test_medians_are_compared() -> None:
    figure = Figure("x", Series("a", "s", [3.0, 1.0, 2.0]), Series("b", "s", [8.0, 4.0]), bar=0.3, aim=0.4)
    found = figure.as_json()
    assert found["value"] == pytest.approx(2.0 / 6.0, rel=1e-3) and found["value_of_best_runs"] == 0.25
    assert (found["met"], found["aim_met"]) == (False, True)
    least = Figure("x", Series("a", "GB/s", [3.0, 2.0, 4.0]), bar=3.0, sense="at least").as_json()
    assert least["met"] and least["value"] == 3.0 and least["value_of_best_runs"] == 4.0 and least["aim_met"] is None


def test_what_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'merge'"):
        find_benches("marge", [], ROOT)
    with pytest.raises(UsageError, match="Did you mean 'ties'"):
        find_benches("merge", ["tise"], ROOT)
    with pytest.raises(Refused, match="no folder 'benchmarks'"):
        checkout("benchmarks", tmp_path / "site-packages" / "nett")
    nett("bench", "marge").failed(2, "marge", "merge")
    assert "TIES" in nett("bench", "merge", "--dry-run").succeeded().out


QUICK = {"merge/weight_matching", "scan/checkpoint", "store/sizes"}  # less than 3 seconds of processor time each


@pytest.mark.parametrize(
    "bench",
    [pytest.param(b, id=name, marks=() if name in QUICK else pytest.mark.bench) for name, b in BENCHES.items()],
)
def test_a_benchmark_runs_on_pico_models(bench: Bench, tmp_path: Path) -> None:
    record = run_bench(bench, work=tmp_path, pico=True, say=lambda _: None)
    assert record["pico"] and record["figures"]
    assert all(f["ours"]["runs"] and f["value"] > 0 for f in record["figures"])
    assert bench_page([bench], {f"{bench.room}/{bench.name}": record}).count("\n| ") >= len(record["figures"])
