"""Checking links: whether every name still has the bytes that it was linked with."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from pathlib import Path
from typing import Any

from nett.core.errors import Refused
from nett.core.receipt import open_sha256
from nett.core.shown import shown
from nett.store.handle import NotLinked, held
from nett.store.link_record import journal_of, name_of

Check = dict[str, Any]


def check_pairs(folder: Path) -> list[Check]:
    """One check for each content that files share; each file is read once, under whichever names."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for pair in journal_of(folder).values():
        if pair["end"] == "done":
            groups[pair["sha256"]].append(pair)
    checks = []
    for sha256, pairs in groups.items():
        known: dict[tuple[int, int], str] = {}
        paths = list(dict.fromkeys(path for p in pairs for path in (p["kept"], *p["copies"])))
        found = {path: _looked_at(path, sha256, known) for path in paths}
        wrong = next((p for p, word in found.items() if word == "changed"), None)
        gone = sum(word == "gone" for word in found.values())
        detail = f"{len(paths) - gone:,} names, sha256 equal" + (f"; {gone:,} are not there any more" if gone else "")
        if wrong is not None:
            detail = f"{shown(wrong)} does not hold the bytes any more that it was linked with"
        checks.append({"name": f"equal to {shown(paths[0])}", "ok": wrong is None, "detail": detail})
    return checks


def _looked_at(path: str, sha256: str, known: dict[tuple[int, int], str]) -> str:
    try:
        with held(name_of(path)) as handle:
            now = os.fstat(handle.fd)
            key = now.st_dev, now.st_ino
            if key not in known:
                known[key] = open_sha256(handle.fd) if stat.S_ISREG(now.st_mode) else ""
            return "equal" if known[key] == sha256 else "changed"
    except FileNotFoundError:  # its folder
        return "gone"
    except NotLinked as why:
        if why.gone:
            return "gone"
        raise Refused(str(why), where=shown(path)) from why
