"""What every checkpoint can tell from its headers alone, and how its tensors are read."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

from nett.core.checkpoint.json_text import read_json_object
from nett.core.dtypes import Array, Dtype, decode


@final
@dataclass(frozen=True)
class TensorInfo:
    """One tensor: what it is (``dtype``, ``shape``) and how it lies on disk (``stored``, ``nbytes``).

    ``dtype`` is the type that :meth:`Checkpoint.read` returns; ``stored`` differs from it where the file holds
    something else, such as GGUF's ``Q4_1``. ``file`` and ``offset`` are set where the elements lie plainly in a
    file, so that they can be hashed or copied without decoding.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    stored: str
    nbytes: int
    file: Path | None = None
    offset: int = -1

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)


class Checkpoint(ABC):
    """A set of named tensors, known from headers alone and read in ranges of flattened elements.

    Abstract: each container is a final subclass. Reading is safe from several threads.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]  # what holds weights, in reading order; hashed for receipts
    format: str
    metadata: Mapping[str, Any] = MappingProxyType({})  # what the headers say beside the tensors; arrays as lengths
    notes: tuple[str, ...] = ()  # what whoever makes something of it is to be told

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Elements ``start:stop`` of the flattened tensor as raw numbers of ``dtype.raw``, newly allocated."""

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill ``out`` with the elements from ``start`` on, as :meth:`read` gives them."""
        out[:] = self.read(name, start, start + out.size)

    @abstractmethod
    def close(self) -> None:
        """Give back what is held open."""

    def values(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """As :meth:`read`, decoded: float32 (float64 for F64), integers and booleans as they are."""
        return decode(self.read(name, start, stop), self.tensors[name].dtype)

    @property
    def name(self) -> str:
        """The folder's name, or the file's without its ending: how a task is called."""
        return self.path.name if self.path.is_dir() else self.path.stem

    @property
    def reference(self) -> str:
        """What opens it again from anywhere. Links stay: what they lead to may have no ending that tells its format."""
        return os.path.abspath(self.path)

    @property
    def folder(self) -> Path:
        """Where config and tokenizer files lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def parameters(self) -> int:
        return sum(t.size for t in self.tensors.values())

    def beside(self) -> dict[str, bytes] | None:
        """The small files that come with the weights, by name, where they do not lie in :attr:`folder`."""
        return None

    def config(self) -> dict[str, Any] | None:
        """``config.json`` of a Hugging Face folder, or None. Files opened by themselves have no config."""
        file = self.path / "config.json"
        if not self.path.is_dir() or not file.is_file():
            return None
        return read_json_object(file)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.format} {self.path}: {len(self.tensors)} tensors, {self.nbytes} bytes>"
