"""A conversion, planned from headers and streamed: which tensor goes where, as which type, and what it loses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from typing import Any, final

from nett.core.casting import Cast, Loss, widens
from nett.core.checkpoint import Checkpoint
from nett.core.checkpoint.writer import FileSpec, TensorSpec, shard_plan
from nett.core.dtypes import DTYPES, Array, Dtype
from nett.core.errors import ProofFailed, Refused, UsageError
from nett.core.progress import report
from nett.core.runner import Pool
from nett.core.sink import Sink, stem_of
from nett.core.staging import Staging

CHUNK = 1 << 19  # elements
MARK_BYTES = 64 << 20  # how much may have to be done again after a kill


@final
@dataclass(frozen=True)
class Conversion:
    """``casts`` in the order of writing. ``omitted``: tensors that are not written -> the equal one that is."""

    source: Checkpoint
    casts: tuple[Cast, ...]
    files: tuple[FileSpec, ...]
    omitted: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def retyped(self) -> bool:
        """Whether any tensor gets another type than it has."""
        return any(c.dtype != self.source.tensors[c.name].dtype for c in self.casts)

    @property
    def lossless(self) -> bool:
        """Whether every type holds all values of the one before, whatever they are."""
        return not any(c.computed for c in self.casts) and all(
            widens(self.source.tensors[c.name].dtype, c.dtype) for c in self.casts
        )

    @property
    def widest(self) -> Dtype | None:
        """The narrowest type that holds the values of all float tensors: what config.json should name."""
        floats = {c.dtype for c in self.casts if c.dtype.is_float}
        wide = [d for d in DTYPES.values() if d.is_float and all(widens(f, d) for f in floats)]
        return min(wide, key=lambda d: (d.bits, d not in floats)) if floats else None

    def pieces(self, first: int = 0) -> Iterator[tuple[int, int, int]]:
        """(place in ``casts``, start, stop) of every piece, in the order of writing."""
        for place, cast in enumerate(self.casts[first:], start=first):
            size = self.source.tensors[cast.name].size
            for start in range(0, size, CHUNK):
                yield place, start, min(size, start + CHUNK)


def plan(source: Checkpoint, dtype: Dtype | None, shard_bytes: int, file: str | None = None) -> Conversion:
    """From headers alone. ``file``: the name of the one file that is to hold everything."""
    if not source.tensors:
        raise Refused("holds no tensors", where=source.path)
    config = source.config() or {}
    if dtype is not None and config.get("quantization_config"):
        raise Refused(
            "config.json says that the weights are quantised (quantization_config): another dtype would change their"
            " scales only",
            where=source.path,
            hint="Leave out --dtype, or convert the model that was quantised.",
        )
    if dtype is not None and not dtype.is_float:
        raise UsageError(f"--dtype {dtype.alias} is no floating-point type", hint="For example: --dtype bfloat16.")
    omitted = _tied_heads(source, config)
    casts = tuple(
        Cast(source, n, dtype if dtype is not None and t.dtype.is_float else t.dtype, _is_computed(source, n))
        for n, t in sorted(source.tensors.items())
        if n not in omitted
    )
    specs = [TensorSpec(c.name, c.dtype, source.tensors[c.name].shape) for c in casts]
    files = shard_plan(specs, shard_bytes)
    if file is not None:
        files = [replace(shard_plan(specs, sum(s.nbytes for s in specs) + 1)[0], name=file)]
    said = {"format": "pt"} | getattr(source, "metadata", {}) if source.format == "safetensors" else {"format": "pt"}
    return Conversion(
        source, casts, tuple(replace(f, metadata=said) for f in files), omitted, tuple(_notes(source, omitted))
    )


def _is_computed(source: Checkpoint, name: str) -> bool:
    return source.format == "peft" and source.tensors[name].dtype.is_float and source.tensors[name].file is None


def _tied_heads(source: Checkpoint, config: Mapping[str, Any]) -> dict[str, str]:
    """Output layers of a torch file that are the embeddings under a second name: models load them from there."""
    aliases: Mapping[str, str] = getattr(source, "aliases", {})
    tied = config.get("tie_word_embeddings")
    return {
        name: first for name, first in aliases.items() if tied and name.endswith("lm_head.weight") and "embed" in first
    }


def _notes(source: Checkpoint, omitted: Mapping[str, str]) -> list[str]:
    notes = [
        f"{name} is {first} under another name (tie_word_embeddings), so it is not written"
        for name, first in omitted.items()
    ]
    twice = {n: f for n, f in getattr(source, "aliases", {}).items() if n not in omitted}
    if twice:
        name, first = next(iter(twice.items()))
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        notes.append(f"{name} shares its memory with {first}{more}; safetensors has no sharing, so it is written out")
    skipped = getattr(source, "skipped", ())
    if skipped:
        notes.append(f"left out, as transformers does not load them either: {', '.join(skipped)}")
    if getattr(source, "renamed", True) is False:
        notes.append("the tensors keep their GGUF names and values")
    return notes


def write(job: Conversion, staging: Staging, threads: int) -> tuple[list[dict[str, Any]], dict[str, Loss]]:
    """All tensors into their files, going on from the journal. Returns the output records and each tensor's loss.

    Raises ProofFailed where a value is finite and its rounded form is not.
    """
    losses: dict[str, Loss] = {}
    first, marks = 0, None
    for entry in staging.entries:
        if "task" in entry:
            first, marks = entry["task"], entry["files"]
            losses = {name: Loss(**record) for name, record in entry["losses"].items()}
    if staging.resumed:
        report.say(f"resuming at tensor {first} of {len(job.casts)}")
    stem = stem_of(job.files[0].name)
    sink, pool = Sink(staging.path, job.files, marks), Pool(threads)

    def mark(position: int) -> None:
        records = {name: asdict(loss) for name, loss in losses.items()}
        staging.record(task=position, files=sink.sync(), losses=records)

    def work(piece: tuple[int, int, int]) -> tuple[int, int, Array, Loss]:
        place, start, stop = piece
        return place, stop, *job.casts[place].piece(start, stop)

    try:
        report.begin("converting", sum(f.nbytes for f in job.files))
        unsynced = 0
        for place, stop, raw, loss in pool.ordered(work, job.pieces(first)):
            cast = job.casts[place]
            if loss.overflowed:
                raise ProofFailed(
                    f"tensor {cast.name!r} holds {loss.overflowed:,} finite values that are too large for"
                    f" {cast.dtype.name}",
                    where=job.source.path,
                    hint="Choose a type of wider range: bfloat16 or float32.",
                )
            losses[cast.name] = losses.get(cast.name, Loss()) + loss
            sink.write(stem, raw)
            unsynced += raw.nbytes
            report.step(raw.nbytes)
            if stop == job.source.tensors[cast.name].size and unsynced >= MARK_BYTES:
                mark(place + 1)
                unsynced = 0
        written = sink.finish()
        mark(len(job.casts))
        for name, content in sink.indexes().items():
            written.append(staging.add_file(name, content))
        return written, losses
    finally:
        sink.close()
        pool.close()
        report.end()


def compare(job: Conversion, written: Checkpoint, threads: int) -> tuple[list[str], Loss]:
    """Walk the conversion again: the tensors that are not, bit for bit, what it makes of its source; and the loss."""
    shapes = {n: (t.shape, t.dtype) for n, t in written.tensors.items()}
    wanted = {c.name: (job.source.tensors[c.name].shape, c.dtype) for c in job.casts}
    wrong = sorted(n for n in shapes.keys() | wanted.keys() if shapes.get(n) != wanted.get(n))
    if wrong:
        return wrong, Loss()
    pool, losses = Pool(threads), dict.fromkeys(wanted, Loss())

    def work(piece: tuple[int, int, int]) -> tuple[str, bool, int, Loss]:
        place, start, stop = piece
        raw, loss = job.casts[place].piece(start, stop)
        name = job.casts[place].name
        return name, raw.tobytes() == written.read(name, start, stop).tobytes(), raw.nbytes, loss

    try:
        report.begin("comparing", written.nbytes)
        differing = set()
        for name, equal, nbytes, loss in pool.ordered(work, job.pieces()):
            losses[name] += loss
            differing |= set() if equal else {name}
            report.step(nbytes)
    finally:
        pool.close()
        report.end()
    return sorted(differing), reduce(add, (losses[c.name] for c in job.casts))
