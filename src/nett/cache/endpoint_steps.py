"""Steps from a server that speaks the OpenAI-compatible completions protocol (vLLM, SGLang, llama.cpp, …)."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, final

import numpy as np

from nett.cache.search_tree import Node, Step
from nett.cache.step_answers import answer_in
from nett.core.errors import NettError, UsageError


@final
class endpoint_steps:
    """A generator for :func:`nett.cache.ets`: each node's text goes to ``URL/completions``, with ``n`` continuations asked for.

    The server shares prefixes by itself (prefix caching, radix attention); the ledger says what it has to hold.

    Args:
        url: up to and with ``/v1``.
        model: its name there.
        stop: the text that ends a step; it is put back, since servers leave it out.
        max_step_tokens: of one step.
        temperature: of sampling.
        answer: solution -> its answer, None as long as there is none; a step with an answer is the last.
        at_once: nodes asked for at the same time.
        key_from: environment variable that holds the key, if the server wants one.
        timeout: seconds for one answer.
    Tokens of a step are those the server lists; where it lists none, its total in the proportion of the texts' lengths, or
    else a quarter of the characters.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        stop: str = "\n\n",
        max_step_tokens: int = 256,
        temperature: float = 1.0,
        answer: Callable[[str], str | None] = answer_in,
        at_once: int = 8,
        key_from: str = "OPENAI_API_KEY",
        timeout: float = 600.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"url = {url!r} is not an http address", hint="Such as http://127.0.0.1:8000/v1")
        if not stop:
            raise UsageError("stop is empty, and no step would end", hint="Such as stop='\\n\\n'")
        self.url, self.model, self.stop = url.rstrip("/") + "/completions", model, stop
        self.max_step_tokens, self.temperature, self.answer = max_step_tokens, temperature, answer
        self.at_once, self.key_from, self.timeout = at_once, key_from, timeout

    def __call__(self, node: Node, count: int, rng: np.random.Generator) -> list[Step]:
        before = node.text
        told = self._ask(
            {
                "model": self.model, "prompt": before, "n": count, "max_tokens": self.max_step_tokens, "stop": [self.stop],
                "temperature": self.temperature, "seed": int(rng.integers(2**31)), "logprobs": 0,
            }
        )  # fmt: skip
        choices = told.get("choices")
        if not isinstance(choices, list) or not all(
            isinstance(c, dict) and isinstance(c.get("text"), str) for c in choices
        ):
            raise NettError(f"answered without choices: {str(told)[:200]}", where=self.url)
        total = (told.get("usage") or {}).get("completion_tokens")
        letters = sum(len(c["text"]) for c in choices)
        steps = []
        for choice in choices[:count]:
            text = choice["text"]
            listed = (choice.get("logprobs") or {}).get("tokens")
            if listed:
                tokens = len(listed)
            elif isinstance(total, int):
                tokens = round(total * len(text) / max(1, letters))
            else:
                tokens = -(-len(text) // 4)
            cut = choice.get("finish_reason") == "length"
            found = self.answer(before + text)
            nothing = not text.strip() and not cut
            steps.append(
                Step(text if cut or nothing else text + self.stop, max(1, tokens), found is not None or nothing, found)
            )
        return steps

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(self.key_from):
            headers["Authorization"] = f"Bearer {os.environ[self.key_from]}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                told = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(300).decode(errors="replace")
            raise NettError(f"answered {error.code} {error.reason}: {said}", where=self.url) from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            why = getattr(error, "reason", error)
            raise NettError(f"cannot be reached: {why}", where=self.url, hint="Is the server running?") from None
        except ValueError as error:
            raise NettError(f"answered what is no JSON: {error}", where=self.url) from None
        if not isinstance(told, dict):
            raise NettError(f"answered {type(told).__name__}, not an object", where=self.url)
        return told
