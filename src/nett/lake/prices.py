"""What keeping and rebuilding tables costs: prices, and how often each table is read and maintained.

The paper's terms (R2D2, P03, Opt-Ret), a GB being 10^9 bytes. Keeping table v for ``months``:
months * S_v * (storage + maintenance * f_v). Rebuilding it from u: months * A_v * (read * S_u + write * S_v), and the
storage of its row selector.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nett.core.errors import Refused, UsageError, did_you_mean

GB = 1e9
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(BaseModel):
    """Defaults: what object storage in a public cloud lists (0.023 a GB and month), and what serverless query engines
    ask for a byte that is read (5 a TB); taken for writing and maintenance too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    storage: Price = 0.023  # C_s, a GB and month
    maintenance: Price = 0.005  # C_m, a GB and maintenance operation
    read: Price = 0.005  # C_r, a GB
    write: Price = 0.005  # C_w, a GB
    months: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 12.0  # over which costs are counted
    accesses: Price = 0.1  # A_v, a month, of tables of which nothing is known
    operations: Price = 1.0  # f_v, maintenance operations a month, of tables of which nothing is known
    read_mb_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 100.0  # for the seconds of a rebuild
    write_mb_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 100.0
    start_seconds: Price = 1.0


@final
@dataclass(frozen=True)
class Use:
    """How often a table is read and maintained, a month."""

    accesses: float
    operations: float


@final
@dataclass(frozen=True)
class Costs:
    """Prices with the use of each table that is known."""

    prices: Prices
    known: Mapping[str, Use]

    def use(self, name: str) -> Use:
        return self.known.get(name) or Use(self.prices.accesses, self.prices.operations)

    def keeping(self, name: str, size: int) -> float:
        p = self.prices
        return p.months * size / GB * (p.storage + p.maintenance * self.use(name).operations)

    def rebuilding(self, name: str, size: int, reads: int, stored: int) -> float:
        """``reads``: bytes of the parents that a rebuild reads; ``stored``: of the selector."""
        p = self.prices
        once = (p.read * reads + p.write * size) / GB
        return p.months * (self.use(name).accesses * once + p.storage * stored / GB)

    def seconds(self, size: int, reads: int) -> float:
        """Of one rebuild, estimated."""
        p = self.prices
        return p.start_seconds + reads / 1e6 / p.read_mb_s + size / 1e6 / p.write_mb_s


def read_prices(path: Path | None) -> Prices:
    """Prices from YAML; defaults without a file, and for what it does not say."""
    if path is None:
        return Prices()
    found = read_yaml(path)
    try:
        return Prices.model_validate(found)
    except ValidationError as error:
        raise said(error, path, Prices.model_fields) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping."""
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=path) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"is no YAML: {' '.join(str(error).split())[:200]}", where=path) from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UsageError(f"holds a {type(found).__name__}, not names with values", where=path)
    return found


def said(error: ValidationError, where: object, known: Mapping[str, Any]) -> UsageError:
    """The first of pydantic's findings, for people."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UsageError(f"unknown key {name!r}.{did_you_mean(str(first['loc'][-1]), known)}", where=where)
    value = f" = {first['input']!r}" if not isinstance(first["input"], dict | list) else ""
    return UsageError(f"{name}{value[:200]}: {first['msg']}", where=where)


def read_access(path: Path | None) -> dict[str, Use]:
    """CSV with the columns name, accesses, operations (a month; either of the last two may be missing)."""
    if path is None:
        return {}
    found: dict[str, Use] = {}
    prices = Prices()
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            unknown = set(reader.fieldnames or ()) - {"name", "accesses", "operations"}
            if unknown or "name" not in (reader.fieldnames or ()):
                raise UsageError(
                    f"its columns are {', '.join(reader.fieldnames or ['none'])}; taken are name, accesses, operations",
                    where=path,
                )
            for row in reader:
                where = f"{path}:{reader.line_num}"
                found[row["name"]] = Use(
                    _number(row.get("accesses"), prices.accesses, "accesses", where),
                    _number(row.get("operations"), prices.operations, "operations", where),
                )
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=path) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"is no CSV: {error}", where=path) from error
    return found


def _number(text: str | None, default: float, name: str, where: str) -> float:
    if text is None or not text.strip():
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError(f"{name} = {text!r} is not a number of times a month (0 or more)", where=where)
    return value
