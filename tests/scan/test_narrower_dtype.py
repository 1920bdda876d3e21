"""A narrower type is found exactly where all values come back with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nett.core import sweep
from nett.core.dtypes import DTYPES
from nett.scan.narrower_dtype import fits, narrower, narrower_dtype
from support.scanning import as_stored, in_every_container, model, tensors_of, write
from support.tensors import Array, header_of, read_tensors, rounded

INTS = ("I8", "U8", "I16", "U16", "I32", "U32")


def comes_back(values: Array, name: str) -> bool:
    """The definition: converted and back, every bit is the same."""
    bits = f"u{values.itemsize}"
    with np.errstate(all="ignore"):
        if name == "BF16":  # the upper half of a float32; a signalling NaN would be made quiet
            single = values.astype(np.float32)
            if values.dtype == np.float64 and not np.array_equal(
                single.astype(np.float64).view("u8"), values.view("u8")
            ):
                return False
            raw = single.view(np.uint32)
            quiet = ~np.isnan(single) | (raw & 0x400000 != 0)
            return bool(np.all((raw & 0xFFFF == 0) & quiet))
        back = values.astype(DTYPES[name].raw).astype(values.dtype)
    if values.dtype.kind in "iu":  # NumPy wraps around
        span = np.iinfo(DTYPES[name].raw)
        return all(span.min <= int(v) <= span.max for v in values)
    return bool(np.array_equal(back.view(bits), values.view(bits)))


def expected(values: Array, dtype: str) -> set[str]:
    return {n for n in narrower(DTYPES[dtype]) if comes_back(values, n)}


SPECIAL = [0.0, -0.0, 1.0, -2.5, 65504.0, 65520.0, 2.0**-24, 2.0**-25, 2.0**-133, 3.4e38, np.inf, -np.inf, np.nan,
           1 / 3, 0.1, 2049.0, 5.960464477539063e-08]  # fmt: skip
SINGLE = st.one_of(
    st.sampled_from(SPECIAL),
    st.floats(width=16),
    st.integers(0, 0xFFFF).map(lambda high: float(np.array([high << 16], np.uint32).view(np.float32)[0])),
    st.floats(width=32),
)


@given(st.lists(SINGLE, min_size=1, max_size=6), st.integers(0, 3))
def test_float32(numbers: list[float], copies: int) -> None:
    values = np.array(numbers * 3**copies, np.float32)
    assert fits(values, DTYPES["F32"], frozenset(narrower(DTYPES["F32"]))) == expected(values, "F32")


@given(st.lists(st.one_of(SINGLE, st.floats()), min_size=1, max_size=6))
def test_float64(numbers: list[float]) -> None:
    values = np.array(numbers, np.float64)
    assert fits(values, DTYPES["F64"], frozenset(narrower(DTYPES["F64"]))) == expected(values, "F64")


@given(st.data(), st.sampled_from(["I64", "I32", "I16", "U64", "U32", "U16"]))
def test_integers(data: Any, dtype: str) -> None:
    kind = np.dtype(DTYPES[dtype].raw)
    span = np.iinfo(kind)
    spans = [np.iinfo(DTYPES[name].raw) for name in INTS]
    usable = [b + d for s in spans for b in (s.min, s.max) for d in (-1, 0, 1) if span.min <= b + d <= span.max]
    values = data.draw(hnp.arrays(kind, st.integers(1, 5), elements=st.sampled_from(usable)))
    assert fits(values, DTYPES[dtype], frozenset(narrower(DTYPES[dtype]))) == expected(values, dtype)


def test_narrowest_comes_first() -> None:
    assert narrower(DTYPES["F32"]) == ("BF16", "F16")
    assert narrower(DTYPES["I64"])[:2] == ("I8", "U8") and narrower(DTYPES["U64"])[:2] == ("U8", "I8")
    assert all(narrower(DTYPES[n]) == () for n in ("BF16", "F16", "F8_E4M3", "BOOL", "I8", "U8"))


def test_a_model_that_was_widened(tmp_path: Path) -> None:
    """float32 of bfloat16 values: each tensor is half, by one command for all."""
    tensors = as_stored(model(), "BF16")
    path = write(tmp_path / "m", tensors)
    said = narrower_dtype([path])
    found = tensors_of(said)
    assert found.keys() == tensors.keys()
    for name, edge in found.items():
        assert edge.bytes_freed == tensors[name].nbytes // 2
        assert (edge.error, edge.guarantee, edge.method) == (0.0, "exact", "convert")
        assert edge.command == f"nett convert {path} OUT --dtype bfloat16"
    assert said.figures == {"tensors": len(tensors), "bytes": sum(a.nbytes for a in tensors.values()) // 2}


def test_one_tensor_that_does_not_fit_takes_the_command_away(tmp_path: Path) -> None:
    """Of the whole checkpoint's types there is none left; the others are found all the same."""
    tensors = as_stored(model(), "F16") | {"last": model(5)["model.norm.weight"]}
    found = tensors_of(narrower_dtype([write(tmp_path / "m", tensors)]))
    assert found.keys() == tensors.keys() - {"last"}
    assert all(e.command is None and e.method is None for e in found.values())


