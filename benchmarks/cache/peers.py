"""nett cache against kvpress at equal bytes: KL to the full cache over a continuation that is given token by token.

Every text is 256 tokens: the first 192 are the prompt, which each side runs once for all of its policies; 64 follow. Most
policies act once, after the prompt: all keep as many slots of keys and values as the share says (ours fewer, where a slot
carries its size). CAM acts at every token: it and ours beside it hold a constant number of bytes, from the prompt's end on,
all that they carry counted. KVzip masks what others delete: its bytes are what it would hold if it did delete. Both sides
compute in float32 with one thread, each against its own full cache. A run that was broken off goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.cache import bed

from nett.core.bench import Figure, Outcome, Series
from nett.core.errors import NettError, Refused

TITLE = "nett cache against kvpress: KL to the full cache at equal bytes"
HOME = Path(__file__).resolve().parent.parent / ".venv-kvpress"
WORKER = Path(__file__).resolve().parent / "peer_worker.py"
PACKAGES = ("torch==2.13.0", "transformers>=5.2,<5.3", "kvpress==0.5.5")
SHARES = (0.5, 0.35)
ONCE = ("kvmerger", "ems", "expected_attention", "snapkv", "h2o", "knorm", "window")  # after the prompt
CONSTANT = ("kvmerger", "ems", "h2o")  # at every token
BARRED = ("kvmerger", "ems")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Size:
    texts: int
    context: int
    follow: int
    batch: int


@dataclass(frozen=True)
class Judged:
    """Text by text KL and negative log likelihood; bytes that a text's cache held at the end."""

    kl: np.ndarray
    nll: np.ndarray
    bytes: float


