"""Rows that no token reaches: their number, what they hold, the bytes and the error of leaving them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.tiny import write_llama
from nett.scan.unused_embeddings import unused_embeddings
from support.scanning import as_stored, edges, model, tensors_of, write, write_gguf
from support.tensors import Array, read_tensors

EMBED = "model.embed_tokens.weight"


def tokenizer(folder: Path, ids: list[int], added: list[int] | None = None) -> None:
    vocab = {f"t{i}": i for i in ids}
    content = {
        "model": {"type": "BPE", "vocab": vocab},
        "added_tokens": [{"id": i, "content": f"a{i}"} for i in added or []],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))


def given(folder: Path, tensors: dict[str, Array], ids: list[int], dtype: str = "F32", **more: Any) -> str:
    path = write(folder, tensors, dtype)
    tokenizer(folder, ids, **more)
    return path


def test_rows_past_the_end(tmp_path: Path) -> None:
    tensors = model()
    path = given(tmp_path / "m", tensors, list(range(40)))
    said = unused_embeddings([path])
    found = tensors_of(said)
    assert found.keys() == {EMBED, "lm_head.weight"}
    for name, edge in found.items():
        values = tensors[name].astype(np.float64)
        assert (edge.kind, edge.guarantee, edge.command) == ("unused_embedding_rows", "measured", None)
        assert edge.bytes_freed == 8 * 16 * 4
        assert edge.error == pytest.approx(np.linalg.norm(values[40:]) / np.linalg.norm(values), rel=1e-12)
        figures = said.figures[f"{path}::{name}"]
        assert figures == {"unused_rows": 8, "past_the_end": 8, "zero_rows": 0, "equal_rows": 1}
    assert said.figures[path] == {"tokens": 40}


@pytest.mark.parametrize("fill", [0.0, 0.125])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_rows_that_are_all_equal_are_rebuilt_exactly(tmp_path: Path, fill: float, dtype: str) -> None:
    tensors = as_stored(model(), dtype)
    tensors[EMBED][40:] = fill
    path = given(tmp_path / "m", tensors, list(range(40)), dtype)
    said = unused_embeddings([path])
    edge = tensors_of(said)[EMBED]
    assert (edge.error, edge.guarantee, edge.bytes_freed) == (0.0, "exact", 8 * 16 * (4 if dtype == "F32" else 2))
    assert said.figures[f"{path}::{EMBED}"]["zero_rows"] == (8 if fill == 0 else 0)


def test_holes_inside_the_vocabulary(tmp_path: Path) -> None:
    ids = [i for i in range(48) if i not in (3, 17, 18, 47)]
    tensors = model()
    path = given(tmp_path / "m", tensors, ids)
    said = unused_embeddings([path])
    edge = tensors_of(said)[EMBED]
    rows = tensors[EMBED].astype(np.float64)
    assert edge.bytes_freed == 4 * 16 * 4
    assert edge.error == pytest.approx(np.linalg.norm(rows[[3, 17, 18, 47]]) / np.linalg.norm(rows), rel=1e-12)
    assert said.figures[f"{path}::{EMBED}"]["past_the_end"] == 1


def test_added_tokens_are_used(tmp_path: Path) -> None:
    path = given(tmp_path / "m", model(), list(range(40)), added=[41, 47])
    assert tensors_of(unused_embeddings([path]))[EMBED].bytes_freed == 6 * 16 * 4


def test_nothing_where_every_row_is_used(tmp_path: Path) -> None:
    path = given(tmp_path / "m", model(), list(range(48)))
    said = unused_embeddings([path])
    assert said.found == () and said.figures == {path: {"tokens": 48}}
    pico = str(write_llama(tmp_path / "pico", tied=False))
    assert unused_embeddings([pico]).found == ()


def test_nothing_without_a_tokenizer(tmp_path: Path) -> None:
    said = unused_embeddings([write(tmp_path / "m", model())])
    assert said.found == () and said.figures == {}


@pytest.mark.parametrize(
    "content",
    [b"not json", b"[]", b"{}", b'{"model": 3}', b'{"model": {"vocab": {"a": -1, "b": true, "c": "x", "d": 1e9}}}', b"\xff\xfe", b'{"model": {"vocab": 9}}'],
    ids=repr,
)  # fmt: skip
def test_a_broken_tokenizer_finds_nothing(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "m", model())
    (tmp_path / "m" / "tokenizer.json").write_bytes(content)
    assert unused_embeddings([path]).found == ()
    assert ("not readable as JSON" in capsys.readouterr().err) == (content[:1] not in b"[{")


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    """Then the tensor is not what this tokenizer indexes: nothing is said of it."""
    path = given(tmp_path / "m", model(), list(range(60)))
    assert unused_embeddings([path]).found == ()


def test_unigram_and_vocab_json(tmp_path: Path) -> None:
    path = write(tmp_path / "uni", model())
    words = [[f"t{i}", -1.0] for i in range(44)]
    (tmp_path / "uni" / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": words}}))
    assert tensors_of(unused_embeddings([path]))[EMBED].bytes_freed == 4 * 16 * 4
    path = write(tmp_path / "gpt2", model())
    (tmp_path / "gpt2" / "vocab.json").write_text(json.dumps({f"t{i}": i for i in range(42)}))
    (tmp_path / "gpt2" / "added_tokens.json").write_text(json.dumps({"<x>": 43}))
    said = unused_embeddings([path])
    assert tensors_of(said)[EMBED].bytes_freed == 5 * 16 * 4
    assert said.figures[f"{path}::{EMBED}"]["past_the_end"] == 4


def test_gguf_carries_its_tokenizer(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": model()[EMBED], "blk.0.attn_output.weight": model()["lm_head.weight"]}
    path = write_gguf(tmp_path / "m.gguf", tensors, [f"t{i}" for i in range(45)])
    (edge,) = edges(unused_embeddings([path]))
    assert edge.target == f"{path}::token_embd.weight" and edge.bytes_freed == 3 * 16 * 4


def test_matrices_that_are_no_embeddings(tmp_path: Path) -> None:
    """By whole parts of the name, outside the layers, of two dimensions, floats."""
    values = model()[EMBED]
    tensors = {
        "model.layers.0.attn_output.weight": values, "blk.0.output.weight": values, "attn_output.weight": values,
        "shared.weight": values.reshape(48, 4, 4), "wte.weight": np.ones((48, 4), np.int64),
    }  # fmt: skip
    assert unused_embeddings([given(tmp_path / "m", tensors, list(range(8)))]).found == ()


def test_rows_that_are_not_a_number(tmp_path: Path) -> None:
    tensors = model()
    tensors[EMBED][45] = np.nan
    path = given(tmp_path / "m", tensors, list(range(40)))
    edge = tensors_of(unused_embeddings([path]))[EMBED]
    assert edge.error is None and edge.guarantee == "measured"


def test_each_checkpoint_has_its_own_tokenizer(tmp_path: Path) -> None:
    one = given(tmp_path / "one", model(1), list(range(40)))
    two = given(tmp_path / "two", model(2), list(range(48)))
    three = write(tmp_path / "three", model(3))
    said = unused_embeddings([one, two, three])
    assert {e.target.partition("::")[0] for e in edges(said)} == {one}
    assert read_tensors(Path(one))[EMBED].shape == (48, 16)
