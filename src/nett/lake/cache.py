"""What a scan of a lake keeps for the next one: an SQLite file per lake, in the user's cache folder.

Nothing in it is needed and nothing in it is trusted further than its checksum: a file that is damaged, of another
version or held by someone else is made anew or left out, and the scan reads the lake instead. It is never written
below the lake itself. Entries name the files they are about by path, size and mark (time of the last change in
nanoseconds, or etag); what a file was told before its time of change is two seconds old is not kept, since it may
change again without a trace. Not caught: a change of the same size whose time is set back by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from json import dumps
from pathlib import Path
from typing import final

from nett.core.errors import UsageError
from nett.lake.place import is_local
from nett.lake.table import File

VERSION = 2  # raised when canonical values, descriptions or keys change
SETTLED = 2_000_000_000  # nanoseconds
_BATCH = 512


@final
class Cache:
    """Entries by key; each is about one or two sets of files. Used by several threads; never raises."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._waiting: dict[str, tuple[str, str, bytes]] = {}
        self._now = time.time_ns()
        self._seen: set[str] = set()
        self._database = self._opened(again=True) if path.exists() else None
        self._usable = self._database is not None or not path.exists()

    def about(self, format: str, version: int, files: Sequence[File]) -> str | None:
        """The key of what is known of these files; None where it is not to be kept."""
        if not all(self._is_settled(f.mark) for f in files):
            return None
        told = dumps([format, version, [(f.path, f.size, f.mark, f.partition) for f in files]])
        key = hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()
        self._seen.add(key)
        return key

    def _is_settled(self, mark: str) -> bool:
        if mark.isdigit():
            return self._now - int(mark) >= 0 and self._now - int(mark) >= SETTLED
        return mark.startswith(("etag:", "VersionId:", "version_id:"))

    def get(self, what: str, one: str, other: str = "", *more: object) -> bytes | None:
        """The entry of a kind about one or two keys (:meth:`about`)."""
        key = _key(what, one, other, more)
        with self._lock:
            if key in self._waiting:
                return self._waiting[key][2]
            if self._database is None:
                return None
            try:
                found = self._database.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error:
                self._broken()
                return None
        if found is None or not isinstance(found[0], bytes) or found[0][:16] != _sum(key, found[0][16:]):
            return None
        return found[0][16:]

    def put(self, value: bytes, what: str, one: str, other: str = "", *more: object) -> None:
        """Keep an entry."""
        with self._lock:
            if self._usable:
                self._waiting[_key(what, one, other, more)] = (one, other, value)
                if len(self._waiting) >= _BATCH:
                    self._write()

    def close(self, *, complete: bool = True) -> None:
        """Write what is new; after a ``complete`` scan forget what it did not meet."""
        with self._lock:
            self._write()
            if complete and self._database is not None:
                try:
                    with self._database:
                        self._database.execute("CREATE TEMP TABLE seen (key TEXT PRIMARY KEY)")
                        self._database.executemany("INSERT INTO seen VALUES (?)", ((k,) for k in self._seen))
                        gone = "NOT IN (SELECT key FROM seen)"
                        self._database.execute(f"DELETE FROM kept WHERE one {gone} OR (other <> '' AND other {gone})")
                except sqlite3.Error:
                    self._broken()
            if self._database is not None:
                self._database.close()
            self._database, self._usable = None, False

    def _write(self) -> None:
        if not self._waiting or not self._usable:
            return
        self._database = self._database or self._opened(again=True)
        if self._database is None:
            self._usable = False
            return
        rows = [(k, one, other, _sum(k, value) + value) for k, (one, other, value) in self._waiting.items()]
        self._waiting.clear()
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", rows)
        except sqlite3.Error:
            self._broken()

    def _broken(self) -> None:
        """Someone holds it, or it does not hold: this scan does without."""
        with contextlib.suppress(sqlite3.Error):
            if self._database is not None:
                self._database.close()
        self._database, self._usable = None, False
        self._waiting.clear()

    def _opened(self, *, again: bool) -> sqlite3.Connection | None:
        database = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # it holds values of the lake
            database = sqlite3.connect(self._path, timeout=0.5, check_same_thread=False)
            database.execute("PRAGMA synchronous = OFF")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                with database:
                    database.execute("DROP TABLE IF EXISTS kept")
                    database.execute("CREATE TABLE kept (key TEXT PRIMARY KEY, one TEXT, other TEXT, value BLOB)")
                    database.execute(f"PRAGMA user_version = {VERSION}")
            database.execute("SELECT key, one, other, value FROM kept LIMIT 1").fetchall()
        except (sqlite3.Error, OSError, UnicodeError) as error:
            with contextlib.suppress(sqlite3.Error):
                if database is not None:
                    database.close()
            held = isinstance(error, sqlite3.OperationalError) and "lock" in str(error)
            if not again or held or isinstance(error, OSError):
                return None
            with contextlib.suppress(OSError):
                self._path.unlink()
                return self._opened(again=False)
            return None
        return database


def cache_of(root: str, folder: Path | None = None) -> Cache | None:
    """The cache of a lake, in ``folder`` or the user's cache folder; None where that is below the lake."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    where = folder or Path(os.environ.get("NETT_CACHE") or os.path.join(os.path.expanduser(home), "nett")) / "lake"
    if is_local(root) and _is_below(where, Path(root)):
        if folder is not None:
            raise UsageError(
                f"{folder} is below the lake", where="lake/scan", hint="name a folder elsewhere, or give --no-cache"
            )
        return None
    name = hashlib.sha256(root.encode(errors="surrogatepass")).hexdigest()[:24]
    return Cache(where / f"{name}.sqlite")


def _is_below(folder: Path, root: Path) -> bool:
    inside, above = os.path.realpath(folder), os.path.realpath(root)
    return inside == above or inside.startswith(above.rstrip("/") + "/")


def _key(what: str, one: str, other: str, more: Iterable[object]) -> str:
    return hashlib.sha256(dumps([what, one, other, *more], default=str).encode(errors="surrogatepass")).hexdigest()


def _sum(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + value).digest()[:16]
