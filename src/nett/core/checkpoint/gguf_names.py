"""What a GGUF file's tensors are called in Hugging Face's files, and the config they go with.

Found by asking: transformers derives the config from the metadata and builds the model without memory (on torch's
meta device); the ``gguf`` package tells which of its names each of the model's tensors has. No table of ours.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from nett.core.checkpoint.gguf_header import GgufHeader

Rule = Literal["plain", "llama", "minus_one"]

# How transformers undoes what llama.cpp did to the values, by the class that does it there. Classes that merge or
# reorder several tensors are not here: files of those architectures keep their GGUF names.
_RULES: dict[str, Rule] = {
    "TensorProcessor": "plain",
    "T5TensorProcessor": "plain",
    "LlamaTensorProcessor": "llama",
    "Gemma2TensorProcessor": "minus_one",
    "NemotronTensorProcessor": "minus_one",
}
_LONG = 4096  # bytes of a metadata value: vocabularies and merges, which no config needs
_MOST_EXPERTS = 4096


@final
@dataclass(frozen=True)
class HuggingFaceView:
    """``names``: GGUF name -> Hugging Face name. ``shapes``: of all the model's tensors. ``heads``, ``kv_heads``:
    of rotary attention whose rows llama.cpp permuted, None where it did not. ``config``: what config.json says."""

    names: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    tied: frozenset[str]
    rule: Rule
    heads: int | None
    kv_heads: int | None
    config: Mapping[str, Any]


def hugging_face_view(path: Path, header: GgufHeader) -> HuggingFaceView | str:
    """The view, or why there is none."""
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        return "it names no architecture (general.architecture)"
    try:
        import torch  # noqa: F401
        from transformers import modeling_gguf_pytorch_utils as loader
    except ImportError as error:
        return f"torch and transformers, which know the names, are not installed ({error.name})"
    try:
        from transformers.integrations.gguf import is_gguf_arch_supported

        if is_gguf_arch_supported(architecture):
            return f"transformers rearranges tensors of the architecture {architecture!r} in ways nett does not follow"
    except ImportError:
        pass  # an older transformers, which has only the loader above
    processor = loader.TENSOR_PROCESSORS.get(architecture, loader.TensorProcessor).__name__
    if processor not in _RULES:
        return f"transformers rearranges tensors of the architecture {architecture!r} in ways nett does not follow"
    if header.metadata.get(f"{architecture}.expert_count", 0) or 0:
        return f"the experts of {architecture!r} are stored together, not one by one"
    try:
        with _without_vocabulary(path, header, architecture) as small:
            parsed = loader.load_gguf_checkpoint(str(small), return_tensors=False)["config"]
        tokens = header.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, int):
            parsed.setdefault("vocab_size", tokens)
        return _view(header, architecture, _RULES[processor], parsed)
    except Exception as error:
        # The metadata is anyone's: transformers answers nonsense with all kinds of exceptions.
        return f"transformers makes no model of it: {type(error).__name__}: {str(error).splitlines()[:1]}"


def _view(header: GgufHeader, architecture: str, rule: Rule, parsed: Mapping[str, Any]) -> HuggingFaceView | str:
    from transformers import AutoConfig

    config = AutoConfig.for_model(**parsed)
    model = _empty_model(config)
    config = model.config
    config.architectures = [type(model).__name__]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = gguf_names(architecture, int(parsed["num_hidden_layers"]), shapes)
    if names is None:
        return f"the gguf package knows no architecture {architecture!r}"
    heads, kv_heads = parsed.get("num_attention_heads"), parsed.get("num_key_value_heads")
    if rule == "llama" and not all(type(n) is int and n > 0 for n in (heads, kv_heads) if n is not None):
        return f"its numbers of heads are {heads!r} and {kv_heads!r}, not one number each"
    present = {names[t.name] for t in header.tensors if t.name in names}
    tied = frozenset(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(shapes.keys() - present - tied)
    if missing:
        return f"it lacks {len(missing)} of the model's tensors, the first is {missing[0]!r}"
    known = rule == "llama" and None not in (heads, kv_heads)
    plain = json.loads(config.to_json_string())
    return HuggingFaceView(names, shapes, tied, rule, heads if known else None, kv_heads if known else None, plain)


def _empty_model(config: Any) -> Any:
    import torch
    import transformers

    last: ValueError | None = None
    for auto in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModel"):
        try:
            with torch.device("meta"):
                return getattr(transformers, auto).from_config(config)
        except ValueError as error:  # no such head for this model type
            last = last or error
    raise last or ValueError("no model class")


def gguf_names(architecture: str, blocks: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str] | None:
    """GGUF name -> Hugging Face name. Names that the gguf package knows as they stand go first; those that it knows
    only without their first parts (a headless model inside one with a head) fill what is left."""
    from gguf import MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map

    arch = next((key for key, value in MODEL_ARCH_NAMES.items() if value == architecture), None)
    if arch is None:
        return None
    before = dict(TensorNameMap.block_mappings_cfg)
    known = get_tensor_name_map(arch, blocks)
    TensorNameMap.block_mappings_cfg.clear()  # building a map for one architecture alters it for all that follow
    TensorNameMap.block_mappings_cfg.update(before)
    found: dict[str, str] = {}
    left = {name: name for name in shapes}
    while left:
        rest = {}
        for name, part in left.items():
            stem, dot, suffix = part.rpartition(".")
            if suffix not in ("weight", "bias"):
                stem, dot, suffix = part, "", ""
            gguf_name = known.get_name(stem)
            if gguf_name is not None:
                found.setdefault(gguf_name + dot + suffix, name)
            elif "." in stem:
                rest[name] = part.partition(".")[2]
        left = rest
    return found


@contextmanager
def _without_vocabulary(path: Path, header: GgufHeader, architecture: str) -> Iterator[Path]:
    """A small GGUF file with the metadata and the tensor names of ``path``, but neither vocabulary nor data.

    transformers' reader spends seconds on each 100,000 tokens, and the config does not depend on them.
    """
    kept = [span for span in header.pairs.values() if span[1] - span[0] <= _LONG]
    extra = b""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    key = f"{architecture}.vocab_size"
    if isinstance(tokens, int) and key not in header.metadata:
        extra = _text(key) + struct.pack("<II", 4, tokens)
    with tempfile.NamedTemporaryFile(suffix=".gguf") as small:
        with path.open("rb") as file:
            small.write(b"GGUF" + struct.pack("<IQQ", 3, len(header.tensors), len(kept) + bool(extra)))
            for begin, end in kept:
                file.seek(begin)
                small.write(file.read(end - begin))
        small.write(extra)
        for tensor in header.tensors:  # one float each: only the names count
            small.write(_text(tensor.name) + struct.pack("<IQIQ", 1, 1, 0, 0))
        small.write(bytes(1 << 16))  # padding of any alignment that fits, and the float
        small.flush()
        yield Path(small.name)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
