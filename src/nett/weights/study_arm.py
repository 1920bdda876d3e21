"""One arm of a study: the model quantised where it stands, and everything it is asked."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np

from nett.core.blocks import Skeleton, Walk
from nett.core.blocks.skeleton import put
from nett.core.registry import Card
from nett.core.windows import Windows
from nett.weights.answering import answers
from nett.weights.formats import format_named
from nett.weights.study_tasks import Task
from nett.weights.watching import moments_of, sharing

_BATCH = 16  # prompts that are gone on with together


def quantise(
    card: Card, skeleton: Skeleton, parameters: Mapping[str, Any], wanted: Sequence[str], windows: Any
) -> tuple[int, int]:
    """Put what the kernel makes in the place of all linear layers of a held skeleton, block by block, each block seeing
    what those before it give now. Returns bytes and weights of these layers as compressed-tensors keeps them."""
    fmt, nbytes, weights = format_named("compressed-tensors"), 0, 0
    walk = Walk(skeleton, windows) if wanted else None
    for number in range(len(skeleton)):
        layers = skeleton.linears(number)
        with skeleton.block(number) as module:
            groups = sharing(walk, module, layers) if walk is not None else [[layer] for layer in layers]
            moments = moments_of(walk, module, groups, wanted) if walk is not None else {}
            for group in groups:
                own = [parameters] * len(group)
                for layer, _, answer, *_ in answers(card, skeleton, None, group, own, moments):
                    made, kind = fmt.tensors(layer, answer)
                    put(module, f"{layer.name}.weight", fmt.value(layer, made, kind).float().to(skeleton.device))
                    nbytes += sum(t.numel() * t.element_size() for t in made.values())
                    weights += layer.rows * layer.columns
            if walk is not None:
                walk.run(module)
    return nbytes, weights


@final
class Asked:
    """What every arm is asked: texts (name -> windows), each ``every``-th token of which is a question, and tasks."""

    def __init__(
        self, texts: Mapping[str, Windows], every: int, tasks: Sequence[Task], tokenizer: Any, new: int
    ) -> None:
        self.texts, self.every, self.tasks, self.tokenizer, self.new = texts, every, tasks, tokenizer, new

    def answers(self, skeleton: Skeleton) -> dict[str, Any]:
        """Of a held skeleton, plain JSON: ``nll``: text -> nats a token, window by window; ``hits``: text -> whether the
        most likely token was the one that follows, a 1 or 0 for each question; ``parses`` and ``said`` of the tasks."""
        began = time.monotonic()
        found: dict[str, Any] = {"nll": {}, "hits": {}}
        for name, windows in self.texts.items():
            found["nll"][name], found["hits"][name] = self._read(skeleton, windows)
        if self.tasks:
            said = self._go_on(skeleton)
            found["said"] = said
            found["parses"] = _bits(np.array([t.parses(s) for t, s in zip(self.tasks, said, strict=True)]))
        return found | {"judging_seconds": round(time.monotonic() - began, 2)}

    def _read(self, skeleton: Skeleton, windows: Windows) -> tuple[list[float], str]:
        import torch

        nll, hits = list[float](), []
        for ids, logits in Walk(skeleton, torch.from_numpy(windows.ids)).through().logits():
            following = ids[:, 1:]
            for row in range(len(ids)):
                said = torch.log_softmax(logits[row, :-1], -1).gather(-1, following[row, :, None])
                nll.append(-float(said.double().mean()))
            right = logits[:, :-1].argmax(-1) == following
            hits.append(right[:, self.every - 1 :: self.every].cpu().numpy())
        return nll, _bits(np.concatenate(hits).reshape(-1))

    def _go_on(self, skeleton: Skeleton) -> list[str]:
        """The most likely words behind each prompt, cut to those that count."""
        import torch
        from transformers import GenerationConfig

        ends = self.tokenizer.eos_token_id
        rows = [self.tokenizer(t.prompt, add_special_tokens=False, verbose=False)["input_ids"] for t in self.tasks]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        how = GenerationConfig(do_sample=False, max_new_tokens=self.new, pad_token_id=ends or 0, eos_token_id=ends)
        said = [""] * len(rows)
        with torch.no_grad(), skeleton.ground() as model, _config(model, how):
            for at in range(0, len(order), _BATCH):
                some = order[at : at + _BATCH]
                width = max(len(rows[i]) for i in some)
                ids = torch.full((len(some), width), ends or 0, dtype=torch.int64)
                mask = torch.zeros_like(ids)
                for place, i in enumerate(some):
                    ids[place, width - len(rows[i]) :] = torch.tensor(rows[i])
                    mask[place, width - len(rows[i]) :] = 1
                given = {"input_ids": ids.to(skeleton.device), "attention_mask": mask.to(skeleton.device)}
                for i, row in zip(some, model.generate(**given, generation_config=how), strict=True):
                    new = row[width:].tolist()
                    whole = ends in new
                    words = self.tokenizer.decode(new[: new.index(ends)] if whole else new, skip_special_tokens=False)
                    said[i] = self.tasks[i].cut(words, whole=whole)
        return said


def fitting(tasks: Sequence[Task], tokenizer: Any, room: int, vocabulary: int) -> list[Task]:
    """The tasks whose prompts leave room for an answer, in tokens that the model knows."""
    kept = []
    for task in tasks:
        ids = tokenizer(task.prompt, add_special_tokens=False, verbose=False)["input_ids"]
        if 0 < len(ids) <= room and max(ids) < vocabulary:
            kept.append(task)
    return kept


@contextmanager
def _config(model: Any, how: Any) -> Any:
    """The model's own settings of sampling are no part of the question."""
    before = model.generation_config
    model.generation_config = how
    try:
        yield
    finally:
        model.generation_config = before


def _bits(values: Any) -> str:
    return "".join("01"[int(v)] for v in values)


def bools(bits: str) -> Any:
    """The array that was written as 0s and 1s."""
    return np.frombuffer(bits.encode(), np.uint8) == ord("1")
