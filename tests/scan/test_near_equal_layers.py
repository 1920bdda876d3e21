"""Layers that nearly repeat an earlier one are found, at the distance that NumPy tells, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.scan import near_equal_layers as module
from nett.scan.near_equal_layers import near_equal_layers
from support.scanning import as_stored, edges, in_every_container, write
from support.tensors import Array

ROLES = {"mlp.weight": (24, 16), "attn.weight": (16, 16), "norm.weight": (16,)}


def stack(layers: int, seed: int = 0, prefix: str = "model.layers") -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        f"{prefix}.{i}.{role}": rng.standard_normal(shape).astype(np.float32)
        for i in range(layers)
        for role, shape in ROLES.items()
    }


def repeat(
    tensors: dict[str, Array], later: int, earlier: int, noise: float = 0.0, prefix: str = "model.layers"
) -> None:
    """Make layer ``later`` a copy of ``earlier`` with noise of that relative size."""
    rng = np.random.default_rng(later)
    for role in ROLES:
        start = tensors[f"{prefix}.{earlier}.{role}"]
        tensors[f"{prefix}.{later}.{role}"] = (start + noise * rng.standard_normal(start.shape)).astype(np.float32)


def distance(tensors: dict[str, Array], later: int, earlier: int, roles: tuple[str, ...] = tuple(ROLES)) -> float:
    a, b = (
        np.concatenate([tensors[f"model.layers.{i}.{r}"].ravel() for r in roles]).astype(np.float64)
        for i in (earlier, later)
    )
    return float(np.linalg.norm(b - a) / np.linalg.norm(b))


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_planted(tmp_path: Path, noise: float, dtype: str) -> None:
    tensors = stack(5)
    repeat(tensors, 3, 1, noise)
    tensors = as_stored(tensors, dtype)
    path = write(tmp_path / "m", tensors, dtype)
    said = near_equal_layers([path])
    (finding,) = said.found
    edge = finding.edge
    assert (edge.kind, edge.target) == ("near_equal_layer", f"{path}::model.layers.3")
    assert edge.sources == (f"{path}::model.layers.1",)
    nbytes = sum(int(np.prod(s)) for s in ROLES.values()) * (4 if dtype == "F32" else 2)
    assert edge.bytes_freed == nbytes == sum(p.bytes_freed for p in finding.parts)
    assert edge.error == pytest.approx(distance(tensors, 3, 1), rel=1e-9, abs=1e-12)
    assert edge.guarantee == "measured" and edge.command is None
    for part in finding.parts:
        role = part.target.partition("::model.layers.3.")[2]
        assert part.sources == (f"{path}::model.layers.1.{role}",)
        assert part.error == pytest.approx(distance(tensors, 3, 1, (role,)), rel=1e-9, abs=1e-12)
    assert said.figures == {"layers": 5, "near": 1}


def test_nothing_in_layers_of_their_own(tmp_path: Path) -> None:
    said = near_equal_layers([write(tmp_path / "m", stack(6))])
    assert said.found == () and said.figures == {"layers": 6, "near": 0}


def test_similarity_that_is_asked_for(tmp_path: Path) -> None:
    tensors = stack(3)
    repeat(tensors, 2, 0, noise=0.5)
    a, b = (
        np.concatenate([tensors[f"model.layers.{i}.{r}"].ravel() for r in ROLES]).astype(np.float64) for i in (0, 2)
    )
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    path = write(tmp_path / "m", tensors)
    assert 0.8 < cosine < 0.95 and near_equal_layers([path]).found == ()
    assert len(near_equal_layers([path], similar=cosine - 0.01).found) == 1
    assert near_equal_layers([path], similar=cosine + 0.01).found == ()


def test_a_chain_of_repeats(tmp_path: Path) -> None:
    """A model made deeper by repeating its layers: each repeat comes from an earlier layer."""
    tensors = stack(6)
    for later, earlier in ((2, 0), (3, 1), (4, 0), (5, 1)):
        repeat(tensors, later, earlier)
    found = edges(near_equal_layers([write(tmp_path / "m", tensors)]))
    assert {e.target.rpartition(".")[2]: e.sources[0].rpartition(".")[2] for e in found} == {
        "2": "0", "3": "1", "4": "0", "5": "1",
    }  # fmt: skip
    assert all(e.error == 0 for e in found)


def test_candidates_from_a_sample_are_checked_on_every_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers larger than the sample: the repeat is found; the error is of all elements, not of the sample."""
    monkeypatch.setattr(module, "_SPAN", 8)
    monkeypatch.setattr(module, "_SPANS", 4)
    tensors = stack(4)
    repeat(tensors, 2, 0, noise=0.1)
    path = write(tmp_path / "m", tensors)
    (edge,) = edges(near_equal_layers([path], similar=0.9))
    assert edge.error == pytest.approx(distance(tensors, 2, 0), rel=1e-9)
    for seed in range(5):  # a sample may mislead, the whole layer does not
        found = edges(near_equal_layers([path], similar=0.9, seed=seed))
        assert {e.target for e in found} <= {edge.target}


