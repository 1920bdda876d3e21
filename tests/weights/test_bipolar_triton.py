"""The Triton kernel in its interpreter, which needs no graphics card; where Triton is installed, also its compiler."""

import importlib
import sys

import numpy as np
import pytest

from nett.weights import popcount
from nett.weights.bit_planes import Layout, pack

pytest.importorskip("triton", reason="Triton is not installed; the CUDA kernel cannot be run or interpreted")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


@pytest.fixture
def load(monkeypatch):
    """The kernel's file, imported with Triton's interpreter or without."""

    def load(interpret):
        monkeypatch.setenv("TRITON_INTERPRET", "1" if interpret else "0")
        sys.modules.pop("nett.weights.bipolar_triton", None)
        return importlib.import_module("nett.weights.bipolar_triton")

    yield load
    sys.modules.pop("nett.weights.bipolar_triton", None)


def odd_numbers(rng, rows, columns, bits):
    return 2 * rng.integers(0, 2**bits, (rows, columns)) - (2**bits - 1)


@pytest.mark.parametrize(
    ("wide", "narrow", "rows", "inputs", "length"),
    [(1, 1, 3, 2, 5), (2, 2, 40, 3, 130), (3, 4, 33, 17, 70), (8, 8, 9, 2, 64)],
)
def test_products_are_exact(load, wide, narrow, rows, inputs, length):
    kernel, rng = load(True), np.random.default_rng([wide, narrow])
    weights, x = odd_numbers(rng, rows, length, wide), odd_numbers(rng, inputs, length, narrow)
    planes = torch.from_numpy(popcount.tiled(pack(weights, wide)).view(np.int64))
    found = kernel.exact(planes, rows, torch.from_numpy(x), narrow)
    assert np.array_equal(found.numpy(), x @ weights.T)


def test_groups_have_their_scales(load):
    kernel, rng, layout = load(True), np.random.default_rng(7), Layout.of(150, 40)
    weights, x = odd_numbers(rng, 12, 150, 2), odd_numbers(rng, 3, 150, 3)
    scale, step = rng.uniform(0.5, 2, (12, 4)).astype(np.float32), rng.uniform(0.5, 2, 3).astype(np.float32)
    planes = torch.from_numpy(popcount.tiled(pack(weights, 2, 40)).view(np.int64))
    found = kernel.scaled(planes, torch.from_numpy(scale), torch.from_numpy(x), torch.from_numpy(step), layout, 3)
    wide = np.repeat(scale, layout.lengths, axis=1).astype(np.float64)
    expected = (x * step[:, None].astype(np.float64)) @ (weights * wide).T
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_packing_on_the_device_is_that_of_the_cpu(load):
    kernel, codes = load(True), odd_numbers(np.random.default_rng(8), 4, 150, 5)
    found = kernel.packed(torch.from_numpy(codes), 5, Layout.of(150, 40))
    assert np.array_equal(found.numpy().view(np.uint64), pack(codes, 5, 40))


@pytest.mark.slow
def test_it_compiles_for_a_card_and_counts_with_its_own_instruction(load, monkeypatch, tmp_path):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = load(False)
    words = {"w": "*i64", "scale": "*fp32", "x": "*i64", "x_scale": "*fp32", "tops": "*i64", "out": "*fp32"}
    words |= dict.fromkeys(("rows", "inputs", "groups", "words"), "i32")
    words |= dict.fromkeys(("WIDE", "NARROW", "EXACT"), "constexpr")
    source = ASTSource(fn=kernel._products, signature=words, constexprs={"WIDE": 2, "NARROW": 2, "EXACT": False})
    try:
        made = compile(source, target=GPUTarget("cuda", 80, 32))
    except (OSError, RuntimeError) as error:
        pytest.skip(f"Triton's compiler for CUDA does not run here: {error}")
    assert "popc.b64" in made.asm["ptx"]
