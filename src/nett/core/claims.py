"""Claims: does a paper's effect hold? Finds the claim files of a checkout, runs one, stores what came out.

A claim file is ``claims/P10.py`` with the literals ``PAPER``, ``CLAIM`` (one sentence) and ``METHODS`` (card keys),
and ``run(seeds, progress) -> Result``. The rule of its verdict stands in the file before the numbers are known: each
:class:`Check` can fail, and the claim holds if all of them hold.
"""

from __future__ import annotations

import ast
import datetime
import importlib
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from nett.core.cards import PACKAGE, all_cards
from nett.core.errors import NettError, Refused, UsageError
from nett.core.papers import find_paper
from nett.core.progress import report
from nett.core.results import claim_result, store_claim
from nett.core.standing import Point

SEEDS = (0, 1, 2)


@final
@dataclass(frozen=True)
class Figure:
    """One number: what was measured, on which bed at which size, with which seed. ``note``: settings chosen."""

    bed: str
    size: str
    seed: int
    what: str
    value: float
    unit: str = "%"
    note: str = ""


@final
@dataclass(frozen=True)
class Check:
    """One part of the verdict: the rule in words, whether it holds, and the figures that decided."""

    rule: str
    holds: bool
    figures: str


@final
@dataclass(frozen=True)
class Result:
    """What an experiment came to. ``because``: the causes found; ``skipped``: bed -> why it was left out."""

    checks: Sequence[Check]
    figures: Sequence[Figure]
    frontier: Sequence[Point]
    skipped: Mapping[str, str] = field(default_factory=dict)
    because: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        return "holds" if all(c.holds for c in self.checks) else "fails"

    @property
    def beds(self) -> list[str]:
        """The beds that the verdict rests on."""
        return list(dict.fromkeys(f.bed for f in self.figures))


@final
@dataclass(frozen=True)
class Claim:
    """A claim file as its literals tell, without running it."""

    paper: str
    claim: str
    methods: tuple[str, ...]
    file: Path


def checkout(folder: str = "claims", package: Path = PACKAGE) -> Path:
    """The root of the source checkout that this nett runs from; Refused where it was installed without one.

    ``folder``: what is to be run, a folder beside ``src``.
    """
    root = package.parent.parent
    if package.parent.name == "src" and (root / folder).is_dir() and (root / "pyproject.toml").is_file():
        return root
    raise Refused(
        f"{folder} are run from a source checkout, and this nett is not one: it has no folder {folder!r} beside 'src'",
        where=package,
        hint="Clone the repository and install it with: pip install -e '.[models,claims]'",
    )


def claims_of(root: Path) -> list[Claim]:
    """All claim files of a checkout, by paper; read with ``ast``, nothing is run."""
    return [_read(file) for file in sorted((root / "claims").glob("P*.py"))]


def _read(file: Path) -> Claim:
    found: dict[str, Any] = {}
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in ("PAPER", "CLAIM", "METHODS"):
                try:
                    found[node.targets[0].id] = ast.literal_eval(node.value)
                except ValueError as error:
                    raise NettError(f"{node.targets[0].id} must be a literal", where=f"{file}:{node.lineno}") from error
    lacking = [name for name in ("PAPER", "CLAIM", "METHODS") if not found.get(name)]
    if lacking:
        raise NettError(f"a claim file needs {', '.join(lacking)}", where=file)
    if found["PAPER"] != file.stem:
        raise NettError(f"PAPER is {found['PAPER']!r}, but the file is called {file.name}", where=file)
    return Claim(found["PAPER"], found["CLAIM"], tuple(found["METHODS"]), file)


def find_claim(name: str, root: Path) -> Claim:
    """The claim of a paper; UsageError where the paper or its claim file does not exist."""
    paper = find_paper(name)
    claims = {c.paper: c for c in claims_of(root)}
    if paper.id not in claims:
        raise UsageError(
            f"{paper.id} has no claim file yet; there are {', '.join(claims) or 'none'}", where=root / "claims"
        )
    return claims[paper.id]


def run_claim(claim: Claim, *, seeds: Sequence[int] = SEEDS, say: Callable[[str], None] = report.say) -> dict[str, Any]:
    """Run a claim's experiment and store its record in the package. Returns the record."""
    module = _import(claim)
    began = time.monotonic()

    def progress(text: str) -> None:
        say(f"{claim.paper} {time.monotonic() - began:6.1f} s  {text}")

    result: Result = module.run(tuple(seeds), progress)
    if not result.checks or not result.figures:
        raise NettError("gave no check or no figure, so it has no verdict", where=claim.file)
    record = as_record(claim, result, seeds, time.monotonic() - began)
    known = claim_result(claim.paper)
    poorer = known is not None and known.fresh and set(known.record["beds"]) > set(result.beds)
    if poorer and known is not None:
        lost = ", ".join(sorted(set(known.record["beds"]) - set(result.beds)))
        say(f"not stored: the stored result of {known.record['date']} rests on more beds ({lost} was skipped now)")
    else:
        say(f"stored in {store_claim(claim.paper, record, {c.key: c for c in all_cards()})}")
    return record


def _import(claim: Claim) -> Any:
    """The claim's module; its helpers beside it are ``claims.*`` while the checkout's root is on the path."""
    root = str(claim.file.parent.parent)
    for name in [n for n in sys.modules if n == "claims" or n.startswith("claims.")]:
        del sys.modules[name]
    sys.path.insert(0, root)
    try:
        return importlib.import_module(f"claims.{claim.paper}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "claims":
            raise
        raise Refused(
            f"needs the Python package {error.name!r}, which is not installed",
            where=claim.file,
            hint="Install what claims need: pip install torch==2.13.0 && pip install -e '.[models,claims]'",
        ) from error
    finally:
        sys.path.remove(root)


def as_record(claim: Claim, result: Result, seeds: Sequence[int], seconds: float) -> dict[str, Any]:
    """A result as it is stored: plain JSON, in an order that does not change between runs."""
    return {
        "paper": claim.paper,
        "claim": claim.claim,
        "methods": list(claim.methods),
        "verdict": result.verdict,
        "beds": result.beds,
        "skipped": dict(result.skipped),
        "checks": [asdict(c) for c in result.checks],
        "because": list(result.because),
        "frontier": [p.as_json() for p in result.frontier],
        "figures": [_compact(f) for f in result.figures],
        "seeds": list(seeds),
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds),
        "versions": _versions(),
    }


def _compact(figure: Figure) -> dict[str, Any]:
    row = {**asdict(figure), "value": round(figure.value, 4)}
    return {k: v for k, v in row.items() if k != "note" or v}


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("nett", "numpy", "torch", "scikit-learn"):
        try:
            found[package] = re.sub(r"\+.*", "", version(package))
        except PackageNotFoundError:
            continue
    return found
