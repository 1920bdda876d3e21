"""A stored task as a checkpoint: the model that its patterns are about, with the experts of the task."""

from __future__ import annotations

from pathlib import Path

from nett.core.checkpoint import Checkpoint, open_checkpoint
from nett.core.errors import Refused
from nett.experts.chosen import Chosen
from nett.experts.patterns import check_model, read_patterns
from nett.experts.view import experts_view


def open_task(folder: Path, name: str) -> Checkpoint:
    """``DIR/code``; closing it closes the model. Refused where no task is named."""
    patterns = read_patterns(folder)
    if not name:
        hint = f"Name one of its tasks: {', '.join(str(folder / t) for t in patterns.tasks)}"
        raise Refused("holds the patterns of tasks and no weights", where=folder, hint=hint)
    patterns.number(name)
    model = open_checkpoint(patterns.model, dense=True)
    try:
        layers = experts_view(model)
        check_model(patterns, layers, patterns.model)
        return Chosen(model, patterns.kept(name, layers), layers, owned=True, reference=str(folder.absolute() / name))
    except BaseException:
        model.close()
        raise
