"""Scales, minima and codes of groups of numbers, found by trying what the largest number's code may be.

With that code the scale is known to an interval, and what rounds to each other number narrows it. From what is left
the scale with the fewest bits is taken: if a float16 is in there, it is one. A fit is kept only if it gives back
every number of the group, in the arithmetic of the dequantisation: float32, product and sum each rounded.

``word`` and ``real`` are one number's memory as uint32 and as float32, in arrays of one element.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nett.core.dtypes import Array
from nett.core.jit import jit

STEPS = {"F32": 1, "F16": 1 << 13, "BF16": 1 << 16}  # from one number to the next, in bits of a float32


@jit
def _simplest(a: Any, b: Any, word: Array, real: Array) -> Any:
    """The float32 in [a, b] with the most zeros at its end; NaN if there is none."""
    if a <= 0.0 <= b:
        return 0.0
    sign = 1.0
    if b < 0.0:
        a, b, sign = -b, -a, -1.0
    real[0] = np.float32(a)
    first = np.int64(word[0]) + (1 if np.float64(real[0]) < a else 0)
    real[0] = np.float32(b)
    last = np.int64(word[0]) - (1 if np.float64(real[0]) > b else 0)
    if first > last or last >= 0x7F800000:
        return np.nan
    differ, keep = (first - 1) ^ last, np.int64(1)
    while keep <= differ:
        keep <<= 1
    word[0] = np.uint32(last & ~((keep >> 1) - 1))
    return sign * np.float64(real[0])


@jit
def _is_half(v: Any, word: Array, real: Array) -> Any:
    """Whether a float32 is a float16."""
    size = abs(v)
    if size < 2.0**-14:
        return size * 2.0**24 == np.floor(size * 2.0**24)
    real[0] = np.float32(size)
    return size <= 65504.0 and word[0] & np.uint32(0x1FFF) == 0


@jit
def _rounds_to(pattern: Any, step: Any, nudge: Any, word: Array, real: Array) -> Any:
    """Between which numbers lie those that round to the positive number of that pattern. Both ends are moved, outwards
    for even numbers, to which ties go, and inwards for others, so that any comparison in float64 is right."""
    word[0] = np.uint32(pattern)
    v = np.float64(real[0])
    if step == 1 << 13 and v < 2.0**-14:
        up, down, even = v + 2.0**-24, v - 2.0**-24, np.int64(v * 2.0**24) % 2 == 0
    else:
        word[0] = np.uint32(pattern + step)
        up = np.float64(real[0])
        word[0] = np.uint32(pattern - step)
        down = np.float64(real[0]) if step != 1 << 13 or v > 2.0**-14 else v - 2.0**-24
        even = (pattern // step) % 2 == 0
    inwards = -nudge * v if even else nudge * v
    return (v + down) / 2 + inwards, (v + up) / 2 - inwards


@jit
def _spacing(a: Any) -> Any:
    """From ``a`` to the next float16."""
    spacing = 2.0**-24
    while spacing * 2048.0 <= a:
        spacing *= 2.0
    return spacing


@jit
def _gives_back(
    x: Array, bits: Array, s: Any, m: Any, low: Any, high: Any, minimum: Any, zeros: Any, step: Any,
    codes: Array, made: Array, made_bits: Array,
) -> Any:  # fmt: skip
    """Whether a group has this scale and minimum, with the codes that are nearest, which are written down."""
    scale, least = np.float32(s), np.float32(m)
    inverse = np.float32(1.0 / s) if s != 0.0 else np.float32(0.0)
    outside, different = False, np.uint32(0)
    for j in range(x.size):
        nearest = np.rint((x[j] - least) * inverse)
        c = np.int32(max(min(nearest, np.float32(1024.0)), np.float32(-1024.0)))
        outside |= (c < low) | (c > high)
        codes[j] = c
        made[j] = scale * np.float32(c)
    if outside:
        return False
    if minimum:
        for j in range(x.size):
            made[j] = made[j] + least
    if zeros:
        for j in range(x.size):
            if bits[j] == np.uint32(0x80000000):
                codes[j], made_bits[j] = low - 1, bits[j]
    if step == 1:
        for j in range(x.size):
            different |= made_bits[j] ^ bits[j]
        return different == 0
    shift, under = np.uint32(16 if step == 1 << 16 else 13), np.uint32(step // 2 - 1)
    mask = np.uint32(0xFFFFFFFF - (step - 1))
    for j in range(x.size):
        b = made_bits[j]
        rounded = np.uint32(b + under + ((b >> shift) & np.uint32(1))) & mask
        if step == 1 << 13 and abs(made[j]) < np.float32(2.0**-14):
            made[j] = np.rint(made[j] * np.float32(2.0**24)) * np.float32(2.0**-24)
            rounded = made_bits[j]
        different |= rounded ^ bits[j]
    return different == 0


@jit
def fit(
    x: Array, bits: Array, group: int, low: int, high: int, minimum: bool, half: bool, zeros: bool, step: int,
    codes: Array, scales: Array, mins: Array,
) -> int:  # fmt: skip
    """Fill ``codes`` (int16, as ``x``), ``scales`` and ``mins`` (float32, one a group). Returns the first group that
    does not fit, or -1. ``x``: float32; ``bits``: the same memory as uint32; ``step``: of :data:`STEPS`."""
    # Less than what two float32 or their products can differ by, more than float64's error; or, where the product is
    # itself rounded to float32, half a step of that: what is so near to a tie becomes one, and goes to the even.
    nudge = 2.0**-45 if half or step == 1 else 2.0**-25
    error = 2.0**-24 if step == 1 else 2.0**-11 if step == 1 << 13 else 2.0**-8  # half a step, relative
    least = 2.0**-25 if step == 1 << 13 else 0.0  # the same among float16's subnormals
    word = np.empty(1, np.uint32)
    real = word.view(np.float32)
    made = np.empty(group, np.float32)
    made_bits = made.view(np.uint32)
    stamps, place, shares = np.zeros(256, np.int64), np.zeros(256, np.int64), 1.0 / np.arange(256)
    code, number = np.zeros(256, np.int64), np.zeros(256, np.uint32)  # the distinct ones of a group
    lower, upper = np.zeros(256), np.zeros(256)
    stamp = 0
    for g in range(x.size // group):
        own, own_bits = x[g * group : (g + 1) * group], bits[g * group : (g + 1) * group]
        to = codes[g * group : (g + 1) * group]
        smallest, largest, plus, minus, lost = np.float32(np.inf), np.float32(-np.inf), False, False, False
        for i in range(group):
            v = own[i]
            lost |= not abs(v) < np.inf
            smallest, largest = min(smallest, v), max(largest, v)
            plus |= own_bits[i] == np.uint32(0)
            minus |= own_bits[i] == np.uint32(0x80000000)
        if lost or (plus and minus and not zeros and (minimum or smallest < largest)):
            return g
        reach = np.float64(max(largest, -smallest))
        if reach == 0.0:
            for i in range(group):
                to[i] = (low - 1 if zeros else -1) if own_bits[i] and not minimum else 0
            scales[g] = mins[g] = -np.float32(0.0) if minimum and minus else np.float32(0.0)
            continue
        fitted, s, m = False, 0.0, 0.0
        if not minimum:
            real[0] = np.float32(reach)
            reach_low, reach_high = _rounds_to(np.int64(word[0]), step, nudge, word, real)
            top = max(high, -low)
            for trial in range(2 * top):
                count = trial // 2  # the largest number's code: the usual ones first
                count = high if count == 0 else top if count == 1 and top > high else top - count
                sign = 1.0 if trial % 2 == 0 else -1.0
                if count <= 0 or (plus and sign < 0.0) or (minus and sign > 0.0 and not zeros):
                    continue  # zero has the sign of the scale
                a, b = reach_low / count, reach_high / count
                if step == 1 and trial < 4:  # as a rule that is enough
                    s = sign * _simplest(a, b, word, real)
                    if not np.isnan(s) and (not half or _is_half(s, word, real)):
                        if _gives_back(own, own_bits, s, 0.0, low, high, False, zeros, step, to, made, made_bits):
                            fitted = True
                            break
                for sweep in range(
                    1 if step == 1 else 3
                ):  # again for those whose code was not certain, at last a guess
                    for i in range(group):
                        size = abs(np.float64(own[i]))
                        exact = size * 2.0 / (a + b)
                        certain = exact * (error + (b - a) / (a + b)) < 0.5
                        if size > 0.0 and (certain or sweep == 2):
                            c = np.rint(exact)
                            if c == 0.0:
                                b = -1.0
                                break
                            pattern = np.int64(own_bits[i] & np.uint32(0x7FFFFFFF))
                            near, far = _rounds_to(pattern, step, nudge, word, real)
                            if certain or (near / c <= b and far / c >= a):
                                a, b = max(a, near / c), min(b, far / c)
                            if a > b:
                                break
                    if a > b:
                        break
                if a > b:
                    continue
                spacing = _spacing(a)
                for attempt in range(1 + int(min(32.0, (b - a) / spacing + 2.0))):
                    s = (np.floor(a / spacing) + attempt - 1) * spacing
                    if attempt == 0:
                        s = _simplest(a, b, word, real)
                    if not a <= s <= b or (half and not _is_half(s, word, real)):
                        continue
                    s *= sign
                    if _gives_back(own, own_bits, s, 0.0, low, high, False, zeros, step, to, made, made_bits):
                        fitted = True
                        break
                if fitted:
                    break
        else:
            width = np.float64(largest) - np.float64(smallest)
            blur = 2.0 * max(error * reach, least) + (0.0 if half else 2.0**-24 * width)  # the product is rounded, too
            for trial in range(high + 1):
                count = high - trial  # codes from the smallest number's to the largest's
                if (count == 0) != (width == 0.0):
                    continue
                shifts = 1 if count == 0 or high > 63 else high - count + 1
                inverse = count / width if count else 0.0
                a, b = (max(0.0, width - blur) / count, (width + blur) / count) if count else (0.0, 0.0)
                if step == 1 and count:  # as a rule that is enough
                    s, m = _simplest(a, b, word, real), np.float64(smallest)
                    if not np.isnan(s) and (not half or (_is_half(s, word, real) and _is_half(m, word, real))):
                        if _gives_back(own, own_bits, s, m, low, high, True, False, step, to, made, made_bits):
                            fitted = True
                            break
                stamp += 1
                distinct, good = 0, True
                for i in range(group):
                    v = np.float64(own[i])
                    exact = (v - np.float64(smallest)) * inverse
                    c = np.int64(np.rint(exact))
                    off = max(error * abs(v), least) + blur
                    if abs(exact - c) > 2.0 * off * inverse + 1e-9:
                        good = False
                        break
                    if stamps[c] != stamp:
                        stamps[c], place[c] = stamp, distinct
                        code[distinct], number[distinct] = c, own_bits[i]
                        distinct += 1
                    elif number[place[c]] != own_bits[i]:
                        good = False
                        break
                if not good:
                    continue
                if step == 1 and not half and count:  # product and sum are both rounded: every scale is tried
                    m, s = np.float64(smallest), a
                    while s <= b and s < a * (1.0 + 2.0**-17):
                        real[0] = np.float32(s)
                        if _gives_back(own, own_bits, real[0], m, low, high, True, False, step, to, made, made_bits):
                            fitted, s = True, np.float64(real[0])
                            break
                        word[0] += np.uint32(1)
                        s = np.float64(real[0])
                    if fitted:
                        break
                for k in range(distinct):
                    pattern = np.int64(number[k] & np.uint32(0x7FFFFFFF))
                    lower[k] = upper[k] = 0.0
                    if pattern != 0:
                        near, far = _rounds_to(pattern, step, nudge, word, real)
                        negative = number[k] >> np.uint32(31) != 0
                        lower[k], upper[k] = (-far, -near) if negative else (near, far)
                for k in range(distinct):  # a minimum exists for a scale if one does for every two numbers
                    for j in range(k):
                        one, other = (j, k) if code[j] < code[k] else (k, j)
                        share = shares[code[other] - code[one]]
                        a = max(a, (lower[other] - upper[one]) * share)
                        b = min(b, (upper[other] - lower[one]) * share)
                if a > b:
                    continue
                spacing = _spacing(a)
                for attempt in range(1 if count == 0 else 1 + int(min(64.0, (b - a) / spacing + 2.0))):
                    s = (np.floor(a / spacing) + attempt - 1) * spacing
                    if attempt == 0:
                        s = _simplest(a, b, word, real) if count else 0.0
                    if not a <= s <= b or (half and not _is_half(s, word, real)):
                        continue
                    for shift in range(shifts):
                        left, right = -np.inf, np.inf
                        for k in range(distinct):
                            move = s * (code[k] + shift)
                            left, right = max(left, lower[k] - move), min(right, upper[k] - move)
                        if left > right:
                            continue
                        m = _simplest(left, right, word, real)
                        if np.isnan(m) or (half and not _is_half(m, word, real)):
                            continue
                        if _gives_back(own, own_bits, s, m, low, high, True, False, step, to, made, made_bits):
                            fitted = True
                            break
                    if fitted:
                        break
                if fitted:
                    break
        if not fitted:
            return g
        scales[g], mins[g] = np.float32(s), np.float32(m)
    return -1
