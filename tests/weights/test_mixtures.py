"""Mixtures of experts given to this room: refused with the way to the room that takes them."""

from __future__ import annotations

from pathlib import Path

from support.cli import nett
from support.mixtures import write_mixture


def test_the_experts_room_is_named(tmp_path: Path) -> None:
    model = write_mixture(tmp_path / "model")
    words = ("weights", "rtn", str(model), "--out", str(tmp_path / "out"))
    nett(*words).failed(3, "is a mixture of experts", "experts.gate_up_proj' is made of 8 tensors", "nett experts")
    assert not (tmp_path / "out").exists()
