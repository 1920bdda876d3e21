"""How much of a cache may be held: a share of the tokens, so many tokens, or so many bytes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, final

from nett.core.checkpoint.writer import byte_size
from nett.core.errors import Refused, UsageError

_WHAT = "a share (0.35), tokens (512tok) or bytes (3MB)"


@final
@dataclass(frozen=True)
class Budget:
    """``amount`` in ``unit``."""

    amount: float
    unit: Literal["share", "tokens", "bytes"]

    @classmethod
    def of(cls, value: str | float | int) -> Budget:
        """``0.35``, ``"35%"``, ``"512tok"``, ``"3MB"``; a whole number above 1 is tokens."""
        text = str(value).strip().lower()
        if found := re.fullmatch(r"(\d+)\s*(tok|tokens?|t)", text):
            budget = cls(int(found[1]), "tokens")
        elif found := re.fullmatch(r"(\d*\.?\d+)\s*%", text):
            budget = cls(float(found[1]) / 100, "share")
        elif re.fullmatch(r"\d*\.?\d+", text):
            number = float(text)
            budget = cls(number, "share") if number <= 1 else cls(number, "tokens")
        else:
            try:
                budget = cls(byte_size(text), "bytes")
            except UsageError as error:
                raise UsageError(f"budget = {value!r} is not {_WHAT}") from error
        if budget.amount <= 0 or (budget.unit == "tokens" and budget.amount != int(budget.amount)):
            raise UsageError(f"budget = {value!r} is not {_WHAT}")
        return budget

    def slots(self, seen: int, bytes_a_slot: int, beside: int = 0) -> int:
        """Slots that a layer may hold after ``seen`` tokens; ``bytes_a_slot``: of one slot in all layers together;
        ``beside``: bytes that are held whatever the number of slots."""
        if self.unit == "share":
            return max(1, math.ceil(self.amount * seen - 1e-9))
        if self.unit == "tokens":
            return int(self.amount)
        slots = int((self.amount - beside) // max(1, bytes_a_slot))
        if slots < 1:
            raise Refused(
                f"a budget of {int(self.amount):,} bytes holds no token: one takes {bytes_a_slot:,} in all layers, and"
                f" {beside:,} are held beside",
                hint="A larger --budget.",
            )
        return slots

    def __str__(self) -> str:
        if self.unit == "share":
            return f"{self.amount:.4g} of the tokens"
        return f"{int(self.amount):,} {self.unit}"
