"""DARE with the election of TIES: the formula with the masks that were drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nett.merge import dare_linear, dare_ties
from support.dare import VARIANTS, dropped, masks_of
from support.merging import STORED, Family, Model, assert_same, elect, family


def reference(models: Family, masks: list[Model], options: dict[str, Any]) -> Model:
    """base + scale * sum of the dropped and rescaled entries whose sign is that of their (weighted) sum."""
    density = options.get("density", [0.5] * 3)
    how = {
        "weight_in_election": options.get("weight_in_election", True),
        "zero_sign": "positive",
        "normalize": options.get("normalize", False),
    }
    made = {}
    for name, base in models.base.items():
        taus = [(m[name] - base).ravel() for m in models.tuned]
        drawn = [m[name].ravel() for m in masks]
        kept = dropped(taus, drawn, density, options.get("rescale", "inverse-density"))
        merged = elect(kept, options.get("weight", [1.0] * 3), **how).reshape(base.shape)
        made[name] = base + np.float32(options.get("scale", 1.0)) * merged
    return made


def words(options: dict[str, Any]) -> list[str]:
    found = []
    for name, value in options.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        flag = name.replace("_", "-")
        found += [f"--{flag}"] if value is True else [f"--no-{flag}"] if value is False else [f"--{flag}", text]
    return found


UNWEIGHTED = {"weight": [0.5, 1.0, 2.0], "weight_in_election": False}


@pytest.mark.parametrize("options", [*VARIANTS, UNWEIGHTED], ids=str)
def test_command_line_is_the_formula(tmp_path: Path, options: dict[str, Any]) -> None:
    models = family(tmp_path / "f")
    masks = masks_of(models, "dare_ties", tmp_path, options.get("density", [0.5] * 3), options.get("seed", 0))
    found = models.merge("dare_ties", *words(options))
    expected = reference(models, masks, options)
    if options.get("rescale") == "l1":
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=2.5e-7, atol=1e-7)
    else:
        assert_same(found, expected)


@pytest.mark.parametrize("stored", STORED)
def test_every_element_type(tmp_path: Path, stored: str) -> None:
    models = family(tmp_path / "f", stored)
    masks = masks_of(models, "dare_ties", tmp_path, [0.5] * 3)
    assert_same(models.merge("dare_ties"), models.as_stored(reference(models, masks, {})))


def test_worked_example() -> None:
    """Nothing dropped: 3 beats -1, -4 beats 1, and at 2 - 2 = 0 the sign is +."""
    base = np.zeros(4, np.float32)
    tuned = [np.array([3, 1, 2, 0], np.float32), np.array([-1, -4, -2, 0], np.float32)]
    np.testing.assert_array_equal(dare_ties(base, tuned, density=1.0), [3, -4, 2, 0])
    np.testing.assert_array_equal(dare_ties(base, tuned, density=1.0, weight=[1, 4]), [-4, -16, -8, 0])
    elected_alone = dare_ties(base, tuned, density=1.0, weight=[1, 4], weight_in_election=False)
    np.testing.assert_array_equal(elected_alone, [3, -16, 2, 0])
    np.testing.assert_array_equal(dare_ties(base, tuned, density=1.0, weight=[1, 4], normalize=True), [-1, -4, -2, 0])


def test_same_masks_as_dare_linear() -> None:
    """One model has no rival, so both methods give the same."""
    rng = np.random.default_rng(0)
    base, tuned = rng.normal(size=(2, 500)).astype(np.float32)
    for rescale in ("inverse-density", "l1", "none"):
        given: dict[str, Any] = {"density": 0.4, "rescale": rescale, "seed": 3}
        np.testing.assert_array_equal(dare_ties(base, [tuned], **given), dare_linear(base, [tuned], **given))
