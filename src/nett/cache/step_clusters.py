"""Steps that say the same: clusters of their embeddings, or of their words where there is no encoder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from nett.cache.search_tree import Embed
from nett.core.errors import NettError, missing_extra


def words_of(texts: Sequence[str]) -> np.ndarray:
    """float64 ``[n, v]``: how often each of the ``v`` words and signs of all texts stands in each, in any order."""
    counts = [Counter(re.findall(r"\w+|[^\w\s]", text.lower())) for text in texts]
    place = {word: i for i, word in enumerate(sorted(set().union(*counts)))}
    found = np.zeros((len(texts), max(1, len(place))))
    for row, count in zip(found, counts, strict=True):
        for word, times in count.items():
            row[place[word]] = times
    return found


def clusters_of(texts: Sequence[str], distance: float, embed: Embed | None = None) -> list[int]:
    """The cluster of each text, numbered in the order of their first texts.

    Average linkage on cosine distances, cut at ``distance``. Equal texts are embedded once. A vector of zeros is at
    distance 1 from all others. NettError where ``embed`` does not give one finite vector a text.
    """
    different = list(dict.fromkeys(texts))
    if len(different) == 1:
        return [0] * len(texts)
    vectors = _vectors(different, embed)
    try:
        from scipy.cluster.hierarchy import fcluster, linkage
    except ImportError as error:
        raise missing_extra("scipy", "store", "cache/ets") from error
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1.0)
    apart = np.maximum(0.0, 1.0 - unit @ unit.T)
    np.fill_diagonal(apart, 0.0)
    where = {text: i for i, text in enumerate(different)}
    index = [where[text] for text in texts]  # a text counts as often as it stands there
    pairs = apart[np.ix_(index, index)][np.triu_indices(len(texts), 1)]
    labels = fcluster(linkage(pairs, "average"), distance, "distance")
    number: dict[int, int] = {}
    return [number.setdefault(int(label), len(number)) for label in labels]


def _vectors(texts: Sequence[str], embed: Embed | None) -> np.ndarray:
    if embed is None:
        return words_of(texts)
    made: Any = embed(list(texts))
    try:
        vectors = np.asarray(made, np.float64)
    except (TypeError, ValueError) as error:
        raise NettError(f"embed gave no array of numbers: {error}", where="cache/ets") from error
    finite = bool(np.isfinite(vectors).all())
    if vectors.ndim != 2 or len(vectors) != len(texts) or not finite:
        raise NettError(
            f"embed gave an array of shape {vectors.shape} for {len(texts)} texts{'' if finite else ', not all finite'}",
            where="cache/ets",
            hint="It must return one vector of finite numbers for each text.",
        )
    return vectors
