"""Whether a model can be written as a GGUF file, and under which names and metadata.

Nothing of it is a table of ours: transformers' mapping from metadata to configs is read backwards, the ``gguf`` package
names the tensors, and the reader that will open the file is asked whether it would find this model in it, before any
weight is touched.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.core.checkpoint.base import Checkpoint
from nett.core.checkpoint.gguf_header import GgufTensor, read_header
from nett.core.checkpoint.gguf_names import HuggingFaceView, gguf_names, hugging_face_view
from nett.core.dtypes import Array
from nett.core.errors import Refused, missing_extra

_TELLING = (  # what a reader could get wrong without noticing
    "hidden_act", "hidden_activation", "rms_norm_eps", "layer_norm_eps", "head_dim", "num_attention_heads",
    "num_key_value_heads", "num_hidden_layers", "hidden_size", "intermediate_size", "tie_word_embeddings",
    "attention_bias", "mlp_bias", "vocab_size", "sliding_window", "rope_parameters",
)  # fmt: skip


@final
@dataclass(frozen=True)
class GgufPlan:
    """``view``: the model as a reader will find it in the file."""

    architecture: str
    view: HuggingFaceView
    config: Any  # of transformers
    names: Mapping[str, str]  # Hugging Face name -> name in the file

    def laid_out(self, name: str, rows: Array) -> Array:
        """A tensor as llama.cpp wants its values: ``rows`` [rows, …], permuted within heads, or one added."""
        gguf_name = self.names[name]
        if self.view.rule == "minus_one" and "norm.weight" in gguf_name:
            return np.asarray(rows + rows.dtype.type(1))
        heads = self.view.heads if ".attn_q." in gguf_name else self.view.kv_heads if ".attn_k." in gguf_name else None
        if self.view.rule != "llama" or not heads:
            return rows
        shape = rows.shape
        laid: Array = rows.reshape(heads, 2, shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(shape)
        return laid


def plan_gguf(source: Checkpoint, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> GgufPlan:
    """How the tensors of these Hugging Face names go into a file. Refused where no reader would find the model in it."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise missing_extra("gguf", "models", "writing GGUF files") from error

    def refuse(why: str) -> Refused:
        return Refused(f"cannot be written as GGUF: {why}", where=source.path, hint="--format compressed-tensors")

    architecture = str(config.model_type)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise refuse(f"its rotary positions are scaled ({rope['rope_type']}), which needs tensors of llama.cpp's own")
    found = gguf_names(architecture, int(config.num_hidden_layers), shapes)
    if found is None:
        raise refuse(f"the gguf package knows no architecture {architecture!r}")
    names = {name: gguf_name for gguf_name, name in found.items()}
    lost = sorted(shapes.keys() - names.keys())
    if lost:
        raise refuse(f"the gguf package has no name for {lost[0]!r}")
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.gguf"
        writer = writer_for(bare, architecture)
        describe(writer, architecture, config)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        tensors = tuple(GgufTensor(names[name], shape, 0, 0) for name, shape in shapes.items())
        view = hugging_face_view(bare, replace(read_header(bare), tensors=tensors))
    if isinstance(view, str):
        raise refuse(view)
    said, read = json.loads(config.to_json_string(use_diff=False)), view.config
    for key in _TELLING:
        if key in said and key in read and said[key] != read[key] and not _close(said[key], read[key]):
            raise refuse(f"{key} is {said[key]!r}, and a reader of the file would take {read[key]!r}")
    return GgufPlan(architecture, view, config, names)


def _close(a: Any, b: Any) -> bool:
    """Equal up to the float32 of the metadata."""
    if isinstance(a, dict) and isinstance(b, dict):
        return all(a.get(k) == b.get(k) or _close(a.get(k), b.get(k)) for k in a.keys() | b.keys())
    return isinstance(a, float) and isinstance(b, float | int) and abs(a - b) <= 1e-6 * abs(a)


def writer_for(path: Path, architecture: str) -> Any:
    """A writer of the gguf package that has nothing to say on the screen."""
    import logging

    from gguf import GGUFWriter

    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    return GGUFWriter(path, architecture)


def describe(writer: Any, architecture: str, config: Any) -> None:
    """The config as metadata: transformers' mapping, backwards."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    rope = getattr(config, "rope_parameters", None) or {}
    known = {k: n for k, n in GGUF_CONFIG_MAPPING.get(architecture, {}).items() if n is not None}
    head = getattr(config, "head_dim", None)
    if head is not None:
        known |= {"attention.key_length": "head_dim", "attention.value_length": "head_dim"}
    for key, name in known.items():
        value = getattr(config, name, rope.get(name))
        value = float(value) if key == "rope.freq_base" and value is not None else value
        if isinstance(value, bool):
            writer.add_bool(f"{architecture}.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
