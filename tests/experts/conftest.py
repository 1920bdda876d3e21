"""Mixtures that the tests of this room read; made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.mixtures import write_mixture
from support.shared import made_once


@pytest.fixture(scope="session")
def mixtral() -> Path:
    return Path(made_once("experts-mixtral", lambda to: str(write_mixture(to / "model"))))
