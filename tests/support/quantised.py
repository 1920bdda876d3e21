"""compressed-tensors folders written in plain NumPy from the documented layout, and what they stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support.tensors import Array, read_tensors, rounded, write_tensors


def packed_words(numbers: Array, bits: int) -> Array:
    """int32 words of rows of signed numbers: offset to unsigned, one bit after the other, lowest first."""
    codes = numbers.astype(np.int64) + (1 << (bits - 1))
    rows, columns = codes.shape
    stream = np.zeros((rows, -(-columns * bits // 32) * 32), np.uint64)
    for bit in range(bits):
        stream[:, bit : columns * bits : bits] = (codes >> bit) & 1
    words = (stream.reshape(rows, -1, 32) << np.arange(32, dtype=np.uint64)).sum(-1)
    return words.astype(np.uint32).view(np.int32)


def group_of_columns(columns: int, group: int) -> Array:
    return np.arange(columns) // group


def stored(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    *,
    bits: int,
    group: int = 0,
    zero: bool = False,
    packed: bool = True,
    order: bool = False,
    dtype: str = "BF16",
) -> tuple[dict[str, Array], Array, dict[str, Any]]:
    """The tensors of one quantised matrix (leaf -> array), the dense matrix, and the ``weights`` of its scheme.

    ``group`` 0: one scale a row. Numbers are drawn, not fitted: every code comes up.
    """
    wide = group or columns
    groups = columns // wide
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    numbers = rng.integers(low, high, (rows, columns))
    scale = rounded((rng.random((rows, groups)) * 0.02 + 0.001).astype(np.float32), dtype).astype(np.float32)
    zeros = rng.integers(low, high, (rows, groups)) if zero else np.zeros((rows, groups), np.int64)
    index = group_of_columns(columns, wide)
    found: dict[str, Array] = {"weight_scale": scale}
    if order:
        index = rng.permutation(index)
        found["weight_g_idx"] = index.astype(np.int32)
    if packed:
        found["weight_packed"] = packed_words(numbers, bits)
        found["weight_shape"] = np.array([rows, columns], np.int64)
    else:
        found["weight"] = numbers.astype(np.int8)
    if zero:
        found["weight_zero_point"] = packed_words(zeros.T, bits).T.copy() if packed else zeros.astype(np.int8)
    dense = rounded(((numbers - zeros[:, index]).astype(np.float32) * scale[:, index]), dtype)
    weights = {
        "num_bits": bits, "type": "int", "symmetric": not zero, "strategy": "group" if group else "channel",
        "group_size": group or None, "dynamic": False, "actorder": "group" if order else None,
    }  # fmt: skip
    return found, dense.astype(np.float32), weights


def quantization_config(form: str, weights: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": None, "format": form}
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    } | more  # fmt: skip


def write_quantised(
    folder: Path, tensors: Mapping[str, Array], said: Mapping[str, Any], stored_as: str = "BF16", **config: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors, stored_as)
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": dict(said)}))
    return folder


def quantised_llama(dense: Path, out: Path, *, bits: int = 4, group: int = 8, seed: int = 0) -> dict[str, Array]:
    """The folder ``dense`` with each projection quantised to numbers of its own; returns the dense tensors."""
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    stands: dict[str, Array] = {}
    weights: dict[str, Any] = {}
    for name, values in read_tensors(dense).items():
        if name.endswith("_proj.weight"):
            parts, stands[name], weights = stored(rng, *values.shape, bits=bits, group=group, zero=True)
            made |= {name.replace("weight", leaf): part for leaf, part in parts.items()}
        else:
            made[name] = stands[name] = values
    config = json.loads((dense / "config.json").read_text())
    write_quantised(out, made, quantization_config("pack-quantized", weights), **config)
    for side in dense.iterdir():
        if side.name.startswith(("tokenizer", "generation")):
            (out / side.name).write_bytes(side.read_bytes())
    return stands
