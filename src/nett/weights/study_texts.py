"""The texts of a study: named files to calibrate on, each in draws of windows, and named files to judge by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused, UsageError
from nett.core.receipt import file_sha256
from nett.core.texts import named_files
from nett.core.windows import Windows, check_apart, read_tokens, read_windows

RANDOM, MIXED = "random", "mixed"


@final
@dataclass
class Sources:
    """What is calibrated on: name -> all tokens of a text, ``int64 [n]``. ``mixed`` is made of all others in equal
    parts where it has no file, ``random`` of tokens drawn evenly from the vocabulary."""

    names: Sequence[str]
    length: int
    samples: int
    vocabulary: int
    tokens: Mapping[str, Array] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)

    def draw(self, name: str, seed: int) -> Array:
        """``samples`` windows ``[samples, length]`` by chance: the same for the same seed, without one twice."""
        random = np.random.default_rng([seed, sum(name.encode())])
        if name in self.tokens:
            return self._of(name, self.samples, random)
        if name == RANDOM:
            return random.integers(0, self.vocabulary, (self.samples, self.length))
        others = list(self.tokens)
        shares = [self.samples // len(others) + (i < self.samples % len(others)) for i in range(len(others))]
        return np.concatenate([self._of(n, count, random) for n, count in zip(others, shares, strict=True) if count])

    def _of(self, name: str, count: int, random: np.random.Generator) -> Array:
        ids = self.tokens[name]
        whole = ids.size // self.length
        chosen = np.sort(random.choice(whole, count, replace=False))
        return ids[: whole * self.length].reshape(whole, self.length)[chosen]

    def identity(self, name: str) -> Any:
        """What a draw of this name depends on but for its seed."""
        used = [name] if name in self.tokens else [] if name == RANDOM else list(self.tokens)
        return {n: self.hashes[n] for n in used}


def read_sources(
    given: str, tokenizer: Any, *, samples: int, length: int, vocabulary: int, judging: Mapping[str, Windows]
) -> tuple[Sources, list[str]]:
    """The sources, and notes on them. Refused where a text is too short, or is (in part) one that judges."""
    files = named_files(given, "calibration", free=(RANDOM, MIXED))
    if files.get(MIXED, 1) is None and not any(files.values()):
        raise UsageError("mixed is made of other texts, and none is named", where="--calibration", hint="name=FILE,…")
    tokens, hashes, notes = {}, {}, list[str]()
    for name, file in files.items():
        if file is None:
            continue
        ids = read_tokens(file, tokenizer, vocabulary)
        if ids.size < samples * length:
            raise Refused(
                f"holds {ids.size:,} tokens, and {samples} windows of {length} are drawn of it",
                where=file,
                hint="Give more text, or fewer --samples: all arms are calibrated on equally many.",
            )
        tokens[name], hashes[name] = ids, file_sha256(file)
        every = Windows(ids[None], str(file), hashes[name])  # as one, so that no run is cut
        for one in judging.values():
            notes += check_apart(one, [every])
    return Sources(list(files), length, samples, vocabulary, tokens, hashes), notes


def read_judging(given: str, tokenizer: Any, *, samples: int, length: int, vocabulary: int) -> dict[str, Windows]:
    """Name -> the windows that judge."""
    how = {"samples": samples, "length": length, "vocabulary": vocabulary}
    files = {n: f for n, f in named_files(given, "eval").items() if f is not None}
    if not files:
        raise UsageError(
            "compares predictions, so it needs texts", where="weights/study", hint="--eval code=FILE,prose=FILE"
        )
    return {name: read_windows(file, tokenizer, **how) for name, file in files.items()}


def digest(*things: Any) -> str:
    """Of plain values, 12 characters."""
    from json import dumps

    return hashlib.sha256(dumps(things, sort_keys=True, default=str).encode()).hexdigest()[:12]
