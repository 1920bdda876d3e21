"""The codec of the store: every input comes back bit for bit, near the entropy of its planes."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nett.core.codec import BLOCK, Mode, choose_mode, coders, decode_block, encode_block, estimated_bits
from nett.core.codec.blocks import Coded
from nett.core.codec.packed import TILE
from nett.core.codec.planes import PACKED, UNSIGNED, from_planes, to_planes
from nett.core.dtypes import DTYPES, encode
from nett.core.errors import NettError

FORMS = ("plain", "rotated", "difference", "xor", "pairs", "fours")


def in_order(value: int, bits: int) -> int:
    """The bit pattern of a float as an integer in the order of the values."""
    return value ^ ((1 << bits) - 1) if value >> (bits - 1) else value | 1 << (bits - 1)


@pytest.mark.parametrize("width", UNSIGNED)
@given(data=st.data())
def test_planes_are_what_the_formulas_say(width: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    raw, base = (np.frombuffer(data.draw(st.binary(min_size=width * count, max_size=width * count)), np.uint8)
                 for _ in range(2))  # fmt: skip
    bits, full = 8 * width, 1 << 8 * width
    x, b = ([int(v) for v in a.view(UNSIGNED[width])] for a in (raw, base))
    steps = [(in_order(p, bits) - in_order(q, bits)) % full for p, q in zip(x, b, strict=True)]
    expected: dict[str, list[int]] = {
        "plain": x,
        "rotated": [(v << 1 | v >> (bits - 1)) % full for v in x],
        "difference": [2 * d if d < full // 2 else 2 * (full - d) - 1 for d in steps],
        "xor": [p ^ q for p, q in zip(x, b, strict=True)],
    }
    for form in expected:
        planes = to_planes(raw, width, form, base)
        assert [sum(int(p[i]) << 8 * k for k, p in enumerate(planes)) for i in range(count)] == expected[form], form
        out = np.empty_like(raw)
        from_planes(planes, width, form, base, out)
        assert (out == raw).all(), form
    if width == 1:
        return
    upper = [z >> (bits - 16) for z in expected["difference"]]
    for form, limit, each in (("pairs", 15, 2), ("fours", 3, 4)):
        *lower, packed, rare_low, rare_high = planes = to_planes(raw, width, form, base)
        for k in range(width - 2):
            assert lower[k].tolist() == [z >> 8 * k & 255 for z in expected["difference"]]
        small = [min(u, limit) for u in upper] + [0] * (-count % each)
        bytes_of = [small[i : i + each] for i in range(0, len(small), each)]
        assert packed.tolist() == [sum(v << 8 // each * k for k, v in enumerate(some)) for some in bytes_of]
        rare = [u for u in upper if u >= limit]
        assert [low + 256 * high for low, high in zip(rare_low.tolist(), rare_high.tolist(), strict=True)] == rare
        out = np.empty_like(raw)
        from_planes(planes, width, form, base, out)
        assert (out == raw).all(), form


def test_a_difference_counts_steps_of_the_number_line() -> None:
    """Zero's two signs are neighbours, and a step over an exponent is one step."""
    at = np.array([0.0, -0.0, 2.0, -1.0], np.float32)
    next_up = np.array([1e-45, 0.0, np.nextafter(np.float32(2), np.float32(3)), np.nextafter(np.float32(-1), 0)], "f4")
    planes = to_planes(next_up.view(np.uint8), 4, "difference", at.view(np.uint8))
    assert planes[0].tolist() == [2, 2, 2, 2] and not np.any(planes[1:])


