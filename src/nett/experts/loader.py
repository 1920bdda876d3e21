"""A mixture of which the experts of one stored task are in memory, and which another task's take the place of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, final

from nett.core import torch_model
from nett.core.checkpoint import open_checkpoint
from nett.core.errors import UsageError
from nett.core.expert_modules import mixtures
from nett.core.fused import resolved_names
from nett.core.texts import tokenizer_of
from nett.core.windows import tokens_of
from nett.experts.chosen import Chosen
from nett.experts.opening import Opened, opened
from nett.experts.patterns import Patterns, check_model, read_patterns
from nett.experts.protocol import Tensor
from nett.experts.slots import Slots
from nett.experts.task_scores import Seen, first_inputs, router_inputs
from nett.experts.view import FileLayer, experts_view

_QUERY = 512  # tokens of a query that are looked at


def loader(
    patterns: str | Path,
    *,
    task: str | None = None,
    query: str | None = None,
    keep: float | None = None,
    model: str | Path | None = None,
) -> Loaded:
    """The model that patterns of nett experts premoe are about, with the experts of one task: ``task`` by its name, or the
    one that is nearest to a ``query``, some text.

    keep: share of the experts, if not that of the patterns. model: where the model lies, if not where it was. Reads its
    dense parts and the experts of the task, and no others. Raises UsageError for a task that is not stored, Refused
    where the patterns are of another model.
    """
    stored = read_patterns(Path(patterns))
    if (task is None) == (query is None):
        hint = f'task="{stored.tasks[0]}" or query="some text"'
        raise UsageError("takes a task or a query", where="nett.experts.loader", hint=hint)
    reference = str(model) if model is not None else stored.model
    if query is not None:
        with opened(reference) as found:
            task = next(iter(distances(found, stored, query)))
    assert task is not None
    return Loaded(stored, task, reference, keep)


def distances(model: Opened, patterns: Patterns, query: str) -> dict[str, float]:
    """How far a query lies from each stored task in the scores of the first mixture, the nearest first. Reads what comes
    before the first router and no expert of the mixtures."""
    check_model(patterns, model.layers, model.skeleton.checkpoint.path)
    tokenizer = tokenizer_of(model.skeleton.checkpoint)
    ids = query_tokens(query, tokenizer, _most(model.skeleton.model))
    return patterns.distances(_scores(first_inputs(model, ids), model.layers[0].router(), patterns, model.layers[0]))


def query_tokens(query: str, tokenizer: Any, most: int) -> Any:
    """int64 [1, n]: the first tokens of a query; UsageError where there is none."""
    ids = tokens_of(query, tokenizer)[None, : min(most, _QUERY)]
    if not ids.size:
        raise UsageError("the query is empty", hint="Some words of the text that is to be continued.")
    return ids


def _most(model: Any) -> int:
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or _QUERY)


def _scores(hidden: Tensor, rows: Tensor, patterns: Patterns, layer: FileLayer) -> Tensor:
    """Scores of a query, float64 [E]; ``hidden``: what comes to the first router; ``rows``: all that it has."""
    return patterns.measure.of(hidden.double().cpu() @ rows.double().T, layer.chosen).mean(0)


@final
class Loaded:
    """``model``: of transformers, with the experts of ``task``; ``bytes_read``: of the file since it was opened, for what all
    tasks share (``dense``: rows of routers too) and for ``experts``. Use :func:`loader`; close it, or use it in a with."""

    def __init__(self, patterns: Patterns, task: str, reference: str, keep: float | None = None) -> None:
        self.patterns, self.task, self.keep = patterns, task, keep
        with ExitStack() as stack:
            self.checkpoint = stack.enter_context(open_checkpoint(reference, dense=True))
            self.layers = experts_view(self.checkpoint)
            check_model(patterns, self.layers, self.checkpoint.path)
            self.held = patterns.kept(task, self.layers, keep)  # of each mixture the expert in each slot
            few = Chosen(self.checkpoint, self.held, self.layers)
            self.model = torch_model.model(few).eval()
            inside = mixtures(self.model)
            names = {id(m): n for n, m in self.model.named_modules()}
            stored, _ = resolved_names(self.model, self.model.state_dict(), few.tensors)
            self._slots = []
            for layer, mixture in zip(self.layers, inside, strict=True):
                known = {layer.place.router, *layer.place.beside}
                stem = f"{names[id(mixture.router)]}."
                rows = {n.removeprefix(stem): t for n, t in stored.items() if n.startswith(stem) and t in known}
                self._slots.append(Slots(layer, mixture, rows))
            experts = {t for layer, held in zip(self.layers, self.held, strict=True)
                       for names in layer.place.named(len(held)).values() for t in names}  # fmt: skip
            self._first = sum(n for t, n in few.reads.items() if t in experts)
            self._dense = few.bytes_read - self._first
            self._rows = self.layers[0].router()
            self._tokenizer: Any = None
            self._stack = stack.pop_all()

    @property
    def bytes_read(self) -> dict[str, int]:
        experts = self._first + sum(s.bytes_read for s in self._slots)
        return {"dense": self._dense + sum(s.bytes_beside for s in self._slots), "experts": experts}

    def distances(self, query: str) -> dict[str, float]:
        """How far a query lies from each stored task, the nearest first: by the model that is in memory, whose first
        router is given the same with the experts of any task."""
        import torch

        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(self.checkpoint)
        ids = query_tokens(query, self._tokenizer, _most(self.model))
        found: list[Tensor] = []

        def take(hidden: Tensor) -> None:
            found.append(hidden)
            raise Seen

        with torch.no_grad(), router_inputs(mixtures(self.model)[0], take), suppress(Seen):
            self.model(input_ids=torch.from_numpy(ids).to(self.model.device), use_cache=False)
        return self.patterns.distances(_scores(found[0], self._rows, self.patterns, self.layers[0]))

    def switch(self, *, task: str | None = None, query: str | None = None) -> str:
        """Put another task's experts in place, by its name or by a query; returns its name. Reads the experts that are not
        there yet; those that both tasks want stay where they are."""
        if (task is None) == (query is None):
            raise UsageError("takes a task or a query", where="switch")
        task = task if query is None else next(iter(self.distances(query)))
        assert task is not None
        wanted = self.patterns.kept(task, self.layers, self.keep)
        for layer, slots, held, want in zip(self.layers, self._slots, self.held, wanted, strict=True):
            for slot, expert in _moves(layer, held, want):
                slots.fill(slot, expert)
                held[slot] = expert
        self.task = task
        return task

    def close(self) -> None:
        """Let go of the file; the model stays as it is."""
        self._stack.close()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _moves(layer: FileLayer, held: list[int], want: list[int]) -> Iterator[tuple[int, int]]:
    """(slot, expert that comes into it); a slot serves one pool, since routers choose among pools by the slot's place."""
    for pool in layer.pools:
        inside = set(pool)
        come = [e for e in want if e in inside and e not in held]
        free = [s for s, e in enumerate(held) if e in inside and e not in want]
        yield from zip(free, come, strict=True)
