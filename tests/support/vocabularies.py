"""Small Llama folders whose tokens are given: a tokenizer of single words, special ones, and rows beyond the tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nett.core.tiny import write_llama

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def tokenizer_json(words: Sequence[str], special: Sequence[str] = ()) -> dict[str, Any]:
    """``words`` are the model's, by id; those that are ``special`` are marked so; further special ones come after."""
    everything = [*words, *(s for s in special if s not in words)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": everything.index(s), "content": s, "special": True} | FLAGS for s in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": words[0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": [],
        },
    }


def write_tokenizer(
    folder: Path, words: Sequence[str], special: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = tokenizer_json(words, special)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64} | dict(settings or {})
    (folder / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


def write_model(
    folder: Path,
    words: Sequence[str],
    special: Sequence[str] = (),
    *,
    seed: int = 0,
    rows: int | None = None,
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **shape: Any,
) -> Path:
    """A model with these tokens and ``rows`` rows (as many as tokens by default)."""
    count = len(dict.fromkeys((*words, *special)))
    sizes: dict[str, Any] = {
        "layers": 1,
        "hidden": 4,
        "heads": 2,
        "kv_heads": 1,
        "inter": 4,
        "dtype": "F32",
        "tied": False,
    }
    write_llama(folder, seed=seed, vocab=rows or count, **sizes | shape)
    write_tokenizer(folder, words, special, settings)
    if config:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(config)), encoding="utf-8")
    return folder


def vocabulary_of(folder: Path) -> dict[str, int]:
    """Token -> id of a folder's tokenizer.json, by id: read as JSON, so that no library is its own judge."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    found = dict(content["model"]["vocab"]) | {t["content"]: t["id"] for t in content["added_tokens"]}
    return dict(sorted(found.items(), key=lambda p: p[1]))
