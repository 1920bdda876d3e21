"""A Llama of some kilobytes and text for it, made once for all tests of the room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.core.tiny import write_llama

SIZES: dict[str, Any] = {"layers": 3, "hidden": 64, "inter": 96}
WORDS = ("sun", "road", "river", "letter", "house", "dust", "noon", "brother", "water", "air")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, two heads of keys for four of queries, tied embeddings, bfloat16."""
    return write_llama(tmp_path_factory.mktemp("weights") / "llama", **SIZES)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 11,000 tokens of the Llama's tokenizer."""
    words = np.random.default_rng(0).choice(WORDS, 3000)
    file = tmp_path_factory.mktemp("text") / "calibration.txt"
    file.write_text(" ".join(words) + ".\n")
    return file


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of the same words in another order, to judge by."""
    words = np.random.default_rng(1).choice(WORDS, 1500)
    file = tmp_path_factory.mktemp("text") / "other.txt"
    file.write_text(" ".join(words) + ".\n")
    return file
