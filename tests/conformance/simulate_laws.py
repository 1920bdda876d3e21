"""Laws of the simulator of servers: the same answer twice, settings untouched, time has no scale of its own, no scheme is
slower than what it contains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conformance.measure_laws import Law
from nett.core.registry import Card

SETTINGS: dict[str, Any] = {
    "model": {"layers": 3, "hidden": 128, "heads": 4, "kv_heads": 2, "intermediate": 256, "experts": 8, "top_k": 2, "vocabulary": 256},
    "requests": {"count": 24, "input": {"mean": 48, "std": 9}, "output": {"low": 2, "high": 20}},
    "serving": {"batch": 6},
}  # fmt: skip


def asked(folder: Path, **more: Any) -> list[str]:
    file = folder / "server.yml"
    file.write_text(json.dumps({**SETTINGS, **more}))  # JSON is YAML
    return [str(file)]


def answered(card: Card, paths: list[str]) -> Any:
    """All that it says: its seconds are simulated, so that they repeat too."""
    return json.loads(json.dumps(card.load()(paths, **card.resolve({}))))


def same_answer_twice(card: Card, folder: Path) -> None:
    paths = asked(folder)
    assert answered(card, paths) == answered(card, paths)


def assets_untouched(card: Card, folder: Path) -> None:
    paths = asked(folder)
    before = [(f, f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.iterdir())]
    answered(card, paths)
    assert [(f, f.read_bytes(), f.stat().st_mtime_ns) for f in sorted(folder.iterdir())] == before


def twice_the_rates_are_half_the_time(card: Card, folder: Path) -> None:
    """All rates doubled: every time is halved, and energy stays."""
    told = []
    for times in (1, 2):
        xpu = {"flops": f"{400 * times} TFLOP/s", "bandwidth": f"{2 * times} TB/s"}
        pim = {"flops": f"{50 * times} TFLOP/s", "bandwidth": f"{6 * times} TB/s"}
        told.append(answered(card, asked(folder, hardware={"xpu": xpu, "pim": pim}))["schemes"])
    for name, slow in told[0].items():
        fast = told[1][name]
        assert abs(fast["tokens_a_second"] / slow["tokens_a_second"] - 2) < 1e-9
        assert abs(slow["between_tokens"]["p50"] / fast["between_tokens"]["p50"] - 2) < 1e-9
        assert abs(fast["joules_a_token"] / slow["joules_a_token"] - 1) < 1e-9


def no_scheme_is_slower_than_what_it_contains(card: Card, folder: Path) -> None:
    """On a batch that stays full all schemes have the same stages."""
    rates = {n: f["tokens_a_second"] for n, f in answered(card, asked(folder))["schemes"].items()}
    slack = 1 + 1e-9
    assert rates["best"] * slack >= max(rates["gpu"], rates["pim"])
    assert min(rates["experts"], rates["attention"]) * slack >= rates["best"]
    assert rates["duplex"] * slack >= max(rates["experts"], rates["attention"])


LAWS: list[Law] = [
    same_answer_twice,
    assets_untouched,
    twice_the_rates_are_half_the_time,
    no_scheme_is_slower_than_what_it_contains,
]
