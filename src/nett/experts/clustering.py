"""K-means of few points that are known by their inner products alone, the same for any order of the points."""

from __future__ import annotations

import numpy as np

from nett.core.dtypes import Array

_ROUNDS = 100


def points_of(alike: Array) -> Array:
    """float64 ``[n, d]``: points whose inner products are the matrix ``[n, n]``; what it has of negative eigenvalues, which
    no points have, is left out."""
    values, vectors = np.linalg.eigh((alike + alike.T) / 2)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def kmeans(points: Array, count: int) -> tuple[Array, float]:
    """Which of ``count`` clusters each point is in, int64 ``[n]``, and the sum of squared distances to their means.

    The first centre is the point nearest to all, each further one the point that lowers the sum most (ties: the first);
    then Lloyd's steps until nothing moves. No cluster is empty: one that would be takes the point farthest from its mean.
    """
    gaps = _squares(points, points)
    seeds = [int(gaps.sum(1).argmin())]
    nearest = gaps[seeds[0]].copy()
    while len(seeds) < count:
        gain = np.maximum(nearest[None] - gaps, 0.0).sum(1)
        gain[seeds] = -1.0
        seeds.append(int(gain.argmax()))
        nearest = np.minimum(nearest, gaps[seeds[-1]])
    labels = _filled(gaps[:, seeds], count)
    for _ in range(_ROUNDS):
        moved = _filled(_squares(points, means(points, labels, count)), count)
        if np.array_equal(moved, labels):
            break
        labels = moved
    rest = points - means(points, labels, count)[labels]
    return labels, float((rest * rest).sum())


def means(points: Array, labels: Array, count: int) -> Array:
    """The clusters' means ``[count, d]``; none may be empty."""
    sums = np.zeros((count, points.shape[1]))
    np.add.at(sums, labels, points)
    return np.asarray(sums / np.bincount(labels, minlength=count)[:, None])


def _squares(a: Array, b: Array) -> Array:
    return np.asarray(np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0.0))


def _filled(gaps: Array, count: int) -> Array:
    """The nearest of the centres for each point, from squared distances ``[n, count]``, with no cluster left empty."""
    labels = np.asarray(gaps.argmin(1))
    for empty in np.flatnonzero(np.bincount(labels, minlength=count) == 0):
        alone = np.bincount(labels, minlength=count)[labels] == 1
        far = np.where(alone, -1.0, gaps[np.arange(len(labels)), labels])
        labels[int(far.argmax())] = empty
    return labels
