"""Running a kernel over all chunks of all tensors: survey what it asks for, then apply it, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np

from nett.core.carrying import Carried
from nett.core.dtypes import Array, decode, encode
from nett.core.errors import NettError, Refused
from nett.core.finite import count_non_finite
from nett.core.passes import Ask, Chunk, Waiting, advance
from nett.core.runner import Pool
from nett.merge.job import CHUNK, Job, Operand, TensorTask

if TYPE_CHECKING:
    from nett.merge.carrier import Carrier

SMALL = 16 * CHUNK  # tensors up to here are one thread's work from survey to result
HELD = 32 << 20  # bytes of a tensor's operands that one thread keeps from survey to result
AHEAD = 16  # chunks a thread may be ahead of the writer, which at times waits for the disk
SAMPLE = 32  # one chunk of so many is looked at for a guess

Run = tuple[TensorTask, int, int]  # chunks of a tensor: from, to
Known = dict[tuple[int, int], tuple[Any, bool]]


@final
class Models(Sequence[Array]):
    """The models of one chunk, each read when it is asked for and not held."""

    def __init__(self, count: int, read: Callable[[int], Array]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < self._count:
            raise IndexError(place)
        return self._read(place)


@final
class Stream:
    """One job's passes. ``model_known`` holds what is settled over the whole model, and can be journalled."""

    def __init__(self, job: Job, pool: Pool, on_bytes: Callable[[int], None], carrier: Carrier | None = None) -> None:
        self.job, self.pool, self.on_bytes, self.carrier = job, pool, on_bytes, carrier
        self.kernel = job.card.kernel()
        # One width for the whole job: what is asked of the model is counted over the bits of all tensors together.
        self._kind = np.float64 if job.wide or (carrier is not None and carrier.wide) else np.float32
        self.model_known: Known = {}
        self._held = threading.local()  # .operands: chunk -> what was read, while one thread goes over a tensor again
        self._rounds = 0  # over the whole model; every element has been looked at after the first

    # -- reading ------------------------------------------------------------------------------------------------

    def _values(self, operand: Operand, task: TensorTask, start: int, stop: int, fresh: bool) -> Array:
        values = operand.checkpoint.values(operand.name, start, stop)
        if self.job.cast is not None:
            values = decode(encode(values, self.job.cast), self.job.cast)
        values = values.astype(self._kind, copy=False)
        if fresh and count_non_finite(values):
            at = start + int(np.flatnonzero(~np.isfinite(values))[0])
            raise Refused(
                f"tensor {operand.name!r} holds NaN or infinity (first at element {at:,} of {task.size:,})",
                where=operand.checkpoint.path,
                hint="Merging would spread it. Mend or leave out this model.",
            )
        return task.shaped(values)

    def _operands(self, task: TensorTask, start: int, stop: int, fresh: bool) -> list[Any]:
        def read(place: int) -> Array:
            return self._values(task.tuned[place], task, start, stop, fresh)

        tuned = Models(len(task.tuned), read) if self.job.card.carries else [*map(read, range(len(task.tuned)))]
        if "base" not in self.job.card.operands:
            return [tuned]
        if task.base is None:  # a method that can do without
            return [None, tuned]
        return [self._values(task.base, task, start, stop, fresh), tuned]

    # -- the kernel over one chunk ------------------------------------------------------------------------------

    def _advance(self, task: TensorTask, index: int, known: Known) -> tuple[Any, list[Any]]:
        held = getattr(self._held, "operands", None)
        operands = held.get(index) if held is not None else None
        if operands is None:
            operands = self._operands(task, *task.bounds(index), fresh=not known and not self._rounds)
        if held is not None:
            held[index] = operands

        def told(level: int, asks: Sequence[Ask]) -> list[Any] | None:
            answers = []
            for i, ask in enumerate(asks):
                settled, done = self._known(ask, level, i, known)
                if not done:
                    return None
                if isinstance(ask, Carried) and self.carrier is not None:
                    answers.append(self.carrier.answer(ask, task))
                else:
                    answers.append(ask.tell(settled, self._chunk(ask, task, index)))
            return answers

        return advance(self.kernel(*operands, **task.parameters), told), operands

    def _known(self, ask: Ask, level: int, i: int, tensor: Known) -> tuple[Any, bool]:
        store = self.model_known if ask.scope == "model" else tensor
        if (level, i) in store:
            return store[level, i]
        foregone = ask.foregone()
        return foregone, foregone is not None

    def _chunk(self, ask: Ask, task: TensorTask, index: int) -> Chunk:
        start, stop = task.bounds(index)
        return Chunk(task.name, start, stop, task.first_chunk + index if ask.scope == "model" else index)

    # -- surveys ------------------------------------------------------------------------------------------------

    def _look(self, state: Any, task: TensorTask, index: int, known: Known, seen: dict[Any, Any]) -> None:
        """Add one chunk, advanced as far as it can be, to the accumulators of the level it waits at."""
        if not isinstance(state, Waiting):
            return
        if len({ask.scope for ask in state.asks}) > 1:
            raise NettError(f"{self.job.card.key} asks about tensor and model at once; yield them one after the other")
        for i, ask in enumerate(state.asks):
            settled, done = self._known(ask, state.level, i, known)
            if not done:
                key = (state.level, i)
                seen[key] = ask.look(settled, seen.get(key), self._chunk(ask, task, index))

    def _settle(self, state: Waiting, seen: dict[Any, Any], store: Known) -> None:
        for i, ask in enumerate(state.asks):
            settled, done = self._known(ask, state.level, i, store)
            if not done:
                store[state.level, i] = ask.settle(settled, seen[state.level, i])

    def _joined(self, state: Waiting, parts: Sequence[dict[Any, Any]]) -> dict[Any, Any]:
        joined: dict[Any, Any] = {}
        for part in parts:
            for key, seen in part.items():
                joined[key] = state.asks[key[1]].join(joined[key], seen) if key in joined else seen
        return joined

    def survey_tensor(self, task: TensorTask, known: Known, *, parallel: bool) -> tuple[Any, list[Any]]:
        """Settle every ask about this tensor, up to the result or to an ask about the model.

        Returns what the first chunk then comes to: (result, or the :class:`Waiting` for the model; its operands).
        """
        while True:
            first, operands = self._advance(task, 0, known)
            if not isinstance(first, Waiting) or first.asks[0].scope == "model":
                return first, operands
            by_thread: dict[int, dict[Any, Any]] = {}

            def look(index: int, by_thread: dict[int, dict[Any, Any]] = by_thread) -> None:
                state, _ = self._advance(task, index, known)
                self._look(state, task, index, known, by_thread.setdefault(threading.get_ident(), {}))

            self._look(first, task, 0, known, by_thread.setdefault(threading.get_ident(), {}))
            rest = range(1, task.chunks)
            for _ in self.pool.ordered(look, rest) if parallel else map(look, rest):
                pass
            self._settle(first, self._joined(first, list(by_thread.values())), known)

    def survey_model(self, on_round: Callable[[], None]) -> dict[str, Known]:
        """Settle every ask about the whole model. Returns what was settled about tensors on the way."""
        tensors: dict[str, Known] = {t.name: {} for t in self.job.tasks}
        tasks = [t for t in self.job.tasks if not t.copied and t.size]
        while tasks:
            # The first tensor tells cheaply whether anything is asked, of tensors or of the model.
            first, _ = self.survey_tensor(tasks[0], tensors[tasks[0].name], parallel=True)
            if not isinstance(first, Waiting):
                break
            if tensors[tasks[0].name]:
                for task in tasks[1:]:
                    self.survey_tensor(task, tensors[task.name], parallel=True)
            guessing = any(a.by_sample and (first.level, i) not in self.model_known for i, a in enumerate(first.asks))
            if guessing and len(sample := list(_sample(tasks))) > 1:
                for key, seen in self._round(first, sample, tensors).items():
                    if first.asks[key[1]].by_sample:
                        self.model_known[key] = first.asks[key[1]].guess(seen), False
            self._settle(first, self._round(first, _runs(tasks), tensors, self.on_bytes), self.model_known)
            self._rounds += 1
            on_round()
        return tensors

    def _round(
        self,
        asking: Waiting,
        runs: Iterable[Run],
        tensors: dict[str, Known],
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> dict[Any, Any]:
        """What the model's asks see in some runs of chunks."""
        by_thread: dict[int, dict[Any, Any]] = {}

        def look(run: Run) -> int:
            task, start, stop = run
            seen = by_thread.setdefault(threading.get_ident(), {})
            for index in range(start, stop):
                state, _ = self._advance(task, index, tensors[task.name])
                self._look(state, task, index, tensors[task.name], seen)
            lo, hi = task.bounds(start)[0], task.bounds(stop - 1)[1]
            return sum((hi - lo) * o.info.dtype.bytes for o in task.operands)

        for done in self.pool.ordered(look, runs):
            on_bytes(done)
        return self._joined(asking, list(by_thread.values()))

    # -- results ------------------------------------------------------------------------------------------------

    def results(
        self, tensors: dict[str, Known], first: int, finish: Callable[[TensorTask, int, Any, list[Any]], Any]
    ) -> Iterator[tuple[TensorTask, int, Any]]:
        """(task, chunk index, what ``finish`` made of the kernel's result) for all chunks in order.

        ``finish(task, index, result, operands)`` runs in the worker threads.
        """

        def chunk(task: TensorTask, index: int, known: Known, advanced: tuple[Any, list[Any]] | None = None) -> Any:
            if task.copied:
                start, stop = task.bounds(index)
                source = task.operands[0]
                return finish(task, index, source.checkpoint.read(source.name, start, stop), [])
            if task.size == 0:
                return finish(task, index, np.empty(0, np.float32), [])
            result, operands = advanced or self._advance(task, index, known)
            if isinstance(result, Waiting):
                raise NettError(f"{self.job.card.key} asks differently from chunk to chunk")
            return finish(task, index, result, operands)

        def whole(task: TensorTask) -> list[Any]:
            known = tensors.setdefault(task.name, {})
            self._held.operands = {} if task.size * 4 * len(task.operands) <= HELD else None
            try:
                surveyed = None if task.copied or not task.size else self.survey_tensor(task, known, parallel=False)
                return [chunk(task, 0, known, surveyed), *(chunk(task, i, known) for i in range(1, task.chunks))]
            finally:
                self._held.operands = None

        todo = self.job.tasks[first:]
        at = 0
        while at < len(todo):
            end = at
            while end < len(todo) and (todo[end].size <= SMALL or todo[end].view == "whole"):
                end += 1
            for task, made in zip(todo[at:end], self.pool.ordered(whole, todo[at:end]), strict=True):
                yield from ((task, index, one) for index, one in enumerate(made))
            if end < len(todo):
                task = todo[end]
                known = tensors.setdefault(task.name, {})
                if not task.copied:
                    self.survey_tensor(task, known, parallel=True)

                def one(index: int, task: TensorTask = task, known: Known = known) -> Any:
                    return chunk(task, index, known)

                for index, made_one in enumerate(self.pool.ordered(one, range(task.chunks), AHEAD)):
                    yield task, index, made_one
                end += 1
            at = end


def _sample(tasks: Sequence[TensorTask]) -> Iterator[Run]:
    """One chunk of every ``SAMPLE``."""
    for task in tasks:
        for index in range(-task.first_chunk % SAMPLE, task.chunks, SAMPLE):
            yield task, index, index + 1


def _runs(tasks: Sequence[TensorTask]) -> Iterator[Run]:
    """Chunks in runs of one thread's work."""
    for task in tasks:
        step = max(1, SMALL // task.step)
        for start in range(0, task.chunks, step):
            yield task, start, min(task.chunks, start + step)
