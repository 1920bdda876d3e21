"""Steps from a model and from a server: the same samples with and without the shared cache, bytes as the ledger counts them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch

import nett
from nett.cache.search_tree import Node, Step, unique_nodes
from nett.cache.step_answers import answer_in
from nett.core.errors import NettError, Refused, UsageError


class Letters:
    """A tokenizer of one token a letter: 64 of them from the blank on, "A" among them."""

    def __call__(self, text: str) -> Any:
        return type("Ids", (), {"input_ids": [(ord(c) - 32) % 64 for c in text]})

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(32 + i) for i in ids)


@pytest.fixture(scope="module")
def steps(llama: Any) -> Any:
    return nett.cache.model_steps(llama, Letters(), stop="A", max_step_tokens=6, answer=lambda text: None)


def by_words(nodes: Sequence[Node]) -> list[float]:
    return [sum(map(ord, n.step.text)) % 11 / 11 for n in nodes]


def sampled_plainly(model: Any, steps: Any, node: Node, count: int, seed: list[int]) -> list[list[int]]:
    """The same draws without any cache: the whole text's logits for every token of every row."""
    rng, before = np.random.default_rng(seed), Letters()(node.text).input_ids
    said: list[list[int]] = [[] for _ in range(count)]
    running = [list(before) for _ in range(count)]
    open_rows = set(range(count))
    while open_rows:
        with torch.no_grad():
            logits = np.stack([model(torch.tensor([ids])).logits[0, -1].double().numpy() for ids in running])
        picked = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        for row in range(count):
            running[row].append(int(picked[row]))
            if row in open_rows:
                said[row].append(int(picked[row]))
                if picked[row] in steps.ends or len(said[row]) == 6 or "A" in Letters().decode(said[row]):
                    open_rows.discard(row)
    return said


def test_shared_caches_give_the_samples_of_whole_texts(llama: Any, steps: Any) -> None:
    root = Node(None, Step("THE PROMPT", 10))
    checked = 0
    level = [root]
    for _ in range(3):
        below = []
        for node in level:
            made = steps(node, 3, np.random.default_rng([4, *node.path]))
            expected = sampled_plainly(llama, steps, node, 3, [4, *node.path])
            assert [Letters()(s.text).input_ids for s in made] == expected
            below += [Node(node, s, (*node.path, i), state=s.state) for i, s in enumerate(made) if not s.done]
            checked += len(made)
        level = below[:2]
    assert checked >= 9


def test_bytes_held_are_what_the_ledger_counts(llama: Any) -> None:
    """Of all nodes of the last step: their tokens, but the last one of each leaf, times the bytes of a token in all layers."""
    seen: list[list[Node]] = []
    held: list[tuple[int, int]] = []

    def reward(nodes: Sequence[Node]) -> list[float]:
        seen.append(list(nodes))
        nodes_held = unique_nodes(nodes)
        held.append((sum(n.state.nbytes for n in nodes_held), sum(n.step.tokens for n in nodes_held) - len(nodes)))
        return by_words(nodes)

    steps = nett.cache.model_steps(llama, Letters(), stop="A", max_step_tokens=6, answer=lambda text: None)
    found = nett.cache.ets(Step("THE PROMPT", 10), steps, reward, width=6, depth=3)
    token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width of a head, bytes
    assert len(held) == found.ledger["steps"]
    for nbytes, tokens in held:
        assert nbytes == token * tokens
    assert found.ledger["kv_tokens"] == sum(t + len(nodes) for (_, t), nodes in zip(held, seen, strict=True))
    assert nett.cache.ets(Step("THE PROMPT", 10), steps, by_words, width=6, depth=3).ledger == found.ledger
    first = [n for n in seen[0] if not any(n in leaf.line() for leaf in seen[-1])]
    assert first and all(n.state is None for n in first), "dropped nodes hold nothing"


def test_a_model_without_room_is_refused(llama: Any, steps: Any) -> None:
    with pytest.raises(Refused, match="256"):
        nett.cache.ets("X" * 252, steps, by_words, width=2)
    with pytest.raises(Refused, match="no token"):
        nett.cache.ets("", steps, by_words, width=2)
    with pytest.raises(UsageError, match="stop is empty"):
        nett.cache.model_steps(llama, Letters(), stop="")


