"""The text of a run: windows to calibrate on, windows to judge by, kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from nett.core import torch_model
from nett.core.blocks import Skeleton
from nett.core.checkpoint import Checkpoint
from nett.core.errors import UsageError
from nett.core.windows import Windows, check_apart, held_out, read_windows


@final
@dataclass(frozen=True)
class Text:
    """``calibration``: None for methods that need none; ``judging``: None where there is no text at all."""

    calibration: Windows | None
    judging: Windows | None
    notes: tuple[str, ...] = ()


def read_text(
    skeleton: Skeleton,
    *,
    calibration: Path | None,
    eval: Path | None,
    samples: int,
    length: int,
    needed: bool,
    where: str,
    judged: int = 32,
    hint: str | None = None,
) -> Text:
    """Without ``eval``, the last eighth of the calibration windows is held out to judge by. ``hint``: what to do where a
    text is ``needed`` and there is none."""
    if needed and calibration is None:
        raise UsageError(
            "looks at what goes into each layer, so it needs a text like that which the model will meet",
            where=where,
            hint=hint or "Add --calibration FILE (.txt, or .jsonl with an entry text); nett weights rtn needs none.",
        )
    notes: list[str] = []
    most = int(getattr(skeleton.model.config.get_text_config(), "max_position_embeddings", 0) or length)
    if length > most:
        notes.append(f"windows of {most} tokens, as many as the model has positions, and not of {length}")
        length = most
    if calibration is None and eval is None:
        return Text(None, None, ("no text was given (--eval), so what it cost was not measured",))
    tokenizer = tokenizer_of(skeleton.checkpoint)
    how: dict[str, Any] = {"length": length, "vocabulary": skeleton.vocabulary}
    seen = read_windows(calibration, tokenizer, samples=samples, **how) if calibration is not None else None
    if eval is not None:
        judging = read_windows(eval, tokenizer, samples=judged, **how)
    else:
        assert seen is not None
        seen, judging = held_out(seen)
    if seen is not None:
        notes += check_apart(judging, [seen])
        width = int(skeleton.model.get_input_embeddings().weight.shape[1])
        if seen.tokens < width:
            notes.append(f"{seen.tokens:,} tokens of calibration are fewer than the {width:,} columns of a layer")
    return Text(seen if needed else None, judging, tuple(notes))


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The tokenizer that lies beside the weights."""
    folder = checkpoint.path
    return torch_model.tokenizer(folder if (folder / "tokenizer_config.json").is_file() else checkpoint)


def named_files(given: str, option: str, *, free: Sequence[str] = ()) -> dict[str, Path | None]:
    """``name=FILE,name=FILE`` (or FILE alone, called by its name); names of ``free`` need no file."""
    found: dict[str, Path | None] = {}
    for one in filter(None, (part.strip() for part in given.split(","))):
        name, sign, path = one.rpartition("=")
        if not sign and one in free:
            name, file = one, None
        else:
            file = Path(path)
            name = name or file.stem
            if not file.is_file():
                raise UsageError(
                    f"there is no file {path!r}", where=f"--{option} {one}", hint=f"--{option} name=FILE,…"
                )
        if name in found:
            raise UsageError(f"{name!r} is named twice", where=f"--{option}")
        found[name] = file
    return found
