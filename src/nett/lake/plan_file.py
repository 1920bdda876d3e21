"""The plan file: readable JSON that pins what it was made from, and is read back with suspicion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from nett.core.errors import Refused
from nett.core.staging import put_file
from nett.lake.exact import Bag, Own
from nett.lake.inside import Relative, relative
from nett.lake.prices import Prices, said
from nett.lake.rebuild import Rebuild, Stored, Strict
from nett.lake.written import Form

VERSION = 1
_MARK = "nett_lake_plan"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _bag(text: str) -> str:
    Bag.of(text)
    return text


class PinnedFile(Strict):
    path: Relative
    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Pin(Strict):
    """A table as it was when the plan was made."""

    name: str
    format: Annotated[str, Field(pattern="^[a-z]+$")]
    files: Annotated[tuple[PinnedFile, ...], Field(min_length=1)]


class Deletion(Strict):
    """A table to delete. ``path``: the file or folder that is all of it. ``bag`` and ``form`` say what a rebuild must
    give; a copy gives the same bytes, so it has neither. ``saves``: in the prices' money, over their months."""

    table: Pin
    path: Relative
    bytes: int
    rows: int | None
    bag: Annotated[str, AfterValidator(_bag)] | None
    form: Form | None
    rebuild: Rebuild
    sql: str
    saves: float
    seconds: float

    @model_validator(mode="after")
    def _whole(self) -> Deletion:
        for file in self.rebuild.stored:
            relative(file.path)
        copy = self.rebuild.kind == "copy"
        if copy != (self.bag is None) or copy != (self.form is None):
            raise ValueError("a copy has no bag and no form, everything else has both")
        if copy and (len(self.rebuild.parts) != 1 or self.rebuild.stored):
            raise ValueError("a copy is of one table")
        plain = self.rebuild.kind in ("copy", "whole", "distinct", "predicate")
        if plain and (len(self.rebuild.parts) != 1 or self.rebuild.stored):
            raise ValueError(f"the way {self.rebuild.kind} has one parent and no selector")
        for part in self.rebuild.parts:
            if not plain and (part.where or part.distinct):
                raise ValueError(f"the way {self.rebuild.kind} has no conditions")
        if any(f.path != self.path and not f.path.startswith(f"{self.path}/") for f in self.table.files):
            raise ValueError(f"{self.table.name!r} has files outside of {self.path!r}")
        return self

    @property
    def own(self) -> list[Own]:
        """The columns of a rebuild."""
        return [Own(n, i, t) for i, (n, t) in enumerate(self.form.columns)] if self.form is not None else []


class Cost(Strict):
    """In the prices' money over their months. No plan under the same limits costs less than ``bound``."""

    keep_all: float
    plan: float
    greedy: float
    bound: float
    gap: float
    solver: str


class Plan(Strict):
    """What ``nett lake plan --out`` writes. ``lake`` is relative to the file; ``kept``: tables that are contained in
    others and stay, with the reason."""

    nett_lake_plan: Literal[1]
    nett: str
    created: str
    lake: str
    prices: Prices
    cost: Cost
    delete: tuple[Deletion, ...]
    parents: tuple[Pin, ...]
    kept: dict[str, str]

    @model_validator(mode="after")
    def _sound(self) -> Plan:
        if self.lake.startswith("/"):
            raise ValueError("the lake is named by an absolute path")
        gone, parents = [d.table.name for d in self.delete], {p.name: p for p in self.parents}
        if len(set(gone)) < len(gone) or len(parents) < len(self.parents):
            raise ValueError("a table is named twice")
        files = {f.path: p.name for p in self.parents for f in p.files}
        for one in self.delete:
            for parent in one.rebuild.parents:
                if parent not in parents:
                    raise ValueError(f"{one.table.name!r} is rebuilt from {parent!r}, which the plan does not pin")
                if parent in gone:
                    raise ValueError(f"{parent!r} is deleted, and {one.table.name!r} is to be rebuilt from it")
        places = {d.path for d in self.delete}
        for place in places:
            above = {str(p) for p in PurePosixPath(place).parents} & places
            if above or len(places) < len(self.delete):
                raise ValueError(f"{place!r} and what is in it, or itself, are deleted twice")
        for path, parent in files.items():
            if places & {path, *(str(p) for p in PurePosixPath(path).parents)}:
                raise ValueError(f"{path!r} of the parent {parent!r} would be deleted")
        return self

    def pins(self, one: Deletion) -> list[Pin]:
        """The parents of a table."""
        found = {p.name: p for p in self.parents}
        return [found[name] for name in one.rebuild.parents]


def write_plan(plan: Plan, path: Path) -> None:
    """Whole or not at all."""
    put_file(path, (plan.model_dump_json(indent=1) + "\n").encode())


def read_plan(path: Path) -> Plan:
    """A plan; Refused where it is none, is of another version, or says what no plan may."""
    try:
        blob = Path(path).read_bytes()
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}", where=path) from error
    try:
        found = json.loads(blob)
    except (ValueError, RecursionError) as error:
        raise Refused(
            f"is no plan: {error}", where=path, hint="Make one: nett lake plan LAKE --out PLAN.json"
        ) from error
    version = found.get(_MARK) if isinstance(found, dict) else None
    if version != VERSION or isinstance(version, bool):
        what = f"is a plan of version {version!r}" if isinstance(found, dict) and _MARK in found else "is no plan"
        raise Refused(
            f"{what}; this nett reads version {VERSION}", where=path, hint="nett lake plan LAKE --out PLAN.json"
        )
    found_plan: Plan = checked(Plan, blob, path)
    return found_plan


def checked(kind: Any, blob: bytes, where: object) -> Any:
    """A record from JSON; Refused with the first thing that is wrong."""
    try:
        return kind.model_validate_json(blob)
    except ValidationError as error:
        raise Refused(said(error, None, kind.model_fields).what, where=where) from error


def renamed(rebuild: Rebuild, names: Mapping[str, str]) -> Rebuild:
    """The same with its files under other names."""

    def moved(file: Stored | None) -> Stored | None:
        return None if file is None else file.model_copy(update={"path": names[file.path]})

    parts = tuple(p.model_copy(update={"rows": moved(p.rows)}) for p in rebuild.parts)
    return rebuild.model_copy(update={"parts": parts, "order": moved(rebuild.order)})
