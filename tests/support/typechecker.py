"""The run-time type checker of the test run: beartype, with int allowed for float as PEP 484 says."""

from __future__ import annotations

from typing import Any

from beartype import BeartypeConf, beartype

_CONF = BeartypeConf(is_pep484_tower=True)


def typechecked(function: Any) -> Any:
    """Check arguments and results of one function or class; named in pyproject's ``--jaxtyping-packages``."""
    return beartype(function, conf=_CONF)
