"""A cache as a safetensors file: what its layers hold, which policy held it, and a hash of the model that it is of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nett.cache.hidden import Row
from nett.cache.protocol import Coded, Grid, Hidden
from nett.core.errors import Refused
from nett.core.staging import check_folders, put_file

if TYPE_CHECKING:
    from nett.cache.policy import Policy

_MARK = "nett cache 1"
_KINDS = {kind.__name__: kind for kind in (Grid, Coded, Hidden, Row)}


def model_hash(model: Any) -> str:
    """xxh3 of all weights by name, type and shape, and of what rotations are made of: of another model it is another."""
    import xxhash

    digest = xxhash.xxh3_128()
    config = model.config.get_text_config()
    digest.update(json.dumps(getattr(config, "rope_parameters", None), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        _add(digest, name, tensor)
    return str(digest.hexdigest())


def save(policy: Policy, cache: Any, model: Any, file: Path, ids: Any = None) -> None:
    """Write ``cache``, whole or not at all. ids: int ``[b, n]`` of the tokens that it was made of, kept beside it."""
    from safetensors.torch import save as as_bytes

    check_folders(file)
    if getattr(cache, "nett_policy", None) is not policy:
        raise Refused("is not a cache of this policy", where=policy.card.key, hint="policy.cache(model) makes one.")
    if not cache.layers[0].seen:
        raise Refused("holds nothing yet", where=policy.card.key, hint="model(ids, past_key_values=cache) fills it.")
    tensors: dict[str, Any] = {}
    layers = [_packed(layer.state(), f"{i}", tensors) for i, layer in enumerate(cache.layers)]
    if ids is not None:
        tensors["ids"] = ids.detach().cpu().contiguous()
    said = {
        "nett": _MARK, "model": model_hash(model), "policy": json.dumps(_policy(policy)), "layers": json.dumps(layers),
        "digest": _digest(tensors),
    }  # fmt: skip
    put_file(file, as_bytes(tensors, said))


def load(policy: Policy, model: Any, file: Path) -> Any:
    """A cache that goes on as the saved one would; ``cache.nett_ids``: the tokens that were saved with it, or None.

    Raises:
        Refused: no such file; cut off, damaged, or no saved cache; of another model; of another policy or parameters.
    """
    tensors, said = _read(file)
    found = model_hash(model)
    if said["model"] != found:
        raise Refused(
            f"is a cache of another model: its weights have the hash {said['model'][:12]}…, these have {found[:12]}…",
            where=file,
            hint="Make the cache anew with this model.",
        )
    theirs, mine = json.loads(said["policy"]), json.loads(json.dumps(_policy(policy)))
    other = [f"{k} = {theirs.get(k)!r}, here {v!r}" for k, v in mine.items() if theirs.get(k) != v]
    if other:
        raise Refused(f"was kept by another policy: {'; '.join(other)}", where=file)
    if said["digest"] != _digest(tensors):
        raise Refused("is damaged: its numbers are not those that were written", where=file)
    made = policy.cache(model)
    device = next(model.parameters()).device
    for layer, held in zip(made.layers, json.loads(said["layers"]), strict=True):
        layer.take_state(_unpacked(held, tensors, device))
    made.nett_ids = tensors.get("ids")
    return made


def _read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise Refused("there is no such file", where=file)
    try:
        with safe_open(str(file), "pt") as opened:
            said = opened.metadata() or {}
            names = list(opened.keys())
            tensors = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise Refused(f"is cut off, or no safetensors file: {error}", where=file) from error
    if said.get("nett") != _MARK or not {"model", "policy", "layers", "digest"} <= said.keys():
        raise Refused(f"is no cache that was saved by this nett ({said.get('nett', 'no mark')!r})", where=file)
    return tensors, said


def _policy(policy: Policy) -> dict[str, Any]:
    return {
        "policy": policy.card.key, **policy.parameters, "budget": str(policy.budget), "every": policy.every,
        "when": policy.when,
    }  # fmt: skip


def _digest(tensors: Mapping[str, Any]) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        _add(digest, name, tensor)
    return str(digest.hexdigest())


def _add(digest: Any, name: str, tensor: Any) -> None:
    import torch

    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy())


def _packed(value: Any, name: str, tensors: dict[str, Any]) -> Any:
    """``value`` as JSON, its tensors under names beside it."""
    if hasattr(value, "element_size"):
        tensors[name] = value.detach().cpu().contiguous().clone()  # no two of a file may share memory
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return [_packed(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: _packed(getattr(value, f.name), f"{name}.{f.name}", tensors) for f in fields(value)}
        return {"kind": type(value).__name__, "fields": own}
    if isinstance(value, dict):
        return {"fields": {k: _packed(v, f"{name}.{k}", tensors) for k, v in value.items()}}
    return value


def _unpacked(value: Any, tensors: Mapping[str, Any], device: Any) -> Any:
    """The inverse; lists come back as tuples."""
    if isinstance(value, list):
        return tuple(_unpacked(v, tensors, device) for v in value)
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]].to(device)
    own = {k: _unpacked(v, tensors, device) for k, v in value["fields"].items()}
    return _KINDS[value["kind"]](**own) if "kind" in value else own
