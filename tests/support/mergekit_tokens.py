"""Recipes with a tokenizer whose results mergekit is asked for, and the models of several vocabularies they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.mergekit import model
from support.vocabularies import write_model, write_tokenizer

WORDS = ["<unk>", "a", "b", "c", "d", "e", "f", "g"]


def write_models(folder: Path) -> Path:
    """base; a and b with words of their own; padded and its tune, of base's words with rows to spare; short, with
    fewer rows than tokens; m and n in bfloat16; t and u with tied heads; words, a tokenizer alone."""
    write_model(folder / "base", WORDS, ["<unk>", "<s>"], seed=1)
    write_model(folder / "a", ["<unk>", "b", "a", "x", "y", "c"], ["<unk>", "<x>"], seed=2)
    write_model(folder / "b", ["<unk>", "g", "f", "x", "z"], ["<unk>", "<x>", "<y>"], seed=3)
    write_model(folder / "padded", WORDS, ["<unk>", "<s>"], seed=4, rows=14)
    write_model(folder / "tune", WORDS, ["<unk>", "<s>"], seed=5, rows=14)
    write_model(folder / "short", [*WORDS, "h"], ["<unk>", "<s>"], seed=6, rows=8)
    write_model(folder / "m", ["<unk>", "p", "q", "a"], ["<unk>"], seed=7, dtype="BF16")
    write_model(folder / "n", ["<unk>", "q", "p", "r"], ["<unk>"], seed=8, dtype="BF16")
    write_model(folder / "t", ["<unk>", "p", "q", "a"], ["<unk>"], seed=9, tied=True)
    write_model(folder / "u", ["<unk>", "q", "r"], ["<unk>", "<s>"], seed=10, tied=True)
    write_tokenizer(folder / "words", ["<unk>", "x", "a", "nowhere", "g"], ["<unk>", "<s>"])
    return folder


THREE = [model("a", weight=0.5), model("b", weight=0.3), model("base", weight=0.2)]
LINEAR: dict[str, Any] = {"merge_method": "linear", "base_model": "base", "models": THREE}
TOKENS = {
    "x": {"source": "b"},  # a and b have it, the base does not
    "z": {"source": {"kind": "zero"}},
    "y": {"source": {"kind": "model_token", "model": "base", "token": "c"}},
    "<x>": {"source": {"kind": "model_token", "model": "b", "token_id": 3}},
    "a": {"source": "a"},  # the base and a have it
    "<new>": {"source": {"kind": "model_token", "model": "a", "token": "x"}},
    "<none>": {"source": {"kind": "zero"}},
}
CASES: dict[str, dict[str, Any]] = {
    "union": LINEAR | {"tokenizer_source": "union"},
    "union, long form": LINEAR | {"tokenizer": {"source": "union"}},
    "union by default": LINEAR | {"tokenizer": {"pad_to_multiple_of": None}},
    "base": LINEAR | {"tokenizer_source": "base"},
    "a model's": LINEAR | {"tokenizer_source": "a"},
    "a tokenizer's": LINEAR | {"tokenizer_source": {"model": {"path": "words"}}},
    "union without a base": {"merge_method": "linear", "models": THREE, "tokenizer_source": "union"},
    "a model's without a base": {"merge_method": "linear", "models": THREE, "tokenizer": {"source": "b"}},
    "every source of a token": LINEAR | {"tokenizer": {"source": "union", "tokens": TOKENS}},
    "every source, forced": LINEAR
    | {"tokenizer": {"source": "union", "tokens": {t: s | {"force": True} for t, s in TOKENS.items()}}},
    # With source base, mergekit can name no token that the base lacks: KeyError.
    "sources of the base's tokens": LINEAR
    | {"tokenizer": {"source": "base", "tokens": {"a": TOKENS["a"], "g": {"source": {"kind": "zero"}, "force": True}}}},
    "padded to 8": LINEAR | {"tokenizer": {"source": "union", "pad_to_multiple_of": 8}},
    "padded to 8, with sources": LINEAR | {"tokenizer": {"source": "b", "tokens": TOKENS, "pad_to_multiple_of": 8}},
    "rows to spare, dropped": {
        "merge_method": "linear",
        "base_model": "padded",
        "models": [model("tune", weight=0.4), model("padded", weight=0.6)],
        "tokenizer": {"source": "base", "pad_to_multiple_of": 1},
    },
    "rows to spare": {
        "merge_method": "linear",
        "base_model": "padded",
        "models": [model("tune", weight=0.4), model("padded", weight=0.6)],
        "tokenizer_source": "base",
    },
    "rows to spare, other words": {
        "merge_method": "task_arithmetic",
        "base_model": "padded",
        "models": [model("a", weight=0.4), model("tune", weight=0.6)],
        "tokenizer_source": "union",
    },
    "fewer rows than tokens": {
        "merge_method": "linear",
        "base_model": "short",
        "models": [model("base", weight=0.4), model("short", weight=0.6)],
        "tokenizer_source": "base",
    },
    "task arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [model("a", weight=0.5), model("b", weight=0.8)],
        "tokenizer_source": "union",
    },
    "slerp": {
        "merge_method": "slerp",
        "base_model": "base",
        "models": [model("a")],
        "parameters": {"t": 0.3},
        "tokenizer_source": "union",
    },
    "passthrough": {"merge_method": "passthrough", "models": [model("a")], "tokenizer_source": "words"},
    "bfloat16": {
        "merge_method": "linear",
        "models": [model("m", weight=0.5), model("n", weight=0.5)],
        "tokenizer_source": "n",
    },
    "tied heads": {
        "merge_method": "linear",
        "base_model": "t",
        "models": [model("u", weight=0.5), model("t", weight=0.5)],
        "tokenizer": {"source": "union", "tokens": {"p": {"source": "t", "force": True}}},
    },
}
# Where nett goes another way, and says so: rows that stand for no token are kept.
KEPT = {"rows to spare": 5, "rows to spare, other words": 2}
