"""Stored chunks on the disk: one safetensors file each, its tensors layer by layer, whole or not at all.

The header's metadata hold the hash of the model, so that keys are never used by a model that did not compute them, and
what the chunk is. ``inter`` and ``intra`` are the attention statistics, ``ids`` the tokens; ``layers.0000.keys`` and
``.values`` ``[h, n, d]`` are named so that the file holds them in the order in which they are needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from nett.cache.chunk_scores import Attended
from nett.core.checkpoint.safetensors import read_header
from nett.core.errors import Refused
from nett.core.staging import put_file

FORMAT = "chunk-1"
_AGAIN = "Remove the file: the chunk is computed again when it is asked for."


def chunk_name(ids: Sequence[int]) -> str:
    """What a chunk is known by: a hash of its tokens."""
    return hashlib.blake2b(",".join(map(str, ids)).encode(), digest_size=16).hexdigest()


def model_hash(model: Any) -> str:
    """sha256 of a model's configuration and of all its weights as they are in memory."""
    import torch

    told = model.config.get_text_config().to_dict()
    for name in ("_name_or_path", "name_or_path", "transformers_version", "architectures", "_attn_implementation"):
        told.pop(name, None)
    found = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        found.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        raw = weight.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
        found.update(memoryview(raw.numpy()))
    return found.hexdigest()


@final
@dataclass(frozen=True)
class Told:
    """What a file says of the chunk in it."""

    name: str
    ids: tuple[int, ...]
    start: int
    exact: bool
    attended: Attended
    nbytes: int
    layers: int


def write_chunk(folder: Path, told: Told, pairs: Sequence[tuple[Any, Any]], model: str) -> Path:
    """One chunk; on the disk when this returns. A kill leaves the file as it was before, or none."""
    import torch
    from safetensors.torch import save

    named = {
        "ids": torch.tensor(told.ids, dtype=torch.int64),
        "inter": torch.from_numpy(told.attended.inter).contiguous(),
        "intra": torch.from_numpy(told.attended.intra).contiguous(),
    }
    for layer, (keys, values) in enumerate(pairs):
        named[f"layers.{layer:04d}.keys"] = keys.cpu().contiguous()
        named[f"layers.{layer:04d}.values"] = values.cpu().contiguous()
    about = {
        "name": told.name, "start": told.start, "exact": told.exact, "before": told.attended.before,
        "lengths": told.attended.lengths, "layers": told.layers,
    }  # fmt: skip
    file = folder / f"{told.name}-{_context_name(told)}.safetensors"
    put_file(file, save(named, {"nett": FORMAT, "model": model, "chunk": json.dumps(about)}))
    return file


def _context_name(told: Told) -> str:
    """A hash of what stood before a chunk: with :attr:`Told.name`, what a file is called by."""
    words = f"{told.start} {told.exact} {' '.join(told.attended.before)}"
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()


def read_told(file: Path, model: str) -> Told:
    """What a file holds, its header checked against its size.

    Raises:
        Refused: the file is cut off or no chunk, or another model computed it.
    """
    tensors, words = read_header(file)
    if words.get("nett") != FORMAT or not {"ids", "inter", "intra"} <= tensors.keys():
        raise Refused("is no stored chunk", where=file, hint="Name a folder that only a chunk store writes to.")
    if words.get("model") != model:
        raise Refused(
            f"was computed by another model ({words.get('model', '')[:12]}…; this one is {model[:12]}…): its keys and values mean"
            " nothing here",
            where=file,
            hint="Give each model a folder of its own.",
        )
    try:
        about = json.loads(words["chunk"])
        before, lengths = tuple(map(str, about["before"])), tuple(map(int, about["lengths"]))
        layers, start, exact = int(about["layers"]), int(about["start"]), bool(about["exact"])
    except (KeyError, TypeError, ValueError) as error:
        raise Refused("does not say what chunk it holds", where=file, hint=_AGAIN) from error
    opened = open_chunk(file)
    ids = tuple(opened.get_tensor("ids").tolist())
    name = chunk_name(ids)
    inter, intra = opened.get_tensor("inter").numpy(), opened.get_tensor("intra").numpy()
    wanted = [f"layers.{k:04d}.{what}" for k in range(layers) for what in ("keys", "values")]
    if (
        name != about.get("name")
        or inter.shape != (len(ids), len(before))
        or intra.shape != (len(ids),)
        or len(lengths) != len(before)
        or any(n not in tensors or tensors[n].shape[-2:-1] != (len(ids),) for n in wanted)
    ):
        raise Refused("its parts do not fit together", where=file, hint=_AGAIN)
    nbytes = sum(tensors[n].nbytes for n in wanted)
    return Told(name, ids, start, exact, Attended(before, lengths, inter, intra), nbytes, layers)


def open_chunk(file: Path) -> Any:
    """The file as safetensors opens it, from which tensors are read one by one."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        raise Refused(f"cannot be read: {error}", where=file, hint=_AGAIN) from error


def read_layer(opened: Any, layer: int, device: Any) -> tuple[Any, Any]:
    """Keys and values ``[h, n, d]`` of one layer."""
    keys, values = (opened.get_tensor(f"layers.{layer:04d}.{what}") for what in ("keys", "values"))
    return keys.to(device), values.to(device)