def weights(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(count, dtype=np.float32) * np.float32(0.02)


@pytest.mark.parametrize("name", ["BF16", "F16", "F32", "F64", "F8_E4M3", "I8", "BOOL"])
@pytest.mark.parametrize("count", [0, 1, 3, 100, 50_000])
def test_blocks_of_every_type_come_back(name: str, count: int) -> None:
    dtype = DTYPES[name]
    values = weights(count)
    raw, base = (encode(v * (100 if dtype.kind == "int" else 1), dtype).view(np.uint8)
                 for v in (values, values + weights(count, 1) * np.float32(0.01)))  # fmt: skip
    for form in FORMS if dtype.bytes > 1 else FORMS[:4]:
        mode = Mode(dtype.bytes, form)
        coded = encode_block(raw, mode, base)
        out = np.empty_like(raw)
        decode_block(coded, mode, out, base)
        assert out.tobytes() == raw.tobytes() and Mode.of(str(mode)) == mode


@given(st.binary(max_size=300), st.sampled_from([1, 2, 4, 8]), st.sampled_from(FORMS))
def test_any_bytes_come_back(blob: bytes, width: int, form: Any) -> None:
    raw = np.frombuffer(blob, np.uint8)[: len(blob) // width * width].copy()
    base = np.roll(raw, 1)
    out = np.empty_like(raw)
    form = "difference" if width == 1 and form in PACKED else form
    decode_block(encode_block(raw, Mode(width, form), base), Mode(width, form), out, base)
    assert out.tobytes() == raw.tobytes()


def test_a_bfloat16_file_loses_a_third() -> None:
    raw = encode(weights(1 << 19), DTYPES["BF16"]).view(np.uint8)
    mode, bits = choose_mode(raw[: 1 << 18], 2)
    coded = encode_block(raw, mode)
    assert mode == Mode(2, "rotated") and coded.coders == "rh"
    assert coded.nbytes <= 1.012 * raw.size * bits / 8 and coded.nbytes < 0.68 * raw.size


def test_bfloat16_in_float32_costs_nothing_more() -> None:
    narrow = encode(weights(1 << 18), DTYPES["BF16"])
    wide = (narrow.astype(np.uint32) << 16).view(np.uint8)
    coded = encode_block(wide, Mode(4, "plain"))
    assert coded.coders[:2] == "cc"
    assert coded.nbytes <= encode_block(narrow.view(np.uint8), Mode(2, "plain")).nbytes + 2


@pytest.mark.parametrize("name", ["BF16", "F32"])
def test_a_fine_tune_is_a_fraction_and_near_its_entropy(name: str) -> None:
    base = weights(1 << 19)
    tuned = base * (1 + np.float32(0.002) * weights(1 << 19, 1) / np.float32(0.02))
    raw, ground = (encode(v, DTYPES[name]).view(np.uint8) for v in (tuned, base))
    mode, bits = choose_mode(raw, DTYPES[name].bytes, ground)
    assert mode.form in PACKED and bits < estimated_bits(raw, Mode(mode.width, "xor"), ground)
    parts = [encode_block(raw[i : i + BLOCK], mode, ground[i : i + BLOCK]) for i in range(0, raw.size, BLOCK)]
    assert sum(p.nbytes for p in parts) <= 1.03 * raw.size * bits / 8


def test_sampling_sees_a_late_change() -> None:
    plane = np.zeros(1 << 20, np.uint8)
    plane[-1] = 1  # not in the sample: the plane is still not taken for constant
    coder, data = coders.code(plane)
    assert (coders.decode(coder, data, plane.size) == plane).all() and coder != coders.CONSTANT


@pytest.mark.parametrize("form", ["difference", "pairs", "fours"])
def test_every_flipped_bit_is_noticed(form: Any) -> None:
    base = weights(4000)
    raw, ground = (encode(v, DTYPES["BF16"]).view(np.uint8) for v in (base * np.float32(1.01), base))
    mode = Mode(2, form)
    coded = encode_block(raw, mode, ground)
    rng = np.random.default_rng(0)
    for _ in range(200):
        planes = [bytearray(p) for p in coded.planes]
        plane = planes[rng.integers(len(planes))]
        if not plane:
            continue
        plane[rng.integers(len(plane))] ^= 1 << int(rng.integers(8))
        out = np.empty_like(raw)
        try:
            decode_block(Coded(coded.coders, planes, coded.checksum), mode, out, ground)
        except NettError:
            continue
        assert (out == raw).all()  # a bit that means nothing
    wrong = ground.copy()
    wrong[5] ^= 1
    with pytest.raises(NettError, match="its base's were changed"):
        decode_block(coded, mode, np.empty_like(raw), wrong)


def test_unknown_coders_and_wrong_sizes_are_refused() -> None:
    raw = np.arange(64, dtype=np.uint8)
    coded = encode_block(raw, Mode(2, "plain"))
    with pytest.raises(NettError, match="newer nett"):
        decode_block(Coded("rq", coded.planes, coded.checksum), Mode(2, "plain"), np.empty_like(raw))
    with pytest.raises(NettError, match="does not fit"):
        decode_block(coded, Mode(4, "plain"), np.empty_like(raw))
    with pytest.raises(NettError, match="in place of"):
        decode_block(coded, Mode(2, "plain"), np.empty(66, np.uint8))
    with pytest.raises(ValueError, match="no two upper ones"):
        Mode.of("pairs1")


@pytest.mark.parametrize("form", PACKED)
def test_packed_planes_that_do_not_fit_together_are_refused(form: Any) -> None:
    base = weights(1000)
    raw, ground = (encode(v, DTYPES["BF16"]).view(np.uint8) for v in (-base, base))  # far apart: none is packed
    planes = to_planes(raw, 2, form, ground)
    assert planes[1].size == 1000
    for wrong in ([planes[0], planes[1], planes[2][:-1]], [planes[0][:-1], *planes[1:]]):
        with pytest.raises(NettError, match="bytes of packed numbers"):
            from_planes(wrong, 2, form, ground, np.empty_like(raw))


@pytest.mark.parametrize("each", [2, 4])
@pytest.mark.parametrize("share", [0.0, 0.003, 0.06, 0.4, 1.0])
def test_packed_numbers_and_those_apart_come_back(each: int, share: float) -> None:
    """Around the ends of words, of bitmaps and of tiles."""
    rng = np.random.default_rng(3)
    limit = (1 << 8 // each) - 1
    for count in (1, 63, 64, 65, TILE - 1, TILE, TILE + 1, 3 * TILE + 7):
        z = np.where(rng.random(count) < share, rng.integers(limit, 1 << 15, count), rng.integers(0, limit, count))
        raw = (z.astype(np.uint16) >> 1).astype(np.uint16)  # folded distances to zero, all upwards
        base = np.full(count, 0x8000, np.uint16)  # minus zero: the place before zero in the order of values
        form: Any = "pairs" if each == 2 else "fours"
        planes = to_planes(raw.view(np.uint8), 2, form, base.view(np.uint8))
        out = np.empty(2 * count, np.uint8)
        from_planes(planes, 2, form, base.view(np.uint8), out)
        assert out.tobytes() == raw.tobytes()
        if planes[1].size:  # one too few
            with pytest.raises(NettError, match="stored apart"):
                from_planes([planes[0], planes[1][:-1], planes[2][:-1]], 2, form, base.view(np.uint8), out)


def test_blocks_of_the_first_format_are_read() -> None:
    """Their sum is a crc32."""
    raw = encode(weights(1000), DTYPES["BF16"]).view(np.uint8)
    coded = encode_block(raw, Mode(2, "rotated"))
    old = Coded(coded.coders, coded.planes, zlib.crc32(raw.data), "crc32")
    out = np.empty_like(raw)
    decode_block(old, Mode(2, "rotated"), out)
    assert (out == raw).all()
    with pytest.raises(NettError, match="were changed"):
        decode_block(replace(old, checksum=old.checksum ^ 1), Mode(2, "rotated"), out)
