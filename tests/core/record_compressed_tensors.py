"""Write compressed-tensors-0.18.0.json: small matrices as the compressed-tensors package stores and decompresses them.

python tests/core/record_compressed_tensors.py

Run with a Python that has compressed-tensors 0.18.0 and torch 2.13.0; nothing of the package is stored but its
results.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

ORDER = np.random.default_rng(3).permutation(np.repeat(np.arange(4), 16)).astype(np.int32)
# name: format, rows, columns, type of the weights, QuantizationArgs
CASES: dict[str, tuple[str, int, int, str, dict[str, Any]]] = {
    "int4 group": ("pack-quantized", 5, 64, "bfloat16", {"num_bits": 4, "strategy": "group", "group_size": 32}),
    "int4 group zero point": (
        "pack-quantized", 11, 64, "bfloat16",
        {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 16},
    ),
    "int4 channel zero point": (
        "pack-quantized", 9, 37, "float16", {"num_bits": 4, "symmetric": False, "strategy": "channel"},
    ),
    "int8 group": ("pack-quantized", 4, 48, "float16", {"num_bits": 8, "strategy": "group", "group_size": 16}),
    "int8 group zero point": (
        "pack-quantized", 7, 48, "bfloat16",
        {"num_bits": 8, "symmetric": False, "strategy": "group", "group_size": 24},
    ),
    "int4 activation order": (
        "pack-quantized", 6, 64, "bfloat16",
        {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 16, "actorder": "group"},
    ),
    "int2 group zero point": (
        "pack-quantized", 4, 32, "bfloat16",
        {"num_bits": 2, "symmetric": False, "strategy": "group", "group_size": 16},
    ),
    "int8 plain channel": ("int-quantized", 6, 20, "bfloat16", {"num_bits": 8, "strategy": "channel"}),
    "int8 plain tensor zero point": (
        "naive-quantized", 6, 20, "float32", {"num_bits": 8, "symmetric": False, "strategy": "tensor"},
    ),
    "float8 tensor": ("float-quantized", 6, 20, "bfloat16", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "float8 channel": ("float-quantized", 6, 20, "float16", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "float8 block": (
        "float-quantized", 12, 32, "float32",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [4, 16]},
    ),
}  # fmt: skip


def packed(tensor: Any) -> dict[str, Any]:
    import torch

    blob = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    kind = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": kind, "shape": list(tensor.shape), "bytes": base64.b64encode(blob).decode()}


def record(name: str) -> dict[str, Any]:
    import torch
    from compressed_tensors.compressors.base import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    form, rows, columns, dtype, given = CASES[name]
    args = QuantizationArgs(**given)
    torch.manual_seed(len(name))
    weight = (torch.randn(rows, columns) * 0.05 + (0.0 if args.symmetric else 0.03)).to(getattr(torch, dtype))
    state = {"weight": weight}
    if args.strategy == "group":
        taken = weight
        if args.actorder:
            state["weight_g_idx"] = torch.tensor(ORDER)
            taken = weight[:, torch.argsort(state["weight_g_idx"])]
        grouped = taken.reshape(rows, -1, args.group_size)
        low, high = grouped.amin(-1), grouped.amax(-1)
    elif args.strategy == "block":
        tall, wide = args.block_structure
        blocks = weight.reshape(rows // tall, tall, columns // wide, wide)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    elif args.strategy == "channel":
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    else:
        low, high = weight.amin().reshape(1), weight.amax().reshape(1)
    scale, zero = calculate_qparams(low, high, args)
    state |= {"weight_scale": scale.to(weight.dtype), "weight_zero_point": zero}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    dense = compressor.decompress(stored, scheme)["weight"]
    return {
        "format": form,
        "weights": {"type": "int", "symmetric": True} | given,
        "stored": {k: packed(v) for k, v in stored.items()},
        "dense": packed(dense),
    }


if __name__ == "__main__":
    found: dict[str, Any] = {
        "made by": "tests/core/record_compressed_tensors.py with compressed-tensors 0.18.0, torch 2.13.0, on a CPU"
    }
    found |= {name: record(name) for name in CASES}
    target = Path(__file__).with_name("compressed-tensors-0.18.0.json")
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
