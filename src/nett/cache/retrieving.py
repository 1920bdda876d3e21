"""Documents in chunks, and which of them are nearest to a question: by an encoder's vectors, or by words without one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from nett.cache.step_clusters import words_of
from nett.core.dtypes import Array
from nett.core.errors import Refused

SUFFIXES = (".txt", ".md", ".rst")
_BATCH, _LONGEST = 32, 256  # texts at a time, tokens of one, that an encoder is given
Embed = Callable[[Sequence[str]], Array]


@final
@dataclass(frozen=True)
class Passage:
    """A chunk: where it stands, its text and its token ids."""

    document: str
    number: int
    text: str
    ids: tuple[int, ...]


def read_passages(assets: Sequence[str], tokenizer: Any, most: int) -> list[Passage]:
    """The documents (files, or all texts of folders) as passages of whole sentences, at most ``most`` tokens each; a sentence
    that is longer is cut. Equal passages are one.

    Raises:
        Refused: there is no such document, or no text in them.
    """
    found: dict[tuple[int, ...], Passage] = {}
    for file in _documents(assets):
        text = file.read_text(encoding="utf-8", errors="replace")
        for number, (words, ids) in enumerate(_packed(text, tokenizer, most)):
            found.setdefault(ids, Passage(str(file), number, words, ids))
    if not found:
        raise Refused("holds no text", where=", ".join(map(str, assets)))
    return list(found.values())


def _documents(assets: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for asset in map(Path, assets):
        if asset.is_dir():
            inside = sorted(f for f in asset.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
            if not inside:
                raise Refused(f"holds no text ({', '.join(SUFFIXES)})", where=asset)
            found += inside
        elif asset.is_file():
            found.append(asset)
        else:
            raise Refused("there is no such document", where=asset)
    return found


def _packed(text: str, tokenizer: Any, most: int) -> list[tuple[str, tuple[int, ...]]]:
    """Sentences, as many together as have room; every passage ends its line."""

    def tokens(words: str) -> tuple[int, ...]:
        return tuple(tokenizer(words + "\n", add_special_tokens=False).input_ids)

    packed: list[tuple[str, tuple[int, ...]]] = []
    so_far = ""
    for sentence in (s for s in re.split(r"(?<=[.!?])\s+|\n\s*\n", text) if s.strip()):
        one = " ".join(sentence.split())
        joined = f"{so_far} {one}".strip()
        if so_far and len(tokens(joined)) > most:
            packed.append((so_far, tokens(so_far)))
            joined = one
        so_far = joined
        while len(tokens(so_far)) > most:
            packed.append(_cut(so_far, tokens, most))
            so_far = so_far[len(packed[-1][0]) :].strip()
    if so_far:
        packed.append((so_far, tokens(so_far)))
    return packed


def _cut(words: str, tokens: Callable[[str], tuple[int, ...]], most: int) -> tuple[str, tuple[int, ...]]:
    """The beginning of ``words`` that has room, by halving; at a blank where there is one."""
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(tokens(words[:middle])) <= most else (low, middle - 1)
    blank = words.rfind(" ", 1, low + 1)
    part = words[: blank if blank > 0 else low]
    return part, tokens(part)


def encoder_of(folder: Path, device: str) -> Embed:
    """Texts to unit vectors: the mean of the last hidden states of a sentence encoder (Reimers and Gurevych 2019)."""
    import torch

    from nett.core import torch_model

    if not (folder / "config.json").is_file():
        raise Refused(
            "is no model folder: it has no config.json", where=folder, hint="--encoder FOLDER of a sentence encoder"
        )
    model = torch_model.model(folder).to(device).eval()
    tokenizer = torch_model.tokenizer(folder)

    def embed(texts: Sequence[str]) -> Array:
        rows = []
        for start in range(0, len(texts), _BATCH):
            given = tokenizer(
                list(texts[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=_LONGEST,
                return_tensors="pt",
            ).to(device)
            with torch.no_grad():
                states = model(**given).last_hidden_state
            counted = given.attention_mask[..., None].to(states.dtype)
            mean = (states * counted).sum(1) / counted.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=1).float().cpu().numpy())
        return np.concatenate(rows)

    return embed


@final
class Index:
    """Passages by vectors; ``embed`` None: by their words, rare ones more (TF-IDF), and the cosine."""

    def __init__(self, texts: Sequence[str], embed: Embed | None) -> None:
        self.texts, self.embed = list(texts), embed
        self.vectors = None if embed is None else embed(self.texts)

    def nearest(self, question: str, count: int) -> list[tuple[int, float]]:
        """The ``count`` nearest passages with their cosines, the nearest first; the earlier of equals."""
        if self.embed is None or self.vectors is None:
            counts = words_of([*self.texts, question])
            rarity = np.log((1 + len(counts)) / (1 + (counts > 0).sum(0))) + 1
            rows = np.log1p(counts) * rarity
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = rows / np.where(norms > 0, norms, 1.0)
            cosines = rows[:-1] @ rows[-1]
        else:
            cosines = self.vectors @ self.embed([question])[0]
        order = np.argsort(-cosines, kind="stable")[:count]
        return [(int(k), float(cosines[k])) for k in order]
