"""A disk of ten thousand checkpoints that takes two gigabytes: real headers, and bytes only where a scan looks."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from nett.core.checkpoint import TensorSpec
from nett.core.checkpoint.writer import FileSpec
from nett.core.dtypes import DTYPES, Array, Dtype, decode, encode
from nett.core.layers import layer_of
from nett.scan.disk.layout import Layouts
from nett.scan.disk.places import given_places
from nett.scan.disk.sample import Depth, sample_of
from nett.scan.disk.walk import survey

Say = Callable[[str], None]


@dataclass(frozen=True)
class Shape:
    """A transformer as its header shows it."""

    name: str
    dtype: str
    layers: int
    hidden: int
    inter: int
    kv: int
    vocab: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        h, kv, inter = self.hidden, self.kv, self.inter
        for i in range(self.layers):
            layer = f"model.layers.{i}"
            found |= {
                f"{layer}.input_layernorm.weight": (h,),
                f"{layer}.mlp.down_proj.weight": (h, inter),
                f"{layer}.mlp.gate_proj.weight": (inter, h),
                f"{layer}.mlp.up_proj.weight": (inter, h),
                f"{layer}.post_attention_layernorm.weight": (h,),
                f"{layer}.self_attn.k_proj.weight": (kv, h),
                f"{layer}.self_attn.o_proj.weight": (h, h),
                f"{layer}.self_attn.q_proj.weight": (h, h),
                f"{layer}.self_attn.v_proj.weight": (kv, h),
            }
        return found | {"model.norm.weight": (h,)}


# SmolLM2-135M; a Llama of 110M, one of 42M and one of 15M as in llama2.c; MiniLM-L6 and -L12 in the size of their layers.
SHAPES = (
    Shape("smollm2-135m", "BF16", 30, 576, 1536, 192, 49152),
    Shape("llama-42m", "F32", 8, 512, 1376, 512, 32000),
    Shape("llama-15m", "F32", 6, 288, 768, 288, 32000),
    Shape("llama-110m", "F16", 12, 768, 2048, 768, 32000),
    Shape("mini-l6", "F32", 6, 384, 1024, 384, 30522),
    Shape("mini-l12", "BF16", 12, 384, 1024, 384, 30522),
    Shape("small-24", "BF16", 24, 384, 1024, 128, 32000),
)


KINDS = (("base", 1), ("tuned", 29), ("layers", 6), ("copy", 6), ("sharded", 2), ("gguf", 1), ("own", 5))
MOVE = 0.01  # of a weight's deviation: how far a fine-tune moves it
_GGUF = {"F32": 0, "F16": 1, "BF16": 30}


def write_disk(
    root: Path, checkpoints: int, say: Say, *, shapes: Sequence[Shape] = SHAPES, dense: bool = False
) -> Depth:
    """Families of fifty: a base, fine-tunes of all weights and of half of the layers, equal copies, the base in shards
    and as GGUF, and models that are nothing to each other. Bytes are written where a scan of all looks, or everywhere if
    ``dense``. Returns how deep that scan looks."""
    files: list[tuple[Path, int, str]] = []
    kinds = [kind for kind, times in KINDS for _ in range(times)]
    for number in range(checkpoints):
        family, member = divmod(number, len(kinds))
        shape, kind = shapes[family % len(shapes)], kinds[member]
        folder = root / f"{family:04}-{shape.name}" / f"{member:02}-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        write = _gguf if kind == "gguf" else _safetensors
        files += [(path, family, kind) for path in write(folder, shape, 2 if kind == "sharded" else 1)]
    say(f"{len(files):,} files, {sum(f.stat().st_size for f, _, _ in files) / 1e9:,.0f} GB nominal")
    layouts = Layouts()
    items = {i.path: i for i in layouts.look(list(survey(given_places([root])).items.values()))}
    depth = Depth.of(i.layout for i in items.values() if i.layout is not None)
    for path, family, kind in files:
        item = items[str(path)]
        layout = item.layout
        assert layout is not None and not item.problem, item.problem
        sample = sample_of(layout, depth)
        seed = family if kind != "own" else zlib.crc32(str(path.relative_to(root)).encode())
        fd = os.open(path, os.O_WRONLY)
        for k, t in enumerate(range(len(layout.names)) if dense else sample.tensors.tolist()):
            begin, size = int(layout.offsets[t]), int(layout.nbytes[t])
            spans = [(0, size)]
            if not dense:
                offsets = sample.offsets[sample.first[k] : sample.first[k + 1]]
                spans = [(int(o) - begin, sample.page) for o in offsets]
            dtype = DTYPES[
                "F32" if layout.floats[t] else "BF16" if shapes[family % len(shapes)].dtype == "BF16" else "F16"
            ]
            for at, count in spans:
                values = _values(_hugging_face(layout.names[t]), seed, at, count, dtype, kind, str(path))
                os.pwrite(fd, encode(values, dtype).view(np.uint8).data, item.start + begin + at)
        os.close(fd)
    return depth


def _values(name: str, seed: int, at: int, count: int, dtype: Dtype, kind: str, path: str) -> Array:
    """Normal numbers; a fine-tune's moved by normal numbers of its own."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode()), at]))
    base = rng.standard_normal(count // dtype.bytes, np.float32) * np.float32(0.04)
    base = decode(encode(base, dtype), dtype)  # a fine-tune begins at what the base's file says
    layer = layer_of(name)
    moved = kind == "tuned" or (kind == "layers" and layer is not None and layer.number % 2 == 1)
    if not moved:
        return base
    own = np.random.Generator(np.random.SFC64([zlib.crc32(path.encode()), zlib.crc32(name.encode()), at]))
    return base + own.standard_normal(base.size, np.float32) * np.float32(0.04 * MOVE)


def _safetensors(folder: Path, shape: Shape, shards: int) -> list[Path]:
    """Headers as transformers writes them, and files as long as the tensors."""
    names = list(shape.tensors().items())
    step = -(-len(names) // shards)
    found = []
    for i in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-{i + 1:05}-of-{shards:05}.safetensors"
        specs = tuple(TensorSpec(n, DTYPES[shape.dtype], s) for n, s in names[i * step : (i + 1) * step])
        file = FileSpec(
            name, specs, {"format": "pt"} | ({} if folder.name.endswith(("base", "copy")) else {"note": folder.name})
        )
        header = bytes(file.header())
        with (folder / name).open("wb") as out:
            out.write(header)
            out.truncate(len(header) + sum(s.nbytes for s in specs))
        found.append(folder / name)
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": shape.hidden})
    )
    return found


def _gguf(folder: Path, shape: Shape, shards: int) -> list[Path]:
    """A header with a vocabulary, as llama.cpp's converter writes it."""

    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word.encode())) + word.encode()

    tokens = b"".join(text(f"token{i}") for i in range(shape.vocab))
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("nameless"),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, shape.vocab) + tokens,
    ]
    table, at = b"", 0
    for name, dims in shape.tensors().items():
        kind = "F32" if len(dims) == 1 else shape.dtype
        table += text(_gguf_name(name)) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *reversed(dims), _GGUF[kind], at)
        at += -(-prod(dims) * DTYPES[kind].bytes // 32) * 32
    header = b"GGUF" + struct.pack("<IQQ", 3, len(shape.tensors()), len(pairs)) + b"".join(pairs) + table
    with (folder / "model.gguf").open("wb") as out:
        out.write(header)
        out.truncate(-(-len(header) // 32) * 32 + at)
    return [folder / "model.gguf"]


_ROLES = {
    "input_layernorm": "attn_norm", "mlp.down_proj": "ffn_down", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "post_attention_layernorm": "ffn_norm", "self_attn.k_proj": "attn_k", "self_attn.o_proj": "attn_output",
    "self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v",
}  # fmt: skip
_OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def _gguf_name(name: str) -> str:
    found = layer_of(name)
    if found is None:
        return _OUTSIDE[name]
    return f"blk.{found.number}.{_ROLES[found.role.removesuffix('.weight')]}.weight"


def _hugging_face(name: str) -> str:
    """The inverse of :func:`_gguf_name`; other names as they are."""
    found = layer_of(name)
    if found is None:
        return next((h for h, g in _OUTSIDE.items() if g == name), name)
    role = found.role.removesuffix(".weight")
    return f"model.layers.{found.number}.{next((h for h, g in _ROLES.items() if g == role), role)}.weight"
