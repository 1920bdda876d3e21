"""Steps from a transformers model, each node's keys and values held once: children continue the cache of their ancestors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from nett.cache.search_tree import Node, Step
from nett.cache.step_answers import answer_in
from nett.core.errors import Refused, UsageError


@final
@dataclass
class Segment:
    """A node's own part of the cache: keys and values ``[h, t, d]`` of each layer, and its ids that were not computed yet."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    pending: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.pairs for t in pair)


@final
class model_steps:
    """A generator for :func:`nett.cache.ets`: ``count`` continuations of a node are sampled as one batch.

    What a node keeps (``node.state``) is the keys and values of its own tokens only, so that what is held is what the ledger
    counts; the search lets go of nodes that no leaf needs. A leaf's last token is computed when it is continued.

    Args:
        model: a decoder of transformers, all of whose layers see all tokens.
        tokenizer: its tokenizer.
        stop: text that ends a step, with it.
        max_step_tokens: of one step.
        temperature: of sampling; 0 for the most likely token.
        answer: solution -> its answer, None as long as there is none; a step with an answer, or one that the model ends, is
            the last.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        stop: str = "\n\n",
        max_step_tokens: int = 256,
        temperature: float = 1.0,
        answer: Callable[[str], str | None] = answer_in,
    ) -> None:
        from nett.cache.policy import check_model

        if not stop:
            raise UsageError("stop is empty, and no step would end", hint="Such as stop='\\n\\n'")
        if max_step_tokens < 1 or temperature < 0:
            raise UsageError(f"max_step_tokens = {max_step_tokens} and temperature = {temperature}: at least 1, and 0")
        check_model(model, "cache/ets")
        self.model, self.tokenizer, self.stop = model, tokenizer, stop
        self.max_step_tokens, self.temperature, self.answer = max_step_tokens, temperature, answer
        config = model.config.get_text_config()
        self.most = int(getattr(config, "max_position_embeddings", 0) or 1 << 60)
        ends = getattr(model.generation_config, "eos_token_id", None)
        self.ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def count(self, text: str) -> int:
        return len(self.tokenizer(text).input_ids)

    def __call__(self, node: Node, count: int, rng: np.random.Generator) -> list[Step]:
        import torch

        with torch.no_grad():
            cache, logits = self._opened(node, count)
            return self._sampled(node, cache, logits.expand(count, -1), rng)

    def _opened(self, node: Node, count: int) -> tuple[Any, Any]:
        """The cache of a node's line, ``count`` times, and the logits after it; what was pending becomes the node's own."""
        import torch
        from transformers import DynamicCache

        if node.parent is None:
            prompt = tuple(self.tokenizer(node.step.text).input_ids)
            if not prompt:
                raise Refused("the prompt holds no token", where="cache/ets")
            node.state = Segment([], prompt)
        own: Segment = node.state
        line = [n.state.pairs for n in node.line() if n.state.pairs]
        cache = DynamicCache(config=self.model.config)
        for layer in range(len(line[0]) if line else 0):
            keys, values = (torch.cat([pairs[layer][i] for pairs in line], 1)[None] for i in (0, 1))
            cache.update(keys, values, layer)
        start = cache.get_seq_length()
        if start + len(own.pending) + self.max_step_tokens > self.most:
            raise Refused(
                f"a branch of {start + len(own.pending)} tokens and {self.max_step_tokens} of a step are more than the model's"
                f" {self.most:,} positions",
                where="cache/ets",
            )
        ids = torch.tensor([own.pending], device=self.model.device)
        logits = self.model(ids, past_key_values=cache).logits[:, -1]
        new = _cut(cache, 0, start, start + len(own.pending))
        before = own.pairs or [(k[:, :0], v[:, :0]) for k, v in new]
        own.pairs = [
            (torch.cat((k, k2), 1), torch.cat((v, v2), 1)) for (k, v), (k2, v2) in zip(before, new, strict=True)
        ]
        own.pending = ()
        cache.batch_repeat_interleave(count)
        return cache, logits

    def _sampled(self, node: Node, cache: Any, logits: Any, rng: np.random.Generator) -> list[Step]:
        import torch

        start, rows = cache.get_seq_length(), logits.shape[0]
        said: list[list[int]] = [[] for _ in range(rows)]
        ended, open_rows = [False] * rows, set(range(rows))
        while True:
            chosen = self._picked(logits, rng)
            for row in sorted(open_rows):
                said[row].append(chosen[row])
                ended[row] = chosen[row] in self.ends
                full = len(said[row]) == self.max_step_tokens
                if ended[row] or full or self.stop in self.tokenizer.decode(said[row]):
                    open_rows.discard(row)
            if not open_rows:
                break
            # Rows that are over go along; what they add is cut off below, and no row sees another's.
            ids = torch.tensor([[token] for token in chosen], device=self.model.device)
            logits = self.model(ids, past_key_values=cache).logits[:, -1]
        before, steps = node.text, []
        for row, own in enumerate(said):
            text = self.tokenizer.decode(own, skip_special_tokens=True)
            found = self.answer(before + text)
            segment = Segment(_cut(cache, row, start, start + len(own) - 1), (own[-1],))
            steps.append(Step(text, len(own), ended[row] or found is not None, found, segment))
        return steps

    def _picked(self, logits: Any, rng: np.random.Generator) -> list[int]:
        """One token a row."""
        values = logits.double().cpu().numpy()
        if self.temperature > 0:
            values = values / self.temperature + rng.gumbel(size=values.shape)  # the largest is a sample of the softmax
        return [int(i) for i in values.argmax(1)]


def _cut(cache: Any, row: int, start: int, end: int) -> list[tuple[Any, Any]]:
    """Tokens ``start`` to ``end`` of a row, copied so that nothing larger is kept alive."""
    return [(lay.keys[row, :, start:end].clone(), lay.values[row, :, start:end].clone()) for lay in cache.layers]
