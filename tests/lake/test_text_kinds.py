"""What the columns of text files are, by all their values: against patterns in plain Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nett.lake.discovery import described
from nett.lake.duck import Duck
from nett.lake.formats.delimited import _are_names
from nett.lake.table import File
from support.lakes import write_csv

INTEGERS = ["0", "-1", "-0", "999999999999999999", "-999999999999999999", "12"]
FLOATS = ["0.5", "-0.0", "1e5", "1E-3", "12345.678e+9", "1e400"]
WORDS = ["007", "+5", " 1", "1 ", ".5", "5.", "1_000", "0x1F", "nan", "inf", "-", "1,5", "", "a", "१", "1e", "٣"]
LONGS = ["1000000000000000000", "9223372036854775807", "-9223372036854775808", "123456789012345678901234567890"]


def kind(values: list[str]) -> str:
    """By the patterns: a number is written plainly, a whole one has 18 digits at most."""
    if all(re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", v) for v in values):
        return "integer"
    plain = all(re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", v) for v in values)
    return "float" if plain and not any(re.fullmatch(r"-?[1-9][0-9]{18,}", v) for v in values) else "text"


@pytest.mark.parametrize("rest", [["3"], ["3", "4.5"]])
def test_kinds_and_spans(tmp_path: Path, rest: list[str]) -> None:
    values = INTEGERS + FLOATS + [w for w in WORDS if w] + LONGS
    names = [f"c{i}" for i in range(len(values))]
    rows = [values, *([r] * len(values) for r in rest), [None] * len(values)]
    path = write_csv(tmp_path / "t.csv", names, rows)
    table = described("t.csv", "delimited", [File(str(path), path.stat().st_size, "")])
    engine = Duck(threads=1)
    profile = engine.profile(table)
    engine.close()
    assert profile.rows == len(rows)
    for name, value in zip(names, values, strict=True):
        assert profile.kinds.get(name, "text") == kind([value, *rest]), value
        assert profile.spans[name].nulls == 1
    numbers = [float(v) for v in ["12", *rest]]
    span = profile.spans[names[INTEGERS.index("12")]]
    assert (span.low, span.high) == (min(numbers), max(numbers))
    assert profile.spans[names[values.index("007")]].high == max(map(float, rest))  # of the numbers alone


def test_a_table_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n")
    engine = Duck(threads=1)
    profile = engine.profile(described("t.csv", "delimited", [File(str(path), path.stat().st_size, "")]))
    engine.close()
    assert profile.rows == 0 and not profile.kinds and {s.nulls for s in profile.spans.values()} == {0}


def test_columns_without_a_name_are_called_alike_in_tables_of_any_width(tmp_path: Path) -> None:
    """As R writes the names of rows."""
    names = ["", *(f"c{i}" for i in range(12))]
    wide = write_csv(tmp_path / "wide.csv", names, [[i, *range(i, i + 12)] for i in range(20)])
    narrow = write_csv(tmp_path / "narrow.csv", names[:4], [[i, *range(i, i + 3)] for i in range(5)])
    tables = [described(f.name, "delimited", [File(str(f), f.stat().st_size, "")]) for f in (wide, narrow)]
    assert [t.columns[0].name for t in tables] == ["column0", "column0"]
    assert tables[1].schema < tables[0].schema


@pytest.mark.parametrize(
    ("first", "names"),
    [
        (["k", "v"], ["k", "v"]),
        (["", "1940"], ["column0", "1940"]),
        (["a", "a"], ["a"]),
        (["P95", "p95", "n_1"], ["P95", "p95", "n_1"]),
    ],
)
def test_a_first_line_of_names_above_text(tmp_path: Path, first: list[str], names: list[str]) -> None:
    """Where all columns are text the types do not tell; a and A are two columns."""
    path = write_csv(tmp_path / "t.csv", first, [[f"x{i}{c}" for c in range(len(first))] for i in range(9)])
    table = described("t.csv", "delimited", [File(str(path), path.stat().st_size, "")])
    assert [c.name for c in table.columns] == names
    engine = Duck(threads=1)
    assert engine.profile(table).rows == 9
    engine.close()


def test_which_first_line_is_of_names() -> None:
    assert _are_names(["k", "v"]) and _are_names([None, "1", "2"])
    assert not any(map(_are_names, (["k", "k"], ["k", "1e5"], ["k", None], [None, None], ["k"], [])))
