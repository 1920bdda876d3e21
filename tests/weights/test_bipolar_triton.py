"""The Triton kernel in its interpreter, which needs no graphics card; where Triton is installed, also its compiler."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nett.weights import popcount
from nett.weights.bit_planes import Layout, pack

# Triton's own library reads the variable too, when it is imported.
with pytest.MonkeyPatch.context() as _patch:
    _patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="Triton is not installed; the CUDA kernel cannot be run or interpreted")
torch = pytest.importorskip("torch")

FILE = Path(popcount.__file__).with_name("bipolar_triton.py")
COMPILE = """
import importlib.util, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

spec = importlib.util.spec_from_file_location("kernel", sys.argv[1])
kernel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
words = {"w": "*i64", "scale": "*fp32", "x": "*i64", "x_scale": "*fp32", "tops": "*i64", "out": "*fp32"}
words |= dict.fromkeys(("rows", "inputs", "groups", "words"), "i32")
words |= dict.fromkeys(("WIDE", "NARROW", "EXACT"), "constexpr")
source = ASTSource(fn=kernel._products, signature=words, constexprs={"WIDE": 2, "NARROW": 2, "EXACT": False})
print(compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"])
"""


@pytest.fixture
def kernel(monkeypatch):
    """The kernel's file as the interpreter runs it; past the checks of types that the test run puts around functions,
    which Triton cannot compile through."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.spec_from_file_location("bipolar_triton_as_it_is", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def odd_numbers(rng, rows, columns, bits):
    return 2 * rng.integers(0, 2**bits, (rows, columns)) - (2**bits - 1)


@pytest.mark.parametrize(
    ("wide", "narrow", "rows", "inputs", "length"),
    [(1, 1, 3, 2, 5), (2, 2, 40, 3, 130), (3, 4, 33, 17, 70), (8, 8, 9, 2, 64)],
)
def test_products_are_exact(kernel, wide, narrow, rows, inputs, length):
    rng = np.random.default_rng([wide, narrow])
    weights, x = odd_numbers(rng, rows, length, wide), odd_numbers(rng, inputs, length, narrow)
    planes = torch.from_numpy(popcount.tiled(pack(weights, wide)).view(np.int64))
    found = kernel.exact(planes, rows, torch.from_numpy(x), narrow)
    assert np.array_equal(found.numpy(), x @ weights.T)


def test_groups_have_their_scales(kernel):
    rng, layout = np.random.default_rng(7), Layout.of(150, 40)
    weights, x = odd_numbers(rng, 12, 150, 2), odd_numbers(rng, 3, 150, 3)
    scale, step = rng.uniform(0.5, 2, (12, 4)).astype(np.float32), rng.uniform(0.5, 2, 3).astype(np.float32)
    planes = torch.from_numpy(popcount.tiled(pack(weights, 2, 40)).view(np.int64))
    found = kernel.scaled(planes, torch.from_numpy(scale), torch.from_numpy(x), torch.from_numpy(step), layout, 3)
    wide = np.repeat(scale, layout.lengths, axis=1).astype(np.float64)
    expected = (x * step[:, None].astype(np.float64)) @ (weights * wide).T
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-4)


def test_packing_on_the_device_is_that_of_the_cpu(kernel):
    codes = odd_numbers(np.random.default_rng(8), 4, 150, 5)
    found = kernel.packed(torch.from_numpy(codes), 5, Layout.of(150, 40))
    assert np.array_equal(found.numpy().view(np.uint64), pack(codes, 5, 40))


@pytest.mark.slow
def test_it_compiles_for_a_card_and_counts_with_its_own_instruction(tmp_path):
    """In a process of its own, without the interpreter. No card is needed, but the assembler that Triton brings."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(FILE)], env=environment, capture_output=True, text=True, timeout=120
    )
    if "PermissionError" in done.stderr or "ptxas" in done.stderr:
        pytest.skip(f"Triton's assembler does not run here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    assert "popc.b64" in done.stdout
