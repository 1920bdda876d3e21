"""What the tests of scan share: models without redundancy, one model in every container, what a scan found."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from nett.core.edge import Edge
from nett.scan.protocol import Findings
from support.tensors import Array, rounded, write_tensors

SHAPES = {
    "model.embed_tokens.weight": (48, 16),
    "model.layers.0.mlp.weight": (24, 16),
    "model.layers.0.norm.weight": (16,),
    "model.layers.1.mlp.weight": (24, 16),
    "model.layers.1.norm.weight": (16,),
    "model.norm.weight": (16,),
    "lm_head.weight": (48, 16),
}


def model(seed: int = 0, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Array]:
    """Normal float32 numbers of full precision: nothing in it is redundant."""
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s).astype(np.float32) for n, s in (shapes or SHAPES).items()}


def tuned(base: Mapping[str, Array], seed: int, share: float = 0.3, size: float = 0.05) -> dict[str, Array]:
    """A fine-tune: a random ``share`` of the elements moved by about ``size``."""
    rng = np.random.default_rng([seed, 7])
    return {
        n: np.where(rng.random(a.shape) < share, a + rng.normal(size=a.shape).astype(np.float32) * np.float32(size), a)
        for n, a in base.items()
    }


def write(folder: Path, tensors: Mapping[str, Array], dtype: str | Mapping[str, str] = "F32") -> str:
    """A folder with one safetensors file; its path, as scan is given it."""
    write_tensors(folder / "model.safetensors", tensors, dtype)
    return str(folder)


def as_stored(tensors: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    return {n: rounded(a, dtype).astype(np.float32) for n, a in tensors.items()}


def write_sharded(folder: Path, tensors: Mapping[str, Array], shards: int = 3) -> str:
    """The tensors dealt to several files, with the index that Hugging Face writes."""
    where = {}
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {n: a for k, (n, a) in enumerate(tensors.items()) if k % shards == i}
        write_tensors(folder / name, part)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": sum(a.nbytes for a in tensors.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def write_pickle(path: Path, tensors: Mapping[str, Array]) -> str:
    """As ``torch.save`` writes a state dict."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({n: torch.from_numpy(a.copy()) for n, a in tensors.items()}, path)
    return str(path)


def write_gguf(path: Path, tensors: Mapping[str, Array], tokens: Sequence[str] = ()) -> str:
    """A GGUF of no architecture that nett renames, with or without a tokenizer."""
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "nameless")
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(list(tokens))
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def in_every_container(folder: Path, tensors: Mapping[str, Array]) -> dict[str, str]:
    """The same tensors as one file, shards, a pickle and a GGUF: container -> path."""
    return {
        "file": str(write_tensors(folder / "plain.safetensors", tensors)),
        "folder": write(folder / "folder", tensors),
        "shards": write_sharded(folder / "shards", tensors),
        "pickle": write_pickle(folder / "weights.bin", tensors),
        "gguf": write_gguf(folder / "weights.gguf", tensors),
    }


def edges(found: Findings, kind: str | None = None) -> list[Edge]:
    return [f.edge for f in found.found if kind in (None, f.edge.kind)]


def tensors_of(found: Findings, kind: str | None = None) -> dict[str, Edge]:
    """Tensor name (without its path) -> edge; each found once."""
    named = [(e.target.partition("::")[2], e) for e in edges(found, kind)]
    assert len(dict(named)) == len(named)
    return dict(named)


def parsed(command: str) -> click.Context:
    """The command line parsed by the CLI itself, down to the last command; raises what a wrong one raises."""
    from nett.cli.app import top

    words = shlex.split(command)
    assert words[0] == "nett"
    context = top.make_context("nett", words[1:])
    rest = words[1:]
    found: Any = top
    while isinstance(found, click.Group):
        name, found, rest = found.resolve_command(context, rest)
        assert found is not None
        if isinstance(found, click.Group):
            context = found.make_context(name, list(rest), parent=context)
        else:
            return found.make_context(name, list(rest), parent=context)
    raise AssertionError(f"{command!r} ends at a group")
