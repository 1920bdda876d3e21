"""The smallest hashes of a table without a look at which of all its rows are distinct.

Hashes are uniform, so some ``ROOM`` times as many rows as are asked for lie below a bound that follows from the number of
rows. If enough distinct ones are among them, they are the smallest; if not, many rows are equal, and all are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nett.lake.protocol import Hashes, Key

ROOM = 8


def smallest(
    keys: Sequence[Key],
    count: int,
    rows: int | None,
    below: Callable[[Sequence[Key], int | None], Sequence[Hashes]],
) -> list[Hashes]:
    """``below(keys, most)``: for each key the distinct hashes up to ``most`` (all where None), sorted, of one pass."""
    most = None if rows is None or rows <= ROOM * count else int(2**64 * (ROOM * count / rows))
    found = dict(zip(keys, below(keys, most), strict=True))
    short = [key for key in keys if most is not None and found[key].size < count]
    if short:
        found |= zip(short, below(short, None), strict=True)
    return [found[key][:count] for key in keys]
