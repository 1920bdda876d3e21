"""nett weights against llm-compressor on SmolLM2-135M: perplexity at equal bits, CPU seconds and peak memory.

Both get the same token windows of the calibration text; both results are judged by nett's own measure on held-out text.
Every process uses one thread. nett's includes its judging on a single window (it writes no model without), and both
include starting Python. The packaged model lies on a 4-bit grid of 32-blocks: it is compared at 3 and 2 bits, and at 4
only with groups of 64; ``moved`` was trained off that grid. A run that was broken off goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import Spent, spend
from benchmarks.weights import bed

from nett.core.bench import Figure, Outcome, Series
from nett.core.errors import Refused

TITLE = "nett weights against llm-compressor: quality at equal bits, time and memory"
HOME = Path(__file__).resolve().parent.parent / ".venv-llmcompressor"
WORKER = Path(__file__).resolve().parent / "peer_worker.py"
PACKAGES = {"torch": "2.13.0", "transformers": "5.14.1", "llmcompressor": "0.13.0"}
SAMPLES, LENGTH, GROUP = 32, 512, 64
METHODS = ("rtn", "gptq", "awq")
CASES = [("packaged", 3), ("moved", 4), ("moved", 3), ("packaged", 2), ("packaged", 4)]  # the most telling first


@dataclass(frozen=True)
class Run:
    """One result: what it cost to make, bits of a weight of the linear layers, how it does on the judging text."""

    spent: Spent
    bits: float
    perplexity: float
    kl: float
    load: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def python(say: Callable[[str], None], *, make: bool) -> Path | None:
    """The interpreter that has llm-compressor: the one that NETT_LLMCOMPRESSOR names, or that of our own environment,
    made if ``make``."""
    named = os.environ.get("NETT_LLMCOMPRESSOR")
    if named:
        if not Path(named).is_file():
            raise Refused("is named by NETT_LLMCOMPRESSOR, but there is no such file", where=named)
        return Path(named)
    found = HOME / "bin" / "python"
    if not (HOME / "done").is_file() and make:
        say(f"making an environment for llm-compressor in {HOME}")
        shutil.rmtree(HOME, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        for package, version in PACKAGES.items():
            subprocess.run([HOME / "bin" / "pip", "install", "-q", f"{package}=={version}"], check=True)
        (HOME / "done").touch()
    return found if (HOME / "done").is_file() else None


def run(work: Path, say: Callable[[str], None], pico: bool) -> Outcome:
    peer = python(say, make=not pico)
    if peer is None:
        raise Refused("needs llm-compressor in an environment of its own, which --pico does not make", where=HOME)
    os.environ["OMP_NUM_THREADS"] = "1"
    models = bed.build_pico(work / "bed") if pico else bed.build(work / "bed", say)
    samples, length, group = (8, 32, 64) if pico else (SAMPLES, LENGTH, GROUP)
    bench = _Bench(work, models, peer, samples, length, say)
    figures: list[Figure] = []
    best: dict[tuple[str, str, int], float] = {}
    for model, bits in CASES[:1] if pico else CASES:
        for method in METHODS:
            ours = bench.made("nett", method, model, bits, group)
            theirs = bench.made("llm-compressor", method, model, bits, group)
            figures += _figures(method, f"{model}, {bits} bits, groups of {group}", ours, theirs)
            for tool, one in (("nett", ours), ("llm-compressor", theirs)):
                best[tool, model, bits] = min(best.get((tool, model, bits), np.inf), one.perplexity)
        for_case = [best["nett", model, bits], best["llm-compressor", model, bits]]
        mine, other = (Series(n, "perplexity", [v]) for n, v in zip(("nett", "llm-compressor"), for_case, strict=True))
        bar = 1.01 if bits == 4 else None
        figures.append(Figure(f"best perplexity, {model}, {bits} bits", mine, other, bar=bar))
    for method in ("wanda", "sparsegpt"):
        ours, theirs = (bench.made(tool, method, "moved", 16, 0) for tool in ("nett", "llm-compressor"))
        figures += _figures(method, "moved, 2:4", ours, theirs, bars=False)
    return Outcome(
        figures, {**_versions(peer), "settings": f"{samples} windows of {length}, groups of {group}, symmetric"}
    )


def _figures(method: str, what: str, ours: Run, theirs: Run, *, bars: bool = True) -> list[Figure]:
    barred = bars and method == "gptq"
    note = f"{ours.bits:.3f} and {theirs.bits:.3f} bits a weight"
    if abs(ours.bits - theirs.bits) > 0.01:
        raise Refused(f"{method}, {what}: {note} are not the same, so the two cannot be compared")

    def both(unit: str, of: Callable[[Run], float]) -> tuple[Series, Series]:
        return tuple(Series(n, unit, [of(r)], [r.load]) for n, r in (("nett", ours), ("llm-compressor", theirs)))  # type: ignore[return-value]

    name = f"{method}, {what}"
    return [
        Figure(
            f"{name}: perplexity", *both("perplexity", lambda r: r.perplexity), bar=1.0 if barred else None, note=note
        ),
        Figure(f"{name}: KL to the original", *both("nats", lambda r: r.kl)),
        Figure(f"{name}: CPU seconds", *both("s", lambda r: r.spent.cpu), bar=1.0 if barred else None),
        Figure(f"{name}: peak memory", *both("MB", lambda r: r.spent.anonymous), bar=0.5 if barred else None),
    ]


@dataclass
class _Bench:
    work: Path
    models: Mapping[str, Path]
    peer: Path
    samples: int
    length: int
    say: Callable[[str], None]

    def made(self, tool: str, method: str, model: str, bits: int, group: int) -> Run:
        """A result, made and judged; read back where an earlier run came so far."""
        name = f"{tool}-{method}-{model}-{bits}-{group}-{self.samples}x{self.length}"
        stored, out = self.work / "done" / f"{name}.json", self.work / "made" / name
        if stored.is_file():
            said = json.loads(stored.read_text(encoding="utf-8"))
            return Run(Spent(**said.pop("spent")), **said)
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(exist_ok=True)
        load = os.getloadavg()[0]
        command = self._nett if tool == "nett" else self._peer
        spent = spend(command(method, model, bits, group, out), self.work, memory=True)
        found = Run(spent, *self._judged(model, out), load)
        shutil.rmtree(out)
        stored.parent.mkdir(exist_ok=True)
        stored.write_text(json.dumps(found.as_json()), encoding="utf-8")
        told = f"perplexity {found.perplexity:.3f}, {spent.cpu:.0f} s of CPU, {spent.anonymous:.0f} MB"
        self.say(f"{tool} {method}, {model}, {bits} bits: {told}")
        return found

    def _nett(self, method: str, model: str, bits: int, group: int, out: Path) -> list[str]:
        texts = ["--calibration", str(self.models["calibration"]), "--samples", str(self.samples)]
        grid = ["--bits", str(bits), "--group", str(group)] if group else ["--pattern", "2:4"]
        return [
            "nett", "weights", method, str(self.models[model]), "--out", str(out), *grid, *(texts if method != "rtn" else []),
            "--eval", str(self._little()), "--length", str(self.length), "--threads", "1", "--quiet",
        ]  # fmt: skip

    def _peer(self, method: str, model: str, bits: int, group: int, out: Path) -> list[str]:
        ids = self.work / f"ids-{model}.npy"
        np.save(ids, self._windows(model, "calibration", self.samples).ids)
        grid = [str(bits), str(group)] if group else []
        return [str(self.peer), str(WORKER), method, str(self.models[model]), str(ids), str(out), *grid]

    def _little(self) -> Path:
        """Text of about one window, for nett's own run."""
        file = self.work / "little.txt"
        if not file.is_file():
            windows = self._windows("packaged", "judging", 2)
            file.write_text(self._tokenizer("packaged").decode(np.concatenate([*windows.ids])[: self.length * 5 // 4]))
        return file

    def _tokenizer(self, model: str) -> Any:
        from nett.core import torch_model

        return torch_model.tokenizer(self.models[model])

    def _windows(self, model: str, text: str, samples: int) -> Any:
        from nett.core.windows import read_windows

        return read_windows(
            self.models[text], self._tokenizer(model), samples=samples, length=self.length, vocabulary=1 << 30
        )

    def _judged(self, model: str, out: Path) -> tuple[float, float, float]:
        """Bits of a weight of the blocks' linear layers, perplexity and KL on the judging text."""
        from nett.core.blocks import open_skeleton
        from nett.core.checkpoint import open_checkpoint
        from nett.core.quality import compare

        with (
            open_checkpoint(self.models[model]) as before,
            open_checkpoint(out, dense=True) as after,
            open_checkpoint(out) as raw,
        ):
            original = open_skeleton(before)
            layers = [layer for i in range(len(original)) for layer in original.linears(i)]
            stems = {layer.module for layer in layers}
            size = sum(t.nbytes for n, t in raw.tensors.items() if n.rpartition(".")[0] in stems)
            quality = compare(original, open_skeleton(after), self._windows(model, "judging", 16))
        weights = sum(layer.rows * layer.columns for layer in layers)
        return 8 * size / weights, quality.perplexity, float(quality.kl.mean())


def _versions(peer: Path) -> dict[str, str]:
    names = [*PACKAGES, "compressed-tensors"]
    words = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    asked = subprocess.run([peer, "-c", words, *names], check=True, capture_output=True, text=True)
    return {
        f"peer's {name}" if name in ("torch", "transformers") else name: v
        for name, v in json.loads(asked.stdout).items()
    }
