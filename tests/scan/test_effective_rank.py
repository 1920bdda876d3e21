"""Effective ranks against NumPy's singular value decomposition, whole and sampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.core import spectrum as module
from nett.scan.effective_rank import effective_rank
from support.scanning import as_stored, in_every_container, model, tensors_of, write
from support.tensors import Array


def low(rows: int, columns: int, rank: int, seed: int = 0, noise: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns)) / np.sqrt(rank)
    return (made + noise * rng.normal(size=made.shape)).astype(np.float32)


def known(matrix: Array, energy: float = 0.99) -> tuple[float, int, float]:
    """Effective rank, rank that holds the energy, relative error of that rank."""
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    share = values[values > values[0] * 1e-7] / values.sum()
    held = np.cumsum(values**2) / (values**2).sum()
    rank = int(np.searchsorted(held, energy)) + 1
    return float(np.exp(-(share * np.log(share)).sum())), rank, float(np.sqrt(max(0.0, 1 - held[rank - 1])))


@pytest.mark.parametrize("shape", [(40, 40), (90, 20), (20, 90)])
@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("block", [64, module._BLOCK])
def test_against_numpy(
    tmp_path: Path, shape: tuple[int, int], energy: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the matrix is read in many pieces."""
    monkeypatch.setattr(module, "_BLOCK", block)
    tensors = {"noisy": low(*shape, 3, noise=0.1), "full": low(*shape, 20, seed=1)}
    path = write(tmp_path / "m", tensors)
    said = effective_rank([path], energy=energy)
    found = tensors_of(said)
    for name, matrix in tensors.items():
        figures = said.figures["by_matrix"][f"{path}::{name}"]
        effective, rank, error = known(matrix, energy)
        assert figures["effective_rank"] == pytest.approx(effective, rel=1e-6)
        assert figures["rank_99" if energy == 0.99 else f"rank_{energy:g}"] == rank
        assert figures["full_rank"] == min(shape) and not figures["sampled"]
        freed = matrix.nbytes - rank * sum(shape) * 4
        assert (name in found) == (freed > 0)
        if freed > 0:
            edge = found[name]
            assert (edge.kind, edge.bytes_freed, edge.guarantee, edge.command) == ("low_rank", freed, "measured", None)
            assert edge.error == pytest.approx(error, abs=1e-6)


def test_planted_rank(tmp_path: Path) -> None:
    tensors = model() | {"planted": low(64, 48, 4), "zero": np.zeros((8, 8), np.float32)}
    path = write(tmp_path / "m", tensors)
    said = effective_rank([path])
    found = tensors_of(said)
    assert found.keys() == {"planted", "zero"}
    assert found["planted"].bytes_freed == 64 * 48 * 4 - 4 * (64 + 48) * 4
    assert found["zero"].bytes_freed == 8 * 8 * 4 and found["zero"].error == 0
    assert found["planted"].guarantee == found["zero"].guarantee == "measured"
    assert said.figures["by_matrix"][f"{path}::zero"]["effective_rank"] == 0


def test_nothing_in_matrices_of_full_rank(tmp_path: Path) -> None:
    assert effective_rank([write(tmp_path / "m", model())]).found == ()


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (150, 900)])
def test_a_sample_finds_the_planted_rank_and_flatters_nothing(tmp_path: Path, shape: tuple[int, int]) -> None:
    tensors = {"planted": low(*shape, 3), "full": np.random.default_rng(3).normal(size=shape).astype(np.float32)}
    path = write(tmp_path / "m", tensors)
    said = effective_rank([path], limit=64)
    found = tensors_of(said)
    assert found.keys() == {"planted"}
    figures = said.figures["by_matrix"][f"{path}::planted"]
    assert figures["sampled"] and figures["rank_99"] == 3
    assert figures["full_rank"] == 32  # half of the sampled rows choose the directions
    assert found["planted"].bytes_freed == shape[0] * shape[1] * 4 - 3 * sum(shape) * 4
    full = said.figures["by_matrix"][f"{path}::full"]
    assert full["rank_99"] is None and full["effective_rank"] > 0.85 * full["full_rank"]
    assert effective_rank([path], limit=64).figures == said.figures
    assert effective_rank([path], limit=64, seed=1).figures != said.figures


def test_neighbouring_rows_that_repeat_do_not_mislead_the_sample(tmp_path: Path) -> None:
    """Rows in equal pairs: half of the full rank, and the held-out half tells it."""
    matrix = np.repeat(np.random.default_rng(0).normal(size=(100, 200)), 2, axis=0).astype(np.float32)
    path = write(tmp_path / "m", {"w": matrix})
    assert effective_rank([path], limit=100).figures["by_matrix"][f"{path}::w"]["rank_99"] is None


def test_not_a_number_is_said_and_not_judged(tmp_path: Path) -> None:
    tensors = {"w": low(20, 20, 2), "sampled": low(80, 80, 2)}
    tensors["w"][3, 3] = np.nan
    tensors["sampled"][:, :] = np.inf
    path = write(tmp_path / "m", tensors)
    said = effective_rank([path], limit=32)
    assert said.found == ()
    assert said.figures["by_matrix"] == {f"{path}::{n}": {"nonfinite": True} for n in tensors}


def test_what_is_no_matrix_is_left_alone(tmp_path: Path) -> None:
    tensors = {
        "vector": np.ones(9, np.float32), "row": np.ones((1, 9), np.float32), "cube": np.ones((4, 4, 4), np.float32),
        "counts": np.ones((9, 9), np.int64), "none": np.ones((0, 9), np.float32), "scalar": np.float32(1).reshape(()),
    }  # fmt: skip
    assert effective_rank([write(tmp_path / "m", tensors)]).figures == {"matrices": 0, "by_matrix": {}}


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_bytes_are_of_the_stored_type(tmp_path: Path, dtype: str) -> None:
    tensors = {"w": low(64, 48, 4)}
    path = write(tmp_path / "m", tensors, dtype)
    edge = tensors_of(effective_rank([path]))["w"]
    _, rank, error = known(as_stored(tensors, dtype)["w"])
    assert edge.bytes_freed == 2 * (64 * 48 - rank * (64 + 48)) and edge.error == pytest.approx(error, abs=1e-6)


def test_every_container(tmp_path: Path) -> None:
    tensors = {"a": low(64, 48, 4), "b": low(48, 64, 2, seed=1)}
    said = [
        {n.partition("::")[2]: f for n, f in effective_rank([path]).figures["by_matrix"].items()}
        for path in in_every_container(tmp_path, tensors).values()
    ]
    assert all(one == said[0] for one in said) and said[0].keys() == tensors.keys()