def test_nothing_in_full_precision(tmp_path: Path) -> None:
    assert narrower_dtype([write(tmp_path / "m", model())]).found == ()
    assert narrower_dtype([write(tmp_path / "h", model(), "BF16"), write(tmp_path / "i", model(), "F16")]).found == ()


@pytest.mark.parametrize("place", [0, 49, 50, 383])
def test_one_element_decides(tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever unit it stands."""
    monkeypatch.setattr(sweep, "UNIT", 50)
    values = rounded(model()["model.layers.0.mlp.weight"], "BF16")
    assert tensors_of(narrower_dtype([write(tmp_path / "a", {"w": values})])).keys() == {"w"}
    values.reshape(-1)[place] = np.float32(1 / 3)
    assert narrower_dtype([write(tmp_path / "b", {"w": values})]).found == ()


def test_integers_of_a_checkpoint(tmp_path: Path) -> None:
    tensors = {
        "small": np.array([-128, 127]), "bytes": np.array([0, 255]), "wide": np.array([2**40]),
        "flags": np.array([True, False]), "none": np.array([], np.int64), "one": np.array(7, np.int32),
    }  # fmt: skip
    found = tensors_of(narrower_dtype([write(tmp_path / "m", tensors)]))
    assert {n: e.bytes_freed for n, e in found.items()} == {"small": 14, "bytes": 14, "one": 3}
    assert all(e.command is None for e in found.values())  # convert is for floats


def test_float64_takes_the_narrowest_for_all(tmp_path: Path) -> None:
    third = np.array([1 / 3], np.float32)
    tensors = {n: a.astype(np.float64) for n, a in as_stored({"a": model()["lm_head.weight"]}, "BF16").items()}
    tensors["b"] = third.astype(np.float64)
    found = tensors_of(narrower_dtype([write(tmp_path / "m", tensors, "F64")]))
    assert found["a"].bytes_freed == 48 * 16 * 4 and found["b"].bytes_freed == 4  # both to float32, which holds both
    assert all(e.command and e.command.endswith("--dtype float32") for e in found.values())


def test_every_container(tmp_path: Path) -> None:
    tensors = as_stored(model(), "F16")
    for path in in_every_container(tmp_path, tensors).values():
        found = tensors_of(narrower_dtype([path]))
        assert {n: e.bytes_freed for n, e in found.items()} == {n: a.nbytes // 2 for n, a in tensors.items()}


def test_its_command_does_what_the_findings_say(tmp_path: Path) -> None:
    """Run as it stands: the bytes that the findings free are those that it saves, and every value is the same."""
    import shlex

    from support.cli import nett

    tensors = as_stored(model(), "BF16")
    path = write(tmp_path / "a folder", tensors)
    found = tensors_of(narrower_dtype([path]))
    (command,) = {e.command for e in found.values()}
    assert command is not None
    out = tmp_path / "out"
    nett(*(str(out) if w == "OUT" else w for w in shlex.split(command)[1:])).succeeded()
    after = read_tensors(out)
    assert all(np.array_equal(after[n], a) for n, a in tensors.items())
    stored = [e for f in out.glob("*.safetensors") for n, e in header_of(f).items() if n != "__metadata__"]
    kept = sum(e["data_offsets"][1] - e["data_offsets"][0] for e in stored)
    assert sum(a.nbytes for a in tensors.values()) - kept == sum(e.bytes_freed for e in found.values())
