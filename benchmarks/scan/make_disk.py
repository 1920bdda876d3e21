"""A disk of ten thousand checkpoints that takes two gigabytes: real headers, and bytes only where a scan looks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nett.core.dtypes import DTYPES, Array, encode
from nett.scan.disk.layout import Layouts
from nett.scan.disk.sample import Depth, Sample, sample_of
from nett.scan.disk.walk import survey
from nett.scan.disk.places import given_places

Say = Callable[[str], None]
EACH = 50  # checkpoints of a family: a base, and what was made of it


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


def write_disk(root: Path, checkpoints: int, say: Say, *, shapes: Sequence[Shape] = SHAPES, dense: bool = False) -> Depth:
    """Families of ``EACH``: a base, fine-tunes of all weights, of some layers, in shards, equal copies, and models that
    are nothing to each other. Returns how deep a scan of all looks. ``dense``: every byte is written."""
    files: list[tuple[Path, int, str]] = []  # file, family, what was made
    for number in range(checkpoints):
        family, member = divmod(number, EACH)
        shape = shapes[family % len(shapes)]
        kind = _kind(member)
        folder = root / f"{family:04}-{shape.name}" / f"{member:02}-{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        for path in _headers(folder, shape, shards=2 if kind == "sharded" else 1, number=number):
            files.append((path, family, kind))
    say(f"{len(files):,} files, {sum(f.stat().st_size for f, _, _ in files) / 1e9:,.0f} GB nominal")
    layouts = Layouts()
    items = sorted(survey(given_places([root])).items.values(), key=lambda i: i.path)
    for item in items:
        layouts.look(item)
    depth = Depth.of(i.layout for i in items if i.layout is not None)
    known = {i.path: i for i in items}
    for path, family, kind in files:
        item = known[str(path)]
        assert item.layout is not None
        layout = item.layout
        sample = sample_of(layout, depth)
        if dense:
            whole = np.arange(len(layout.names))
            ends = np.concatenate(([0], np.cumsum(layout.nbytes)))
            for t in whole.tolist():
                _write(path, item.start, layout, t, [(int(layout.offsets[t]), int(layout.nbytes[t]))], family, kind)
            continue
        with path.open("r+b") as file:
            for k, t in enumerate(sample.tensors.tolist()):
                spans = [(int(o), sample.page) for o in sample.offsets[sample.first[k] : sample.first[k + 1]]]
                _write(file, item.start, layout, t, spans, family, kind)
    return depth
