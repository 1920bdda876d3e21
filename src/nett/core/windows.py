"""Text as windows of tokens, for calibration and for judging, and whether the two are apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.errors import Refused, UsageError
from nett.core.receipt import file_sha256

_MOST = 32 << 20  # bytes of text that are read of a file; of a larger one, pieces from all over it
_PIECE = 1 << 16
_READ = 1 << 20  # characters of a text that are read and tokenised together
_RUN = 24  # tokens in a row by which text is recognised


@final
@dataclass(frozen=True)
class Windows:
    """``ids`` int64 ``[n, length]``; where they come from, for the receipt."""

    ids: Array
    source: str
    sha256: str
    held_out: bool = False  # of a text that other windows of which are learned from

    @property
    def tokens(self) -> int:
        return int(self.ids.size)

    def as_json(self) -> dict[str, Any]:
        count, length = self.ids.shape
        return {"text": self.source, "sha256": self.sha256, "windows": count, "length": length}


def read_windows(file: Path, tokenizer: Any, *, samples: int, length: int, vocabulary: int) -> Windows:
    """At most ``samples`` windows of ``length`` tokens, evenly spread over a text (.txt, .md, …) or the ``text`` of
    the lines of a .jsonl file. Raises Refused where there is not one, or where tokens are beyond the vocabulary."""
    ids = read_tokens(file, tokenizer, vocabulary)
    if ids.size < length:
        hint = f"Give more text, or a smaller --length (now {length})."
        raise Refused(f"holds {ids.size:,} tokens, which is not one window of {length}", where=file, hint=hint)
    return Windows(spread_windows(ids, samples, length), str(file), file_sha256(file))


def read_tokens(file: Path, tokenizer: Any, vocabulary: int) -> Array:
    """All token ids of a text file; Refused where one is beyond the vocabulary."""
    ids = tokens_of(_text(file), tokenizer)
    _check_ids(ids, file, vocabulary)
    return ids


def _check_ids(ids: Array, file: Path, vocabulary: int) -> None:
    if ids.size and int(ids.max()) >= vocabulary:
        raise Refused(
            f"the tokenizer gives the token {int(ids.max())}, but the model knows {vocabulary:,}",
            where=file,
            hint="Tokenizer and model do not belong together.",
        )


def stream_windows(file: Path, tokenizer: Any, *, length: int, vocabulary: int, batch: int) -> Iterator[Array]:
    """All windows of a text of any size from its beginning to its end, int64 ``[at most batch, length]`` at a time.

    It is read and tokenised in pieces that end where a line does. Raises what :func:`read_windows` raises.
    """
    held, given = np.empty(0, np.int64), False
    for text in _pieces(file):
        ids = tokens_of(text, tokenizer)
        _check_ids(ids, file, vocabulary)
        held = np.concatenate([held, ids])
        while held.size >= batch * length:
            yield held[: batch * length].reshape(batch, length)
            held, given = held[batch * length :], True
    rest = held.size // length
    if rest:
        yield held[: rest * length].reshape(rest, length)
    elif not given:
        hint = f"Give more text, or a smaller --length (now {length})."
        raise Refused(f"holds {held.size:,} tokens, which is not one window of {length}", where=file, hint=hint)


def _pieces(file: Path) -> Iterator[str]:
    """The text in pieces of about a megabyte; of a .jsonl file the texts of its lines."""
    if not file.is_file():
        raise UsageError("there is no such text file", where=file)
    empty, number = True, 0
    with file.open(encoding="utf-8", errors="replace") as handle:
        while True:
            if file.suffix == ".jsonl":
                lines = handle.readlines(_READ)
                more = bool(lines)
                piece = "".join(f"{text}\n\n" for text in _texts("".join(lines), file, number))
                number += len(lines)
            else:
                piece = handle.read(_READ)
                piece += handle.readline(_READ)
                more = bool(piece)
            if not more:
                break
            empty = empty and not piece.strip()
            yield piece
    if empty:
        raise Refused("holds no text", where=file)


def tokens_of(text: str, tokenizer: Any) -> Array:
    """Token ids of a text, int64, without what the tokenizer would put around it."""
    return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)


def spread_windows(ids: Array, samples: int, length: int) -> Array:
    """Windows that do not overlap, ``[at most samples, length]``, evenly spread."""
    whole = ids.size // length
    chosen = np.unique(np.linspace(0, whole - 1, min(samples, whole)).round().astype(np.int64))
    return ids[: whole * length].reshape(whole, length)[chosen]


def _text(file: Path) -> str:
    if not file.is_file():
        raise UsageError("there is no such text file", where=file)
    size = file.stat().st_size
    with file.open("rb") as handle:
        if size <= _MOST:
            blob = handle.read()
        else:
            pieces = []
            for start in np.linspace(0, size - _PIECE, _MOST // _PIECE).astype(np.int64):
                handle.seek(int(start))
                pieces.append(_whole_lines(handle.read(_PIECE)))
            blob = b"\n".join(pieces)
    text = blob.decode("utf-8", errors="replace")
    if file.suffix == ".jsonl":
        text = "\n\n".join(_texts(text, file))
    if not text.strip():
        raise Refused("holds no text", where=file)
    return text


def _whole_lines(piece: bytes) -> bytes:
    """Without the lines at both ends, which the cut may go through."""
    first, last = piece.find(b"\n"), piece.rfind(b"\n")
    return piece[first + 1 : last] if 0 <= first < last else b""


def _texts(lines: str, file: Path, before: int = 0) -> list[str]:
    found = []
    for number, line in enumerate(lines.splitlines(), start=before + 1):
        if line.strip():
            try:
                found.append(str(json.loads(line)["text"]))
            except (ValueError, KeyError, TypeError) as error:
                raise Refused('is not JSON with an entry "text"', where=f"{file}:{number}") from error
    return found


def overlap(judging: Windows, calibration: Windows) -> float:
    """Share of the judging text's runs of 24 tokens that stand somewhere in the calibration text."""
    size = min(_RUN, judging.ids.shape[1], calibration.ids.shape[1])
    asked = np.unique(_runs(judging.ids, size)[:, ::size], return_counts=True)
    known = np.isin(asked[0], _runs(calibration.ids, size))
    return float(asked[1][known].sum() / asked[1].sum())


