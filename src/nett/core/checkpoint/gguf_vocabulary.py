"""A tokenizer as GGUF metadata: copied where the model came as a GGUF file, else written from its tokenizer.json."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)  # llama.cpp's kinds of tokens


def copy_vocabulary(writer: Any, path: Path) -> None:
    """All keys about the tokenizer, and what the file says of itself, as they stand in another file."""
    from gguf import GGUFReader

    for name, field in GGUFReader(path).fields.items():
        general = name.startswith("general.") and name not in (
            "general.architecture", "general.file_type", "general.quantization_version", "general.alignment",
        )  # fmt: skip
        if name.startswith("tokenizer.") or general:
            writer.add_key_value(name, field.contents(), field.types[0], *field.types[1:2])


def write_vocabulary(writer: Any, files: Mapping[str, bytes], rows: int) -> str | None:
    """The tokenizer of a Hugging Face folder's side files, for a model of ``rows`` embeddings; or why it is left out."""
    if "tokenizer.json" not in files:
        return "it has no tokenizer.json"
    content = json.loads(files["tokenizer.json"])
    model = content.get("model", {})
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind not in ("BPE", "Unigram"):
        return f"llama.cpp has no tokenizer of the kind {kind!r}"
    scores: dict[int, float] = {}
    if kind == "BPE":
        tokens = {int(i): t for t, i in model["vocab"].items()}
    else:
        tokens = {i: piece for i, (piece, _) in enumerate(model["vocab"])}
        scores = {i: float(score) for i, (_, score) in enumerate(model["vocab"])}
    kinds = dict.fromkeys(tokens, _NORMAL)
    for i, token in tokens.items():
        if token == model.get("unk_token"):
            kinds[i] = _UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[i] = _BYTE
    for added in content.get("added_tokens", []):
        tokens[int(added["id"])] = added["content"]
        kinds[int(added["id"])] = _CONTROL if added.get("special") else _USER
    if max(tokens, default=-1) >= rows:
        return f"it has the token {max(tokens)}, but the model {rows} rows of embeddings"
    by_bytes = "ByteLevel" in json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
    writer.add_tokenizer_model("gpt2" if by_bytes else "llama")
    if by_bytes:
        writer.add_tokenizer_pre("default")
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types([kinds.get(i, _UNUSED) for i in range(rows)])
    if not by_bytes:
        writer.add_token_scores([scores.get(i, -float(i)) for i in range(rows)])
    _special(writer, files, merges=kind == "BPE")
    return None


def _special(writer: Any, files: Mapping[str, bytes], *, merges: bool) -> None:
    """Merges, ids of special tokens and the chat template, as the gguf package finds them in a folder."""
    import logging

    from gguf import SpecialVocab

    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        for name, blob in files.items():
            (Path(folder) / name).write_bytes(blob)
        found = SpecialVocab(folder, load_merges=merges)
        for which in ("bos", "eos"):  # readers of some architectures put one in where the file does not say
            found.add_special_token.setdefault(which, False)
        found.add_to_gguf(writer, quiet=True)
