"""Many output files written in one pass, each in order, and taken up where the journal left them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from nett.core.checkpoint.writer import FileSpec, OutputFile, index_json
from nett.core.errors import NettError
from nett.core.receipt import file_sha256

Marks = Mapping[str, Sequence[Any]]  # file name -> [position, sha256]


@final
class Sink:
    """Streams of tensors, one a ``stem``; a stream runs through the shards of its stem."""

    def __init__(self, folder: Path, files: Sequence[FileSpec], marks: Marks | None = None) -> None:
        self.folder = folder
        self._queue: dict[str, list[FileSpec]] = {}
        for spec in files:
            self._queue.setdefault(stem_of(spec.name), []).append(spec)
        self._sizes = {f.name: f.nbytes for f in files}
        self._current: dict[str, OutputFile] = {}
        self._done: dict[str, tuple[int, str]] = {}
        self._files = list(files)
        if marks:
            try:
                self._resume(marks)
            except NettError as error:
                self.close()
                hint = f"Delete {folder} and run the same command again: it then starts from the beginning."
                raise NettError(error.what, where=error.where, hint=hint) from error
        for stem in self._queue:
            if stem not in self._current:
                self._next(stem)

    def _resume(self, marks: Marks) -> None:
        for stem, queue in self._queue.items():
            while queue and queue[0].name in marks:
                spec = queue[0]
                position, digest = marks[spec.name]
                if position == self._sizes[spec.name]:
                    path = self.folder / spec.name
                    if not path.is_file() or path.stat().st_size != position or file_sha256(path) != digest:
                        raise NettError("does not hold what its journal says", where=path)
                    self._done[spec.name] = (position, digest)
                    queue.pop(0)
                    continue
                self._current[stem] = OutputFile(
                    self.folder / spec.name, self._sizes[spec.name], resume_at=position, expect=digest
                )
                queue.pop(0)
                break

    def _next(self, stem: str) -> None:
        if self._queue[stem]:
            spec = self._queue[stem].pop(0)
            self._current[stem] = OutputFile(self.folder / spec.name, self._sizes[spec.name])
            self._current[stem].write(spec.header())
            self._finish_full(stem)

    def _finish_full(self, stem: str) -> None:
        file = self._current[stem]
        if file.position == file.nbytes:
            file.sync()
            file.close()
            self._done[str(file.path.relative_to(self.folder))] = (file.nbytes, file.sha256)
            del self._current[stem]
            self._next(stem)

    def write(self, stem: str, data: Any) -> None:
        """Append to a stream. A tensor never crosses files, so a chunk does not either."""
        if data.size == 0:
            return
        self._current[stem].write(data)
        self._finish_full(stem)

    def sync(self) -> dict[str, list[Any]]:
        """Everything written so far survives; returns the marks to journal."""
        marks = {name: list(done) for name, done in self._done.items()}
        for file in self._current.values():
            file.sync()
            marks[str(file.path.relative_to(self.folder))] = [file.position, file.sha256]
        return marks

    def finish(self) -> list[dict[str, Any]]:
        """All streams are complete: what was written, and the index files of sharded ones."""
        for file in self._current.values():
            raise NettError(f"is incomplete: {file.position} of {file.nbytes} bytes", where=file.path)
        return [{"path": f.name, "bytes": self._done[f.name][0], "sha256": self._done[f.name][1]} for f in self._files]

    def indexes(self) -> dict[str, bytes]:
        """Index files: name -> content, for each stem of more than one shard."""
        stems: dict[str, list[FileSpec]] = {}
        for spec in self._files:
            stems.setdefault(stem_of(spec.name), []).append(spec)
        return {f"{stem}.safetensors.index.json": index_json(files) for stem, files in stems.items() if len(files) > 1}

    def close(self) -> None:
        for file in self._current.values():
            file.close()


def stem_of(name: str) -> str:
    """``masks/a-00001-of-00003.safetensors`` -> ``masks/a``."""
    bare = name.removesuffix(".safetensors")
    head, of, tail = bare.rpartition("-of-")
    if of and len(tail) == 5 and tail.isdigit() and head[-6:-5] == "-" and head[-5:].isdigit():
        return head[:-6]
    return bare
