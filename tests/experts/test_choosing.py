"""Counts and ranks, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from nett.core.errors import Refused
from nett.experts.choosing import global_counts, highest, ranked, uniform_counts
from support.mixtures import Paper


def test_counts() -> None:
    assert uniform_counts([Paper(), Paper(6)], 0.5) == [4, 3]
    assert uniform_counts([Paper(), Paper(16)], 1.0) == [8, 16]
    assert uniform_counts([Paper(16, 4, 4)], 0.6) == [8]  # 2 of 4 in each of 4 pools
    with pytest.raises(Refused, match=r"keep = 0\.1 leaves 1 of 8 experts in layer, but a token chooses 2"):
        uniform_counts([Paper()], 0.1)


def test_budget_over_layers() -> None:
    """Of two layers with four experts and one chosen: the four highest of all eight, but one in each layer."""
    layers = [Paper(4, 1), Paper(4, 1)]
    assert global_counts(layers, 0.5, [[9, 8, 7, 1], [2, 1, 1, 1]]) == [3, 1]
    assert global_counts(layers, 0.5, [[9, 8, 7, 6], [2, 1, 1, 1]]) == [3, 1]


def test_highest_and_ties() -> None:
    assert highest(Paper(6), [1, 5, 5, 2, 5, 0], 2) == [1, 2]
    assert highest(Paper(6), [1, 5, 5, 2, 5, 0], 3, first=[5]) == [1, 2, 5]
    assert highest(Paper(8, 1, 2), [8, 7, 6, 5, 1, 2, 3, 4], 4) == [0, 1, 6, 7]


def test_unseen_experts_stay_and_what_that_costs() -> None:
    layers, counts = [Paper(6)], [np.array([5, 4, 3, 2, 1, 0])]
    assert ranked(layers, counts, counts, keep=0.5) == [[0, 1, 5]]
    assert ranked(layers, counts, counts, keep=0.5, unseen="drop") == [[0, 1, 2]]
    with pytest.raises(Refused, match="4 of 6 experts of layer were chosen by no token"):
        ranked(layers, counts, [np.array([1, 1, 0, 0, 0, 0])], keep=0.5)
