"""What a DARE test needs: the masks that were drawn, and the formula with given masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.merging import Family, Model
from support.tensors import Array, write_tensors


def masks_of(models: Family, method: str, folder: Path, density: list[float], seed: int = 0) -> list[Model]:
    """Model t alone set to one over a base of zeros shows mask t: what was drawn depends on seed, model, tensor name
    and position, not on the values."""
    zeros = {n: np.zeros_like(a) for n, a in models.base.items()}
    ones = {n: np.ones_like(a) for n, a in models.base.items()}
    write_tensors(folder / "zero" / "model.safetensors", zeros)
    write_tensors(folder / "one" / "model.safetensors", ones)
    found = []
    for t in range(len(models.paths)):
        paths = [str(folder / ("one" if i == t else "zero")) for i in range(len(models.paths))]
        lone = models._replace(base_path=str(folder / "zero"), paths=paths)
        words = ["--density", ",".join(map(str, density)), "--rescale", "none", "--seed", str(seed)]
        merged = lone.merge(method, *words)
        assert all(set(np.unique(a)) <= {0.0, 1.0} for a in merged.values())
        found.append({n: a == 1 for n, a in merged.items()})
    return found


def dropped(taus: Sequence[Array], masks: Sequence[Array], densities: Sequence[float], rescale: str) -> Array:
    """Masked and rescaled task vectors of one tensor, [models, parameters], in float32."""
    kept = []
    for tau, mask, density in zip(taus, masks, densities, strict=True):
        one = tau * mask
        if rescale == "inverse-density" and 0 < density < 1:
            one = one * np.float32(1 / density)
        if rescale == "l1":
            before, after = (float(np.abs(a).sum(dtype=np.float64)) for a in (tau, one))
            if density < 1 and after > 1e-7:
                one = one * np.float32(before / after)
        kept.append(one)
    return np.stack(kept)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"density": [0.3, 0.3, 0.3], "scale": 0.7},
    {"density": [0.1, 1.0, 0.6], "weight": [0.5, 1.0, 2.0]},
    {"rescale": "l1", "density": [0.4, 0.4, 0.4]},
    {"rescale": "none", "normalize": True, "weight": [0.5, 1.0, 2.0]},
    {"density": [0.0, 0.5, 1.0]},
    {"seed": 7},
]
