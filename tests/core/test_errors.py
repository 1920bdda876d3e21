"""Errors are for people: what, where, what to do, and an exit code."""

from __future__ import annotations

import pytest

from nett.core.errors import NettError, ProofFailed, Refused, UsageError, did_you_mean, missing_extra


@pytest.mark.parametrize(("kind", "code"), [(NettError, 1), (UsageError, 2), (Refused, 3), (ProofFailed, 4)])
def test_exit_codes(kind: type[NettError], code: int) -> None:
    assert kind("x").exit_code == code and issubclass(kind, NettError)


def test_text() -> None:
    assert str(Refused("is too large")) == "is too large"
    assert str(Refused("is too large", where="a/b")) == "a/b: is too large"
    error = Refused("is too large", where="a/b", hint="Take less.")
    assert str(error) == "a/b: is too large\n  Take less." and (error.what, error.where, error.hint) == (
        "is too large",
        "a/b",
        "Take less.",
    )


def test_nearest_names() -> None:
    assert did_you_mean("densty", ["density", "scale"]) == " Did you mean 'density'?"
    assert did_you_mean("xyz", ["density", "scale"]) == " Known: density, scale."
    assert did_you_mean("xyz", []) == ""
    assert did_you_mean("scal", ["scale", "scale2", "other"]) == " Did you mean 'scale' or 'scale2'?"


def test_missing_packages_say_how_to_get_them() -> None:
    models, lake = str(missing_extra("torch", "models", "Loading")), str(missing_extra("duckdb", "lake", "Reading"))
    assert "'torch'" in models and "pip install torch==" in models and "'nett[models]'" in models
    assert "pip install 'nett[lake]'" in lake and "torch" not in lake
