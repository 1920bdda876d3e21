"""Conditions on a parent's columns that hold for given rows of it and for no other: the box around them, of which as
few sides are kept as still shut all others out.

The box is the smallest conjunction of ranges, lists and NULLs that lets the given rows through. If any other row is
in it, there is no such conjunction. Which conditions shut out which rows is asked once, as one bit a condition; the
conditions that are kept are chosen on the few distinct patterns of bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from nett.lake.exact import SIMPLE
from nett.lake.formats import place_of
from nett.lake.rebuild import Condition, compared, condition_sql
from nett.lake.table import Table
from nett.lake.workbench import Workbench, reading

MOST_VALUES = 16  # of a list
LONGEST = 64  # characters of a text in a condition
PATTERNS = 20_000  # of bits; beyond, all conditions are kept
_BITS = 60  # a number


def learn(bench: Workbench, parent: Table, marked: str) -> tuple[Condition, ...] | None:
    """Conditions that hold for the rows whose ordinals (o) the table ``marked`` has, and no others; None where the box
    around them has other rows in it."""
    source = f"(SELECT s.*, m.o IS NOT NULL AS m FROM {bench.source(parent)} s LEFT JOIN {marked} m ON s.o = m.o)"
    with reading(parent):
        box = _box(bench, parent, source)
        return _fewest(bench, parent, source, box) if box else None


def _box(bench: Workbench, parent: Table, source: str) -> list[Condition]:
    """Every condition that holds for all marked rows, the plainest first."""
    types = _types(bench, parent)
    if not types:
        return []
    asked = ["count(*)"]
    for name, type in types.items():
        value = compared(type, parent, name)
        asked += [f"count({value})", f"CAST(min({value}) AS VARCHAR)", f"CAST(max({value}) AS VARCHAR)"]
        asked.append(f"approx_count_distinct({value})")
        asked.append(f"count(*) FILTER (isnan({value}))" if type in ("DOUBLE", "FLOAT") else "0")
        raw = parent.column(name).raw and type != "VARCHAR"
        asked.append(f"count({place_of(parent.column(name))})" if raw else f"count({value})")
    told = iter(bench.one(f"SELECT {', '.join(asked)} FROM {source} WHERE m"))
    rows = next(told)
    found: list[Condition] = []
    listed: dict[str, bool] = {}
    for name, type in types.items():
        there, low, high, distinct, nans, present = (next(told) for _ in range(6))
        nulls = there < rows
        if nans or present != there:  # NaN, or text among a text file's numbers
            continue
        if there == 0:
            found.append(Condition(column=name, type=type, nulls=True))
            continue
        if not nulls:
            found.append(Condition(column=name, type=type))
        if max(len(low), len(high)) > LONGEST or "\x00" in low + high:
            continue
        found.append(Condition(column=name, type=type, low=low, high=high, nulls=nulls))
        if low != high and distinct <= 2 * MOST_VALUES:
            listed[name] = nulls
    return found + _lists(bench, parent, source, types, listed)


def _types(bench: Workbench, parent: Table) -> dict[str, str]:
    """The columns that conditions can be on, and the types that they compare in."""
    places = ", ".join(f"{place_of(c)} AS v{i}" for i, c in enumerate(parent.columns))
    told = bench.db.execute(f"DESCRIBE SELECT {places} FROM {bench.source(parent)}").fetchall()
    types: dict[str, str] = {}
    for column, row in zip(parent.columns, told, strict=True):
        type = str(row[1])
        if column.raw:
            type = {"integer": "BIGINT", "float": "DOUBLE"}.get(column.kind, "VARCHAR")
        if SIMPLE.fullmatch(type) and type not in ("BLOB", "BIT", "JSON", "INTERVAL"):
            types[column.name] = type
    return types


def _lists(
    bench: Workbench, parent: Table, source: str, types: dict[str, str], names: dict[str, bool]
) -> list[Condition]:
    if not names:
        return []
    asked = [f"list(DISTINCT CAST({compared(types[n], parent, n)} AS VARCHAR))" for n in names]
    told = bench.one(f"SELECT {', '.join(asked)} FROM {source} WHERE m")
    found = []
    for (name, nulls), some in zip(names.items(), told, strict=True):
        values = tuple(sorted(v for v in some if v is not None))
        if len(values) <= MOST_VALUES and all(len(v) <= LONGEST and "\x00" not in v for v in values):
            found.append(Condition(column=name, type=types[name], values=values, nulls=nulls))
    return found


def _fewest(bench: Workbench, parent: Table, source: str, box: Sequence[Condition]) -> tuple[Condition, ...] | None:
    """The conditions to keep; None where some unmarked row fulfils all."""
    words = []
    for start in range(0, len(box), _BITS):
        bits = [
            f"CASE WHEN {condition_sql(c, compared(c.type, parent, c.column))} THEN 0 ELSE {1 << i} END"
            for i, c in enumerate(box[start : start + _BITS])
        ]
        words.append(f"{' + '.join(bits)} AS b{start // _BITS}")
    columns = ", ".join(f"b{i}" for i in range(len(words)))
    patterns = bench.make(
        f"SELECT {columns}, count(*) AS n FROM (SELECT {', '.join(words)} FROM {source} WHERE NOT m) GROUP BY {columns}"
    )
    inside, kinds = bench.one(
        f"SELECT count(*) FILTER ({' AND '.join(f'b{i} = 0' for i in range(len(words)))}), count(*) FROM {patterns}"
    )
    if inside or kinds > PATTERNS:
        bench.drop(patterns)
        return None if inside else tuple(box)
    rows = bench.db.execute(f"SELECT * FROM {patterns}").fetchall()
    bench.drop(patterns)
    shut = _Shut([(sum(int(w) << (_BITS * i) for i, w in enumerate(row[:-1])), int(row[-1])) for row in rows])
    return tuple(box[i] for i in shut.fewest([_words(c) for c in box]))


@final
class _Shut:
    """Rows to be shut out: by the pattern of conditions that do so, how many."""

    def __init__(self, patterns: list[tuple[int, int]]) -> None:
        self.patterns = patterns

    def fewest(self, words: Sequence[int]) -> list[int]:
        """Greedy: always the condition that shuts out most of what is left for the words it takes, the first among
        equals; then drop what the others have made needless."""
        left, taken = self.patterns, list[int]()
        while left:
            gains = [sum(n for bits, n in left if bits >> i & 1) / cost for i, cost in enumerate(words)]
            best = max(range(len(words)), key=lambda i: (gains[i], -i))
            taken.append(best)
            left = [(bits, n) for bits, n in left if not bits >> best & 1]
        for one in sorted(taken, key=lambda i: -words[i]):
            rest = sum(1 << i for i in taken if i != one)
            if all(bits & rest for bits, _ in self.patterns):
                taken.remove(one)
        return sorted(taken)


def _words(one: Condition) -> int:
    """How much there is to read in a condition: it should say what the rows have in common, not list them."""
    if one.values is not None:
        return 1 + len(one.values)
    return 2 if one.low != one.high else 1