def _runs(ids: Array, size: int) -> Array:
    """A 64-bit hash of every run of ``size`` tokens: uint64 ``[n, length - size + 1]``."""
    words, count = ids.astype(np.uint64), ids.shape[1] - size + 1
    found = np.zeros((len(ids), count), np.uint64)
    for at in range(size):
        found *= np.uint64(0x9E3779B97F4A7C15)
        found += words[:, at : at + count] + np.uint64(1)
        found ^= found >> np.uint64(29)
    return found


def held_out(windows: Windows, share: float = 1 / 8) -> tuple[Windows, Windows]:
    """Calibration windows, and the last of them, which are kept for judging."""
    count = len(windows.ids)
    last = max(1, round(count * share))
    if count < 2:
        raise Refused(
            "is one window only, so that nothing is left to judge the result by",
            where=windows.source,
            hint="Give --eval.",
        )
    name = f"{windows.source} (held out)"
    return (
        Windows(windows.ids[: count - last], windows.source, windows.sha256),
        Windows(windows.ids[count - last :], name, windows.sha256, held_out=True),
    )


def check_apart(judging: Windows, calibration: Sequence[Windows]) -> list[str]:
    """What a reader should know of the two texts; Refused where the judging text is one that was learned from."""
    notes = []
    for seen in calibration:
        if judging.sha256 == seen.sha256 and not judging.held_out:
            raise Refused(
                "is the calibration text itself, so it cannot judge the result",
                where=judging.source,
                hint="Give another text with --eval, or none: then a part of the calibration text is held out.",
            )
        share = overlap(judging, seen)
        if share > 0.1:
            raise Refused(
                f"{share:.0%} of it stands in the calibration text {seen.source}, so it cannot judge the result",
                where=judging.source,
                hint="Give another text with --eval.",
            )
        if share:
            notes.append(f"{share:.1%} of the judging text stands in the calibration text as well")
    return notes
