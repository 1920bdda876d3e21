"""Token windows on their way through a model's blocks.

What each block is called with (positions, masks) is learned by running the model once with stand-ins in the blocks'
places, which also catch what enters the first; so whatever a model does around its blocks is done by its own code.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, final

import numpy as np

from nett.core.blocks.skeleton import Skeleton
from nett.core.errors import Refused

BATCH = 1024  # tokens that go through a block together: its activations are what memory is needed for
_LOGITS = 1 << 23  # numbers of logits at a time, but for those of one window


@final
class Walk:
    """Hidden states of all windows: ``hidden[i]`` float32 ``[batch, length, width]`` before block ``at``.

    windows: int64 ``[n, length]``, all of one length (no padding). disk: keep the states in a file that is mapped.
    """

    def __init__(self, skeleton: Skeleton, windows: Any, *, disk: bool = False) -> None:
        self.skeleton, self.at = skeleton, 0
        step = max(1, BATCH // int(windows.shape[1]))
        self.batches = [windows[i : i + step].to(skeleton.device) for i in range(0, len(windows), step)]
        self._calls: dict[int, list[dict[str, Any]]] = {}  # rows of a batch -> what each block is called with
        self.hidden: list[Any] = []
        self._disk = disk
        self._begin()

    def _begin(self) -> None:
        import torch

        with torch.no_grad(), self.skeleton.ground() as model:
            for ids in self.batches:
                stands = [_stand()() for _ in self.skeleton.blocks]
                for stand in stands:
                    stand.all = stands
                with _standing_in(self.skeleton, stands), suppress(_Enough):
                    model(input_ids=ids, use_cache=False)
                if any(s.seen is None for s in stands):
                    missed = sum(s.seen is None for s in stands)
                    raise Refused(
                        f"{missed} of its {len(stands)} blocks are not run", where=self.skeleton.checkpoint.path
                    )
                self._calls.setdefault(len(ids), [s.named for s in stands])
                self.hidden.append(stands[0].seen)
        if self._disk:
            self._to_disk()

    def _to_disk(self) -> None:
        import torch

        size, at = sum(h.numel() for h in self.hidden), 0
        with tempfile.TemporaryFile(prefix="nett-") as file:  # the mapping outlives it
            file.truncate(4 * size)
            mapped = np.memmap(file, np.float32, "r+", shape=(size,))
        for i, hidden in enumerate(self.hidden):
            place = torch.from_numpy(mapped[at : at + hidden.numel()]).reshape(hidden.shape)
            self.hidden[i] = place.copy_(hidden)
            at += hidden.numel()

    def first(self, module: Any) -> Any:
        """The output ``[1, length, width]`` of the block ``at`` on the first window."""
        import torch

        with torch.no_grad():
            out = module(self.hidden[0][:1].to(self.skeleton.device), **self._called(self.hidden[0], 1))
        return out[0] if isinstance(out, tuple) else out

    def run(self, module: Any, *, keep: bool = True) -> None:
        """Every batch through the block ``at``; with ``keep`` its output takes the place of its input, and the walk
        is a block further."""
        import torch

        with torch.no_grad():
            for i, hidden in enumerate(self.hidden):
                out = module(hidden.to(self.skeleton.device), **self._called(hidden, len(hidden)))
                out = out[0] if isinstance(out, tuple) else out
                if keep and not self._disk:
                    self.hidden[i] = out
                elif keep:
                    self.hidden[i].copy_(out)
        self.at += keep

    def _called(self, hidden: Any, rows: int) -> dict[str, Any]:
        """What the block is called with, cut to the first ``rows`` windows of a batch."""
        import torch

        count, named = len(hidden), self._calls[len(hidden)][self.at]
        if rows == count:
            return named

        def cut(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(cut(v) for v in value)
            return value[:rows] if isinstance(value, torch.Tensor) and value.dim() and len(value) == count else value

        return {name: cut(value) for name, value in named.items()}

    def through(self, change: Callable[[int, Any], None] = lambda number, module: None) -> Walk:
        """Through all blocks that are left, each changed by ``change(number, module)`` before."""
        for number in range(self.at, len(self.skeleton)):
            with self.skeleton.block(number) as module:
                change(number, module)
                self.run(module)
        return self

    def branch(self, hidden: Sequence[Any], at: int) -> Walk:
        """Another walk of the same windows, with hidden states of its own before block ``at``."""
        other = object.__new__(Walk)
        vars(other).update(vars(self) | {"hidden": list(hidden), "at": at, "_disk": False})
        return other

    def logits(self) -> Iterator[tuple[Any, Any]]:
        """(token ids, logits float32 ``[windows, length, vocabulary]``), all windows in order, as many at a time as make
        some ten million numbers; once all blocks are behind."""
        import torch

        def of(model: Any, ids: Any, hidden: Any) -> Any:
            stands = [_stand()() for _ in self.skeleton.blocks]
            stands[-1].gives = hidden.to(self.skeleton.device)
            with torch.no_grad(), _standing_in(self.skeleton, stands):
                return model(input_ids=ids, use_cache=False).logits.float()

        with self.skeleton.ground() as model:
            for ids, hidden in zip(self.batches, self.hidden, strict=True):
                step = max(1, _LOGITS // (ids.shape[1] * self.skeleton.vocabulary))
                for i in range(0, len(ids), step):
                    # Kept in no variable here; and given outside of no_grad, which two at a time would leave on.
                    yield ids[i : i + step], of(model, ids[i : i + step], hidden[i : i + step])

    def pieces(self, rows: int, like: Walk | None = None) -> Iterator[tuple[int, Any, int, Any]]:
        """(number of a window, its ids, a position, logits float32 ``[at most rows, vocabulary]`` from there on) for all
        windows and all positions but their last; no more of them is computed at a time where the model can do that.
        ``like``: a walk that is at its pieces, whose embeddings are shared where they are equal."""
        import inspect

        import torch

        number = -1
        with self.skeleton.ground(like.skeleton if like is not None else None) as model:
            able = "logits_to_keep" in inspect.signature(model.forward).parameters
            for ids, hidden in zip(self.batches, self.hidden, strict=True):
                for i in range(len(ids)):
                    number, last = number + 1, ids.shape[1] - 1
                    stands = [_stand()() for _ in self.skeleton.blocks]
                    stands[-1].gives = hidden[i : i + 1].to(self.skeleton.device)
                    step = rows if able else last
                    for start in range(0, last, step):
                        keep = torch.arange(start, min(last, start + step), device=self.skeleton.device)
                        more = {"logits_to_keep": keep} if able else {}
                        with torch.no_grad(), _standing_in(self.skeleton, stands):
                            found = model(input_ids=ids[i : i + 1], use_cache=False, **more).logits[0, :last].float()
                        for at in range(0, len(found), rows):
                            yield number, ids[i], start + at, found[at : at + rows]
                        del found


class _Enough(Exception):
    """All stand-ins were called: what the model does with their outputs need not be computed."""


@cache
def _stand() -> Any:
    import torch

    class Stand(torch.nn.Module):
        """In a block's place: notes what it is called with, and passes on what comes in, or what it is told to give."""

        def __init__(self) -> None:
            super().__init__()
            self.seen: Any = None
            self.named: dict[str, Any] = {}
            self.gives: Any = None
            self.all: Sequence[Any] = ()
            self.names: Sequence[str] = ()  # of what the block is given by position, behind the hidden states

        def forward(self, hidden_states: Any, *placed: Any, **named: Any) -> Any:
            self.seen, self.named = hidden_states, dict(zip(self.names, placed, strict=False)) | named
            if self.all and all(stand.seen is not None for stand in self.all):
                raise _Enough
            return hidden_states if self.gives is None else self.gives

    return Stand


class _standing_in:
    """The model with other modules in its blocks' places, for a while."""

    def __init__(self, skeleton: Skeleton, stands: Sequence[Any]) -> None:
        self.skeleton, self.stands = skeleton, stands

    def __enter__(self) -> None:
        self.real = list(self.skeleton.blocks)
        for i, stand in enumerate(self.stands):
            _lend(self.real[i], stand)
            self.skeleton.blocks[i] = stand

    def __exit__(self, *_: object) -> None:
        for i, module in enumerate(self.real):
            self.skeleton.blocks[i] = module


def _lend(block: Any, stand: Any) -> None:
    """What models ask their blocks for by name (``attention_type``): the plain attributes of a block; and what it calls
    its arguments, since some models give them by position."""
    stand.names = list(inspect.signature(block.forward).parameters)[1:]
    for name, value in vars(block).items():
        if not name.startswith("_") and name != "training":
            setattr(stand, name, value) if isinstance(value, str | int | bool | float) else None
