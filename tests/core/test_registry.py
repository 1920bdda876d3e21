"""Parameters and cards: what they take, what they say, how they are called."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nett
from nett.core.errors import UsageError
from nett.core.registry import Card, Parameter, method

DENSITY = Parameter("density", "float", 0.2, low=0, high=1, open_low=True, many=True)
COUNT = Parameter("count", "int", 2, low=0)
SCOPE = Parameter("scope", "choice", "model", choices=("tensor", "whole-model"))
FLAG = Parameter("flag", "bool", True)
SCALE = Parameter("scale", "float", 1.0, grid=(0.1, 0.5))
FOLDER = Parameter("folder", "path", None, optional=True)


@pytest.mark.parametrize(
    ("parameter", "given_", "made"),
    [
        (DENSITY, "0.5", 0.5), (DENSITY, 1, 1.0), (DENSITY, "0.1,0.2", [0.1, 0.2]), (DENSITY, (0.1, 1), [0.1, 1.0]), (DENSITY, [], []),
        (DENSITY, "1e-3", 0.001), (COUNT, "3", 3), (COUNT, 3.0, 3), (COUNT, "4.0", 4), (COUNT, str(2**60 + 1), 2**60 + 1), (COUNT, 2**60 + 1, 2**60 + 1),
        (SCOPE, "tensor", "tensor"), (SCOPE, "whole_model", "whole-model"), (FLAG, "no", False), (FLAG, "TRUE", True), (FLAG, False, False),
        (FLAG, "0", False), (SCALE, "auto", "auto"), (SCALE, "-2", -2.0), (FOLDER, None, None), (FOLDER, "a/b", "a/b"),
    ],
)  # fmt: skip
def test_values(parameter: Parameter, given_: Any, made: Any) -> None:
    found = parameter.check(given_, "here")
    assert found == made and type(found) is type(made)


@pytest.mark.parametrize(
    ("parameter", "bad", "parts"),
    [
        (DENSITY, 0, ["density = 0 is out of range", "0 < density <= 1"]), (DENSITY, "1.0001", ["0 < density <= 1"]), (DENSITY, "0.5,2", ["density = '2'"]),
        (DENSITY, float("nan"), ["out of range"]), (DENSITY, "half", ["'half' is not a number", "0 < density <= 1"]), (DENSITY, None, ["not a number"]),
        (COUNT, 1.5, ["not a whole number"]), (COUNT, -1, ["0 <= count"]), (COUNT, True, ["not a whole number"]), (COUNT, "1e400", ["not a whole number"]),
        (SCOPE, "tensors", ["tensor, whole-model", "Did you mean 'tensor'"]), (FLAG, "perhaps", ["true or false"]), (FLAG, 1, []),
        (SCALE, "inf", ["finite number"]), (SCALE, float("-inf"), ["finite number"]), (COUNT, [1, 2], ["not a whole number"]),
    ],
)  # fmt: skip
def test_bad_values(parameter: Parameter, bad: Any, parts: list[str]) -> None:
    if parameter is FLAG and bad == 1:
        assert parameter.check(bad, "here") is True  # 1 and 0 are words for it
        return
    with pytest.raises(UsageError) as caught:
        parameter.check(bad, "here")
    text = str(caught.value)
    assert text.startswith("here: ") and parameter.name in text and all(p in text for p in parts), text


@given(st.floats(0, 1, exclude_min=True))
def test_every_number_in_range_survives_text(value: float) -> None:
    assert DENSITY.check(repr(value), "x") == value == DENSITY.check(value, "x")


def test_range_in_words() -> None:
    assert DENSITY.range == "0 < density <= 1" and COUNT.range == "0 <= count" and SCALE.range == ""
    assert Parameter("t", "float", 0.5, high=2, open_high=True).range == "t < 2"
    assert SCOPE.range == "tensor | whole-model"


def card(**more: Any) -> Card:
    fields: dict[str, Any] = {
        "room": "merge", "name": "m", "module": "nett.merge.m", "title": "M", "papers": (), "kind": "reduce", "grain": "stream",
        "guarantee": "measured", "summary": "M.", "parameters": (DENSITY, COUNT, SCOPE), "operands": ("tuned",),
    }  # fmt: skip
    return Card(**(fields | more))


def test_resolve() -> None:
    assert card().resolve({}) == {"density": 0.2, "count": 2, "scope": "model"}
    assert card().resolve({"count": "5", "scope": "tensor"}) == {"density": 0.2, "count": 5, "scope": "tensor"}
    with pytest.raises(
        UsageError,
        match=r"merge/m: unknown parameter 'densty'. Did you mean 'density' \(0 < density <= 1, default 0.2\)",
    ) as caught:
        card().resolve({"densty": 1})
    assert "See: nett show merge/m" in str(caught.value)
    with pytest.raises(UsageError, match=r"recipe.yml:7"):
        card().resolve({"count": -1}, where="recipe.yml:7 merge/m")
    required = Parameter("must", "float", None, required=True)
    with pytest.raises(UsageError, match="'must' must be given"):
        card(parameters=(required,)).resolve({})
    assert card(parameters=(required,)).resolve({"must": 2}) == {"must": 2.0}


def test_dashes_and_underscores_in_names() -> None:
    wide = card(parameters=(Parameter("tie_policy", "choice", "all", choices=("all", "lowest-index")),))
    assert wide.resolve({"tie-policy": "lowest_index"}) == {"tie_policy": "lowest-index"}
    assert wide.parameter("tie-policy") is wide.parameter("tie_policy") is not None


def test_methods_are_functions_with_a_kernel() -> None:
    @method(title="Doubling")
    def doubled(tuned: Any, *, by: float = 2.0) -> Any:
        """Doubles."""
        return tuned[0] * np.float32(by)

    np.testing.assert_array_equal(doubled([np.ones((2, 2))], by=3.0), np.full((2, 2), 3))
    assert doubled.kernel([np.ones(1)]) == 2 and doubled.__doc__ == "Doubles."  # type: ignore[attr-defined]


def test_python_call_refuses_what_the_command_line_refuses() -> None:
    base = np.zeros(3, np.float32)
    for bad in ({"density": 2}, {"scope": "modle"}, {"densty": 0.1}, {"normalize": "perhaps"}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            nett.merge.ties(base, [base], **bad)


def test_room_attributes_are_the_methods_in_any_order_of_import() -> None:
    """``nett.merge.ties`` is the function, also once its file was imported; files without a method stay files."""
    for code in (
        "import nett; f = nett.merge.ties; g = nett.merge.ties; assert f is g and callable(f)",
        "import nett.merge.ties; import nett; assert callable(nett.merge.ties)",
        "from nett.merge import ties; import nett.merge.ties as again; assert callable(ties) and again is ties",
        "from nett.core.cards import find_card; find_card('ties').load(); from nett.merge import ties; assert callable(ties)",
        "from nett.merge import engine, ties; assert engine.run and callable(ties)",
        "import nett\ntry: nett.merge.no_such\nexcept AttributeError as e: assert 'no_such' in str(e)\nelse: raise SystemExit(1)",
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (code, done.stderr)
