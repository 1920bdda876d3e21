"""Lakes in object stores and wherever else fsspec reaches: listing, opening, and DuckDB's way to them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

from nett.core.errors import Refused, missing_extra
from nett.lake.table import File

_registering = threading.Lock()


def filesystem(path: str) -> Any:
    """The fsspec file system of a URL, set up by the environment (as its protocol's package has it)."""
    try:
        import fsspec
    except ImportError as error:
        raise missing_extra("fsspec", "lake", "lakes that are not local folders") from error
    protocol = path.partition("://")[0]
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise Refused(f"{protocol}:// needs a package: {error}", where=path) from error
    except ValueError as error:
        raise Refused(f"{protocol}:// is not known to fsspec", where=path) from error


def files_below(root: str) -> Iterator[tuple[str, File]]:
    """(name relative to the root, file), in the order of the names."""
    system, protocol = filesystem(root), root.partition("://")[0]
    system.invalidate_cache()  # what an earlier scan of this process has listed
    above = system._strip_protocol(root).rstrip("/")
    try:
        found = system.find(above, detail=True)
    except Exception as error:  # of any store's package, each with its own kinds
        raise Refused(f"cannot be listed: {type(error).__name__}: {error}", where=root) from error
    if not found:
        raise Refused("there is no such file or folder", where=root)
    for path, told in sorted(found.items()):
        name = path[len(above) + 1 :] or path.rpartition("/")[2]
        yield name, File(f"{protocol}://{path}", int(told.get("size") or 0), mark(told))


def mark(told: dict[str, Any]) -> str:
    """What changes with the content of a file: its etag, else a version or the time of the change; else nothing."""
    etag = str(told.get("ETag") or told.get("etag") or "").strip('"')
    if etag:
        return f"etag:{etag}"
    for word in ("VersionId", "version_id", "mtime", "LastModified", "last_modified", "updated", "created"):
        if told.get(word):
            return f"{word}:{told[word]}"
    return ""


def opened(path: str) -> Any:
    """A file, to read and seek in."""
    system = filesystem(path)
    try:
        return system.open(system._strip_protocol(path), "rb")
    except OSError:
        raise
    except Exception as error:  # of any store's package
        raise OSError(f"{type(error).__name__}: {error}") from error


def serve(connection: Any, path: str) -> Any:
    """A DuckDB connection that opens such paths through fsspec."""
    system = filesystem(path)
    names = [system.protocol] if isinstance(system.protocol, str) else list(system.protocol)
    with _registering:
        if not set(names) & set(connection.list_filesystems()):
            connection.register_filesystem(system)
    return connection


def secrets() -> dict[str, str]:
    """What a package that speaks to object stores itself needs beyond the environment."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return {"AWS_ALLOW_HTTP": "true", "AWS_ENDPOINT_URL": endpoint} if endpoint.startswith("http://") else {}
