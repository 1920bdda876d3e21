"""Pico assets for tests and docs: Llama folders of some kilobytes that transformers loads, without torch."""

from __future__ import annotations

import json
import shutil
import string
import zlib
from collections.abc import Callable, Iterator
from itertools import islice, product
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from nett.core.checkpoint import Checkpoint, OutputFile, TensorSpec, open_checkpoint, shard_plan
from nett.core.checkpoint.safetensors import INDEX
from nett.core.checkpoint.writer import FileSpec, index_json
from nett.core.dtypes import Array, dtype_named, encode
from nett.core.errors import UsageError

_CHUNK = 1 << 20
_Source = Callable[[TensorSpec], Iterator[Array]]  # raw elements of a tensor, in order
_SPECIAL = ("<unk>", "<s>", "</s>")
_CHARACTERS = "▁" + string.ascii_lowercase + ".,!?'-" + string.digits + string.ascii_uppercase + '\n:;"()'


def write_llama(
    folder: str | Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    vocab: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    inter: int = 64,
    dtype: str = "BF16",
    seed: int = 0,
    tied: bool = True,
    shards: int = 1,
    noise_from: str | Path | None = None,
    delta: float = 1e-2,
) -> Path:
    """Write a Llama folder of random weights: config.json, safetensors, a tokenizer. Returns the folder.

    Each weight depends on ``seed`` and its tensor's name only, not on ``shards`` or the other tensors.
    ``noise_from``: take the weights of that folder (same shapes) and add normal noise of deviation ``delta``.
    """
    if hidden % heads or heads % kv_heads or vocab <= len(_SPECIAL):
        raise UsageError(
            f"hidden={hidden} must be a multiple of heads={heads}, that one of kv_heads={kv_heads},"
            f" and vocab={vocab} more than {len(_SPECIAL)}"
        )
    folder = Path(folder)
    kind = dtype_named(dtype)
    specs = [TensorSpec(n, kind, s) for n, s in _shapes(layers, hidden, vocab, heads, kv_heads, inter, tied).items()]
    files = _split(specs, shards)
    start = open_checkpoint(noise_from) if noise_from is not None else None
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        _write_file(folder, file, _noisy(start, seed, delta) if start else _random(seed))
    if start:
        start.close()
    if len(files) > 1:
        (folder / INDEX).write_bytes(index_json(files))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "dtype": kind.alias,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": inter,
        "max_position_embeddings": 128,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "vocab_size": vocab,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    _write_tokenizer(folder, vocab)
    return folder


def fine_tune_of(
    base_folder: str | Path, folder: str | Path, *, seed: int, density: float = 0.3, size: float = 1e-2
) -> Path:
    """Write a copy of a safetensors folder: a random ``density`` of its floats moved by about ``size``."""
    base_folder, folder = Path(base_folder), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(base_folder) as base:
        for path in base.files:
            here = sorted((t for t in base.tensors.values() if t.file == path), key=lambda t: t.offset)
            specs = tuple(TensorSpec(t.name, t.dtype, t.shape) for t in here)
            _write_file(folder, FileSpec(path.name, specs, {"format": "pt"}), _sparse(base, seed, density, size))
        for path in base_folder.iterdir():
            if path.is_file() and path not in base.files:
                shutil.copyfile(path, folder / path.name)
    return folder


def _shapes(
    layers: int, hidden: int, vocab: int, heads: int, kv_heads: int, inter: int, tied: bool
) -> dict[str, tuple[int, ...]]:
    kv = hidden // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.mlp.down_proj.weight": (hidden, inter),
            f"{layer}.mlp.gate_proj.weight": (inter, hidden),
            f"{layer}.mlp.up_proj.weight": (inter, hidden),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.self_attn.k_proj.weight": (kv, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.v_proj.weight": (kv, hidden),
        }
    shapes["model.norm.weight"] = (hidden,)
    return shapes if tied else shapes | {"lm_head.weight": (vocab, hidden)}


def _split(specs: list[TensorSpec], shards: int) -> list[FileSpec]:
    """Exactly ``shards`` files of about equal size (fewer only where there are fewer tensors)."""
    count = min(shards, len(specs))
    if count <= 1:
        return shard_plan(specs, sum(s.nbytes for s in specs))
    total, done = sum(s.nbytes for s in specs), 0
    groups: list[list[TensorSpec]] = [[]]
    for i, spec in enumerate(specs):
        must = len(specs) - i == count - len(groups)  # every file left needs one of the tensors left
        if groups[-1] and len(groups) < count and (must or done >= total * len(groups) / count):
            groups.append([])
        groups[-1].append(spec)
        done += spec.nbytes
    return [
        FileSpec(f"model-{i:05d}-of-{count:05d}.safetensors", tuple(group), {"format": "pt"})
        for i, group in enumerate(groups, start=1)
    ]


def _rng(seed: int, name: str, salt: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64([seed, salt, zlib.crc32(name.encode())]))


def _spans(size: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + _CHUNK, size)) for at in range(0, size, _CHUNK))


def _random(seed: int) -> _Source:
    """Matrices of deviation 1/sqrt(columns), norms near 1: activations neither vanish nor explode."""

    def source(spec: TensorSpec) -> Iterator[Array]:
        rng = _rng(seed, spec.name)
        vector = len(spec.shape) == 1
        for start, stop in _spans(prod(spec.shape)):
            noise = rng.standard_normal(stop - start, np.float32)
            values = 1 + noise * np.float32(0.05) if vector else noise * np.float32(1 / sqrt(spec.shape[-1]))
            yield encode(values, spec.dtype)

    return source


def _noisy(start: Checkpoint, seed: int, delta: float) -> _Source:
    def source(spec: TensorSpec) -> Iterator[Array]:
        rng = _rng(seed, spec.name, 1)
        for begin, end in _spans(prod(spec.shape)):
            noise = rng.standard_normal(end - begin, np.float32) * np.float32(delta)
            yield encode(start.values(spec.name, begin, end) + noise, spec.dtype)

    return source


def _sparse(base: Checkpoint, seed: int, density: float, size: float) -> _Source:
    def source(spec: TensorSpec) -> Iterator[Array]:
        rng = _rng(seed, spec.name, 2)
        for begin, end in _spans(prod(spec.shape)):
            if not spec.dtype.is_float:
                yield base.read(spec.name, begin, end)
                continue
            moved = rng.random(end - begin, np.float32) < density
            noise = rng.standard_normal(end - begin, np.float32) * np.float32(size)
            values = base.values(spec.name, begin, end)
            yield encode(np.where(moved, values + noise, values), spec.dtype)

    return source


def _write_file(folder: Path, file: FileSpec, source: _Source) -> None:
    out = OutputFile(folder / file.name, file.nbytes)
    try:
        out.write(file.header())
        for spec in file.tensors:
            for raw in source(spec):
                out.write(raw)
    finally:
        out.close()


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """A byte-pair tokenizer of exactly ``vocab`` entries: characters, then pairs of letters, then fillers."""
    letters = string.ascii_lowercase
    words = [*_SPECIAL, *_CHARACTERS][:vocab]
    merges = list(islice(product(letters, letters), max(0, vocab - len(words)))) if len(words) < vocab else []
    words += [a + b for a, b in merges]
    words += [f"<filler_{i}>" for i in range(len(words), vocab)]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": word, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for i, word in enumerate(_SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": space,
        "post_processor": None,
        "decoder": space,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": [list(pair) for pair in merges],
        },
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)