def test_answers_in_texts() -> None:
    assert answer_in(r"so \boxed{4} no, \boxed{5}.") == "5"
    assert answer_in("1 + 1\n#### 2\n") == "2"
    assert answer_in("Hence the answer is 12.\n") == "12" and answer_in("The answer is: 3.5") == "3.5"
    assert answer_in("the answer may be 3") is None


# -- a server ---------------------------------------------------------------------------------------------------


class Stub(BaseHTTPRequestHandler):
    """Counts up from the prompt's last number, one a step, and answers after the third."""

    mode = "listed"
    asked: list[dict[str, Any]] = []  # noqa: RUF012
    keys: list[str | None] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append({"path": self.path, **body})
        type(self).keys.append(self.headers.get("Authorization"))
        if self.mode == "broken":
            return self.reply(500, b"no such model")
        if self.mode == "words":
            return self.reply(200, b"hello")
        if self.mode == "long":  # a step is cut, then one ends, then the model has no more to say
            said = ("cut ", "whole", "")[min(2, len(type(self).asked) - 1)]
            choice = {"text": said, "finish_reason": "length" if said == "cut " else "stop"}
            return self.reply(200, json.dumps({"choices": [choice]}).encode())
        if self.mode == "empty":
            return self.reply(200, b'{"error": "busy"}')
        choices = []
        for i in range(body["n"]):
            said = body["prompt"].count("\n")
            text = f"step {said} way {i}" if said < 3 else f"The answer is {i % 2}"
            choice: dict[str, Any] = {"text": text, "finish_reason": "stop"}
            if self.mode == "listed":
                choice["logprobs"] = {"tokens": text.split()}
            choices.append(choice)
        told: dict[str, Any] = {"choices": choices}
        if self.mode == "total":
            told["usage"] = {"completion_tokens": 5 * body["n"]}
        self.reply(200, json.dumps(told).encode())

    def reply(self, code: int, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Stub.asked, Stub.keys, Stub.mode = [], [], "listed"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("mode", "tokens"), [("listed", 4), ("total", 5), ("silent", 3)])
def test_a_server(url: str, mode: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    Stub.mode = mode
    steps = nett.cache.endpoint_steps(url, model="m", stop="\n", at_once=3)
    found = nett.cache.ets("Q\n", steps, by_words, width=4, depth=5)
    assert found.answer in ("0", "1") and found.ledger["done"] == 4 and found.ledger["steps"] == 3
    first = Stub.asked[0]
    assert (
        first["path"] == "/v1/completions" and first["n"] == 4 and first["prompt"] == "Q\n" and first["stop"] == ["\n"]
    )
    assert set(Stub.keys) == {"Bearer sesame"}
    leaf = found.leaves[0]
    assert leaf.text.startswith("Q\nstep 1 way ") and leaf.line()[1].step.tokens == tokens
    again = nett.cache.ets("Q\n", nett.cache.endpoint_steps(url, model="m", stop="\n"), by_words, width=4, depth=5)
    assert again.ledger == found.ledger and again.answer == found.answer


def test_steps_that_are_cut_and_branches_that_end_without_an_answer(url: str) -> None:
    Stub.mode = "long"
    found = nett.cache.ets("Q", nett.cache.endpoint_steps(url, model="m", stop=";"), by_words, width=1)
    assert [a["prompt"] for a in Stub.asked] == ["Q", "Qcut ", "Qcut whole;"], (
        "a stop is put back, but not to what was cut"
    )
    assert found.answer is None and found.ledger["done"] == 1 and found.ledger["steps"] == 3


@pytest.mark.parametrize(
    ("mode", "said"),
    [("broken", "answered 500"), ("words", "no JSON"), ("empty", "without choices: .*busy")],
)
def test_a_server_that_fails(url: str, mode: str, said: str) -> None:
    Stub.mode = mode
    steps = nett.cache.endpoint_steps(url, model="m")
    with pytest.raises(NettError, match=f"/v1/completions: .*{said}"):
        nett.cache.ets("Q", steps, by_words, width=2)


def test_no_server_and_bad_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(NettError, match="cannot be reached"):
        nett.cache.ets("Q", nett.cache.endpoint_steps("http://127.0.0.1:9/v1", model="m"), by_words, width=2)
    with pytest.raises(UsageError, match="not an http address"):
        nett.cache.endpoint_steps("file:///etc", model="m")
