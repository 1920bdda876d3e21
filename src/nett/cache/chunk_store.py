"""Chunks whose keys and values were computed once, several variants of each, in memory and on the disk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from nett.cache.chunk_files import Told, model_hash, open_chunk, read_layer, read_told, write_chunk
from nett.cache.chunk_moving import Mover
from nett.cache.policy import check_model
from nett.core.checkpoint.safetensors import read_header
from nett.core.checkpoint.writer import byte_size
from nett.core.errors import Refused, UsageError

WHERE = "cache/cache_craft"


@final
@dataclass(eq=False)
class Variant:
    """One chunk as it was computed in one context. pairs: keys and values ``[h, n, d]`` of each layer while it is in
    memory; file: where it is on the disk; worth: the sum over its uses of 1 / CFO; used: when it was last."""

    told: Told
    pairs: Sequence[tuple[Any, Any]] | None = None
    file: Path | None = None
    worth: float = 1.0
    used: int = 0

    def reader(self, device: Any) -> Any:
        """layer -> its keys and values; those of a variant on the disk are read when they are asked for."""
        if self.pairs is not None:
            return self.pairs.__getitem__
        assert self.file is not None
        read_header(self.file)  # refused where it was cut off since
        opened = open_chunk(self.file)
        return lambda layer: read_layer(opened, layer, device)


@final
class chunk_store:
    """A store of chunks for :func:`nett.cache.cache_craft`.

    A chunk that is computed comes to memory and, where there is a folder, to the disk at once. Where a tier is over its
    bytes, the variants of least worth leave it: each use of a variant adds 1 / CFO to its worth, so that those stay that are
    used often and need little work (``evict="lru"``: those that were used last). A variant on the disk is read layer by layer
    while the layers before are computed, and is in memory from then on. One thread at a time may use a store.

    Args:
        model: a decoder of transformers, all of whose layers see all tokens, with rotary positions.
        tokenizer: its tokenizer; None where all texts are given as token ids.
        folder: on the disk, of this model alone; it is made where there is none.
        memory: bytes of keys and values in memory, such as ``1GB``.
        disk: bytes of keys and values on the disk.
        variants: of one chunk; beyond them the least worth goes.

    Raises:
        Refused: keys of the model cannot be moved; a file of the folder is cut off, or another model's.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        folder: str | Path | None = None,
        memory: str | int = "1GB",
        disk: str | int = "10GB",
        variants: int = 4,
        evict: str = "worth",
    ) -> None:
        check_model(model, WHERE)
        if variants < 1:
            raise UsageError(f"variants = {variants} is out of range: 1 <= variants", where=WHERE)
        if evict not in ("worth", "lru"):
            raise UsageError(f"evict = {evict!r} is not one of worth, lru", where=WHERE)
        self.model, self.tokenizer, self.variants, self.evict = model, tokenizer, variants, evict
        self.memory, self.disk = byte_size(str(memory)), byte_size(str(disk))
        self.mover = Mover(model, WHERE)
        self.layers = int(model.config.get_text_config().num_hidden_layers)
        self.model_hash = model_hash(model)
        self.folder = None if folder is None else Path(folder)
        self.time = 0
        self._chunks: dict[str, list[Variant]] = {}
        if self.folder is not None:
            self._open(self.folder)

    def _open(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(f"cannot be written: {error.strerror}", where=folder) from error
        for file in sorted(folder.glob("[!.]*.safetensors")):
            told = read_told(file, self.model_hash)
            self._chunks.setdefault(told.name, []).append(Variant(told, file=file))
        self.settle()

    # -- what is there ------------------------------------------------------------------------------------------

    def ids(self, text: Any, *, first: bool = False) -> tuple[int, ...]:
        """A text as token ids, or the ids that were given; ``first``: with what the tokenizer puts before a text."""
        if not isinstance(text, str):
            return tuple(int(i) for i in text)
        if self.tokenizer is None:
            raise UsageError(
                "texts need a tokenizer", where=WHERE, hint="chunk_store(model, tokenizer), or give token ids."
            )
        return tuple(self.tokenizer(text, add_special_tokens=first).input_ids)

    def of(self, name: str) -> list[Variant]:
        """The variants of a chunk."""
        return self._chunks.get(name, [])

    def all(self) -> Iterator[Variant]:
        for variants in self._chunks.values():
            yield from variants

    def tiers(self) -> dict[str, int]:
        """Bytes of keys and values in memory and on the disk, variants and chunks."""
        return {
            "memory": sum(v.told.nbytes for v in self.all() if v.pairs is not None),
            "disk": sum(v.told.nbytes for v in self.all() if v.file is not None),
            "variants": sum(1 for _ in self.all()),
            "chunks": len(self._chunks),
        }

    # -- what comes and goes ------------------------------------------------------------------------------------

    def use(self, variant: Variant, overhead: float, pairs: Sequence[tuple[Any, Any]] | None = None) -> None:
        """Note a use at a CFO; ``pairs``: what was read of it, if it was on the disk."""
        self.time += 1
        variant.used = self.time
        variant.worth += 1 / max(overhead, 1 / len(variant.told.ids))
        if pairs is not None and variant.pairs is None:
            variant.pairs = pairs

    def add(self, told: Told, pairs: Sequence[tuple[Any, Any]]) -> Variant:
        """A chunk as it was just computed; one of the same context is replaced by it."""
        self.time += 1
        mine = self._chunks.setdefault(told.name, [])
        context = told.attended.before, told.start, told.exact
        for old in [v for v in mine if (v.told.attended.before, v.told.start, v.told.exact) == context]:
            self._forget(old)  # its file has the name of the new one, which takes its place
        variant = Variant(told, pairs, used=self.time)
        if self.folder is not None:
            variant.file = write_chunk(self.folder, told, pairs, self.model_hash)
        self._chunks.setdefault(told.name, []).append(variant)
        while len(self._chunks[told.name]) > self.variants:
            self._drop(min((v for v in self._chunks[told.name] if v is not variant), key=self._value))
        return variant

    def settle(self, busy: Collection[Variant] = ()) -> None:
        """Bring both tiers within their bytes; ``busy``: what was just used goes last."""
        kept = {id(v) for v in busy}
        order = sorted(self.all(), key=lambda v: (id(v) in kept, self._value(v)))
        for tier, most in (("file", self.disk), ("pairs", self.memory)):
            held = sum(v.told.nbytes for v in order if getattr(v, tier) is not None)
            for variant in order:
                if held <= most:
                    break
                if getattr(variant, tier) is not None:
                    held -= variant.told.nbytes
                    self._leave(variant, tier)

    def _value(self, variant: Variant) -> tuple[float, int]:
        return (variant.worth if self.evict == "worth" else 0.0, variant.used)

    def _leave(self, variant: Variant, tier: str) -> None:
        if tier == "file":
            assert variant.file is not None
            variant.file.unlink(missing_ok=True)
        setattr(variant, tier, None)
        if variant.file is None and variant.pairs is None:
            self._forget(variant)

    def _drop(self, variant: Variant) -> None:
        if variant.file is not None:
            variant.file.unlink(missing_ok=True)
        self._forget(variant)

    def _forget(self, variant: Variant) -> None:
        left = [v for v in self._chunks[variant.told.name] if v is not variant]
        if left:
            self._chunks[variant.told.name] = left
        else:
            self._chunks.pop(variant.told.name)
