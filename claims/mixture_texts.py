"""Text of three kinds that every machine with Python has: code, prose, and arithmetic that is made; as bytes.

Code: sources of the standard library. Prose: the reference that ``help()`` prints, docstrings of whole modules, and licence
texts where the system has them. Arithmetic: lines such as ``17+25=42``.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

KINDS = ("code", "prose", "sums")
_APART = ("test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "__pycache__")
_LICENCES = Path("/usr/share/common-licenses")


@dataclass(frozen=True)
class Texts:
    """For each kind the bytes that are learned from, and others that are judged by: whole files apart, and sums that do
    not stand in the first."""

    learn: dict[str, bytes]
    judge: dict[str, bytes]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for part in (self.learn, self.judge):
            for kind in KINDS:
                digest.update(len(part[kind]).to_bytes(8, "little") + part[kind])
        return digest.hexdigest()


def texts(most: int = 4_000_000, seed: int = 0) -> Texts:
    """At most ``most`` bytes a kind to learn from, and a twentieth of that to judge by."""
    judged = max(2000, most // 20)
    found: dict[str, tuple[bytes, bytes]] = {
        "code": _parted(_sources(), most, judged, seed),
        "prose": _parted(_prose(), most, judged, seed),
        "sums": sums(most, judged, seed),
    }
    return Texts({k: v[0] for k, v in found.items()}, {k: v[1] for k, v in found.items()})


def _modules() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [f for f in sorted(root.rglob("*.py")) if not set(f.relative_to(root).parts) & set(_APART)]
    return [f for f in files if 1000 < f.stat().st_size < 200_000]


def _sources() -> list[bytes]:
    return [f.read_bytes() for f in _modules()]


def _prose() -> list[bytes]:
    from pydoc_data.topics import topics

    found = [text.encode() for _, text in sorted(topics.items())]
    for file in _modules():
        try:
            said = [
                ast.get_docstring(node) or ""
                for node in ast.walk(ast.parse(file.read_bytes()))
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            ]
        except (SyntaxError, ValueError):
            continue
        text = "\n\n".join(s for s in said if len(s) > 200).encode()
        if len(text) > 1000:
            found.append(text)
    if _LICENCES.is_dir():
        found += [f.read_bytes() for f in sorted(_LICENCES.iterdir()) if f.is_file() and not f.is_symlink()]
    return found


def _parted(files: list[bytes], most: int, judged: int, seed: int) -> tuple[bytes, bytes]:
    """Whole files for judging first, in an order by chance; the rest to learn from."""
    order = np.random.default_rng(seed).permutation(len(files))
    learn, judge = [], []
    size = 0
    for i in order:
        if size < judged:
            judge.append(files[i][: judged - size])
            size += len(judge[-1])
        else:
            learn.append(files[i])
    return b"\n\n".join(learn)[:most], b"\n\n".join(judge)


def sums(most: int, judged: int, seed: int = 0) -> tuple[bytes, bytes]:
    """Lines ``a+b=c`` with a and b below 100; a tenth of the 10,000 pairs are only judged by."""
    random = np.random.default_rng([seed, 1])
    pairs = random.permutation(10_000)
    parts = []
    for chosen, size in ((pairs[1000:], most), (pairs[:1000], judged)):
        drawn = random.choice(chosen, size // 7 + 1)
        parts.append("".join(f"{p // 100}+{p % 100}={p // 100 + p % 100}\n" for p in drawn.tolist()).encode()[:size])
    return parts[0], parts[1]
