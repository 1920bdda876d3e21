"""Which tables stay, whatever that costs: by name, owner, tag, age, or because they are held."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import final

from pydantic import BaseModel, ConfigDict, ValidationError

from nett.core.errors import UsageError
from nett.lake.prices import read_yaml, said
from nett.lake.table import Table

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class About(_Strict):
    """What is known of tables that a pattern matches."""

    owner: str | None = None
    tags: tuple[str, ...] = ()
    hold: bool = False


class Rule(_Strict):
    """A table that fulfils all that is said here stays. ``match``: a pattern on its name; ``min_age``: those that were
    changed within that time, such as 30d."""

    match: str | None = None
    owner: str | None = None
    tag: str | None = None
    min_age: str | None = None
    why: str | None = None


class RulesFile(_Strict):
    """``--rules FILE.yml``: rules, patterns under legal hold, and what is known of tables by pattern."""

    keep: tuple[Rule, ...] = ()
    hold: tuple[str, ...] = ()
    tables: dict[str, About] = {}


@final
class KeepRules:
    """All rules of a plan."""

    def __init__(self, file: RulesFile) -> None:
        self.file = file
        self._ages = [None if r.min_age is None else age(r.min_age) for r in file.keep]

    @classmethod
    def of(
        cls, path: Path | None, *, keep: str | None, owner: str | None, tag: str | None, min_age: str | None,
        hold: str | None,
    ) -> KeepRules:  # fmt: skip
        """The rules of a file and those of the command line."""
        try:
            file = RulesFile.model_validate(read_yaml(path)) if path is not None else RulesFile()
        except ValidationError as error:
            known = {*Rule.model_fields, *RulesFile.model_fields, *About.model_fields}
            raise said(error, path, dict.fromkeys(known)) from error
        rules = [Rule(match=p) for p in _split(keep)] + [Rule(owner=o) for o in _split(owner)]
        rules += [Rule(tag=t) for t in _split(tag)] + ([Rule(min_age=min_age)] if min_age else [])
        for rule in file.keep:
            if rule.model_dump(exclude={"why"}, exclude_none=True) == {}:
                raise UsageError("a rule that says nothing keeps every table; match: '*' says so", where=path)
        return cls(file.model_copy(update={"keep": (*file.keep, *rules), "hold": (*file.hold, *_split(hold))}))

    def why_kept(self, table: Table, now: float | None = None) -> str | None:
        """Why a table stays, or None."""
        about = [a for pattern, a in self.file.tables.items() if matches(table.name, pattern)]
        if any(a.hold for a in about) or any(matches(table.name, p) for p in self.file.hold):
            return "it is under legal hold"
        owners = {a.owner for a in about if a.owner is not None} or set(_owners(table))
        tags = {t for a in about for t in a.tags}
        for rule, least in zip(self.file.keep, self._ages, strict=True):
            young = (time.time() if now is None else now) - _changed(table) < least if least is not None else True
            if (
                (rule.match is None or matches(table.name, rule.match))
                and (rule.owner is None or rule.owner in owners)
                and (rule.tag is None or rule.tag in tags)
                and young
            ):
                return f"a rule keeps it ({rule.why or _shown(rule)})"
        return None


def matches(name: str, pattern: str) -> bool:
    """Whether a table's name matches: ``*`` also takes in slashes."""
    return fnmatch.fnmatchcase(name, pattern)


def age(text: str) -> float:
    """Seconds of ``7d``, ``12h``, ``30m``, ``2w``, ``0``."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", text)
    if found is None or (not found[2] and float(found[1])):
        raise UsageError(f"{text!r} is no length of time; such as 7d, 12h, 30m, 2w, 0d")
    return float(found[1]) * _UNITS.get(found[2], 0)


def _shown(rule: Rule) -> str:
    return ", ".join(f"{k} {v}" for k, v in rule.model_dump(exclude={"why"}, exclude_none=True).items())


def _split(text: str | None) -> Sequence[str]:
    return [part for part in (text or "").split(",") if part]


def _changed(table: Table) -> float:
    return max((Path(f.path).stat().st_mtime for f in table.files), default=0.0)


def _owners(table: Table) -> Iterable[str]:
    import pwd

    for file in table.files:
        number = Path(file.path).stat().st_uid
        try:
            yield pwd.getpwuid(number).pw_name
        except KeyError:
            yield str(number)
