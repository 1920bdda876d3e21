"""Values of rows as JSON has them."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from typing import Any


def plain_value(value: Any) -> Any:
    """A value as JSON: what JSON has no word for (NaN, dates, decimals, bytes) as text that says it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes | bytearray):
        return f"0x{value.hex()}"
    if isinstance(value, dict):
        return {str(k): plain_value(v) for k, v in value.items()}
    return [plain_value(v) for v in value] if isinstance(value, list | tuple) else str(value)
