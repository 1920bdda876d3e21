"""The demo's texts: documents are held out whole, passages come from them and nowhere else."""

from __future__ import annotations

import hashlib

import pytest
from demo.console import DemoFailed
from demo.texts import language_reference, passages, python_sources, split


def codes(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_a_document_falls_on_the_side_that_its_name_says_wherever_it_lies() -> None:
    documents = {f"doc{i}": f"text {i}" for i in range(500)}
    train, held_out = split(documents, 0.2)
    assert train | held_out == documents and not train.keys() & held_out.keys()
    for name in documents:
        first = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
        assert (name in held_out) == (first < 0.2 * 2**64)
    assert 70 <= len(held_out) <= 130
    assert split(dict(reversed(documents.items())), 0.2) == (train, held_out)


def test_what_is_equal_but_for_white_space_is_not_on_both_sides() -> None:
    train, held_out = split({f"doc{i}": "the same\n" + " " * i + "text" for i in range(50)} | {"empty": " \n"})
    assert len(train) + len(held_out) == 1


@pytest.mark.parametrize("find", [python_sources, language_reference])
def test_the_machine_has_the_texts(find: object) -> None:
    assert callable(find)
    text = find()
    assert len(text.train) >= 40 and len(text.held_out) >= 10
    assert not text.train.keys() & text.held_out.keys()
    assert sum(map(len, text.train.values())) > 200_000
    assert text.name in text.told and f"{len(text.held_out)} held out" in text.told


def test_passages_are_pieces_of_the_documents_at_most_so_many_of_each() -> None:
    documents = {c: c * 50 for c in "abcdefgh"} | {"short": "zzz"}
    found = passages(documents, codes, count=12, length=10, each=2, seed=3)
    assert len(found) == 12 and all(len(p) == 10 and len(set(p)) == 1 for p in found)
    letters = [chr(p[0]) for p in found]
    assert "z" not in letters and max(map(letters.count, letters)) <= 2
    assert passages(documents, codes, count=12, length=10, each=2, seed=3) == found
    assert passages(documents, codes, count=12, length=10, each=2, seed=4) != found


def test_too_little_text_is_said_with_both_numbers() -> None:
    with pytest.raises(DemoFailed, match=r"hold 4 passages of 10 tokens, 5 are needed"):
        passages({"a": "a" * 100, "b": "b" * 100}, codes, count=5, length=10, each=2, seed=0)