def python(say: Say, *, make: bool) -> Path | None:
    """The interpreter that has kvpress: the one that NETT_KVPRESS names, or that of our own environment, made if ``make``."""
    named = os.environ.get("NETT_KVPRESS")
    if named:
        if not Path(named).is_file():
            raise Refused("is named by NETT_KVPRESS, but there is no such file", where=named)
        return Path(named)
    if not (HOME / "done").is_file() and make:
        say(f"making an environment for kvpress in {HOME}")
        shutil.rmtree(HOME, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
        subprocess.run([HOME / "bin" / "pip", "install", "-q", *PACKAGES], check=True)
        (HOME / "done").touch()
    return HOME / "bin" / "python" if (HOME / "done").is_file() else None


def run(work: Path, say: Say, pico: bool) -> Outcome:
    peer = python(say, make=not pico)
    if peer is None:
        raise Refused("needs kvpress in an environment of its own, which --pico does not make", where=HOME)
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    beds = bed.build_pico(work / "bed") if pico else bed.build(work / "bed", say)
    size = Size(2, 112, 8, 2) if pico else Size(200, 192, 64, 8)
    figures: list[Figure] = []
    for name, (model, text) in beds.found.items():
        folder = work / "done" / name
        folder.mkdir(parents=True, exist_ok=True)
        ids = _windows(model, text, size)
        theirs = _theirs(peer, model, ids, size, folder / "kvpress", say)
        ours = _Ours(model, ids, size, folder / "nett", say).judged()
        for share in SHARES:
            figures += _figures(name, share, ours, theirs)
    settings = f"{size.texts} texts, prompts of {size.context} tokens, {size.follow} that follow"
    return Outcome(figures, {**_versions(peer), "settings": settings}, beds.skipped)


def _windows(model: Path, text: Path, size: Size) -> np.ndarray:
    from nett.core import torch_model
    from nett.core.windows import read_windows

    length = size.context + size.follow
    found = read_windows(text, torch_model.tokenizer(model), samples=size.texts, length=length, vocabulary=1 << 30)
    if len(found.ids) < size.texts:
        raise Refused(f"gives {len(found.ids)} windows of {length} tokens, {size.texts} are needed", where=text)
    return found.ids


def _theirs(
    peer: Path, model: Path, ids: np.ndarray, size: Size, out: Path, say: Say
) -> dict[tuple[str, float], Judged]:
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "ids.npy", ids)
    asked = {
        "model": str(model), "ids": str(out / "ids.npy"), "context": size.context, "shares": list(SHARES),
        "batch": size.batch, "out": str(out),
    }  # fmt: skip
    (out / "request.json").write_text(json.dumps(asked), encoding="utf-8")
    process = subprocess.Popen(
        [peer, WORKER, out / "request.json"], stdout=subprocess.PIPE, stderr=(out / "said.txt").open("wb"), text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        say(f"kvpress, {line.strip()}")
    if process.wait():
        last = (out / "said.txt").read_text(encoding="utf-8", errors="replace")[-600:]
        raise NettError(f"kvpress ended with exit code {process.returncode}: {last}", where=out)
    return _read(out, len(ids), size.batch)


def _read(folder: Path, texts: int, batch: int) -> dict[tuple[str, float], Judged]:
    """(name, share) -> what its batches say together."""
    parts: dict[tuple[str, float], dict[int, Any]] = {}
    for file in folder.glob("*.npz"):
        name, share, number = file.stem.rsplit("-", 2)
        parts.setdefault((name, float(share)), {})[int(number)] = np.load(file)
    found = {}
    for key, rows in parts.items():
        if sorted(rows) != list(range(-(-texts // batch))):
            raise NettError(f"{key[0]} at {key[1]:.0%} has {len(rows)} batches, not all", where=folder)
        some = [rows[i] for i in sorted(rows)]
        kl, nll = (np.concatenate([r[n] for r in some]) for n in ("kl", "nll"))
        found[key] = Judged(
            kl, nll, float(np.average([r["bytes"] for r in some], weights=[len(r["kl"]) for r in some]))
        )
    return found


@dataclass
class _Ours:
    model: Path
    ids: np.ndarray
    size: Size
    out: Path
    say: Say

    def judged(self) -> dict[tuple[str, float], Judged]:
        import torch

        import nett
        from nett.cache.judging import bed_of, judge

        self.out.mkdir(parents=True, exist_ok=True)
        ways = [(f"{n}", s) for s in SHARES for n in ONCE] + [
            (f"{n} at every token", s) for s in SHARES for n in CONSTANT
        ]
        loaded: Any = None
        for number, start in enumerate(range(0, len(self.ids), self.size.batch)):
            left = [(n, s, self.out / f"{n}-{s}-{number}.npz") for n, s in ways]
            left = [one for one in left if not one[2].is_file()]
            if not left:
                continue
            loaded = loaded or nett.load(self.model, as_model=True).float().eval()
            rows = torch.from_numpy(self.ids[start : start + self.size.batch])
            prompts = bed_of(loaded, rows, self.size.context, batch=self.size.batch)
            for name, share, file in left:
                found = judge(loaded, prompts, self._policy(name, share, loaded.config, len(rows)))
                partial = file.with_suffix(".part")
                with partial.open("wb") as stream:
                    np.savez(stream, kl=found.kl, nll=found.policy, bytes=found.bytes)
                partial.rename(file)
                self.say(f"nett, batch {number}: {name} at {share:.0%}: KL {found.kl.mean():.5f}")
        return _read(self.out, len(self.ids), self.size.batch)

    def _policy(self, name: str, share: float, config: Any, rows: int) -> Any:
        """No more bytes than keys and values of the share's slots take."""
        import nett

        method, _, always = name.partition(" ")
        width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        slots, a_slot = int(self.size.context * share), 2 * width * 4
        if always:
            many = rows * config.num_hidden_layers * config.num_key_value_heads
            return getattr(nett.cache, method)(budget=f"{slots * a_slot * many}B", every=1)
        carried = 4 if method in ("kvmerger",) else 0  # sizes
        return getattr(nett.cache, method)(budget=f"{slots * a_slot // (a_slot + carried)}tok", when="prefill")


def _figures(
    model: str, share: float, ours: Mapping[tuple[str, float], Judged], theirs: Mapping[tuple[str, float], Judged]
) -> list[Figure]:
    figures = []
    mine = {n: j for (n, s), j in ours.items() if s == share}
    other = {n: j for (n, s), j in theirs.items() if s == share}
    for always in (False, True):
        rivals = {n: j for n, j in other.items() if n.startswith("CAM") == always}
        best = min(rivals, key=lambda n: float(rivals[n].kl.mean()))
        for name, judged in mine.items():
            if name.endswith("token") == always:
                bar = 1.0 if name.split()[0] in BARRED else None
                what = f"KL, {name}, {share:.0%} of the prompt's bytes, {model}"
                own = Series("nett", "nats a token", [float(judged.kl.mean())])
                least = Series(best, "nats a token", [float(rivals[best].kl.mean())])
                figures.append(Figure(what, own, least, bar=bar, note=_note(judged, rivals[best])))
        others = ", ".join(f"{n} {j.kl.mean():.5f}" for n, j in sorted(rivals.items(), key=lambda x: x[1].kl.mean()))
        when = "at every token" if always else "after the prompt"
        nearest = Series(best, "nats a token", [float(rivals[best].kl.mean())])
        figures.append(Figure(f"KL of kvpress' best {when}, {share:.0%}, {model}", nearest, note=others))
    return figures


def _note(mine: Judged, other: Judged) -> str:
    low, high = interval(mine.kl - other.kl)
    gap = float((mine.kl - other.kl).mean())
    held = f"{mine.bytes:,.0f} and {other.bytes:,.0f} bytes a text at the end"
    return f"difference {gap:+.5f} ({low:+.5f} to {high:+.5f}, 95 % of a paired bootstrap over {len(mine.kl)} texts); {held}"


def interval(differences: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """Between which the mean lies in 95 % of resamples of the texts; seeded."""
    rng = np.random.default_rng(0)
    means = np.array([differences[rng.integers(0, len(differences), len(differences))].mean() for _ in range(draws)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _versions(peer: Path) -> dict[str, str]:
    words = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    asked = subprocess.run(
        [peer, "-c", words, "torch", "transformers", "kvpress"], check=True, capture_output=True, text=True
    )
    found = {n: v.partition("+")[0] for n, v in json.loads(asked.stdout).items()}
    return {n if n == "kvpress" else f"peer's {n}": v for n, v in found.items()}
