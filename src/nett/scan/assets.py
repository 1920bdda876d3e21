"""From the user's paths to open checkpoints: files, folders, and folders that hold checkpoints somewhere below."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.checkpoint.arrays import ArrayCheckpoint
from nett.core.errors import NettError, Refused
from nett.core.progress import report
from nett.scan.protocol import Asset

_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
_ADAPTER = "adapter_model.safetensors"
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "tokenizer")  # pickles of training
_MOST_JSON = 1 << 28  # bytes of a side file that are worth parsing


def open_assets(given: Sequence[Any]) -> list[Asset]:
    """Open paths, checkpoints or mappings of arrays, in order; what cannot be read is warned about.

    Raises Refused if a path does not exist, or if nothing at all could be read. A checkpoint that is named twice is
    opened once.
    """
    assets: list[Asset] = []
    known: set[Path] = set()
    refused: list[NettError] = []
    try:
        for number, one in enumerate(given):
            if isinstance(one, Checkpoint):
                assets.append(_asset(str(one.path), one))
            elif isinstance(one, Mapping):
                assets.append(_asset(str(number), ArrayCheckpoint(one, Path(str(number)))))
            else:
                for path, found in _found(Path(one), refused):
                    if found.path.resolve() in known:
                        found.close()
                        continue
                    known.add(found.path.resolve())
                    assets.append(_asset(str(path), found))
    except BaseException:
        close_assets(assets)
        raise
    if not assets and refused:
        if len(refused) == 1:
            raise refused[0]
        raise Refused(f"nothing readable among {len(refused)} candidates; the first: {refused[0]}")
    for error in refused:
        report.warn(f"left out: {error}")
    return assets


def close_assets(assets: Sequence[Asset]) -> None:
    for asset in assets:
        asset.checkpoint.close()


def _asset(path: str, checkpoint: Checkpoint) -> Asset:
    files = {t.file for t in checkpoint.tensors.values() if t.file is not None}
    states = {file: file.stat() for file in files}
    return Asset(path, checkpoint, {file: (s.st_dev, s.st_ino) for file, s in states.items()})


def _found(path: Path, refused: list[NettError]) -> Iterator[tuple[Path, Checkpoint]]:
    """The checkpoint at ``path``, or all below it; those that cannot be read are added to ``refused``."""
    if not path.is_dir():
        try:
            yield path, open_checkpoint(path)
        except NettError as error:
            if not path.exists():
                raise
            refused.append(error)
        return
    before = len(refused)
    any_found = False
    for root, folders, files in os.walk(path):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        here = Path(root)
        for one in _of_folder(here, sorted(files)):
            try:
                found = open_checkpoint(one)
            except NettError as error:
                refused.append(error)
            else:
                any_found = True
                yield (here if one.name == _ADAPTER else one), found
                if one == here or one.name == _ADAPTER:
                    folders[:] = []  # a checkpoint's folder is one asset, whatever lies below it
    if not any_found and len(refused) == before:
        refused.append(
            Refused(
                f"holds no checkpoint, here or below ({', '.join('*' + w for w in _WEIGHTS)})",
                where=path,
                hint=_tables(path),
            )
        )


def _tables(path: Path) -> str | None:
    """What to do where a folder holds tables in place of checkpoints."""
    from nett.lake.formats import endings

    known = tuple(endings())
    names = (name for _, _, files in os.walk(path) for name in files if name[0] not in "._")
    count = sum(name.lower().endswith(known) for name in names)
    return f"It holds {count:,} files of tables: nett lake scan {shlex.quote(str(path))}" if count else None


def _of_folder(folder: Path, files: Sequence[str]) -> list[Path]:
    """What to open here: the folder as one checkpoint, an adapter's own weights, or files one by one.

    A folder is one checkpoint if it says so by a config or an index, or holds one file; several files without
    either are unrelated.
    """
    if _ADAPTER in files:
        return [folder / _ADAPTER]  # as it lies on disk, not applied to its base
    weights = [f for f in files if f.endswith(_WEIGHTS) and not f.startswith((".", *_NO_WEIGHTS))]
    if not weights:
        return []
    ggufs = [folder / f for f in weights if f.endswith(".gguf")]
    others = [f for f in weights if not f.endswith(".gguf")]
    if not others:
        return [folder] if len(ggufs) == 1 else ggufs
    named = "config.json" in files or any(f.endswith(".index.json") for f in files)
    whole = named or (len(others) == 1 and others[0].endswith(".safetensors"))
    return ([folder] if whole else [folder / f for f in others]) + ggufs


def side_file(asset: Asset, name: str) -> Any:
    """A JSON file beside the weights, parsed; None where there is none, warned about where it is broken."""
    file = asset.checkpoint.folder / name
    if asset.checkpoint.format == "arrays" or not file.is_file():
        return None
    try:
        if file.stat().st_size > _MOST_JSON:
            raise ValueError(f"{file.stat().st_size:,} bytes are too many for it")
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        report.warn(f"{file}: not readable as JSON: {error}")
        return None
