"""Torch's pickled checkpoints, loaded only where they hold nothing but tensors: a pickle may otherwise run code."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint.base import Checkpoint, TensorInfo
from nett.core.checkpoint.safetensors import check_against_index, shards_of
from nett.core.dtypes import Array, dtype_named
from nett.core.errors import Refused, UsageError, missing_extra

INDEX = "pytorch_model.bin.index.json"
_CONTAINERS = ("state_dict", "model_state_dict", "model")
_ELSEWHERE = (
    "On a machine or in a sandbox that you can lose, load it with torch and save its tensors with"
    " safetensors.torch.save_file; nett reads that."
)


@final
class PickleCheckpoint(Checkpoint):
    """One or several torch files as one checkpoint. Tensors may share memory (``aliases``: name -> the first name
    of the same elements) and may lie in any strides."""

    format = "pickle"

    def __init__(self, path: Path, files: Sequence[Path], index: Path | None = None) -> None:
        self.path, self.files = path, tuple(files)
        self.aliases: dict[str, str] = {}
        self._loaded: dict[str, Any] = {}
        tensors: dict[str, TensorInfo] = {}
        by_file: dict[str, list[str]] = {}
        for file in self.files:
            found = _tensors_of(file)
            by_file[file.name] = list(found)
            first: dict[Any, str] = {}
            for name, tensor in found.items():
                if name in tensors:
                    raise Refused(f"tensor {name!r} also stands in another file of the checkpoint", where=file)
                tensors[name] = _info(file, name, tensor)
                self._loaded[name] = tensor
                place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
                if tensor.numel() and first.setdefault(place, name) != name:
                    self.aliases[name] = first[place]
        if index is not None:
            check_against_index(index, shards_of(index), by_file)
        self.tensors = tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        import torch

        tensor, info = self._loaded[name], self.tensors[name]
        stop = info.size if stop is None else stop
        if not tensor.is_contiguous() and tensor.dim() > 1:
            # Rows are made contiguous one range at a time: a copy of the whole tensor would not be bounded.
            row = info.size // info.shape[0] if info.size else 1
            top = start // row
            tensor = tensor[top : -(-stop // row)].contiguous()
            start, stop = start - top * row, stop - top * row
        flat = tensor.contiguous().view(-1)[start:stop]
        plain = {1: torch.uint8, 2: torch.uint16}
        if info.dtype.raw in ("<u2", "u1") and flat.dtype != plain[info.dtype.bytes]:
            flat = flat.view(plain[info.dtype.bytes])  # NumPy knows no bfloat16 and no float8: their bits
        return np.array(flat.numpy(), dtype=info.dtype.raw, copy=True)

    def close(self) -> None:
        self._loaded.clear()


def open_pickle_folder(folder: Path) -> PickleCheckpoint | None:
    """The torch checkpoint of a Hugging Face folder, or None where it holds none."""
    index = folder / INDEX
    if index.is_file():
        return PickleCheckpoint(folder, [folder / name for name in sorted(shards_of(index))], index)
    whole = folder / "pytorch_model.bin"
    files = [whole] if whole.is_file() else sorted(folder.glob("pytorch_model-*.bin"))
    return PickleCheckpoint(folder, files) if files else None


def _info(file: Path, name: str, tensor: Any) -> TensorInfo:
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        kind = "without data (meta)" if tensor.is_meta else kind
        raise Refused(f"tensor {name!r} is {kind}; nett reads dense tensors", where=file)
    try:
        dtype = dtype_named(str(tensor.dtype))
    except UsageError:
        raise Refused(f"tensor {name!r} is of the type {tensor.dtype}, which nett does not read", where=file) from None
    return TensorInfo(name, dtype, tuple(tensor.shape), dtype.name, tensor.numel() * tensor.element_size())


def _tensors_of(file: Path) -> dict[str, Any]:
    """Name -> tensor of one file; a container such as ``{'state_dict': …}`` is opened one level."""
    import_torch()
    import torch

    content = _load(file)
    if isinstance(content, Mapping) and not any(isinstance(v, torch.Tensor) for v in content.values()):
        inner = next((content[k] for k in _CONTAINERS if isinstance(content.get(k), Mapping)), None)
        content = content if inner is None else inner
    if not isinstance(content, Mapping):
        raise Refused(f"holds a {type(content).__name__}, expected a dictionary of tensors", where=file)
    found = {name: value.detach() for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not found:
        keys = ", ".join(repr(k) for k in list(content)[:5]) or "nothing"
        raise Refused(f"holds no tensors (its keys: {keys})", where=file)
    for name in found:
        if not isinstance(name, str):
            raise Refused(f"names a tensor {name!r}, which is not a string", where=file)
    return found


def import_torch() -> None:
    """Refused with the command that installs torch, where it is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise missing_extra("torch", "models", "reading torch's pickled files") from error


def _load(file: Path) -> Any:
    import torch

    try:
        with file.open("rb") as opened:
            zipped = opened.read(4) == b"PK\x03\x04"  # older files are bare pickles and cannot be mapped
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror or error}", where=file) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own about its old storages
            return torch.load(file, weights_only=True, mmap=zipped, map_location="cpu")
    except Exception as error:
        # Whatever a broken or hostile pickle makes torch raise: the file is not loaded.
        raise _refusal(file, str(error)) from error


def _refusal(file: Path, message: str) -> Refused:
    """Whether the file wants to run code, or is merely broken, as far as torch's message tells."""
    named = re.search(r"GLOBAL\s+(\S+)|Unsupported class\s+(\S+)|reduce for\s+(\S+)", message)
    word = next((w for w in named.groups() if w), "") if named else "TorchScript" if "TorchScript" in message else ""
    if word or _calls(file):
        what = f" ({word.strip('`.,')})" if word else ""
        return Refused(f"wants to run code{what} when loaded, so it is not loaded", where=file, hint=_ELSEWHERE)
    # Of torch's long texts only the cause: the rest advises to load the file without the check.
    cause = re.search(r"WeightsUnpickler error: (.*)", message)
    first = next((line.strip() for line in message.splitlines() if line.strip()), "it is empty")
    text = (cause[1] or "its instructions make no sense") if cause else first
    return Refused(f"is not a torch file that can be read (truncated?): {text[:160]}", where=file)


def _calls(file: Path) -> bool:
    """Whether a bare pickle looks anything up by name, told from its instructions without obeying them."""
    import pickletools

    try:
        with file.open("rb") as opened:
            return any(op.name in ("GLOBAL", "STACK_GLOBAL", "INST") for op, _, _ in pickletools.genops(opened))
    except Exception:  # not a pickle: its instructions make no sense
        return False
