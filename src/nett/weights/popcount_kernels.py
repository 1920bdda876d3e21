"""The compiled code behind :mod:`nett.weights.popcount`: bits that differ between a word of the input and those of eight rows.

Where the processor counts bits in vectors (AVX-512 VPOPCNTDQ) each word is counted; elsewhere sixteen at a time go
through carry-save adders, which leave one vector in sixteen to be counted (Muła, Kurz and Lemire 2018,
arXiv:1611.07612, section 4).
"""

from __future__ import annotations

import functools
from typing import Any, final

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit

LANES = 8  # rows in a tile
_LEVELS = 4  # of carry-save adders: 2**4 words at a time


@final
class _Count:
    """numba's intrinsic ``count(sums, w, at_w, x, at_x, words, shift)``: to the eight ``sums`` int64, add the bits in which
    ``words`` words of ``x`` differ from those of eight rows of ``w``, times 2^shift."""

    @functools.cached_property
    def _made(self) -> Any:
        from llvmlite.binding import get_host_cpu_features

        return intrinsic_for(bool(get_host_cpu_features().get("avx512vpopcntdq")))

    def compiled(self) -> Any:
        """What :func:`nett.core.jit.jit` compiles in this one's place."""
        return self._made

    def __call__(self, sums: Array, w: Array, at_w: Any, x: Array, at_x: Any, words: Any, shift: Any) -> None:
        raise NotImplementedError("runs in compiled code only")


def intrinsic_for(direct: bool) -> Any:
    """The code itself. ``direct``: count each word, without carry-save adders."""
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic
    from numba.np.arrayobj import make_array

    word, index = ir.IntType(64), ir.IntType(32)
    vector = ir.VectorType(word, LANES)
    unset = ir.Constant(vector, ir.Undefined)

    def add(builder: Any, arrays: tuple[Any, ...], at_w: Any, at_x: Any, words: Any, shift: Any) -> None:
        sums, w, x = arrays
        count = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector]), f"llvm.ctpop.v{LANES}i64"
        )

        def spread(value: Any) -> Any:
            one = builder.insert_element(unset, value, index(0))
            return builder.shuffle_vector(one, unset, ir.Constant(ir.VectorType(index, LANES), [0] * LANES))

        def differing(at: Any) -> Any:
            rows = builder.gep(w, [builder.mul(builder.add(at_w, at), word(LANES))])
            rows = builder.load(builder.bitcast(rows, vector.as_pointer()), align=8)
            return builder.xor(rows, spread(builder.load(builder.gep(x, [builder.add(at_x, at)]))))

        def full_adder(a: Any, b: Any, c: Any) -> tuple[Any, Any]:
            either = builder.xor(a, b)
            return builder.xor(either, c), builder.or_(builder.and_(a, b), builder.and_(either, c))

        slots = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * LANES)) for _ in range(_LEVELS + 1)]
        blocks = word(0) if direct else builder.lshr(words, word(_LEVELS))
        with cgutils.for_range(builder, blocks, intp=word) as loop:
            held = [builder.load(slot) for slot in slots]

            def carry(level: int, first: int) -> Any:
                """The vector of weight 2^level that 2^level words leave; the rest stays in ``held``."""
                if level == 0:
                    return differing(builder.add(builder.shl(loop.index, word(_LEVELS)), word(first)))
                half = 1 << (level - 1)
                one, two = carry(level - 1, first), carry(level - 1, first + half)
                held[level - 1], over = full_adder(held[level - 1], one, two)
                return over

            held[-1] = builder.add(held[-1], builder.call(count, [carry(_LEVELS, 0)]))
            for slot, value in zip(slots, held, strict=True):
                builder.store(value, slot)
        total = builder.shl(builder.load(slots[-1]), spread(word(_LEVELS)))
        for level in range(0 if direct else _LEVELS):
            bits = builder.call(count, [builder.load(slots[level])])
            total = builder.add(total, builder.shl(bits, spread(word(level))))
        builder.store(total, slots[-1])
        done = builder.shl(blocks, word(_LEVELS))
        with cgutils.for_range(builder, builder.sub(words, done), intp=word) as loop:
            bits = builder.call(count, [differing(builder.add(done, loop.index))])
            builder.store(builder.add(builder.load(slots[-1]), bits), slots[-1])
        place = builder.bitcast(sums, vector.as_pointer())
        more = builder.shl(builder.load(slots[-1]), spread(shift))
        builder.store(builder.add(builder.load(place, align=8), more), place, align=8)

    def count(typing: Any, sums: Any, w: Any, at_w: Any, x: Any, at_x: Any, words: Any, shift: Any) -> Any:
        whole = types.int64

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            arrays = tuple(make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 1, 3))
            add(builder, arrays, args[2], args[4], args[5], args[6])
            return context.get_dummy_value()

        return types.void(sums, w, whole, x, whole, whole, whole), generate

    return intrinsic(count)


