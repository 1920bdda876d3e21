"""Passthrough: one model, bit for bit, or times a factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nett.core.errors import UsageError
from nett.merge import passthrough
from support.cli import nett
from support.merging import STORED, assert_same, family
from support.tensors import read_tensors, write_tensors


@pytest.mark.parametrize("stored", STORED)
def test_same_tensors_of_every_element_type(tmp_path: Path, stored: str) -> None:
    models = family(tmp_path, stored)
    found = models.merge("passthrough", models=[1], base=False)
    assert_same(found, models.tuned[1])


def test_scale_rounds_once(tmp_path: Path) -> None:
    models = family(tmp_path, "bf16")
    found = models.merge("passthrough", "--scale", "0.3", models=[0], base=False)
    assert_same(found, models.as_stored({n: a * np.float32(0.3) for n, a in models.tuned[0].items()}))


def test_every_value_of_bfloat16_and_float16(tmp_path: Path) -> None:
    """All finite ones, subnormals and -0.0 among them, come out as they are."""
    bits = np.arange(1 << 16, dtype=np.uint32)
    bf16 = (bits << 16).view(np.float32)
    f16 = bits.astype(np.uint16).view(np.float16)
    tensors = {"a": bf16[np.isfinite(bf16)], "b": f16[np.isfinite(f16)]}
    write_tensors(tmp_path / "m" / "model.safetensors", tensors, {"a": "BF16", "b": "F16"})
    nett("merge", "passthrough", str(tmp_path / "m"), "--out", str(tmp_path / "o"), "--no-speak").succeeded()
    found = read_tensors(tmp_path / "o")
    for name, values in tensors.items():
        np.testing.assert_array_equal(found[name].view(f"u{values.itemsize}"), values.view(f"u{values.itemsize}"))


def test_float8_and_integers_come_out_as_they_are(tmp_path: Path) -> None:
    from support.tensors import header_of, write_raw

    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)  # all of E4M3 but its two NaN
    header = {
        "eight": {"dtype": "F8_E4M3", "shape": [254], "data_offsets": [0, 254]},
        "steps": {"dtype": "I64", "shape": [2], "data_offsets": [254, 270]},
        "yes": {"dtype": "BOOL", "shape": [3], "data_offsets": [270, 273]},
    }
    data = codes.tobytes() + np.array([1 << 62, -5], np.int64).tobytes() + bytes([1, 0, 1])
    write_raw(tmp_path / "m" / "model.safetensors", header, data)
    nett("merge", "passthrough", str(tmp_path / "m"), "--out", str(tmp_path / "o"), "--no-speak").succeeded()
    written = tmp_path / "o" / "model.safetensors"
    assert {k: v for k, v in header_of(written).items() if k != "__metadata__"} == header
    assert written.read_bytes().endswith(data)


def test_worked_example_and_more_than_one() -> None:
    one = np.array([1.0, -2.0], np.float32)
    np.testing.assert_array_equal(passthrough([one], scale=-0.5), [-0.5, 1.0])
    with pytest.raises(UsageError, match="takes one model, but 2 were given"):
        passthrough([one, one])
