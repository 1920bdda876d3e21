"""From a path, whatever lies there, to a :class:`Checkpoint`."""

from __future__ import annotations

import os
from pathlib import Path

from nett.core.checkpoint import safetensors
from nett.core.checkpoint.base import Checkpoint
from nett.core.errors import Refused

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def open_checkpoint(reference: str | Path, *, base: str | Path | None = None, dense: bool = False) -> Checkpoint:
    """Open a safetensors, GGUF or torch file, a Hugging Face folder, a PEFT adapter, or ``"base+adapter"``.

    ``base`` is what an adapter is applied to; without it, the base that the adapter names, if it lies on this
    machine. ``dense``: a quantised folder is the model that it stands for, dequantised as it is read, and not the
    tensors that lie there. Reads headers only. Raises :class:`Refused` saying what is wrong and where.
    """
    try:
        return _open(reference, base, dense)
    except PermissionError as error:
        hint = "Mend the permissions, or run nett as a user who may read it."
        raise Refused(f"cannot be read: {error.strerror}", where=error.filename or reference, hint=hint) from error


def _open(reference: str | Path, base: str | Path | None, dense: bool) -> Checkpoint:
    path = Path(reference)
    parts = None if path.exists() else split_reference(str(reference))
    if parts is not None:
        return _open(parts[1], parts[0], dense)
    if (path / "adapter_config.json").is_file():
        from nett.core.checkpoint.adapter import open_adapter

        return open_adapter(path, base, dense=dense)
    found = _open_as_it_lies(path)
    if not dense:
        return found
    from nett.core.checkpoint.quantised import dense_view

    try:
        return dense_view(found)
    except BaseException:
        found.close()
        raise


def _open_as_it_lies(path: Path) -> Checkpoint:
    if not path.exists():
        from nett.core.receipt import locate

        output, name = locate(path)
        found = _open_inside(output, name) if name else None
        if found is None:
            raise Refused("there is no such file or folder", where=path, hint=_near(path))
        return found
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".safetensors":
        return safetensors.SafetensorsCheckpoint(path, [path])
    if path.suffix == ".gguf":
        from nett.core.checkpoint.gguf import GgufCheckpoint

        return GgufCheckpoint(path)
    if path.suffix in PICKLES:
        from nett.core.checkpoint.pickle import PickleCheckpoint

        return PickleCheckpoint(path, [path])
    raise Refused(
        f"files ending in {path.suffix or 'nothing'!r} are not checkpoints that nett reads",
        where=path,
        hint=f"It reads .safetensors, .gguf, {', '.join(PICKLES)}, Hugging Face folders and PEFT adapter folders.",
    )


def split_reference(reference: str) -> tuple[str, str] | None:
    """``BASE+ADAPTER`` at the last plus that makes sense: BASE may be such a pair itself, names may have a plus."""
    for at in range(len(reference) - 1, 0, -1):
        base, adapter = reference[:at], reference[at + 1 :]
        if reference[at] == "+" and adapter and os.path.exists(adapter):
            if os.path.exists(base) or split_reference(base) is not None:
                return base, adapter
    return None


def _open_folder(path: Path) -> Checkpoint:
    found = safetensors.open_folder(path)
    if found is not None:
        from nett.core.checkpoint.split import STEM, opened_parts

        return opened_parts(found) if found.files[0].name.startswith(STEM) else found
    from nett.core.checkpoint.pickle import open_pickle_folder

    pickled = open_pickle_folder(path)
    if pickled is not None:
        return pickled
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return open_checkpoint(ggufs[0])
    if ggufs:
        raise Refused(f"holds {len(ggufs)} GGUF files", where=path, hint=f"Name one of them, for example {ggufs[0]}")
    inside = _open_inside(path, "") if (path / "nett.json").is_file() else None
    if inside is not None:
        return inside
    raise Refused("holds no checkpoint (*.safetensors, pytorch_model.bin, *.gguf, adapter_config.json)", where=path)


def _open_inside(output: Path, name: str) -> Checkpoint | None:
    """What lies in an output of nett, which its room knows how to read: a model of a store, one at a budget. ``name``
    is empty for the output as a whole. None where its room has no such outputs."""
    import importlib

    from nett.core.receipt import module_of, read_receipt

    receipt = read_receipt(output)
    engine = importlib.import_module(module_of(receipt))
    if not hasattr(engine, "open_inside"):
        return None
    found: Checkpoint = engine.open_inside(output, receipt, name)
    return found


def _near(path: Path) -> str | None:
    import difflib

    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / near[0]}?" if near else None