_count = _Count()


@jit
def exact_product(tiles: Array, inputs: Array, length: int, near: int, first: int, last: int, out: Array) -> None:
    lanes, wide, words = tiles.shape[3], tiles.shape[1], tiles.shape[2]
    columns, narrow, _ = inputs.shape
    w, x, sums = tiles.reshape(-1), inputs.reshape(-1), np.empty(lanes, np.int64)
    top = length * ((1 << wide) - 1) * ((1 << narrow) - 1)
    for begin in range(0, columns, near):
        for t in range(first, last):
            rows = min(lanes, out.shape[1] - t * lanes)
            for c in range(begin, min(columns, begin + near)):
                sums[:] = 0
                for i in range(wide):
                    for j in range(narrow):
                        _count(sums, w, (t * wide + i) * words, x, (c * narrow + j) * words, words, i + j)
                for lane in range(rows):
                    out[c, t * lanes + lane] = top - 2 * sums[lane]


@jit
def scaled_product(
    tiles: Array,
    scale: Array,
    inputs: Array,
    input_scale: Array,
    group: int,
    top: Array,
    near: int,
    first: int,
    last: int,
    out: Array,
) -> None:
    lanes, wide, words = tiles.shape[3], tiles.shape[1], tiles.shape[2]
    columns, narrow, _ = inputs.shape
    w, x, sums = tiles.reshape(-1), inputs.reshape(-1), np.empty(lanes, np.int64)
    total = np.empty(lanes, np.float64)
    for begin in range(0, columns, near):
        for t in range(first, last):
            rows = min(lanes, out.shape[1] - t * lanes)
            for c in range(begin, min(columns, begin + near)):
                total[:] = 0
                for g in range(top.size):
                    sums[:] = 0
                    for i in range(wide):
                        for j in range(narrow):
                            at_w, at_x = (t * wide + i) * words + g * group, (c * narrow + j) * words + g * group
                            _count(sums, w, at_w, x, at_x, group, i + j)
                    for lane in range(rows):
                        total[lane] += scale[t * lanes + lane, g] * (top[g] - 2 * sums[lane])
                for lane in range(rows):
                    out[c, t * lanes + lane] = total[lane] * input_scale[c]


@jit
def round_and_pack(
    values: Array, bits: int, step: Array, group: int, words: int, first: int, last: int, planes: Array
) -> None:
    columns = values.shape[1]
    half = np.float32(1 << (bits - 1))
    digits = np.zeros(64, np.uint8)
    for row in range(first, last):
        width = np.float32(2) * step[row]
        at, place = 0, 0
        while at < columns:
            stop = min(columns, at + group)
            for word in range(words):
                begin = at + 64 * word
                count = max(0, min(64, stop - begin))
                for k in range(count):
                    floor = np.floor(values[row, begin + k] / width)
                    digits[k] = np.uint8(min(max(floor, -half), half - np.float32(1)) + half)
                for i in range(bits):
                    packed = np.uint64(0)
                    for k in range(count):
                        packed |= np.uint64((digits[k] >> i) & 1) << np.uint64(k)
                    planes[row, i, place + word] = packed
            at += group
            place += words
