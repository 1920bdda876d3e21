"""Ollama's folder: ``manifests/REGISTRY/NAMESPACE/MODEL/TAG`` name layers, ``blobs/sha256-HEX`` hold them."""

from __future__ import annotations

import json
import os
import re
import stat
from typing import Any

from nett.core.caches import UNFINISHED
from nett.scan.disk.items import Item, Survey
from nett.scan.disk.places import Place

_BLOB = re.compile(r"sha256[-:]([0-9a-f]{64})")
_MOST = 1 << 22  # bytes of a manifest
_WEIGHTS = ("image.model", "image.projector", "image.adapter")


def read_models(found: Survey, folder: str, place: Place) -> None:
    """Everything under a folder that holds ``manifests`` and ``blobs``."""
    layers, complete = _manifests(found, os.path.join(folder, "manifests"))
    try:
        with os.scandir(os.path.join(folder, "blobs")) as listing:
            entries = sorted(listing, key=lambda e: e.name)
    except OSError as error:
        found.cannot(os.path.join(folder, "blobs"), error)
        return
    for entry in entries:
        try:
            state = entry.stat(follow_symlinks=False)
        except OSError as error:
            found.cannot(entry.path, error)
            continue
        blob = _BLOB.fullmatch(entry.name)
        if not stat.S_ISREG(state.st_mode):
            continue
        if UNFINISHED.fullmatch(entry.name):
            found.partial(entry.path, state)
        elif blob and blob[1] in layers:
            if layers[blob[1]]:
                found.add(Item(state, entry.path, entry.path, ".gguf", place, "ollama"), hard=True)
        elif blob and complete:
            found.orphan(entry.path, state)


def _manifests(found: Survey, folder: str) -> tuple[dict[str, bool], bool]:
    """sha256 -> whether it holds weights, of all layers that any manifest names; whether all could be read."""
    layers: dict[str, bool] = {}
    failed: list[OSError] = []
    complete = True
    for here, folders, names in os.walk(folder, onerror=failed.append):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(here, name)
            try:
                if os.path.getsize(path) > _MOST:
                    raise ValueError("too long")
                with open(path, "rb") as file:
                    _layers(json.loads(file.read()), layers)
            except OSError as error:
                failed.append(error)
            except (ValueError, RecursionError):
                complete = False
                found.note("manifests of Ollama that are not valid, so that none of its blobs is called an orphan")
    for one in failed:
        found.cannot(one.filename or folder, one)
    return layers, complete and not failed


def _layers(manifest: Any, layers: dict[str, bool]) -> None:
    """Raises ValueError where the manifest is none."""
    if not isinstance(manifest, dict) or not isinstance(manifest.get("layers"), list):
        raise ValueError("no manifest")
    for layer in (manifest.get("config"), *manifest["layers"]):
        if layer is None:
            continue
        digest = _BLOB.fullmatch(str(layer.get("digest"))) if isinstance(layer, dict) else None
        if digest is None:
            raise ValueError("a layer without a digest")
        weights = str(layer.get("mediaType")).endswith(_WEIGHTS)
        layers[digest[1]] = layers.get(digest[1], False) or weights