def test_layers_of_other_roles_or_shapes_are_not_compared(tmp_path: Path) -> None:
    tensors = stack(2)
    repeat(tensors, 1, 0)
    reshaped = tensors | {"model.layers.1.mlp.weight": tensors["model.layers.1.mlp.weight"].T.copy()}
    assert near_equal_layers([write(tmp_path / "a", reshaped)]).found == ()
    more = tensors | {"model.layers.1.bias": np.ones(3, np.float32)}
    assert near_equal_layers([write(tmp_path / "b", more)]).found == ()


def test_stacks_are_kept_apart(tmp_path: Path) -> None:
    """An encoder's layer is no repeat of the decoder's; each stack has its own."""
    tensors = stack(3, prefix="encoder.layers")
    tensors |= {n.replace("encoder", "decoder"): a for n, a in tensors.items()}
    assert near_equal_layers([write(tmp_path / "a", tensors)]).found == ()
    repeat(tensors, 2, 0, prefix="decoder.layers")
    (edge,) = edges(near_equal_layers([write(tmp_path / "b", tensors)]))
    assert edge.target.endswith("::decoder.layers.2") and edge.sources[0].endswith("::decoder.layers.0")


def test_checkpoints_are_kept_apart(tmp_path: Path) -> None:
    paths = [write(tmp_path / n, stack(3)) for n in ("a", "b")]
    said = near_equal_layers(paths)
    assert said.found == () and said.figures["layers"] == 6


def test_layers_of_zeros_and_of_nan(tmp_path: Path) -> None:
    tensors = stack(5)
    for role, shape in ROLES.items():
        tensors[f"model.layers.1.{role}"] = tensors[f"model.layers.2.{role}"] = np.zeros(shape, np.float32)
        tensors[f"model.layers.3.{role}"] = tensors[f"model.layers.4.{role}"] = np.full(shape, np.nan, np.float32)
    found = edges(near_equal_layers([write(tmp_path / "m", tensors)]))
    assert [(e.target.rpartition(".")[2], e.error) for e in found] == [("2", 0.0)]


def test_a_tensor_of_zeros_in_a_near_layer_has_no_relative_error(tmp_path: Path) -> None:
    """The later layer's norm is zero, the earlier one's is not: nothing says that it can be had without loss."""
    tensors = stack(3)
    repeat(tensors, 2, 0)
    tensors["model.layers.0.norm.weight"] *= np.float32(1e-3)
    tensors["model.layers.2.norm.weight"] = np.zeros(16, np.float32)
    (finding,) = near_equal_layers([write(tmp_path / "m", tensors)]).found
    errors = {p.target.rpartition(".layers.2.")[2]: p.error for p in finding.parts}
    assert errors == {"mlp.weight": 0.0, "attn.weight": 0.0, "norm.weight": None}


def test_every_container(tmp_path: Path) -> None:
    tensors = stack(4)
    repeat(tensors, 3, 0, noise=0.05)
    said = [
        [(e.target.partition("::")[2], e.error, e.bytes_freed) for e in edges(near_equal_layers([path]))]
        for path in in_every_container(tmp_path, tensors).values()
    ]
    assert len(said[0]) == 1 and all(one == said[0] for one in said)
